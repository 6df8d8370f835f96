"""Numbers of a tensor whose places move evenly with the place of the number made."""

import itertools
from typing import NamedTuple

import numpy as np

from jaxprune.interop._litert_nodes import Node, bordered, reshape, sliced


class Line(NamedTuple):
    """Places along an axis: start + step * position; a start for each read."""

    start: np.ndarray
    step: int
    known: bool  # whether there are two positions to tell the step from


def moved(x: Node, at: np.ndarray, fill: float) -> Node | None:
    """Gives the numbers `at` of a tensor by slices and borders, or by a transpose."""
    lines = fit(at[None], x.shape) if at.ndim == len(x.shape) else None
    if lines is None:
        return _turned(x, at)
    begin = [int(line.start[0]) for line in lines]
    step = [line.step for line in lines]
    end = [a + s * (n - 1) + 1 for a, s, n in zip(begin, step, at.shape, strict=True)]
    if max(step) > 1:
        inside = min(begin) >= 0 and all(np.array(end) <= x.shape)
        return sliced(x, begin, end, step) if inside else None
    sides = [(-a, b - n) for a, b, n in zip(begin, end, x.shape, strict=True)]
    return bordered(x, sides, fill)


def _turned(x: Node, at: np.ndarray) -> Node | None:
    """Gives numbers an even step apart along each axis: reshape, slice, transpose."""
    size, most = int(np.prod(x.shape)), 6  # axes that LiteRT transposes
    if at.min() < 0 or at.ndim > most:
        return None
    first, ones = int(at.flat[0]), [n == 1 for n in at.shape]
    steps = [
        size if one else int(at.take(1, axis).flat[0]) - first
        for axis, one in enumerate(ones)
    ]
    # The larger an axis's step, the earlier it was.
    before = np.argsort(-np.array(steps), kind="stable")
    given, steps = [at.shape[i] for i in before], [steps[i] for i in before]
    pairs = [(s, n) for s, n in zip(steps, given, strict=True) if n > 1]
    if min((s for s, _ in pairs), default=1) < 1:
        return None
    if pairs and size % pairs[0][0]:  # what it is a part of is no whole number of steps
        rows = pairs[0][0] * pairs[0][1]
        start = min(first, size - rows)
        if start < 0:
            return None
        x = sliced(reshape(x, (1, size)), [0, start], [1, start + rows], [1, 1])
        return _turned(x, at - start)
    apart = [size, *(s for s, _ in pairs), 1]
    if any(a % b for a, b in itertools.pairwise(apart)):
        return None
    order = [int(i) for i in np.argsort(before, kind="stable")]
    places = np.full(given, first)
    for place in np.ix_(*map(np.multiply, map(np.arange, given), steps)):
        places += place
    if not np.array_equal(places.transpose(order), at):
        return None
    # Axes as far apart as the steps; of each, where it begins and how many are taken.
    shape = [a // b for a, b in itertools.pairwise(apart)]
    counts = [*(n for _, n in pairs), 1]
    begins = [first // b % n for b, n in zip(apart[1:], shape, strict=True)]
    parts = [(1, 0, 1)]
    for n, begin, count in zip(shape, begins, counts, strict=True):
        if begin + count > n:
            return None
        outer, start, taken = parts[-1]
        if len(parts) > 1 and (begin, count) == (0, n):  # whole: one axis with the last
            parts[-1] = (outer * n, start * n, taken * n)
        else:
            parts.append((n, begin, count))
    if len(parts) > most - 1:  # axes that LiteRT slices
        return None
    begin, end = [b for _, b, _ in parts], [b + n for _, b, n in parts]
    taken = sliced(reshape(x, [n for n, _, _ in parts]), begin, end, [1] * len(parts))
    made = reshape(taken, given)
    if order == sorted(order):
        return made
    return Node("transpose", at.shape, (made, np.array(order, np.int32)))


def fit(at: np.ndarray, shape: tuple[int, ...]) -> list[Line] | None:
    """Fits reads (reads, *positions), of as many axes as a tensor has; -1 outside."""
    inside = at >= 0
    if not len(at) or not inside.any(tuple(range(1, at.ndim))).all():
        return None
    lines, expected, within = [], np.zeros(1, np.int64), np.ones(1, bool)
    places = np.unravel_index(np.where(inside, at, 0), shape)
    for axis, (n, place) in enumerate(zip(shape, places, strict=True), 1):
        others = tuple(i for i in range(1, at.ndim) if i != axis)
        line = _line(np.where(inside, place, -1).max(others))
        if line is None:
            return None
        lines.append(line)
        position = line.step * np.arange(at.shape[axis])
        aligned = [-1 if i in (0, axis) else 1 for i in range(at.ndim)]
        aligned[0], aligned[axis] = len(at), at.shape[axis]
        place = (line.start[:, None] + position).reshape(aligned)
        within = within & (place >= 0) & (place < n)
        expected = expected * n + place
    same = np.array_equal(at, np.where(within, expected, -1))
    return lines if same else None


def _line(place: np.ndarray) -> Line | None:
    """Fits places (reads, positions), -1 where unknown."""
    seen = place >= 0
    first = seen.argmax(1)
    last = seen.shape[1] - 1 - seen[:, ::-1].argmax(1)
    of = np.arange(len(place))
    widest = int((last - first).argmax())
    run = int((last - first)[widest])
    rise = int(place[widest, last[widest]] - place[widest, first[widest]])
    step = rise // run if run else 1
    if step < 1:
        return None
    return Line(place[of, first] - step * first, step, run > 0)
