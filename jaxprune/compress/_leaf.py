"""One leaf as bytes: positions, codebook and codes of live weights, or all as it is."""

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, cast

import numpy as np
from jaxtyping import Bool, Shaped, UInt

from jaxprune.compress import _index, _streams
from jaxprune.compress._huffman import CorruptError
from jaxprune.compress._streams import Coder


MOST_CLUSTERS = 1 << 16
PARTS = ("values", "gap book", "gaps", "codebook", "code book", "codes")


class Leaf(NamedTuple):
    """What has to be known of a leaf to decode it.

    Attributes:
      shape: of the array.
      dtype: of the array.
      parts: bytes of each part, in the order in which they lie.
      alive: live weights; `None` where there is no mask.
      fillers: symbols of position that stand for no weight.
      gap_bits: bits of a gap.
      clusters: distinct live values; 0 where they are stored as they are.
      coder: that of the gaps and codes.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    parts: Mapping[str, int]
    alive: int | None = None
    fillers: int = 0
    gap_bits: int = 0
    clusters: int = 0
    coder: Coder = "range"


def encode_leaf(
    p: Shaped[np.ndarray, "*shape"], m: Bool[np.ndarray, "*shape"] | None, coder: Coder
) -> tuple[Leaf, list[bytes]]:
    """Codes an array whose dead weights are zero.

    Returns:
      What has to be known of it, and its parts.
    """
    if m is None:
        parts = {"values": _bytes(p)}
        return _describe(p, parts), list(parts.values())
    alive, flat = m.reshape(-1), p.reshape(-1)
    gaps = _index.find_gaps(alive)
    bits = _index.best_bits(gaps, lambda counts: _streams.price(counts, coder))
    symbols = _index.to_symbols(gaps, bits)
    fillers = symbols.size - gaps.size
    del gaps
    parts: dict[str, bytes] = {}
    parts["gap book"], parts["gaps"] = _streams.pack(symbols, 1 << bits, coder)
    del symbols
    live = flat[alive]
    found = _codebook(live)
    if found is None:
        clusters, parts["values"] = 0, _bytes(live)
    else:
        centroids, codes = found
        clusters, parts["codebook"] = centroids.size, _bytes(centroids)
        packed = _streams.pack(codes, clusters, coder)
        parts["code book"], parts["codes"] = packed
    leaf = _describe(p, parts)._replace(
        alive=live.size, fillers=fillers, gap_bits=bits, clusters=clusters, coder=coder
    )
    return leaf, [parts[name] for name in leaf.parts]


def decode_leaf(
    leaf: Leaf, data: bytes
) -> tuple[Shaped[np.ndarray, "..."], Bool[np.ndarray, "..."] | None]:
    """Gives back the array and its mask.

    Raises:
      CorruptError: if `encode_leaf` writes no such bytes.
    """
    parts, size = _split(leaf, data), math.prod(leaf.shape)
    if leaf.alive is None:
        return _values(parts["values"], leaf.dtype, size).reshape(leaf.shape), None
    if leaf.alive + leaf.fillers * (2**leaf.gap_bits - 1) > size:
        raise CorruptError(
            f"it has {leaf.alive:,} live weights and {leaf.fillers:,} fillers, too "
            f"many for its shape {leaf.shape}"
        )
    alive = np.zeros(size, np.bool_)
    symbols = _streams.unpack(
        parts["gap book"],
        parts["gaps"],
        leaf.alive + leaf.fillers,
        1 << leaf.gap_bits,
        leaf.coder,
    )
    try:
        count = _index.to_mask(symbols, leaf.gap_bits, alive)
    except IndexError as error:
        raise CorruptError(str(error)) from error
    if count != leaf.alive:
        raise CorruptError(f"it has {count:,} live weights, expected {leaf.alive:,}")
    array = np.zeros(size, leaf.dtype)
    for where, values in _live(leaf, parts, alive):
        array[where] = values
    return array.reshape(leaf.shape), alive.reshape(leaf.shape)


def _live(leaf: Leaf, parts: Mapping[str, bytes], alive: np.ndarray) -> Iterator[Any]:
    """Gives positions and values, some thousands at a time."""
    count, done = cast(int, leaf.alive), 0
    if not leaf.clusters:
        held, centroids = _values(parts["values"], leaf.dtype, count), None
    else:
        centroids = _values(parts["codebook"], leaf.dtype, leaf.clusters)
        held = np.empty(count, np.uint8 if leaf.clusters <= 256 else np.uint16)
        at = 0
        for codes in _streams.unpack(
            parts["code book"], parts["codes"], count, leaf.clusters, leaf.coder
        ):
            held[at : at + codes.size] = codes
            at += codes.size
    for where in _index.live_slices(alive):
        some = held[done : done + where.size]
        yield where, some if centroids is None else centroids[some]
        done += where.size


def _codebook(
    live: Shaped[np.ndarray, " alive"],
) -> tuple[Shaped[np.ndarray, " clusters"], UInt[np.ndarray, " alive"]] | None:
    """Finds the distinct values in ascending order; `None` if they are not shared."""
    width = live.dtype.itemsize
    if width > 8 or live.size < 2:
        return None
    bits = live.view(f"u{width}")
    if live.dtype.kind != "u":
        # Integers that order like the values, by which equal bits are told, so that -0
        # stays what it is.
        top = bits.dtype.type(1 << (8 * width - 1))
        negative = bits >= top
        flip = ~bits if live.dtype.kind in "fV" else bits ^ top
        bits = np.where(negative, flip, bits | top)
    distinct = _distinct(bits)
    if distinct is None:
        return None
    first = np.empty(distinct.size, np.int64)
    codes = np.searchsorted(distinct, bits).astype(np.uint16)
    first[codes] = np.arange(codes.size)
    return live[first], codes


def _distinct(bits: UInt[np.ndarray, " n"]) -> UInt[np.ndarray, " clusters"] | None:
    """Finds the distinct values, in parts so that millions unshared end soon."""
    found = bits[:0]
    for start in range(0, bits.size, _index.CHUNK):
        found = np.union1d(found, bits[start : start + _index.CHUNK])
        if found.size > min(MOST_CLUSTERS, bits.size // 2):
            return None
    return found


def _describe(p: np.ndarray, parts: Mapping[str, bytes]) -> Leaf:
    sizes = {name: len(parts[name]) for name in PARTS if parts.get(name)}
    return Leaf(p.shape, p.dtype, sizes)


def _split(leaf: Leaf, data: bytes) -> dict[str, bytes]:
    parts: dict[str, bytes] = {name: b"" for name in PARTS}
    at = 0
    for name, size in leaf.parts.items():
        parts[name] = data[at : at + size]
        at += size
    return parts


def _bytes(array: np.ndarray) -> bytes:
    array = np.ascontiguousarray(array)
    return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()


def _values(data: bytes, dtype: np.dtype, n: int) -> np.ndarray:
    if len(data) != n * dtype.itemsize:
        raise CorruptError(
            f"{n:,} values of {dtype} take {n * dtype.itemsize:,} bytes, and "
            f"{len(data):,} are there"
        )
    return np.frombuffer(data, dtype.newbyteorder("<")).astype(dtype)
