"""The least sum of squares of one-dimensional k-means, by dynamic programming."""

import numpy as np
from jaxtyping import Float, Int

from jaxprune.compress._cells import Cells


LIMIT = 4096  # cells that are solved exactly: time grows with cells * clusters


def optimal_centroids(table: Cells, clusters: int) -> Float[np.ndarray, " clusters"]:
    """Finds the centroids of least sum of squares over at most 4,096 cells.

    Clusters of a line are intervals. With D[j] the least cost of the first j cells in m
    clusters, one more cluster costs min over i of D[i] + cost(i, j), and the best i
    never falls as j grows: it is found for the middle j first, then for each half
    within the bounds so set, all the j of one depth at once.

    Args:
      table: cells in ascending order; more than 4,096 are merged into
        quantiles.
      clusters: at least 1.

    Returns:
      Ascending centroids, `clusters` of them or one for each cell.

    Source:
      Wang and Song 2011 (Ckmeans.1d.dp, The R Journal 3/2) for the recurrence.
    """
    middle, count = _merge(table)
    clusters = min(clusters, middle.size)
    shift = middle.mean()  # so that squares of nearly equal values do not cancel
    weight = np.concatenate([[0.0], np.cumsum(count)])
    first = np.concatenate([[0.0], np.cumsum(count * (middle - shift))])
    second = np.concatenate([[0.0], np.cumsum(count * (middle - shift) ** 2)])

    def cost(i: np.ndarray, j: np.ndarray) -> np.ndarray:
        n, s = weight[j] - weight[i], first[j] - first[i]
        return second[j] - second[i] - s * s / np.maximum(n, 1e-300)

    least = cost(np.zeros(middle.size + 1, np.int64), np.arange(middle.size + 1))
    splits = []
    for m in range(1, clusters):
        least, split = _one_more(least, cost, m)
        splits.append(split)
    cuts = [middle.size]
    for split in reversed(splits):
        cuts.append(int(split[cuts[-1]]))
    cuts = np.array([0, *reversed(cuts)])
    return shift + np.diff(first[cuts]) / np.diff(weight[cuts])


def _one_more(
    least: Float[np.ndarray, " cuts"], cost, m: int
) -> tuple[Float[np.ndarray, " cuts"], Int[np.ndarray, " cuts"]]:
    """Adds one cluster to a solution in `m`: new costs, and where the last begins."""
    size = least.size
    best, split = np.full(size, np.inf), np.zeros(size, np.int64)
    # Ends j in [from_, to) whose split lies in [low, high].
    from_, to = np.array([m + 1]), np.array([size])
    low, high = np.array([m]), np.array([size - 2])
    while from_.size:
        j = (from_ + to) // 2
        stop = np.minimum(high, j - 1)
        width = stop - low + 1
        start = np.cumsum(width) - width
        owner = np.repeat(np.arange(j.size), width)
        i = np.arange(int(width.sum())) - start[owner] + low[owner]
        price = least[i] + cost(i, j[owner])
        best[j] = np.minimum.reduceat(price, start)
        # The first of equal prices, so that bounds stay in order.
        hits = np.flatnonzero(price == best[j][owner])
        _, first_hit = np.unique(owner[hits], return_index=True)
        split[j] = i[hits[first_hit]]
        from_, to, low, high = (
            np.concatenate(pair)
            for pair in (
                (from_, j + 1), (j, to), (low, split[j]), (split[j], high),
            )
        )  # fmt: skip
        keep = from_ < to
        from_, to, low, high = from_[keep], to[keep], low[keep], high[keep]
    return best, split


def _merge(table: Cells) -> tuple[np.ndarray, np.ndarray]:
    if table.middle.size <= LIMIT:
        return table.middle, table.weight.astype(np.float64)
    rank = np.cumsum(table.weight)
    steps = np.arange(1, LIMIT) / LIMIT * rank[-1]
    start = np.unique(np.concatenate([[0], np.searchsorted(rank, steps) + 1]))
    start = start[start < table.middle.size]
    count = np.add.reduceat(table.weight.astype(np.float64), start)
    total = np.add.reduceat(table.middle * table.weight, start)
    return total / count, count
