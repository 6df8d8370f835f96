"""Codes of live weights, each judged by the codes of the weights beside it.

Kernels of convolutions, and of dense layers that see images, are smooth: a weight is
like the one to its left and the one above, which lie `lags` rows before it. The mean of
their codes, with dead ones at zero, makes a class. A code's chance is that among all
codes, times how much more often codes near it came in this class than was expected.
"""

from collections.abc import Generator
from typing import Any

import numpy as np
from jaxtyping import Bool, Int, UInt

from jaxprune.compress import _range


CLASSES = 12  # of means; one more for weights with nothing beside them
REACH = 12  # a twelfth of all codes to either side counts as near
DOUBT = 8  # codes of a class that its lack of evidence weighs as
MOST = 1 << 10  # clusters


def encode(
    codes: UInt[np.ndarray, " alive"],
    alive: Bool[np.ndarray, "rows columns"],
    lags: tuple[int, ...],
    clusters: int,
    zero: int,
) -> bytes:
    """Codes the clusters of live weights, in C order.

    Args:
      codes: cluster of each live weight.
      alive: where they are.
      lags: rows to the weights beside each, ascending, at least one.
      clusters: how many there are.
      zero: how many centroids are negative.
    """
    encoder, judge = _range.new_encoder(), _judge(alive, lags, clusters, zero)
    groups = next(judge)
    while groups is not None:
        for which, model in groups:
            encoder.encode(codes[which].astype(np.int32), model)
        stop = max(int(which[-1]) for which, _ in groups) + 1
        start = min(int(which[0]) for which, _ in groups)
        groups = judge.send(codes[start:stop].astype(np.int64))
    return _range.finish(encoder)


def decode(
    data: bytes,
    alive: Bool[np.ndarray, "rows columns"],
    lags: tuple[int, ...],
    clusters: int,
    zero: int,
) -> UInt[np.ndarray, " alive"]:
    """Gives back the clusters of live weights.

    Raises:
      CorruptError: if `encode` writes no such data.
    """
    decoder, judge = _range.new_decoder(data), _judge(alive, lags, clusters, zero)
    parts, done = [np.zeros(0, np.int64)], 0
    groups = next(judge)
    while groups is not None:
        part = np.empty(sum(which.size for which, _ in groups), np.int64)
        for which, model in groups:
            part[which - done] = _range.decode_block(decoder, model, which.size)
        parts.append(part)
        done += part.size
        groups = judge.send(part)
    _range.check_finished(decoder)
    return np.concatenate(parts).astype(np.uint16)


def _judge(
    alive: Bool[np.ndarray, "rows columns"],
    lags: tuple[int, ...],
    clusters: int,
    zero: int,
) -> Generator[list[tuple[Any, Any]] | None, Any, None]:
    """Gives groups of a block of weights with a model for each; is told their codes."""
    columns = alive.shape[1]
    live = np.flatnonzero(alive)
    twice = np.full(
        alive.size, 2 * zero, np.int32
    )  # codes, doubled; a dead one between
    counts = np.zeros((CLASSES + 1, clusters), np.int64)
    start = 0
    while start < live.size:
        # Nothing is beside a weight of the same block.
        ends = int(np.searchsorted(live, live[start] + lags[0] * columns))
        stop = min(start + max(_range.FIRST_BLOCK, start // 10), ends)
        group = _classes(live[start:stop], columns, lags, twice, clusters)
        total = counts.sum(axis=0)
        chance = _range.chances(total, _range.TRUST)
        chance = chance / np.cumsum(chance)[-1]
        around = _near(chance)
        groups = []
        for c in np.unique(group):
            expected = int(counts[c].sum()) * around
            more = (_near(counts[c]) + DOUBT) / (expected + DOUBT)
            model = _range.models().Categorical(chance * more, perfect=False)
            groups.append((np.flatnonzero(group == c) + start, model))
        codes = yield groups
        twice[live[start:stop]] = 2 * codes + 1
        np.add.at(counts, (group, codes), 1)
        start = stop
    yield None


def _classes(
    live: Int[np.ndarray, " block"],
    columns: int,
    lags: tuple[int, ...],
    twice: Int[np.ndarray, " weights"],
    clusters: int,
) -> Int[np.ndarray, " block"]:
    rows = live // columns
    total, times = np.zeros((2, live.size), np.int64)
    for lag, further in zip(lags, (*lags[1:], 0), strict=True):
        beside = rows >= lag
        if further and further % lag == 0:
            # Left of the first column is the end of the row above: not beside.
            beside &= rows % further >= lag
        total += np.where(beside, twice[np.maximum(live - lag * columns, 0)], 0)
        times += beside
    mean = total // np.maximum(times, 1)
    classes = np.minimum(mean * CLASSES // (2 * clusters), CLASSES - 1)
    return np.where(times > 0, classes, CLASSES)


def _near(values: np.ndarray) -> np.ndarray:
    """Sums over the codes near each."""
    n = values.size
    reach = max(1, n // REACH)
    below = np.concatenate([np.zeros(1, values.dtype), np.cumsum(values)])
    at = np.arange(n)
    return below[np.minimum(at + reach + 1, n)] - below[np.maximum(at - reach, 0)]
