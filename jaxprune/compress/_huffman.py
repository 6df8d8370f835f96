"""Canonical Huffman codes in NumPy: a coder, and a decoder that needs no loop a symbol.

Bits are written most significant first. The code book is the length of each symbol's
code, from which both sides number the codes in the order of (length, symbol).
"""

import heapq
from collections.abc import Iterator

import numpy as np
from jaxtyping import Int, UInt


MAX_LENGTH = 20  # of a code, in bits: a table of 2**20 entries decodes it
WINDOW = 1 << 16  # bits decoded at a time, so that every table stays in cache
DOUBLINGS = 3  # a hop of the decoder's chain is 2**3 symbols


class CorruptError(ValueError):
    """Coded data that no encoder wrote."""


def code_lengths(counts: Int[np.ndarray, " symbols"]) -> UInt[np.ndarray, " symbols"]:
    """Finds the code length of each symbol, 0 for one that never comes.

    A symbol that comes alone has length 1, and takes no bits. Codes longer than 20 bits
    are avoided by raising the rarest counts, which costs next to nothing.

    >>> code_lengths(np.array([5, 0, 1, 1]))
    array([1, 0, 2, 2], dtype=uint8)

    Source:
      Huffman 1952.
    """
    lengths = np.zeros(counts.size, np.uint8)
    used = np.flatnonzero(counts)
    if used.size < 2:
        lengths[used] = 1
        return lengths
    floor = 1
    while True:
        raised = np.maximum(counts[used], floor)
        lengths[used] = _depths(raised)
        if lengths.max() <= MAX_LENGTH:
            return lengths
        floor = max(2 * floor, int(counts.sum()) >> MAX_LENGTH)


def _depths(counts: np.ndarray) -> np.ndarray:
    """Depth of each leaf of the Huffman tree."""
    n = counts.size
    heap = [(int(c), i) for i, c in enumerate(counts)]
    heapq.heapify(heap)
    parent = np.zeros(2 * n - 1, np.int64)
    for node in range(n, 2 * n - 1):
        a, i = heapq.heappop(heap)
        b, j = heapq.heappop(heap)
        parent[i] = parent[j] = node
        heapq.heappush(heap, (a + b, node))
    depth = np.zeros(2 * n - 1, np.int64)
    for node in range(2 * n - 3, -1, -1):
        depth[node] = depth[parent[node]] + 1
    return depth[:n]


def coded_bits(counts: Int[np.ndarray, " symbols"]) -> int:
    """Counts the bits that symbols of these counts take, without their code book."""
    lengths = code_lengths(counts).astype(np.int64)
    if np.count_nonzero(lengths) < 2:
        return 0
    return int(np.dot(counts.astype(np.int64), lengths))


def _codes(lengths: np.ndarray) -> np.ndarray:
    """Numbers the codes in the order of (length, symbol)."""
    order = np.lexsort((np.arange(lengths.size), lengths))
    order = order[lengths[order] > 0]
    codes = np.zeros(lengths.size, np.uint64)
    if order.size:
        # In steps of the longest code each code is where the one before it ends.
        width = 1 << (MAX_LENGTH - lengths[order].astype(np.int64))
        start = np.cumsum(width) - width
        codes[order] = start >> (MAX_LENGTH - lengths[order].astype(np.int64))
    return codes


def encode(
    symbols: UInt[np.ndarray, " n"], lengths: UInt[np.ndarray, " symbols"]
) -> UInt[np.ndarray, " bytes"]:
    """Writes symbols one after the other, in whole bytes at the end.

    >>> encode(np.uint8([0, 2, 0]), np.uint8([1, 2, 2])).tolist()  # 0 11 0
    [96]
    """
    if np.count_nonzero(lengths) < 2:
        return np.zeros(0, np.uint8)
    codes, wide = _codes(lengths), lengths.astype(np.int64)
    total = int(np.dot(np.bincount(symbols, minlength=wide.size), wide))
    words = np.zeros(total // 64 + 2, np.uint64)
    done = 0  # bits
    for start in range(0, symbols.size, WINDOW):
        chunk = symbols[start : start + WINDOW]
        length, code = wide[chunk], codes[chunk]
        end = np.cumsum(length) + done
        word, last = np.divmod(end - length, 64)
        # Bits that stick out over the end of a 64-bit word go to the next one. NumPy
        # shifts by 64 and more to no defined result, so they go in two steps.
        over = last + length - 64
        here = np.where(
            over > 0,
            code >> np.maximum(over, 0).astype(np.uint64),
            code << np.maximum(-over, 0).astype(np.uint64) % np.uint64(64),
        )
        here = np.where(length > 0, here, np.uint64(0))
        spill = np.flatnonzero(over > 0)
        # Codes do not overlap, so a sum of them is their union.
        first = np.flatnonzero(np.diff(word, prepend=-1))
        words[word[first]] += np.add.reduceat(here, first)
        words[word[spill] + 1] += code[spill] << (64 - over[spill]).astype(np.uint64)
        done = int(end[-1])
    return words.astype(">u8").view(np.uint8)[: -(-total // 8)]


def decode(
    data: UInt[np.ndarray, " bytes"], lengths: UInt[np.ndarray, " symbols"], n: int
) -> Iterator[UInt[np.ndarray, " part"]]:
    """Reads `n` symbols, part by part.

    At every bit of a window the table tells where the next code would begin; doubling
    that three times gives hops of eight symbols, so the chain from the first code on is
    walked in few steps and filled in between for all hops at once.

    Raises:
      CorruptError: if the lengths make no prefix code, or the data end early or late.
    """
    used = np.flatnonzero(lengths)
    if used.size < 2:
        if data.size or (n and not used.size) or lengths[used].sum() > 1:
            raise CorruptError("it has bits for symbols that need none")
        yield from _constant(n, int(used[0]) if n else 0)
        return
    symbol, length = _table(lengths)
    longest = int(lengths.max())
    padded = np.concatenate([data, np.zeros(8, np.uint8)])
    at, left, bits = 0, n, 8 * data.size
    while left:
        if at >= bits:
            raise CorruptError(f"it ends {left:,} symbols early")
        starts, at = _walk(padded, at, left, length, longest, bits)
        entry = _peek(padded, starts, longest)
        left -= starts.size
        yield symbol[entry]
    if -(-at // 8) != data.size:
        raise CorruptError(f"its symbols end at bit {at:,} of {bits:,}")


def _constant(n: int, symbol: int) -> Iterator[np.ndarray]:
    for start in range(0, n, WINDOW):
        yield np.full(min(WINDOW, n - start), symbol, np.uint16)


def _table(lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    longest = int(lengths.max())
    if longest > MAX_LENGTH:
        raise CorruptError(f"a code is {longest} bits long, the most is {MAX_LENGTH}")
    order = np.lexsort((np.arange(lengths.size), lengths))
    order = order[lengths[order] > 0]
    spread = 1 << (longest - lengths[order].astype(np.int64))
    if int(spread.sum()) != 1 << longest:
        raise CorruptError("its code lengths make no complete prefix code")
    symbol = np.repeat(order.astype(np.uint16), spread)
    return symbol, np.repeat(lengths[order], spread)


def _walk(
    padded: np.ndarray, at: int, left: int, length: np.ndarray, longest: int, bits: int
) -> tuple[np.ndarray, int]:
    """Finds the bits at which the next codes begin, and where the last of them ends."""
    base = at & ~7
    span = min(WINDOW, bits - base)
    whole = (padded[base // 8 : base // 8 + -(-span // 8) + 4]).astype(np.uint32)
    word = whole[:-3] << 24 | whole[1:-2] << 16 | whole[2:-1] << 8 | whole[3:]
    shifts = np.arange(8, dtype=np.uint32)
    window = (word[:, None] << shifts) >> np.uint32(32 - longest)
    # Chains end in the last entry, which is its own successor.
    jump = np.arange(span + 1, dtype=np.int32)
    jump[:span] += length.take(window.ravel()[:span], mode="clip")
    np.minimum(jump, span, out=jump)
    hops = [jump]
    for _ in range(DOUBLINGS):
        hops.append(hops[-1].take(hops[-1], mode="clip"))
    leap = hops[-1].data
    begins, here = [], at - base
    while here < span:
        begins.append(here)
        here = leap[here]
    starts = np.array(begins, np.int32)
    for hop in hops[-2::-1]:
        starts = np.stack([starts, hop.take(starts, mode="clip")], axis=1).ravel()
    starts = starts[: np.searchsorted(starts, span)][:left]
    end = base + int(starts[-1])
    starts = starts.astype(np.int64) + base
    return starts, end + int(length[_peek(padded, starts[-1:], longest)[0]])


def _peek(padded: np.ndarray, starts: np.ndarray, longest: int) -> np.ndarray:
    byte, shift = starts >> 3, (starts & 7).astype(np.uint32)
    word = padded[byte].astype(np.uint32)
    for i in 1, 2, 3:
        word = word << np.uint32(8) | padded[byte + i]
    return (word << shift) >> np.uint32(32 - longest)
