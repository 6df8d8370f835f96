"""Which weights are alive, as gaps or as a map of rows: whichever takes fewer bytes."""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool

from jaxprune.compress import _index, _map, _streams
from jaxprune.compress._huffman import CorruptError
from jaxprune.compress._streams import Coder


LARGEST_MAP = 1 << 20  # weights: a map takes time for each, alive or dead
MOST_LAGS, FARTHEST = 4, 256  # neighbours, and rows between them that are tried


class Positions(NamedTuple):
    """What has to be known to decode positions.

    Attributes:
      gap_bits: bits of a gap; 0 for a map.
      fillers: gaps that lead to no weight.
      turned: whether a row of the map is one output (last axis), not one input.
      lags: rows of the map from a bit to its neighbours.
    """

    gap_bits: int
    fillers: int = 0
    turned: bool = False
    lags: tuple[int, ...] = ()


def encode(
    alive: Bool[np.ndarray, "..."], coder: Coder
) -> tuple[Positions, dict[str, bytes]]:
    """Codes a mask; gives what has to be known of it, and its parts."""
    gaps = _index.find_gaps(alive.reshape(-1))
    price = lambda counts: _streams.price(counts, coder)
    bits = _index.best_bits(gaps, price)
    symbols = _index.to_symbols(gaps, bits)
    book, coded = _streams.pack(symbols, 1 << bits, coder)
    best = Positions(bits, symbols.size - gaps.size)
    parts = {"gap book": book, "gaps": coded}
    if coder == "range":
        maps = [Positions(0, lags=lags) for lags in lags_of(alive)]
        for positions in [*maps, Positions(0, turned=True)] if maps else []:
            data = _map.encode(rows(alive, positions.turned), positions.lags)
            if len(data) < sum(len(part) for part in parts.values()):
                best, parts = positions, {"map": data}
    return best, parts


def decode(
    positions: Positions,
    parts: dict[str, bytes],
    count: int,
    shape: tuple[int, ...],
    coder: Coder,
) -> Bool[np.ndarray, "..."]:
    """Gives back the mask, of which `count` weights live.

    Raises:
      CorruptError: if `encode` writes no such parts.
    """
    size = math.prod(shape)
    if count + positions.fillers * (2**positions.gap_bits - 1) > size:
        raise CorruptError(
            f"it has {count:,} live weights and {positions.fillers:,} fillers, too "
            f"many for its shape {shape}"
        )
    if not positions.gap_bits:
        alive = np.zeros(shape, np.bool_)
        bits = rows(alive, positions.turned)
        found = _map.decode(parts["map"], positions.lags, bits)
        if positions.turned:
            alive = np.ascontiguousarray(bits.T)
    else:
        alive = np.zeros(size, np.bool_)
        symbols = _streams.unpack(
            parts["gap book"],
            parts["gaps"],
            count + positions.fillers,
            1 << positions.gap_bits,
            coder,
        )
        try:
            found = _index.to_mask(symbols, positions.gap_bits, alive)
        except IndexError as error:
            raise CorruptError(str(error)) from error
    if found != count:
        raise CorruptError(f"it has {found:,} live weights, expected {count:,}")
    return alive.reshape(shape)


def lags_of(alive: Bool[np.ndarray, "..."]) -> list[tuple[int, ...]]:
    """Gives the distances between neighbours that are tried: none, for a large leaf."""
    if alive.ndim < 2 or not 1 < alive.size <= LARGEST_MAP:
        return []
    tried = [(), _map.find_lags(rows(alive), FARTHEST)]
    if alive.ndim > 2 and alive.shape[-3] > 1:  # a convolution: left and above
        left = alive.shape[-2]
        tried.append((left, left * alive.shape[-3]))
    return list(dict.fromkeys(tried))


def rows(
    alive: Bool[np.ndarray, "..."], turned: bool = False
) -> Bool[np.ndarray, "rows columns"]:
    """Makes the leading axes one, and puts the last before it if it is to be turned."""
    flat = alive.reshape(-1, alive.shape[-1])
    return np.ascontiguousarray(flat.T) if turned else flat
