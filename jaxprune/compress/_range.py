"""An adaptive range coder: constriction codes, the models here learn as they go.

No table is stored. Symbols are coded in blocks that grow by a tenth, each with the
frequencies of all before it; both sides know them. Until a symbol has been seen it is
judged by its neighbours, for codes are in the order of their values. Only sums of
integers, products and quotients of single numbers are used, which every machine rounds
alike.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt

from jaxprune.compress._huffman import CorruptError


FIRST_BLOCK = 32  # symbols
LARGEST_BLOCK = 1 << 17
TRUST = 4.0  # symbols that the guess from neighbours weighs as, for each possible one
RARE = 0.02  # symbols: what nobody has seen has a chance, too


def new_encoder() -> Any:
    """Makes an empty range coder of constriction."""
    return _constriction().stream.queue.RangeEncoder()


def new_decoder(data: bytes) -> Any:
    """Makes a decoder of what `finish` returned."""
    if len(data) % 4:
        raise CorruptError("it has no whole number of 32-bit words")
    words = np.frombuffer(data, "<u4").astype(np.uint32)
    return _constriction().stream.queue.RangeDecoder(words)


def finish(encoder: Any) -> bytes:
    """Gives the bytes that an encoder wrote, little-endian words of 32 bits."""
    return encoder.get_compressed().astype("<u4").tobytes()


def check_finished(decoder: Any) -> None:
    """Checks that a decoder has come to the end of its data.

    Raises:
      CorruptError: if there are symbols left.
    """
    if not decoder.maybe_exhausted():
        raise CorruptError("its range code goes on after its last symbol")


def encode(
    encoder: Any, symbols: UInt[np.ndarray, " n"], alphabet: int, trust: float = TRUST
) -> None:
    """Codes symbols below `alphabet`. One that has no choice takes no bits."""
    if alphabet < 2:
        return
    counts, done = np.zeros(alphabet, np.int64), 0
    for size in _blocks(symbols.size):
        block = symbols[done : done + size]
        encoder.encode(block.astype(np.int32), _model(counts, trust))
        counts += np.bincount(block, minlength=alphabet)
        done += size


def decode(
    decoder: Any, n: int, alphabet: int, trust: float = TRUST
) -> Iterator[UInt[np.ndarray, " part"]]:
    """Reads `n` symbols, block by block.

    Raises:
      CorruptError: if the data are such as no encoder writes.
    """
    counts = np.zeros(max(alphabet, 1), np.int64)
    for size in _blocks(n):
        if alphabet < 2:
            yield np.zeros(size, np.uint16)
            continue
        block = decode_block(decoder, _model(counts, trust), size)
        counts += np.bincount(block, minlength=alphabet)
        yield block.astype(np.uint16)


def decode_block(decoder: Any, model: Any, *of_each: Any) -> Int[np.ndarray, " n"]:
    """Reads symbols by a model of constriction.

    Raises:
      CorruptError: if no encoder writes such data.
    """
    try:
        return decoder.decode(model, *of_each)
    except AssertionError as error:
        raise CorruptError("its range code is invalid") from error


def models() -> Any:
    """Gives constriction's module of models."""
    return _constriction().stream.model


def _blocks(n: int) -> Iterator[int]:
    done = 0
    while done < n:
        size = min(max(FIRST_BLOCK, done // 10), LARGEST_BLOCK, n - done)
        yield size
        done += size


def chances(
    counts: Int[np.ndarray, " alphabet"], trust: float
) -> Float[np.ndarray, " alphabet"]:
    """Judges symbols by how often they and their neighbours came, in symbols."""
    n = counts.size
    radius = max(1, n // 8)
    below = np.concatenate([[0], np.cumsum(counts)])
    high = np.minimum(np.arange(n) + radius + 1, n)
    low = np.maximum(np.arange(n) - radius, 0)
    near = (below[high] - below[low]) / (high - low) + trust / n
    # A cumulative sum is taken in order; numpy's sum is not, on every machine.
    return counts + near * (trust * n / np.cumsum(near)[-1]) + RARE


def _model(counts: Int[np.ndarray, " alphabet"], trust: float) -> Any:
    return models().Categorical(chances(counts, trust), perfect=False)


def _constriction() -> Any:
    try:
        import constriction
    except ImportError as error:
        raise ImportError(
            "the range coder needs the package constriction: "
            'pip install "jaxprune[compress]", or save with coder="huffman".'
        ) from error
    return constriction
