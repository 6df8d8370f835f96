"""Distinct values in ascending order, told apart by their bits, and coded as steps."""

import numpy as np
from jaxtyping import Shaped, UInt

from jaxprune.compress import _numbers, _range
from jaxprune.compress._huffman import CorruptError


MOST = 1 << 16  # distinct values
CHUNK = 1 << 18  # values that are sorted at a time


def split(
    live: Shaped[np.ndarray, " alive"],
) -> tuple[UInt[np.ndarray, " clusters"], UInt[np.ndarray, " alive"]] | None:
    """Finds distinct values, and which of them each value is.

    Returns:
      Integers that order like the distinct values, ascending, and an index into them
      for each value; `None` if the values are not shared by two each, on average.
    """
    if live.dtype.itemsize > 8 or live.size < 2:
        return None
    ordered = to_ordered(live)
    distinct = ordered[:0]
    for start in range(0, ordered.size, CHUNK):
        # In parts, so that millions of values that nobody shares end soon.
        distinct = np.union1d(distinct, ordered[start : start + CHUNK])
        if distinct.size > min(MOST, ordered.size // 2):
            return None
    return distinct, np.searchsorted(distinct, ordered).astype(np.uint16)


def encode(distinct: UInt[np.ndarray, " clusters"]) -> bytes:
    """Range codes ascending integers."""
    encoder = _range.new_encoder()
    _numbers.encode_ascending(encoder, distinct)
    return _range.finish(encoder)


def decode(data: bytes, n: int, dtype: np.dtype) -> Shaped[np.ndarray, " clusters"]:
    """Reads the values whose integers `encode` wrote.

    Raises:
      CorruptError: if it writes no such data.
    """
    decoder = _range.new_decoder(data)
    distinct = _numbers.decode_ascending(decoder, n, 8 * dtype.itemsize)
    _range.check_finished(decoder)
    return from_ordered(distinct, dtype)


def to_ordered(values: Shaped[np.ndarray, " n"]) -> UInt[np.ndarray, " n"]:
    """Gives the bits of values as unsigned integers that order like the values.

    >>> to_ordered(np.float16([-2, -0.0, 0, 2])).tolist()
    [16383, 32767, 32768, 49152]
    """
    bits = values.view(f"u{values.dtype.itemsize}")
    if values.dtype.kind in "ub":
        return bits
    top = _top(bits)
    if values.dtype.kind not in "fV":  # V: bfloat16
        return bits ^ top
    return np.where(bits >= top, ~bits, bits | top)


def from_ordered(
    ordered: UInt[np.ndarray, " n"], dtype: np.dtype
) -> Shaped[np.ndarray, " n"]:
    """Gives back the values: the inverse of `to_ordered`.

    Raises:
      CorruptError: if these are no values of the dtype.
    """
    bits = ordered.astype(f"u{dtype.itemsize}")
    if dtype.kind == "b" and bits.max(initial=0) > 1:
        raise CorruptError("its codebook has a truth value above 1")
    if dtype.kind not in "ub":
        top = _top(bits)
        flipped = np.where(bits >= top, bits ^ top, ~bits)
        bits = flipped if dtype.kind in "fV" else bits ^ top
    return bits.view(dtype)


def _top(bits: np.ndarray) -> np.unsignedinteger:
    return bits.dtype.type(1 << (8 * bits.dtype.itemsize - 1))
