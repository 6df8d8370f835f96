"""Taking units out of arrays shaped like a leaf of params."""

from typing import Any, NamedTuple

import numpy as np


class Cut(NamedTuple):
    """What stays of a leaf.

    Axes are counted from the end, so that it fits stacks of such leaves as well.

    Attributes:
      units: (axis, which stay) of the leaf's own units, or `None` for all.
      read: (axis, which stay) of the units it reads, or `None` for all. In groups these
        are the rows of all groups, one after the other.
      groups: groups of the leaf, each with its own rows and units.
      counts: the axis of its own units, for the groups.
    """

    units: tuple[int, np.ndarray] | None = None
    read: tuple[int, np.ndarray] | None = None
    groups: int = 1
    counts: int = -1


def cut(x: Any, how: Cut) -> np.ndarray:
    """Takes out what does not stay.

    >>> cut(np.arange(4).reshape(2, 2), Cut(read=(-2, np.array([False, True]))))
    array([[2, 3]])
    """
    x = np.asarray(x)
    if how.read is not None:
        axis, stay = how.read
        parts = np.split(x, how.groups, axis=how.counts)
        stay = np.split(stay, how.groups)
        parts = [
            np.compress(keep, part, axis=axis)
            for keep, part in zip(stay, parts, strict=True)
        ]
        x = np.concatenate(parts, axis=how.counts) if len(parts) > 1 else parts[0]
    if how.units is not None:
        axis, stay = how.units
        x = np.compress(stay, x, axis=axis)
    return x
