"""Links checked against params and gathered by the layer whose units they speak of."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxprune.units._link import Link, check_between, mixes, rows_of


class Reader(NamedTuple):
    """A kernel that reads units.

    Attributes:
      link: from the units to it.
      bias: path of its bias, "" for none.
      rows: those that read each unit, (units, fan).
      outputs: how many its own units are.
    """

    link: Link
    bias: str
    rows: np.ndarray
    outputs: int


class Layer(NamedTuple):
    """A kernel whose units may be removed.

    Attributes:
      kernel: its path.
      axis: the one that counts the units, from the end.
      size: number of units.
      bias: path of the bias, "" for none.
      blocks: the units are in so many blocks of equal width, which must stay equal, for
        convolutions in groups make or read them.
      readers: who reads the units, all of them.
      mixed: why none of its units may go, if so.
    """

    kernel: str
    axis: int
    size: int
    bias: str
    blocks: int
    readers: tuple[Reader, ...]
    mixed: str | None


def layers_of(
    shapes: Mapping[str, tuple[int, ...]], links: Sequence[Link]
) -> list[Layer]:
    """Gathers links by producer, in the order in which they are first named.

    Args:
      shapes: those of the params, by path.
      links: all links of the producers that they name.

    Raises:
      ValueError: if a link names no leaf, if what a link says does not fit the shapes,
        or if two links contradict each other.
    """
    for link in links:
        _check(shapes, link)
    _check_together(shapes, links)
    layers = []
    for kernel in dict.fromkeys(link.producer for link in links):
        readers = []
        for link in links:
            if link.producer == kernel:
                shape, (unit, reads, counts) = shapes[link.consumer], link.axes
                size = shapes[kernel][unit]
                rows = rows_of(link, size, shape[reads])
                bias = bias_of(shapes, link, 1)
                readers.append(Reader(link, bias, rows, shape[counts]))
        first = readers[0].link
        axis = first.axes[0] % len(shapes[kernel]) - len(shapes[kernel])
        own = [link.groups for link in links if link.consumer == kernel]
        blocks = math.lcm(*own[:1], *(r.link.groups for r in readers))
        mixed = next(filter(None, (mixes(r.link) for r in readers)), None)
        bias = bias_of(shapes, first, 0)
        size = shapes[kernel][axis]
        layers.append(Layer(kernel, axis, size, bias, blocks, tuple(readers), mixed))
    return layers


def bias_of(shapes: Mapping[str, tuple[int, ...]], link: Link, end: int) -> str:
    """Gives the path of the producer's (end 0) or the consumer's (1) bias, or "".

    Raises:
      ValueError: if it is not told which of several leaves the bias is, or one that
        was told does not fit.
    """
    kernel, axis = (
        (link.producer, link.consumer)[end],
        (link.axes[0], link.axes[2])[end],
    )
    size = shapes[kernel][axis]
    if link.biases is not None:
        path = link.biases[end]
        if path and path not in shapes:
            raise ValueError(_unknown(path, shapes))
        if path and math.prod(shapes[path]) != size:
            raise ValueError(
                f"{path} has shape {shapes[path]}, expected {size} numbers, one for "
                f"each unit of {kernel}, whose bias a link says it is."
            )
        return path
    home = kernel.rpartition("/")[0]
    beside = [
        path
        for path, shape in shapes.items()
        if path != kernel
        and path.rpartition("/")[0] == home
        and math.prod(shape) == size
    ]
    named = [path for path in beside if path.rpartition("/")[2] == "bias"]
    if beside and not named:
        raise ValueError(
            f"{', '.join(beside)} may be the bias of {kernel}, but none is called "
            '"bias"; give the links `biases`, with "" where there is none.'
        )
    return named[0] if named else ""


def _unknown(path: str, shapes: Mapping[str, Any]) -> str:
    return f"a link names {path}, expected one of the leaves {', '.join(shapes)}."


def _check(shapes: Mapping[str, tuple[int, ...]], link: Link) -> None:
    check_between(link)
    ends = (link.producer, link.consumer, link.consumer)
    for path, axis in zip(ends, link.axes, strict=True):
        if path not in shapes:
            raise ValueError(_unknown(path, shapes))
        if not -len(shapes[path]) <= axis < len(shapes[path]):
            raise ValueError(
                f"{path} has shape {shapes[path]} and no axis {axis}, which a link "
                f"from {link.producer} to {link.consumer} names."
            )
    units = shapes[link.producer][link.axes[0]]
    rows, outputs = (shapes[link.consumer][axis] for axis in link.axes[1:])
    if link.groups > 1:
        fits = link.fan == 1 and link.offset == 0
        fits = fits and rows * link.groups == units and outputs % link.groups == 0
    else:
        fits = link.fan >= 1 and link.groups == 1 and rows % link.fan == 0
        fits = fits and 0 <= link.offset <= rows // link.fan - units
    if not fits:
        raise ValueError(
            f"{link.consumer} has {rows} rows and {outputs} units, which do not fit "
            f"{units} units of {link.producer} with fan {link.fan}, offset "
            f"{link.offset} and {link.groups} groups."
        )


def _check_together(
    shapes: Mapping[str, tuple[int, ...]], links: Sequence[Link]
) -> None:
    counted: dict[str, int] = {}
    for link in links:
        for path, axis in ((link.producer, 0), (link.consumer, 2)):
            axis = link.axes[axis] % len(shapes[path])
            if counted.setdefault(path, axis) != axis:
                raise ValueError(
                    f"links count the units of {path} on axes {counted[path]} and "
                    f"{axis}, expected one axis."
                )
    for path in dict.fromkeys(link.consumer for link in links):
        taken: set[int] = set()
        found = [link for link in links if link.consumer == path]
        for link in found:
            same = (link.axes[1] - found[0].axes[1]) % len(shapes[path]) == 0
            units = shapes[link.producer][link.axes[0]]
            rows = set(
                rows_of(link, units, shapes[path][link.axes[1]]).ravel().tolist()
            )
            if not same or link.groups != found[0].groups or taken & rows:
                raise ValueError(
                    f"links to {path} contradict each other: two read the same rows, "
                    "or they differ in axes or groups; expected an offset for each."
                )
            taken |= rows
        count = shapes[path][found[0].axes[1]]
        if len(taken) < count:
            raise ValueError(
                f"links name {len(taken)} of the {count} rows of {path}, expected all: "
                "is a producer missing, or a fan?"
            )
