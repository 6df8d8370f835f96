"""What a program makes of its weights before a product reads them.

A kernel is seldom multiplied as it is stored: it is reshaped, transposed, cast, padded,
stacked with others. `follow` carries along, through such steps, where each entry comes
from, so that the entries of a product can be told apart: live weights, dead ones, and
zeros that the program itself put there, which are no weights at all.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune._program import Step, run_step


class Weight(NamedTuple):
    """A value that is computed from leaves of params, and of nothing that varies.

    Attributes:
      leaves: numbers of the leaves that it is computed from.
      size: entries of the largest of these.
      whole: whether it holds every entry of one leaf once, in any order.
      codes: makes an integer array of its shape, given those of the leaves by number:
        i + 1 at an entry of leaf i that is alive, minus that where it is dead, 0 at a
        zero that is no weight. `None` where a dead weight need not be a zero any more.
    """

    leaves: frozenset[int]
    size: int
    whole: bool
    codes: Callable[[Mapping[int, Any]], Any] | None


class Constant(NamedTuple):
    """A value that depends on nothing; `value` computes it."""

    value: Callable[[], Any]


# Steps of one operand after which every entry is still there once.
_SAME = frozenset(
    "reshape transpose squeeze expand_dims rev copy copy_p convert_element_type "
    "reduce_precision optimization_barrier stop_gradient sharding_constraint "
    "device_put name".split()
)
# Steps that only move, drop or repeat entries, whether weights or activations.
MOVES = _SAME | frozenset(
    "broadcast_in_dim slice dynamic_slice concatenate stack unstack tile pad split "
    "gather".split()
)
JOINS = ("concatenate", "stack")
# Steps that change no entry's code: functions that take zero, and but for single points
# only zero, to zero, and those that change the type alone.
_AS_IS = frozenset(
    "neg abs sign sqrt cbrt square sin tan sinh tanh asin atan asinh atanh expm1 log1p "
    "erf floor ceil round real conj convert_element_type reduce_precision copy copy_p "
    "stop_gradient sharding_constraint device_put name".split()
)


def of_leaf(number: int, size: int) -> Weight:
    """Makes the weight that a leaf is."""
    return Weight(frozenset([number]), size, True, lambda leaves: leaves[number])


def mixed(weights: Sequence[Weight]) -> Weight:
    """Makes what is computed from weights in a way that is not followed."""
    leaves = frozenset[int]().union(*(w.leaves for w in weights))
    return Weight(leaves, max(w.size for w in weights), False, None)


def follow(
    step: Step,
    inputs: Sequence[Weight | Constant],
    shapes: Sequence[tuple[int, ...]],
) -> list[Weight]:
    """Gives what the outputs of a step are, at least one of its inputs a weight.

    Args:
      step: anything but a product.
      inputs: one for each slot that the step reads.
      shapes: that of the first input, then of each output.
    """
    weights = [x for x in inputs if isinstance(x, Weight)]
    name, first = step.primitive.name, inputs[0]
    lost = [mixed(weights) for _ in step.outputs]
    if name == "optimization_barrier" and len(weights) == len(inputs):
        return weights
    # A factor whose own zeros are lost, such as a norm, still kills nothing.
    if name == "mul":
        owner = _owner(weights)
        return [_spread(_product(weights), shapes[1])] if owner.codes else lost
    if name == "div" and isinstance(first, Weight):
        return [_spread(_quotient(weights), shapes[1])] if first.codes else lost
    if any(w.codes is None for w in weights):
        return lost
    sizes = [math.prod(shape) for shape in shapes]
    power = name == "integer_pow" and step.params["y"] > 0
    if isinstance(first, Weight) and (power or name in _AS_IS):
        return [first]
    if name == "select_n" and len(weights) == 1 and isinstance(first, Constant):
        # A mask in the forward pass: w where alive, else 0. The report has its own.
        return weights if _all_zero(inputs[1:]) else lost
    if name in JOINS:
        return _moved(step, inputs, weights, sizes) if _all_zero(inputs) else lost
    if name == "pad":
        fits = isinstance(first, Weight) and _all_zero(inputs)
        return _moved(step, inputs, weights, sizes) if fits else lost
    if name in MOVES and isinstance(first, Weight) and len(weights) == 1:
        return _moved(step, inputs, weights, sizes)
    return lost


def _all_zero(inputs: Sequence[Weight | Constant]) -> bool:
    constants = [x for x in inputs if isinstance(x, Constant)]
    return not any(np.any(np.asarray(x.value())) for x in constants)


def _moved(
    step: Step,
    inputs: Sequence[Weight | Constant],
    weights: Sequence[Weight],
    sizes: Sequence[int],
) -> list[Weight]:
    filled = step.primitive.name == "pad" or step.primitive.name in JOINS
    one_to_one = step.primitive.name in _SAME or step.primitive.name in (
        "broadcast_in_dim", "slice",
    )  # fmt: skip

    def codes(output: int, of: Mapping[int, Any]) -> Any:
        made = [
            x.codes(of) if isinstance(x, Weight) and x.codes else None for x in inputs
        ]
        dtype = next(m.dtype for m in made if m is not None)
        operands = []
        for x, m in zip(inputs, made, strict=True):
            if isinstance(x, Constant):
                m = jnp.asarray(x.value())
                # What is filled in takes the type of the codes; positions keep theirs.
                m = m.astype(dtype) if filled else m
            operands.append(m)
        return run_step(step, operands)[output]

    leaves, size = mixed(weights)[:2]
    whole = one_to_one and weights[0].whole and sizes[1] == sizes[0]
    return [
        Weight(leaves, size, whole, lambda of, i=i: codes(i, of))
        for i in range(len(step.outputs))
    ]


def _quotient(weights: Sequence[Weight]) -> Weight:
    """Follows a division, whose divisor kills nothing."""
    leaves = mixed(weights).leaves
    whole = weights[0].whole and leaves == weights[0].leaves
    return weights[0]._replace(leaves=leaves, whole=whole)


def _spread(weight: Weight, shape: tuple[int, ...]) -> Weight:
    """Broadcasts codes, as an elementwise step does with axes of length 1."""
    if weight.whole and weight.size == math.prod(shape):
        return weight
    codes = weight.codes
    assert codes is not None
    spread = lambda of: jnp.broadcast_to(codes(of), shape)
    return weight._replace(whole=False, codes=spread)


def _owner(weights: Sequence[Weight]) -> Weight:
    """Gives the largest factor, of two from the same leaf the one that is followed."""
    return max(weights, key=lambda w: (w.size, w.codes is not None))


def _product(weights: Sequence[Weight]) -> Weight:
    """Follows an elementwise product, dead where a factor is.

    Its entries belong to the larger leaf, which a scale or a norm is not.
    """
    if len(weights) == 1:
        return weights[0]
    owner = _owner(weights)

    def codes(of: Mapping[int, Any]) -> Any:
        first, *made = [w.codes(of) for w in (owner, *weights) if w.codes]
        zero, dead = first == 0, first < 0
        for m in made:
            zero, dead = zero | (m == 0), dead | (m < 0)
        size = jnp.abs(first)
        return jnp.where(zero, 0, jnp.where(dead, -size, size))

    return Weight(mixed(weights).leaves, owner.size, False, codes)


def count_entries(
    weight: Weight,
    leaves: Sequence[tuple[int, int]],
    alive: Mapping[int, Any],
    shapes: Sequence[tuple[int, ...]],
) -> dict[int, tuple[int, int]]:
    """Counts entries by leaf: (all, alive). Zeros that are no weights are in none.

    Args:
      weight: one whose codes are known.
      leaves: (size, alive) of every leaf of params.
      alive: masks by number of the leaf; none where nothing is pruned.
      shapes: those of the leaves.
    """
    if weight.codes is None:
        return {}
    if weight.whole:
        (leaf,) = weight.leaves
        return {leaf: leaves[leaf]}
    dtype = np.min_scalar_type(-len(leaves) - 1)
    own = {}
    for i in weight.leaves:
        live = np.asarray(alive[i]) if i in alive else np.ones(shapes[i], bool)
        own[i] = np.where(live, i + 1, -i - 1).astype(dtype)
    # Compiled as one: step by step, each would be compiled on its own.
    codes = np.asarray(jax.jit(weight.codes)(own))
    found = {}
    for i in sorted(weight.leaves):
        live = int(np.count_nonzero(codes == i + 1))
        total = live + int(np.count_nonzero(codes == -i - 1))
        if total:
            found[i] = (total, live)
    return found
