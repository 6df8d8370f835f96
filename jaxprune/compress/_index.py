"""Positions of live weights as gaps of few bits, and the choice of how many.

With `bits` for a gap, the symbols 0 .. 2**bits - 2 say how many dead weights come
before the next live one. The last symbol is a filler: 2**bits - 1 dead weights, and no
live one yet. One bit for a gap is the mask itself, one symbol for each weight.
"""

from collections.abc import Callable, Iterable, Iterator

import numpy as np
from jaxtyping import Bool, Int, UInt


MAX_BITS = 16
CHUNK = 1 << 18  # weights at a time
LEEWAY = 5e-4  # of the least size, for fewer symbols: they take time


def find_gaps(alive: Bool[np.ndarray, " n"]) -> Int[np.ndarray, " alive"]:
    """Counts the dead weights before each live one.

    >>> find_gaps(np.array([False, True, True, False, False, True]))
    array([1, 0, 2])
    """
    live = np.flatnonzero(alive)
    gaps = np.diff(live, prepend=-1)
    gaps -= 1
    return gaps


def to_symbols(
    gaps: Int[np.ndarray, " alive"], bits: int
) -> UInt[np.ndarray, " symbols"]:
    """Splits gaps into fillers and a rest.

    >>> to_symbols(np.array([1, 0, 7]), 2).tolist()  # 7 is two fillers of 3, and 1
    [1, 0, 3, 3, 1]
    """
    filler = 2**bits - 1
    fillers, rest = np.divmod(gaps, filler)
    if not fillers.any():
        return rest.astype(np.uint16)
    symbols = np.full(gaps.size + int(fillers.sum()), filler, np.uint16)
    symbols[np.cumsum(fillers + 1) - 1] = rest
    return symbols


def to_mask(
    parts: Iterable[UInt[np.ndarray, " _"]], bits: int, alive: Bool[np.ndarray, " n"]
) -> int:
    """Sets the live weights of a mask of False from their symbols; a filler is a step.

    >>> mask = np.zeros(12, bool)
    >>> to_mask([np.uint16([1, 0, 3, 3, 1])], 2, mask)
    3
    >>> np.flatnonzero(mask).tolist()
    [1, 2, 10]

    Returns:
      How many were set.

    Raises:
      IndexError: if the symbols lead beyond the mask.
    """
    filler, at, count = 2**bits - 1, -1, 0
    for symbols in parts:
        is_live = symbols != filler
        at_each = np.cumsum(symbols + is_live.astype(np.int64)) + at
        live = at_each[is_live]
        at = int(at_each[-1]) if at_each.size else at
        if at >= alive.size:
            raise IndexError(f"a position is {at:,} of {alive.size:,}")
        alive[live] = True
        count += live.size
    return count


def live_slices(alive: Bool[np.ndarray, " n"]) -> Iterator[Int[np.ndarray, " part"]]:
    """Gives the positions of live weights, some thousands at a time, in order."""
    for start in range(0, alive.size, CHUNK):
        yield np.flatnonzero(alive[start : start + CHUNK]) + start


def best_bits(
    gaps: Int[np.ndarray, " alive"],
    cost: Callable[[Int[np.ndarray, " symbols"]], float],
) -> int:
    """Finds the bits for a gap that make the coded symbols smallest.

    Sizes within a two-thousandth of the least count as equal, and then fewer symbols
    win, because they take less time.

    Args:
      gaps: of one tensor.
      cost: bits that symbols of these counts take, their code book included.
    """
    distinct, times = np.unique(gaps, return_counts=True)
    most = int(distinct.max(initial=0)) + 2
    widest = min(max(1, (most - 1).bit_length()), MAX_BITS)
    counts = [count_symbols(distinct, times, bits) for bits in range(1, widest + 1)]
    prices = np.array([cost(c) for c in counts])
    good = np.flatnonzero(prices <= prices.min() * (1 + LEEWAY))
    return 1 + int(min(good, key=lambda i: counts[i].sum()))


def count_symbols(
    distinct: Int[np.ndarray, " gaps"], times: Int[np.ndarray, " gaps"], bits: int
) -> Int[np.ndarray, " symbols"]:
    """Counts the symbols that gaps, so many times each, are split into."""
    filler = 2**bits - 1
    fillers, rest = np.divmod(distinct, filler)
    counts = np.zeros(filler + 1, np.int64)
    np.add.at(counts, rest, times)
    counts[filler] = np.dot(fillers, times)
    return counts
