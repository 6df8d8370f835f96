"""Where the live weights of a matrix lie: outputs cut into pieces, pieces into blocks.

Sliced ELL: outputs with about as many live weights stand side by side in a block,
padded to the longest, so that one turn of a loop takes one weight of each. An output
much longer than the rest is cut into pieces, whose sums are added at the end. A block
keeps to `ROWS` pieces, whose sums then stay in the nearest cache.
"""

from typing import NamedTuple

import numpy as np


ROWS = 1100
ADD = 4.0  # nanoseconds of adding a piece to its output
NARROW = 128  # pieces of a block up to which the loop is unrolled
_CUTS = 64  # places where a block may end, times the blocks there must be


class Loop(NamedTuple):
    """What the loops over blocks cost, in nanoseconds.

    Attributes:
      block: of a block.
      turn: of a turn of its loop.
      slot: of each weight in it.
      lanes: pieces that are worked on at a time; a block ends after a multiple of it.
    """

    block: float
    turn: float
    slot: float
    lanes: int


PORTABLE = Loop(2000.0, 45.0, 0.35, 1)  # so small matrices get few blocks
FAST = Loop(100.0, 4.0, 0.27, 16)


class Block(NamedTuple):
    """One slice: weight k of its pieces is in row k.

    Attributes:
      position: (longest, pieces), flat positions in the matrix (outputs, inputs).
      live: (longest, pieces), False at padding.
    """

    position: np.ndarray
    live: np.ndarray


class Pieces(NamedTuple):
    """Pieces in order of length: the output and the range of live weights of each."""

    owner: np.ndarray
    start: np.ndarray
    length: np.ndarray


class Plan(NamedTuple):
    """How a matrix is laid out.

    Attributes:
      pieces: in the order of the blocks.
      ends: where each block ends among them.
      cut: whether an output has several pieces.
      cost: of one product, by the constants above, in nanoseconds.
    """

    pieces: Pieces
    ends: list[int]
    cut: bool
    cost: float

    @property
    def turns(self) -> int:
        """Rows of all blocks."""
        return sum(self._longest())

    @property
    def slots(self) -> int:
        """Weights of all blocks, padding included."""
        widths = np.diff([0, *self.ends])
        return int(np.dot(widths, self._longest()))

    def _longest(self) -> list[int]:
        return [int(self.pieces.length[begin]) for begin in (0, *self.ends[:-1])]


def pieces(lengths: np.ndarray, cap: int) -> Pieces:
    """Cuts outputs of these numbers of live weights into pieces of at most `cap`.

    >>> pieces(np.array([3, 0, 5]), 4).length
    array([4, 3, 1, 0])
    """
    count = np.maximum(1, -(-lengths // cap))
    owner = np.repeat(np.arange(lengths.size), count)
    nth = np.arange(owner.size) - np.repeat(np.cumsum(count) - count, count)
    length = np.minimum(cap, lengths[owner] - nth * cap)
    begin = np.cumsum(lengths) - lengths
    order = np.argsort(-length, kind="stable")
    start = begin[owner] + nth * cap
    return Pieces(owner[order], start[order], length[order])


def cuts(length: np.ndarray, loop: Loop = PORTABLE) -> tuple[list[int], float]:
    """Gives the ends of the cheapest blocks of pieces, longest first, and their cost.

    Dynamic programming over a grid of places; the cost is in nanoseconds.

    >>> cuts(np.array([5000, 5000, 10, 10]))[0]
    [2, 4]
    """
    n = length.size
    grid = max(1, n // (_CUTS * -(-n // ROWS)))
    grid = -(-grid // loop.lanes) * loop.lanes
    ends = [*range(0, n, grid), n]
    best, back = [0.0] + [np.inf] * (len(ends) - 1), [0] * len(ends)
    for j in range(1, len(ends)):
        for i in range(j - 1, -1, -1):
            rows = ends[j] - ends[i]
            if rows > ROWS and i < j - 1:
                break
            turns = int(length[ends[i]])
            cost = best[i] + loop.block + turns * (loop.turn + loop.slot * rows)
            if cost < best[j]:
                best[j], back[j] = cost, i
    found, j = [], len(ends) - 1
    while j:
        found.append(ends[j])
        j = back[j]
    return found[::-1], best[-1]


def plan(lengths: np.ndarray, cut: bool = True, loop: Loop = PORTABLE) -> Plan:
    """Chooses how far outputs of these numbers of live weights are cut, and blocks.

    Without `cut` every output is one piece.
    """
    longest = max(1, int(lengths.max(initial=0)))
    mean = max(1, int(lengths.mean()) if lengths.size else 1)
    shorter = {c * mean for c in (1, 2, 4) if c * mean < longest}
    caps = {longest} | (shorter if cut else set())
    options = []
    for cap in sorted(caps, reverse=True):
        made = pieces(lengths, cap)
        ends, cost = cuts(made.length, loop)
        several = made.owner.size > lengths.size
        # What is cut has to be added up again, one scattered addition a piece.
        extra = loop.block + ADD * made.owner.size if several else 0.0
        options.append(Plan(made, ends, several, cost + extra))
    return min(options, key=lambda option: option.cost)


def blocks(
    mask: np.ndarray, cut: bool = True, loop: Loop = PORTABLE
) -> tuple[list[Block], np.ndarray]:
    """Lays out the live weights of a matrix.

    Args:
      mask: (outputs, inputs), True where alive.
      cut: whether outputs may be cut into pieces.
      loop: what blocks cost.

    Returns:
      The blocks, and the output that each piece belongs to, in their order.
    """
    live = np.flatnonzero(mask)
    found, ends, *_ = plan(np.count_nonzero(mask, axis=1), cut, loop)
    made, begin = [], 0
    for end in ends:
        start, length = found.start[begin:end], found.length[begin:end]
        turns = np.arange(length.max(initial=0))[:, None]
        inside = turns < length
        at = np.where(inside, start + turns, 0)
        position = live[at] if live.size else np.zeros_like(at)
        made.append(Block(position, inside))
        begin = end
    return made, found.owner
