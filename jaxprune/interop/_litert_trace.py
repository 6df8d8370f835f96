"""The operators of a traced function, whichever way its layers are written.

Slices, transposes, borders and the like only move numbers. They are run on the places
of the numbers, until something is computed from them; `_litert_windows.py` then finds
the convolution or the pooling that reads these places.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune._program import Step, flatten, run_step
from jaxprune._types import Params
from jaxprune.compress._save import named_leaves
from jaxprune.interop._litert_compare import (
    compare,
    larger,
    logical,
    operand,
    tested,
)
from jaxprune.interop._litert_layers import (
    convolve,
    product,
    window_max,
    window_sum,
)
from jaxprune.interop._litert_nodes import (
    Node,
    added,
    rectified,
    shortest,
)
from jaxprune.interop._litert_views import (
    MOVES,
    Test,
    Value,
    View,
    Walk,
    joined_fill,
    move,
    node_of,
    source_of,
    view_of,
    whole,
)
from jaxprune.interop._litert_windows import Product


def trace(apply: Callable[..., Any], params: Params, shape: tuple[int, ...]) -> Node:
    """Gives the operators of `apply(params, x)`, with x of float32, (1, *shape).

    Raises:
      ValueError: if it has something else than what can be written.
    """
    x = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    program = flatten(apply, params, x)
    if any(jnp.issubdtype(t.dtype, jax.dtypes.prng_key) for t in program.types):
        raise ValueError(
            "it makes or takes random keys, expected a function of params and x alone; "
            "turn dropout off in it, by deterministic=True for instance"
        )
    *slots, given = program.inputs
    walk = Walk(program, {}, {})
    walk.values.update({k: np.asarray(v) for k, v in program.constants.items()})
    for slot, (name, leaf, _) in zip(slots, named_leaves(params, None), strict=True):
        walk.values[slot], walk.names[slot] = np.asarray(leaf), name
    walk.values[given] = whole(Node("input", x.shape, name="input"))
    for step in program.steps:
        made = _known(walk, step) or _follow(walk, step)
        walk.values.update(zip(step.outputs, made, strict=True))
    if len(program.outputs) != 1:
        raise ValueError(f"it has {len(program.outputs)} outputs, expected one array")
    return node_of(walk, program.outputs[0])


def _known(walk: Walk, step: Step) -> list[Value] | None:
    """Computes what does not depend on the input."""
    values = [walk.values[slot] for slot in step.inputs]
    if not all(isinstance(value, np.ndarray) for value in values):
        return None
    names = {walk.names[slot] for slot in step.inputs if slot in walk.names}
    if len(names) == 1:
        walk.names.update(dict.fromkeys(step.outputs, *names))
    return [np.asarray(out) for out in run_step(step, values)]


def _follow(walk: Walk, step: Step) -> list[Value]:
    name = step.primitive.name
    if name in MOVES:
        return move(walk, step)
    if name not in _RULES:
        shapes = [walk.program.types[slot].shape for slot in step.inputs]
        raise ValueError(
            f"it has {name} of {shapes}, expected only convolutions, dense layers, "
            "pooling, ReLU, sums, products, roots and the like of activations, and "
            "what moves them"
        )
    return [_RULES[name](walk, step)]


def _reduce_max(walk: Walk, step: Step) -> View:
    view, axes = view_of(walk, step.inputs[0]), step.params["axes"]
    if view.fill not in (None, -np.inf):
        view = whole(node_of(walk, step.inputs[0]))
    at = np.moveaxis(view.at, [axis + 1 for axis in axes], range(1, 1 + len(axes)))
    return view._replace(at=at.reshape(-1, *at.shape[1 + len(axes) :]))


def _max(walk: Walk, step: Step) -> View:
    one, other = (walk.values[slot] for slot in step.inputs[-2:])
    if isinstance(one, View) and isinstance(other, View):
        same, fill = joined_fill([one, other])
        if same:
            return View(one.of, np.concatenate([one.at, other.at]), fill)
        return _binary("max")(walk, step)
    one_known = isinstance(one, np.ndarray)
    constant, slot = (one if one_known else other), step.inputs[-1 if one_known else -2]
    view = view_of(walk, slot)
    if np.all(constant == -np.inf):
        return view
    if np.any(constant != 0):
        return _binary("max")(walk, step)
    of, at, fill = view
    if isinstance(of, Product) or fill is not None:
        of, at = source_of(walk, slot)
    return View(rectified(of), at)


def _select(walk: Walk, step: Step) -> View:
    """Reads `where(b > a, b, a)`, which is a maximum; selects by other tests."""
    if len(step.inputs) != 3:
        raise ValueError(f"it selects among {len(step.inputs) - 1} values, expected 2")
    test, one, other = step.inputs
    if larger(walk.values[test]) == (other, one):
        return _max(walk, step)
    shape = walk.program.types[step.outputs[0]].shape
    if walk.program.types[test].shape != shape:
        raise ValueError("it selects whole arrays by one test")
    cases = [operand(walk, slot, shape) for slot in (other, one)]
    given = tested(walk, walk.values[test], shape)
    return whole(Node("select", shape, (given, *cases)))


def _add(walk: Walk, step: Step) -> View:
    for slot, other in (step.inputs, step.inputs[::-1]):
        if isinstance(walk.values[other], np.ndarray):
            node, at = source_of(walk, slot)
            constant = _turned(walk.values[other], at, node.shape)
            return View(added(node, constant), at)
    return _binary("add")(walk, step)


def _binary(kind: str) -> Callable[[Walk, Step], View]:
    def rule(walk: Walk, step: Step) -> View:
        slots = step.inputs[-2:]
        constant = [isinstance(walk.values[slot], np.ndarray) for slot in slots]
        if not any(constant):
            operands = tuple(node_of(walk, slot) for slot in slots)
            shape = walk.program.types[step.outputs[0]].shape
            return whole(Node(kind, shape, operands))
        node, at = source_of(walk, slots[constant.index(False)])
        operands = tuple(
            shortest(_turned(walk.values[slot], at, node.shape), node.shape)
            if known
            else node
            for slot, known in zip(slots, constant, strict=True)
        )
        return View(Node(kind, node.shape, operands), at)

    return rule


def _turned(constant: Any, at: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Gives a constant in the order of the tensor whose numbers are `at` of a value."""
    turned = np.empty(at.size, np.float32)
    turned[at.ravel()] = np.broadcast_to(constant, at.shape[1:]).ravel()
    return turned.reshape(shape)


def _unary(kind: str) -> Callable[[Walk, Step], View]:
    def rule(walk: Walk, step: Step) -> View:
        node, at = source_of(walk, step.inputs[0])
        return View(Node(kind, node.shape, (node,)), at)

    return rule


def _power(walk: Walk, step: Step) -> View:
    node, at = source_of(walk, step.inputs[0])
    power, made = step.params.get("y", 2), node
    if power == 0:
        raise ValueError("it raises activations to the power 0")
    for _ in range(abs(power) - 1):
        made = Node("mul", node.shape, (made, node))
    if power < 0:
        made = Node("div", node.shape, (np.ones(1, np.float32), made))
    return View(made, at)


def _beside_one(kind: str) -> Callable[[Walk, Step], View]:
    """Computes exp(x) - 1 or log(1 + x), less exactly than JAX does near 0."""

    def rule(walk: Walk, step: Step) -> View:
        node, at = source_of(walk, step.inputs[0])
        one = np.ones(1, np.float32)
        if kind == "log":
            return View(Node("log", node.shape, (added(node, one),)), at)
        return View(added(Node("exp", node.shape, (node,)), -one), at)

    return rule


def _sum(walk: Walk, step: Step) -> View:
    x, axes = node_of(walk, step.inputs[0]), np.array(step.params["axes"], np.int32)
    shape = walk.program.types[step.outputs[0]].shape
    return whole(Node("sum", shape, (x, axes)))


def _same(walk: Walk, step: Step) -> View:
    if step.params["new_dtype"] != np.float32:
        raise ValueError(f"it computes in {step.params['new_dtype']}, expected float32")
    test = walk.values[step.inputs[0]]
    if isinstance(test, Test):
        shape = walk.program.types[step.outputs[0]].shape
        cases = np.ones(1, np.float32), np.zeros(1, np.float32)
        return whole(Node("select", shape, (tested(walk, test, shape), *cases)))
    return view_of(walk, step.inputs[0])


_UNARY = ("abs", "exp", "log", "logistic", "neg", "rsqrt", "sqrt", "tanh")
_RULES: dict[str, Callable[[Walk, Step], Value]] = {
    "dot_general": product,
    "conv_general_dilated": convolve,
    "reduce_window_max": window_max,
    "reduce_window_sum": window_sum,
    "reduce_max": _reduce_max,
    "max": _max,
    "select_n": _select,
    **dict.fromkeys(("gt", "ge", "lt", "le", "eq", "ne"), compare),
    **dict.fromkeys(("or", "and", "not"), logical),
    "add": _add,
    **{kind: _binary(kind) for kind in ("sub", "mul", "div", "min")},
    **{kind: _unary(kind) for kind in _UNARY},
    **dict.fromkeys(("square", "integer_pow"), _power),
    "expm1": _beside_one("exp"),
    "log1p": _beside_one("log"),
    "reduce_sum": _sum,
    "convert_element_type": _same,
}
