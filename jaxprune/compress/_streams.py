"""One sequence of symbols as bytes, by either entropy coder."""

from collections.abc import Iterator
from typing import Literal

import numpy as np
from jaxtyping import Int, UInt

from jaxprune.compress import _huffman, _range
from jaxprune.compress._huffman import CorruptError


Coder = Literal["range", "huffman"]

LENGTH_BITS = 5  # of a code length in a code book: 0 to 20


def pack(
    symbols: UInt[np.ndarray, " n"], alphabet: int, coder: Coder
) -> tuple[bytes, bytes]:
    """Codes symbols below `alphabet`.

    Returns:
      The code book, which the range coder does without; and the code.
    """
    if coder == "range":
        encoder = _range.new_encoder()
        _range.encode(encoder, symbols, alphabet)
        return b"", _range.finish(encoder)
    lengths = _huffman.code_lengths(np.bincount(symbols, minlength=alphabet))
    return _pack_lengths(lengths), _huffman.encode(symbols, lengths).tobytes()


def unpack(
    book: bytes, code: bytes, n: int, alphabet: int, coder: Coder
) -> Iterator[UInt[np.ndarray, " part"]]:
    """Reads `n` symbols below `alphabet` that `pack` wrote, part by part.

    Raises:
      CorruptError: if these are bytes that `pack` does not write.
    """
    if coder == "range":
        if book:
            raise CorruptError("it has a code book, which the range coder has not")
        return _unpack_range(code, n, alphabet)
    lengths = _unpack_lengths(book, alphabet)
    return _huffman.decode(np.frombuffer(code, np.uint8), lengths, n)


def _unpack_range(code: bytes, n: int, alphabet: int) -> Iterator[np.ndarray]:
    decoder = _range.new_decoder(code)
    yield from _range.decode(decoder, n, alphabet)
    _range.check_finished(decoder)


def price(counts: Int[np.ndarray, " symbols"], coder: Coder) -> float:
    """Estimates the bits that symbols of these counts take, code book included."""
    if coder == "huffman":
        return float(_huffman.coded_bits(counts) + LENGTH_BITS * counts.size)
    seen = counts[counts > 0].astype(np.float64)
    if seen.size < 2:
        return 0.0
    # What is not known beforehand of a frequency costs half a logarithm of the number,
    # and a guess for symbols that do not come is worse the more there are of them.
    learning = 0.5 * seen.size * np.log2(seen.sum()) + _range.TRUST * counts.size
    return float(-np.sum(seen * np.log2(seen / seen.sum())) + learning)


def _pack_lengths(lengths: UInt[np.ndarray, " symbols"]) -> bytes:
    bits = np.unpackbits(lengths[:, None], axis=1)[:, -LENGTH_BITS:]
    return np.packbits(bits).tobytes()


def _unpack_lengths(book: bytes, alphabet: int) -> UInt[np.ndarray, " symbols"]:
    if len(book) != -(-alphabet * LENGTH_BITS // 8):
        raise CorruptError(
            f"a code book has {len(book):,} bytes, which is not that of "
            f"{alphabet:,} symbols"
        )
    bits = np.unpackbits(np.frombuffer(book, np.uint8))[: alphabet * LENGTH_BITS]
    rows = np.zeros((alphabet, 8), np.uint8)
    rows[:, -LENGTH_BITS:] = bits.reshape(alphabet, LENGTH_BITS)
    return np.packbits(rows, axis=1).ravel()
