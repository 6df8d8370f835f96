"""What a product tells of its kernel: which axis reads units, which counts its own.

A kernel is seldom multiplied as it is stored, so each entry of the operand is asked for
its place in the leaf. Along the operand's contracted axis that place is constant in the
leaf's reading axis, along the other in the axis that counts the kernel's units.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np

from jaxprune._weights import Weight
from jaxprune.units._link import Between


class Operand(NamedTuple):
    """Entries of a product's operand.

    Attributes:
      leaf: number of the leaf that they are of.
      shape: that of the leaf.
      places: index into each axis of the leaf, broadcastable to the operand's shape.
      entries: numbers from 1 of the leaf's entries, 0 where the operand holds none;
        `None` if it holds every entry once.
    """

    leaf: int
    shape: tuple[int, ...]
    places: tuple[np.ndarray, ...]
    entries: np.ndarray | None


class Piece(NamedTuple):
    """A kernel, or a part of its units, as one product reads by it.

    Attributes:
      leaf: number of the leaf.
      axes: which reads and which counts the units.
      rows: label of the units that each of the leaf's rows reads; 0 for none.
      outputs: which of its units the product makes.
      through: what lies between a layer's units and the product.
      grouped: whether the product is one group of several.
    """

    leaf: int
    axes: tuple[int, int]
    rows: np.ndarray
    outputs: np.ndarray
    through: Mapping[int, tuple[Between, ...]]
    grouped: bool


def operand_of_leaf(leaf: int, shape: tuple[int, ...]) -> Operand:
    """Gives the operand that a leaf itself is."""
    places = np.meshgrid(*map(np.arange, shape), indexing="ij", sparse=True)
    return Operand(leaf, shape, tuple(places), None)


def operand_of(
    weight: Weight, shapes: Sequence[tuple[int, ...]], shape: tuple[int, ...]
) -> Operand | None:
    """Gives the operand that a weight is; `None` if it is not of one leaf."""
    if weight.codes is None or len(weight.leaves) != 1:
        return None
    (leaf,) = weight.leaves
    size = math.prod(shapes[leaf])
    numbers = np.arange(1, size + 1, dtype=np.int32).reshape(shapes[leaf])
    entries = np.asarray(jax.jit(weight.codes)({leaf: numbers}))
    if entries.shape != shape:
        return None
    places = np.unravel_index(np.maximum(entries, 1) - 1, shapes[leaf])
    return Operand(leaf, shapes[leaf], places, None if weight.whole else entries)


def units_of(
    operand: Operand, ndim: int, axes: Sequence[int]
) -> tuple[int, np.ndarray] | None:
    """Finds the leaf's axis that counts its units, along some axes of the operand.

    Returns:
      The axis and the unit at each place along `axes`, flat; `None` if there is none,
      or if what makes a unit is not each of its weights once.
    """
    found = _along(operand, ndim, axes)
    if not found:
        return None
    if operand.entries is not None:
        others = tuple(i for i in range(ndim) if i not in axes)
        made = operand.entries.transpose(*axes, *others).reshape(len(found[0][1]), -1)
        made = np.sort(made[found[0][1] >= 0], axis=1)
        twice = (made[:, 1:] == made[:, :-1]) & (made[:, 1:] > 0)
        weights = math.prod(operand.shape) // operand.shape[found[0][0]]
        if twice.any() or (np.count_nonzero(made, axis=1) != weights).any():
            return None
    return found[0]


def rows_read(
    operand: Operand, ndim: int, axes: Sequence[int], units: int, label: np.ndarray
) -> tuple[int, np.ndarray] | None:
    """Finds the leaf's axis that reads, along some axes of the operand.

    Args:
      operand: the kernel.
      ndim: number of its axes.
      axes: those that are contracted.
      units: the leaf's axis that counts its units.
      label: of what is read at each place along `axes`, flat.

    Returns:
      The axis and the label that each of its rows reads; `None` if there is none.
    """
    for axis, places in _along(operand, ndim, axes):
        if axis == units:
            continue
        labels, places = label[places >= 0], places[places >= 0]
        rows = np.zeros(operand.shape[axis], np.int32)
        rows[places] = labels
        if np.array_equal(rows[places], labels):
            return axis, rows
    return None


def _along(
    operand: Operand, ndim: int, axes: Sequence[int]
) -> list[tuple[int, np.ndarray]]:
    """Lists the leaf's axes that depend on some axes of the operand alone.

    First those along which something varies; of those, the last of the leaf's first.
    """
    others = tuple(i for i in range(ndim) if i not in axes)
    given, found = None if operand.entries is None else operand.entries > 0, []
    for axis, place in reversed(list(enumerate(operand.places))):
        if given is None:
            low, high = (
                place.min(others, keepdims=True),
                place.max(others, keepdims=True),
            )
        else:
            place = np.broadcast_to(place, given.shape)
            low = np.where(given, place, operand.shape[axis]).min(others, keepdims=True)
            high = np.where(given, place, -1).max(others, keepdims=True)
        if ((low == high) | (high < 0)).all():
            found.append((axis, high))
    found.sort(key=lambda pair: pair[1].max() == pair[1].min())
    full = np.broadcast_shapes(*(place.shape for place in operand.places))
    wide = [full[i] if i in axes else 1 for i in range(ndim)]
    order = (*axes, *others)
    return [
        (axis, np.broadcast_to(high, wide).transpose(order).reshape(-1))
        for axis, high in found
    ]
