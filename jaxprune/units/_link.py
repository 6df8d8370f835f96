"""Which kernel feeds which, and what a constant unit becomes on the way."""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import numpy as np


Between: TypeAlias = str | Callable[[np.ndarray], np.ndarray]

_zero_alone = lambda c: np.where(c == 0, 0.0, np.nan)
_nothing = lambda c: np.full_like(c, np.nan)

# What a unit of constant value becomes: NaN where it is not one constant any more.
_BETWEEN: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "relu": lambda c: np.maximum(c, 0),
    "max pool": lambda c: c,
    "zero padding": _zero_alone,
    "LRN": _zero_alone,
    "GroupNorm": _nothing,
}
_NEIGHBOURS = ("LRN", "GroupNorm")
_MIXING = "mixing"


class Link(NamedTuple):
    """One kernel feeding another, both named by path.

    A unit is an output channel of the producer. Where `fan` positions of n channels are
    flattened in the order height, width, channel, the consumer's row for position p
    and unit u is p n + offset + u. A grouped consumer has n / groups rows, and its
    output channels are in as many groups; unit u is row u mod (n / groups) of the
    outputs of group u div (n / groups).

    Attributes:
      producer: path of the kernel one of whose axes counts the units.
      consumer: path of the kernel one of whose axes reads them.
      fan: consumer rows per unit, for a flatten in between: height * width.
      offset: the units of other producers that stand before these, where several are
        concatenated.
      groups: groups of the consumer.
      between: what lies between, in order, of what decides how a unit may be removed.
        Through "relu" a constant unit stays a constant, "max pool" and a flatten leave
        it as it is, "zero padding" does so only if it is 0, and through "LRN" and
        "GroupNorm" a unit acts on its neighbours. "mixing: ..." says why units must all
        stay. Instead of a name, a function from float64 values of constant units to
        what they become, NaN where that is not one constant.
      channels_first: whether a flatten runs over channel, height, width instead: row
        (offset + u) fan + p.
      axes: that of the producer which counts the units, that of the consumer which
        reads them, and that of the consumer which counts its own.
      biases: paths of the biases of producer and consumer, "" for none. The default is
        the leaf "bias" beside the kernel, if there is one.
    """

    producer: str
    consumer: str
    fan: int = 1
    offset: int = 0
    groups: int = 1
    between: tuple[Between, ...] = ("relu",)
    channels_first: bool = False
    axes: tuple[int, int, int] = (-1, -2, -1)
    biases: tuple[str, str] | None = None


def mixes(link: Link) -> str | None:
    """Says why none of the producer's units may go, whatever reads them; or `None`."""
    for b in link.between:
        if isinstance(b, str) and b in _NEIGHBOURS:
            return f"through {b} it acts on its neighbours"
        if isinstance(b, str) and b.startswith(_MIXING):
            return b.removeprefix(f"{_MIXING}: ")
    return None


def check_between(link: Link) -> None:
    """Checks the names of what lies between.

    Raises:
      ValueError: if one is not known.
    """
    for b in link.between:
        if isinstance(b, str) and b not in _BETWEEN and not b.startswith(_MIXING):
            raise ValueError(
                f"{b!r} lies between {link.producer} and {link.consumer}, expected one "
                f"of {', '.join(_BETWEEN)}, or a function of the values of constant "
                "units."
            )


def constants(link: Link, values: np.ndarray) -> np.ndarray:
    """Gives what the consumer reads of units that are constant; NaN if no constant.

    >>> constants(Link("a", "b", between=("relu", "zero padding")), np.array([-1., 2.]))
    array([ 0., nan])
    """
    for b in link.between:
        values = _become(b, values)
    return values


def _become(between: Between, values: np.ndarray) -> np.ndarray:
    if isinstance(between, str):
        return _BETWEEN.get(between, _nothing)(values)
    return between(values)


def obstacle(link: Link, value: float) -> str | None:
    """Names the first of what lies between that leaves no constant of a value.

    `None` if that is what `mixes` tells of.
    """
    values = np.array([value])
    for b in link.between:
        values = _become(b, values)
        if np.isnan(values[0]):
            if not isinstance(b, str):
                return getattr(b, "__name__", repr(b))
            return None if b.startswith(_MIXING) else b
    return None


def rows_of(link: Link, units: int, rows: int) -> np.ndarray:
    """Gives the consumer's rows that read each unit: (units, fan).

    >>> rows_of(Link("a", "b", fan=2, offset=1), 2, 6)
    array([[1, 4],
           [2, 5]])
    """
    u, p = np.arange(units)[:, None], np.arange(link.fan)[None, :]
    if link.groups > 1:
        return u % rows
    if link.channels_first:
        return (link.offset + u) * link.fan + p
    return p * (rows // link.fan) + link.offset + u
