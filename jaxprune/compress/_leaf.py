"""One leaf as bytes: positions, codebook and codes of live weights, or all as it is."""

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Shaped, UInt

from jaxprune.compress import _beside, _codebook, _index, _positions, _streams
from jaxprune.compress._huffman import CorruptError
from jaxprune.compress._positions import Positions
from jaxprune.compress._streams import Coder


PARTS = ("values", "gap book", "gaps", "map", "codebook", "code book", "codes")


class Leaf(NamedTuple):
    """What has to be known of a leaf to decode it.

    Attributes:
      shape: of the array.
      dtype: of the array.
      parts: bytes of each part, in the order in which they lie.
      positions: of live weights; `None` where there is no mask.
      alive: live weights.
      clusters: distinct live values; 0 where they are stored as they are.
      coder: that of positions and codes.
      beside: rows to the weights by which a code is judged, if it is.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    parts: Mapping[str, int]
    positions: Positions | None = None
    alive: int = 0
    clusters: int = 0
    coder: Coder = "range"
    beside: tuple[int, ...] = ()


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
    positions, parts = _positions.encode(m, coder)
    live, clusters, beside = p[m], 0, ()
    found = _codebook.split(live)
    if found is None:
        parts["values"] = _bytes(live)
    else:
        distinct, codes = found
        clusters = distinct.size
        values = _codebook.from_ordered(distinct, p.dtype)
        parts["codebook"] = _bytes(values)
        if coder == "range":
            parts["codebook"] = min(_bytes(values), _codebook.encode(distinct), key=len)
        parts["code book"], parts["codes"] = _streams.pack(codes, clusters, coder)
        for lags in _beside_lags(m, clusters, coder):
            zero = _zero(values)
            data = _beside.encode(codes, _positions.rows(m), lags, clusters, zero)
            if len(data) < len(parts["codes"]):
                parts["codes"], beside = data, lags
    leaf = _describe(p, parts)
    leaf = Leaf(*leaf[:3], positions, live.size, clusters, coder, beside)
    return leaf, [parts[name] for name in leaf.parts]


def decode_leaf(
    leaf: Leaf, data: bytes
) -> tuple[Shaped[np.ndarray, "..."], Bool[np.ndarray, "..."] | None]:
    """Gives back the array and its mask.

    Raises:
      CorruptError: if `encode_leaf` writes no such bytes.
    """
    parts = _split(leaf, data)
    if leaf.positions is None:
        values = _values(parts["values"], leaf.dtype, math.prod(leaf.shape))
        return values.reshape(leaf.shape), None
    alive = _positions.decode(leaf.positions, parts, leaf.alive, leaf.shape, leaf.coder)
    array = np.zeros(alive.size, leaf.dtype)
    for where, values in _live(leaf, parts, alive.reshape(-1)):
        array[where] = values
    return array.reshape(leaf.shape), alive


def _live(leaf: Leaf, parts: Mapping[str, bytes], alive: np.ndarray) -> Iterator[Any]:
    """Gives positions and values, some thousands at a time."""
    done, centroids = 0, None
    if leaf.clusters:
        centroids = _centroids(leaf, parts["codebook"])
        held = _codes(leaf, parts, alive, centroids)
    else:
        held = _values(parts["values"], leaf.dtype, leaf.alive)
    for where in _index.live_slices(alive):
        some = held[done : done + where.size]
        yield where, some if centroids is None else centroids[some]
        done += where.size


def _centroids(leaf: Leaf, data: bytes) -> np.ndarray:
    if leaf.coder == "range" and len(data) < leaf.clusters * leaf.dtype.itemsize:
        return _codebook.decode(data, leaf.clusters, leaf.dtype)
    return _values(data, leaf.dtype, leaf.clusters)


def _codes(
    leaf: Leaf, parts: Mapping[str, bytes], alive: np.ndarray, centroids: np.ndarray
) -> UInt[np.ndarray, " alive"]:
    if leaf.beside:
        rows, zero = alive.reshape(-1, leaf.shape[-1]), _zero(centroids)
        return _beside.decode(parts["codes"], rows, leaf.beside, leaf.clusters, zero)
    codes = np.empty(leaf.alive, np.uint8 if leaf.clusters <= 256 else np.uint16)
    at = 0
    for part in _streams.unpack(
        parts["code book"], parts["codes"], leaf.alive, leaf.clusters, leaf.coder
    ):
        codes[at : at + part.size] = part
        at += part.size
    return codes


def _beside_lags(
    m: Bool[np.ndarray, "..."], clusters: int, coder: Coder
) -> list[tuple[int, ...]]:
    """Gives the neighbours that are tried."""
    if coder != "range" or not 2 <= clusters <= _beside.MOST:
        return []
    return [lags for lags in _positions.lags_of(m) if lags]


def _zero(centroids: np.ndarray) -> int:
    """Counts the centroids below zero."""
    ordered = _codebook.to_ordered(centroids)
    zero = _codebook.to_ordered(np.zeros(1, centroids.dtype))
    return int(np.searchsorted(ordered, zero[0]))


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
