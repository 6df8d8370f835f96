"""Positions as a map of rows, each bit judged by row, column and neighbours.

Live weights are not strewn evenly: some inputs and some outputs have many, and where a
kernel or an image has rows of its own, a weight is likelier alive where the one beside
it is. The number of live weights of each row is coded first. Then rows are coded in
blocks; the odds of a bit are those of its row, times what its column had so far over
what was expected of it, times the same for the pattern of bits that lie `lags` rows
before. At last they are corrected by what became of bits that were judged alike.

All that is learned is counted in integers, and only single numbers are multiplied and
divided, which every machine rounds alike. Chances are in units of 1 / 65,536.
"""

from collections.abc import Generator
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from jaxprune.compress import _numbers, _range
from jaxprune.compress._huffman import CorruptError


ONE = 1 << 16
LEAST = 16  # chance of any bit
LARGEST_BLOCK = 64  # rows
GRADES = 32  # of chances, told apart in the correction
OF_COLUMN, OF_PATTERN, OF_GRADE = 1, 4, 24  # bits that a guess weighs as


def encode(alive: Bool[np.ndarray, "rows columns"], lags: tuple[int, ...]) -> bytes:
    """Codes a map; `lags` are rows, at least 1, of at most 4 neighbours."""
    encoder, counts = _range.new_encoder(), np.count_nonzero(alive, axis=1)
    _numbers.encode(encoder, counts.astype(np.uint64))
    bernoulli = _range.models().Bernoulli(perfect=False)
    judge = _judge(counts, alive.shape[1], lags)
    rows, chance = next(judge)
    while rows.size:
        bits = alive[rows]
        encoder.encode(bits.astype(np.int32).ravel(), bernoulli, chance.ravel() / ONE)
        rows, chance = judge.send(bits)
    return _range.finish(encoder)


def decode(
    data: bytes, lags: tuple[int, ...], alive: Bool[np.ndarray, "rows columns"]
) -> int:
    """Sets the live weights of a map of False.

    Returns:
      How many were set.

    Raises:
      CorruptError: if `encode` writes no such data.
    """
    decoder, (n, columns) = _range.new_decoder(data), alive.shape
    counts = _numbers.decode(decoder, n)
    if counts.max(initial=0) > columns:
        raise CorruptError(f"a row has {counts.max():,} of {columns:,} weights")
    counts = counts.astype(np.int64)
    bernoulli = _range.models().Bernoulli(perfect=False)
    judge = _judge(counts, columns, lags)
    rows, chance = next(judge)
    while rows.size:
        bits = _range.decode_block(decoder, bernoulli, chance.ravel() / ONE)
        bits = bits.astype(np.bool_).reshape(chance.shape)
        if (np.count_nonzero(bits, axis=1) != counts[rows]).any():
            raise CorruptError("a row has not as many live weights as it should")
        alive[rows] = bits
        rows, chance = judge.send(bits)
    alive[counts == columns] = True
    _range.check_finished(decoder)
    return int(counts.sum())


def find_lags(alive: Bool[np.ndarray, "rows columns"], most: int) -> tuple[int, ...]:
    """Finds two distances at which rows are more alike than their counts say."""
    rows, columns = alive.shape
    some = alive.astype(np.float32)
    counts = some.sum(1)
    gain = np.zeros(min(most, rows // 2) + 1)
    for lag in range(1, gain.size):
        both = np.einsum("rc,rc->", some[lag:], some[:-lag])
        gain[lag] = both - np.dot(counts[lag:], counts[:-lag]) / columns
    best = np.argsort(-gain, kind="stable")[:2]
    return tuple(sorted(int(lag) for lag in best if gain[lag] > 0))


def _judge(
    counts: Int[np.ndarray, " rows"], columns: int, lags: tuple[int, ...]
) -> Generator[tuple[Any, Any], Any, None]:
    """Gives rows and the chance of each of their bits; is told the bits; and so on.

    Rows that are dead or alive as a whole are left out. At the end no rows are given.
    """
    seen = np.zeros((counts.size, columns), np.bool_)
    seen[counts == columns] = True
    patterns = 1 << len(lags)
    live, expected = np.zeros((2, columns), np.int64)
    live_at, expected_at = np.zeros((2, patterns), np.int64)
    times, live_in = np.zeros((2, patterns * GRADES), np.int64)
    start = 0
    while start < counts.size:
        stop = min(start + max(1, start // 8), start + LARGEST_BLOCK, counts.size)
        stop = min(stop, *(start + lag for lag in lags)) if lags else stop
        rows = np.arange(start, stop)
        rows = rows[(counts[rows] > 0) & (counts[rows] < columns)]
        start = stop
        if not rows.size:
            continue
        pattern = np.zeros((rows.size, columns), np.int64)
        for i, lag in enumerate(lags):
            beside = seen[np.maximum(rows - lag, 0)] & (rows >= lag)[:, None]
            pattern |= beside.astype(np.int64) << i
        factor = (live + OF_COLUMN) * ONE / (expected + OF_COLUMN * ONE)
        odds = counts[rows] / (columns - counts[rows])
        odds = odds[:, None] * factor
        plain = _chance(odds)
        factor = (live_at + OF_PATTERN) * ONE / (expected_at + OF_PATTERN * ONE)
        guess = _chance(odds * factor[pattern])
        grade = np.sqrt(guess / ONE) * GRADES
        grade = pattern * GRADES + np.minimum(grade.astype(np.int64), GRADES - 1)
        corrected = (live_in[grade] * ONE + OF_GRADE * guess) // (
            times[grade] + OF_GRADE
        )
        bits = yield rows, np.clip((guess + corrected) // 2, LEAST, ONE - LEAST)
        seen[rows] = bits
        live += np.count_nonzero(bits, axis=0)
        expected += plain.sum(axis=0)
        grade, pattern = grade.ravel(), pattern.ravel()
        live_at += np.bincount(pattern[bits.ravel()], minlength=patterns)
        np.add.at(expected_at, pattern, plain.ravel())
        times += np.bincount(grade, minlength=times.size)
        live_in += np.bincount(grade[bits.ravel()], minlength=times.size)
    yield np.zeros(0, np.int64), np.zeros((0, columns), np.int64)


def _chance(odds: np.ndarray) -> Int[np.ndarray, "..."]:
    return np.clip(odds / (1 + odds) * ONE, LEAST, ONE - LEAST).astype(np.int64)
