"""Which unit every number of an activation is, followed through a program.

A label is 0 at a constant, -1 at what is no unit of a known layer (the input, or
several units together), else the number of a unit. A number labelled with a unit is
computed from that unit's numbers alone, unless the unit's layer is pinned.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxprune._program import Step, run_step
from jaxprune.units._link import Between, Link, constants


BIG = np.iinfo(np.int32).max
"""Larger than every label."""


class Active(NamedTuple):
    """A value that depends on the function's input.

    Attributes:
      label: of every number, int32.
      through: what lies between a layer's units and this value, by the layer's leaf.
      fresh: layers whose units have only been moved or pooled, so that a bias that is
        added is added to the units themselves.
      ragged: whether some of it, labelled 0, is the -inf of a border.
    """

    label: np.ndarray
    through: Mapping[int, tuple[Between, ...]] = {}
    fresh: frozenset[int] = frozenset()
    ragged: bool = False


class Maker(NamedTuple):
    """A leaf whose axis counts units, numbered from `first`."""

    axis: int
    size: int
    first: int


class Makers:
    """The layers met so far, and what was found out about each.

    Attributes:
      made: by number of the leaf.
      pinned: why all units of a leaf must stay.
      biases: number of the leaf that is the bias.
    """

    def __init__(self) -> None:
        self.made: dict[int, Maker] = {}
        self.pinned: dict[int, str] = {}
        self.biases: dict[int, int] = {}
        self._next = 1

    def add(self, leaf: int, axis: int, size: int) -> Maker:
        """Gives the maker of a leaf, new if it is met for the first time."""
        if leaf not in self.made:
            self.made[leaf] = Maker(axis, size, self._next)
            self._next += size
        elif self.made[leaf].axis != axis:
            self.pin([leaf], "products use its kernel in different ways")
        return self.made[leaf]

    def of(self, label: np.ndarray) -> list[int]:
        """Lists the leaves whose units are among labels."""
        seen = np.bincount(np.maximum(label, 0).reshape(-1), minlength=self._next) > 0
        return [
            leaf
            for leaf, made in self.made.items()
            if seen[made.first : made.first + made.size].any()
        ]

    def pin(self, leaves: Iterable[int], reason: str) -> None:
        """Notes that all units of some leaves must stay; the first reason counts."""
        for leaf in leaves:
            self.pinned.setdefault(leaf, reason)


def combine(makers: Makers, labels: Sequence[np.ndarray], what: str) -> np.ndarray:
    """Gives the labels of what is computed number by number; pins what gets mixed."""
    out = labels[0]
    for other in labels[1:]:
        _pin_where(makers, (out != other) & (out != 0) & (other != 0), out, other, what)
        unit = np.where(out > 0, out, other)
        out = np.where((out > 0) | (other > 0), unit, np.minimum(out, other))
    return out


def gather(
    makers: Makers, low: np.ndarray, high: np.ndarray, label: np.ndarray, what: str
) -> np.ndarray:
    """Gives the labels of what is computed from several numbers at once.

    Args:
      makers: pins the layers of `label` if any of them is mixed.
      low: smallest label of those computed together, other than 0.
      high: their largest label.
      label: all labels.
      what: does this, for the reason.
    """
    one = (low == high) | (high == 0) | (low > high)
    if not one.all():
        makers.pin(makers.of(label), _mixed(what))
    return np.where(one, high, -1).astype(np.int32)


def _pin_where(
    makers: Makers, where: np.ndarray, a: np.ndarray, b: np.ndarray, what: str
) -> None:
    if where.any():
        for label in (a, b):
            makers.pin(makers.of(label[where]), _mixed(what))


def _mixed(what: str) -> str:
    return f"{what} acts on it and others together"


def step_of(
    step: Step,
    dtypes: Sequence[Any],
    operands: Sequence[tuple[Between, ...] | Any],
) -> tuple[Between, ...]:
    """Gives what lies between units and the result of an elementwise step.

    Args:
      step: an elementwise step.
      dtypes: of its operands.
      operands: a tuple for what lies between units and an operand, else the number
        that a constant operand has everywhere.
    """
    chains = [x for x in operands if isinstance(x, tuple)]
    if step.primitive.name == "select_n":
        data = [x for x in operands[1:] if isinstance(x, tuple)]
        if len(data) == len(operands) - 1 and all(x == data[0] for x in data):
            return data[0]
    if step.primitive.name in ("max", "min") and len(chains) == len(operands):
        if all(chain == chains[0] for chain in chains):
            return chains[0]
    if step.primitive.name == "max" and len(chains) == 1:
        if any(not isinstance(x, tuple) and x == 0 for x in operands):
            return (*chains[0], "relu")
    shared = 0
    while all(len(c) > shared and c[shared] == chains[0][shared] for c in chains):
        shared += 1

    def values(c: np.ndarray) -> np.ndarray:
        args = []
        for x, dtype in zip(operands, dtypes, strict=True):
            if isinstance(x, tuple):
                x = constants(Link("", "", between=x[shared:]), c)
            with np.errstate(invalid="ignore"):  # a NaN among integers or bools
                args.append(np.broadcast_to(np.asarray(x).astype(dtype), c.shape))
        out = np.asarray(run_step(step, [jnp.asarray(a) for a in args])[0], np.float64)
        return np.where(np.isnan(c), np.nan, out)

    return (*chains[0][:shared], named(step.primitive.name, values))


def named(name: str, function: Callable[[np.ndarray], np.ndarray]) -> Between:
    """Gives a function a name, for reasons."""
    function.__name__ = name
    return function
