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
from jaxprune.interop._litert_joins import MOVES, joined_fill, move
from jaxprune.interop._litert_layers import (
    convolve,
    product,
    window_max,
    window_sum,
)
from jaxprune.interop._litert_math import (
    add,
    beside_one,
    binary,
    power,
    total,
    unary,
)
from jaxprune.interop._litert_nodes import Node, rectified
from jaxprune.interop._litert_views import (
    Test,
    Value,
    View,
    Walk,
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
        # As JAX takes it: float64 as float32, if it was not told otherwise.
        walk.values[slot], walk.names[slot] = np.asarray(jnp.asarray(leaf)), name
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
        return binary("max")(walk, step)
    one_known = isinstance(one, np.ndarray)
    constant, slot = (one if one_known else other), step.inputs[-1 if one_known else -2]
    view = view_of(walk, slot)
    if np.all(constant == -np.inf):
        return view
    if np.any(constant != 0):
        return binary("max")(walk, step)
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


def _same(walk: Walk, step: Step) -> View:
    if step.params["new_dtype"] != np.float32:
        raise ValueError(f"it computes in {step.params['new_dtype']}, expected float32")
    test = walk.values[step.inputs[0]]
    if isinstance(test, Test):
        shape = walk.program.types[step.outputs[0]].shape
        cases = np.ones(1, np.float32), np.zeros(1, np.float32)
        return whole(Node("select", shape, (tested(walk, test, shape), *cases)))
    return view_of(walk, step.inputs[0])


_UNARY = (
    *("abs", "erf", "erfc", "exp", "log", "logistic", "neg", "rsqrt", "sqrt", "tanh"),
)
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
    "add": add,
    **{kind: binary(kind) for kind in ("sub", "mul", "div", "min")},
    **{kind: unary(kind) for kind in _UNARY},
    **dict.fromkeys(("square", "integer_pow"), power),
    "expm1": beside_one("exp"),
    "log1p": beside_one("log"),
    "reduce_sum": total,
    "convert_element_type": _same,
}
