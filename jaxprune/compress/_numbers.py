"""Whole numbers of any size, range coded: how long each is, then its bits as they are.

For numbers of which only the magnitude can be told beforehand: steps from one centroid
to the next, live weights of a row.
"""

from typing import Any

import numpy as np
from jaxtyping import Int, UInt

from jaxprune.compress import _range
from jaxprune.compress._huffman import CorruptError


LENGTHS = 65  # bits of a number, 0 to 64
LIMB = 16  # bits that are coded at a time
TRUST = 0.25


def encode(encoder: Any, numbers: UInt[np.ndarray, " n"]) -> None:
    """Codes numbers of up to 64 bits."""
    numbers = numbers.astype(np.uint64)
    length = _length(numbers)
    _range.encode(encoder, length.astype(np.uint16), LENGTHS, TRUST)
    for shift, which, size in _limbs(length):
        limb = (numbers[which] >> np.uint64(shift)).astype(np.int64) & (size - 1)
        uniform = _range.models().Uniform()
        encoder.encode(limb.astype(np.int32), uniform, size.astype(np.int32))


def decode(decoder: Any, n: int) -> UInt[np.ndarray, " n"]:
    """Reads `n` numbers.

    Raises:
      CorruptError: if no encoder writes such data.
    """
    parts = list(_range.decode(decoder, n, LENGTHS, TRUST))
    length = np.concatenate([np.zeros(0, np.uint16), *parts]).astype(np.int64)
    # The highest bit of a number is known from its length.
    top = np.maximum(length - 1, 0).astype(np.uint64)
    numbers = (length > 0).astype(np.uint64) << top
    for shift, which, size in _limbs(length):
        uniform = _range.models().Uniform()
        limb = _range.decode_block(decoder, uniform, size.astype(np.int32))
        numbers[which] |= limb.astype(np.uint64) << np.uint64(shift)
    return numbers


def encode_ascending(encoder: Any, numbers: UInt[np.ndarray, " n"]) -> None:
    """Codes ascending numbers by the steps between them."""
    encode(encoder, np.diff(numbers.astype(np.uint64), prepend=np.uint64(0)))


def decode_ascending(decoder: Any, n: int, bits: int) -> UInt[np.ndarray, " n"]:
    """Reads ascending numbers of so many bits.

    Raises:
      CorruptError: if they do not ascend, or are too large.
    """
    numbers = np.cumsum(decode(decoder, n), dtype=np.uint64)
    falls = numbers[1:] <= numbers[:-1]
    if falls.any() or (n and int(numbers[-1]) >> bits):
        raise CorruptError("numbers that should ascend do not")
    return numbers


def _length(numbers: UInt[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    length = np.zeros(numbers.size, np.int64)
    left = numbers.copy()
    for step in (32, 16, 8, 4, 2, 1):
        large = left >> np.uint64(step) > 0
        length[large] += step
        left[large] >>= np.uint64(step)
    return length + (left > 0)


def _limbs(length: Int[np.ndarray, " n"]) -> Any:
    """Gives shift, numbers concerned, and how many values their bits there have."""
    for shift in range(0, LENGTHS - 1, LIMB):
        width = np.clip(length - 1 - shift, 0, LIMB)
        which = np.flatnonzero(width)
        if which.size:
            yield shift, which, 1 << width[which]
