"""Labels through steps that compute number by number, and which leaf is a bias."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jaxprune._program import Step
from jaxprune._weights import Constant, Weight
from jaxprune.units._labels import Active, combine, named, step_of
from jaxprune.units._link import Between
from jaxprune.units._walk import Value, Walk, share


# Steps that compute every number of the result from one number of each operand.
ELEMENTWISE = frozenset(
    "neg sign floor ceil round is_finite exp exp2 log expm1 log1p tanh logistic sin "
    "cos tan asin acos atan sinh cosh asinh acosh atanh erf erfc erf_inv sqrt rsqrt "
    "cbrt square integer_pow abs not add sub mul div rem max min pow atan2 nextafter "
    "and or xor eq ne lt le gt ge select_n clamp".split()
)

# What takes the larger of two numbers is made of these, and -inf never is the larger.
_LARGER = frozenset("max select_n gt ge lt le eq ne or and not".split())


def elementwise(walk: Walk, step: Step, inputs: Sequence[Value]) -> Active:
    """Follows a step whose every number is made from one of each operand."""
    name = step.primitive.name
    types = [walk.program.types[slot] for slot in step.inputs]
    shape = walk.program.types[step.outputs[0]].shape
    actives = [x for x in inputs if isinstance(x, Active)]
    labels = [np.broadcast_to(x.label, shape) for x in actives]
    label = combine(walk.makers, labels, name)
    if weights := [x for x in inputs if isinstance(x, Weight)]:
        return _with_weight(walk, step, weights, actives, label)
    scalars: list[Any] = []
    for x in inputs:
        if isinstance(x, Constant):
            value = np.asarray(x.value())
            if value.size and (value == value.flat[0]).all():
                scalars.append(value.flat[0])
            else:
                scalars.append(np.nan)
                walk.makers.pin(walk.makers.of(label), "a fixed array acts on it")
        else:
            scalars.append(None)
    # Where an operand is a constant the result is another function of the unit, unless
    # the constant is -inf and the larger of the two is taken.
    parted = np.zeros(shape, bool)
    for x, own in zip(actives, labels, strict=True):
        if not (x.ragged and name in _LARGER):
            parted |= (own == 0) & (label > 0)
    lost = walk.makers.of(label[parted])
    ragged = any(x.ragged for x in actives)
    if ragged and name not in _LARGER:
        lost = walk.makers.of(label)
    through: dict[int, tuple[Between, ...]] = {}
    for leaf in dict.fromkeys(leaf for x in actives for leaf in x.through):
        if leaf in lost or any(leaf not in x.through for x in actives):
            through[leaf] = (named(name, lambda c: np.full_like(c, np.nan)),)
            continue
        operands = [
            x.through.get(leaf, ()) if isinstance(x, Active) else scalar
            for x, scalar in zip(inputs, scalars, strict=True)
        ]
        through[leaf] = step_of(step, [t.dtype for t in types], operands)
    fresh = frozenset[int]()
    data = inputs[1:] if name == "select_n" else inputs
    if name in ("max", "min", "select_n") and len(data) > 1:
        fresh = _common(data)
    return Active(label, through, fresh, ragged and bool((label == 0).any()))


def _common(inputs: Sequence[Value]) -> frozenset[int]:
    fresh = [x.fresh if isinstance(x, Active) else frozenset[int]() for x in inputs]
    return frozenset.intersection(*fresh)


def _with_weight(
    walk: Walk,
    step: Step,
    weights: Sequence[Weight],
    actives: Sequence[Active],
    label: np.ndarray,
) -> Active:
    """Takes an added leaf for the bias if each unit gets its own number of it."""
    makers, through = walk.makers, actives[0].through
    found = makers.of(label)
    if step.primitive.name == "add" and len(actives) == 1 and len(found) == 1:
        (made,) = (makers.made[leaf] for leaf in found)
        bias = _bias(walk, weights[0], label, made.first, made.size)
        fresh = found[0] in actives[0].fresh
        fresh = fresh and walk.altered.isdisjoint(step.inputs)
        if bias is not None and fresh and found[0] not in makers.biases:
            makers.biases[found[0]] = bias
            return Active(label, through)
    share(walk, weights)
    names = ", ".join(walk.paths[leaf] for w in weights for leaf in sorted(w.leaves))
    makers.pin(found, f"{names} acts on it")
    return Active(label, through)


def _bias(
    walk: Walk, weight: Weight, label: np.ndarray, first: int, size: int
) -> int | None:
    if weight.codes is None or len(weight.leaves) != 1 or (label <= 0).any():
        return None
    (leaf,) = weight.leaves
    if math.prod(walk.shapes[leaf]) != size:
        return None
    numbers = np.arange(1, size + 1, dtype=np.int32).reshape(walk.shapes[leaf])
    entries = np.asarray(jax.jit(weight.codes)({leaf: numbers}))
    entries = np.broadcast_to(entries, label.shape)
    return leaf if (entries == label - first + 1).all() else None
