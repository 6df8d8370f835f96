"""Labels through matrix products and convolutions, and what they tell of kernels."""

from collections.abc import Mapping, Sequence

import numpy as np

from jaxprune._program import Step
from jaxprune._weights import Weight
from jaxprune.units._labels import BIG, Active, gather, named
from jaxprune.units._link import Between
from jaxprune.units._pieces import (
    Operand,
    Piece,
    operand_of,
    operand_of_leaf,
    rows_read,
    units_of,
)
from jaxprune.units._walk import Value, Walk, give_up


def product(walk: Walk, step: Step, inputs: Sequence[Value]) -> Active:
    name = step.primitive.name
    weight = next((i for i, x in enumerate(inputs) if isinstance(x, Weight)), None)
    if weight is None:
        return give_up(walk, step, inputs, f"{name} multiplies it by no weights")[0]
    x, w, slot = inputs[1 - weight], inputs[weight], step.inputs[weight]
    assert isinstance(x, Active)
    assert isinstance(w, Weight)
    if x.ragged:
        unknown = named("a border of -inf", lambda c: np.full_like(c, np.nan))
        x = x._replace(through={leaf: (*c, unknown) for leaf, c in x.through.items()})
    shape = walk.program.types[slot].shape
    if slot in walk.stored:
        leaf = walk.stored[slot]
        operand = operand_of_leaf(leaf, walk.shapes[leaf])
    elif slot in walk.altered:
        operand = None
    else:
        operand = operand_of(w, walk.shapes, shape)
    made = None
    if operand is not None:
        multiply = _dot if name == "dot_general" else _conv
        made = multiply(walk, step, x, operand, weight)
    if made is None:
        names = ", ".join(walk.paths[leaf] for leaf in sorted(w.leaves))
        walk.makers.pin(w.leaves, "its kernel is multiplied in a way not followed")
        reason = f"how it is multiplied by {names} is not followed"
        return give_up(walk, step, inputs, reason)[0]
    return made


def _dot(
    walk: Walk, step: Step, x: Active, operand: Operand, weight: int
) -> Active | None:
    contract, batch = step.params["dimension_numbers"]
    if batch[0]:
        return None
    reads, summed = tuple(contract[weight]), tuple(contract[1 - weight])
    ndim = len(walk.program.types[step.inputs[weight]].shape)
    own = tuple(i for i in range(ndim) if i not in reads)
    free = tuple(i for i in range(x.label.ndim) if i not in summed)
    read = _one(walk, x, free, summed)
    found = units_of(operand, ndim, own)
    if found is None:
        return None
    made = _piece(walk, operand, ndim, reads, found, read, x.through, False)
    if made is None:
        return None
    widths = [walk.program.types[step.inputs[weight]].shape[i] for i in own]
    shape = walk.program.types[step.outputs[0]].shape
    label = made.reshape(widths)
    if weight == 0:  # the kernel's axes come first
        label = label.reshape(widths + [1] * len(free))
    label = np.broadcast_to(label, shape)
    return _units(operand.leaf, label)


def _conv(
    walk: Walk, step: Step, x: Active, operand: Operand, weight: int
) -> Active | None:
    numbers = step.params["dimension_numbers"]
    if weight == 0 or step.params["batch_group_count"] != 1:
        return None
    groups = step.params["feature_group_count"]
    feature, ndim = numbers.lhs_spec[1], x.label.ndim
    others = tuple(i for i in range(ndim) if i != feature)
    read = _one(walk, x, others, (feature,)).reshape(groups, -1)
    found = units_of(operand, ndim, (numbers.rhs_spec[0],))
    if found is None:
        return None
    zeros = any(n > 0 for pair in step.params["padding"] for n in pair)
    zeros = zeros or any(n > 1 for n in step.params["lhs_dilation"])
    through = x.through
    if zeros:
        through = {leaf: (*c, "zero padding") for leaf, c in x.through.items()}
    reads, labels = (numbers.rhs_spec[1],), []
    for part, labels_read in zip(np.split(found[1], groups), read, strict=True):
        made = _piece(
            walk, operand, ndim, reads, (found[0], part), labels_read, through,
            groups > 1,
        )  # fmt: skip
        if made is None:
            return None
        labels.append(made)
    wide = [1] * ndim
    wide[numbers.out_spec[1]] = -1
    label = np.concatenate(labels).reshape(wide)
    shape = walk.program.types[step.outputs[0]].shape
    return _units(operand.leaf, np.broadcast_to(label, shape))


def _one(
    walk: Walk, x: Active, over: tuple[int, ...], along: tuple[int, ...]
) -> np.ndarray:
    """Gives the label at each place along some axes, flat; the rest must share it."""
    low = np.where(x.label == 0, BIG, x.label).min(over, keepdims=True)
    high = x.label.max(over, keepdims=True)
    label = gather(walk.makers, low, high, x.label, "a product")
    return label.transpose(*along, *over).reshape(-1)


def _piece(
    walk: Walk,
    operand: Operand,
    ndim: int,
    reads: tuple[int, ...],
    units: tuple[int, np.ndarray],
    read: np.ndarray,
    through: Mapping[int, tuple[Between, ...]],
    grouped: bool,
) -> np.ndarray | None:
    """Notes what a product tells of its kernel; gives the labels of what it makes."""
    axis, outputs = units
    rows = rows_read(operand, ndim, reads, axis, read)
    if rows is None:
        return None
    maker = walk.makers.add(operand.leaf, axis, operand.shape[axis])
    given = np.unique(outputs[outputs >= 0])
    axes = (rows[0], axis)
    walk.pieces.append(Piece(operand.leaf, axes, rows[1], given, through, grouped))
    return np.where(outputs < 0, 0, maker.first + outputs).astype(np.int32)


def _units(leaf: int, label: np.ndarray) -> Active:
    return Active(label, {leaf: ()}, frozenset([leaf]))
