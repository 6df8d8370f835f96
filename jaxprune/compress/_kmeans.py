"""One-dimensional k-means of a tensor's live weights, on the host."""

from operator import index
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import numpy as np
from jaxtyping import Float, Int, UInt

from jaxprune.compress._cells import Cells, cells, nearest
from jaxprune.compress._optimal import optimal_centroids


Init: TypeAlias = Literal["linear", "density", "random", "optimal"]

ROUNDS = 1000  # of Lloyd's algorithm, at most: it stops when no centroid moves


class Codebook(NamedTuple):
    """Live weights of one tensor as indices into a table of shared values.

    Attributes:
      indices: cluster of each live weight, in row-major order.
      centroids: float32 value of each cluster, ascending.
    """

    indices: UInt[np.ndarray, " alive"]
    centroids: Float[np.ndarray, " clusters"]


def share_weights(
    values: Float[np.ndarray, " alive"],
    bits: int,
    *,
    init: Init = "linear",
    seed: int = 0,
) -> Codebook:
    """Clusters live weights by one-dimensional k-means into 2**bits shared values.

    Weights are first gathered into cells in ascending order, one for each distinct
    value, or a fine grid of them where there are millions; Lloyd's algorithm then moves
    boundaries over prefix sums, which costs clusters * log(cells) a round. The last
    round is made on the weights themselves: each is given the centroid that is nearest
    to it, and a centroid is the mean of its members.

    >>> indices, centroids = share_weights(np.float32([1.0, 5.0, 1.5, 5.5]), 1)
    >>> indices, centroids
    (array([0, 1, 0, 1], dtype=uint8), array([1.25, 5.25], dtype=float32))

    Args:
      values: live weights of one tensor, flat; zeros are not given.
      bits: index width, from 1 to 16; 8 for conv and 5 for dense in the paper.
      init: first centroids: evenly spaced from min to max, at quantiles, or drawn from
        the values. "optimal" has no start: the least sum of squares, exact for up to
        4,096 distinct values, and beyond that the optimum over as many quantiles,
        improved by Lloyd's algorithm.
      seed: used by `init="random"` alone.

    Returns:
      At most 2**bits centroids; clusters left empty are dropped.

    Raises:
      ValueError: if `values` is empty or not finite, `bits` is no integer in its range,
        or `init` is none of the four.

    Source:
      Han et al. 2016 (arXiv:1510.00149), section 3. Linear starts keep a few large
      centroids, and large weights matter most.
    """
    check_settings(bits, init)
    _check(values)
    values = np.ascontiguousarray(values, np.float32)
    table = cells(values)
    clusters = 2**bits
    if table.middle.size <= clusters and table.exact:
        centroids = table.middle.astype(np.float32)
    elif init == "optimal":
        centroids = _lloyd(table, optimal_centroids(table, clusters))
    else:
        centroids = _lloyd(table, _start(table, clusters, init, seed))
    return _finish(values, centroids)


def check_settings(bits: Any, init: Any) -> None:
    """Raises ValueError for settings that `share_weights` does not take."""
    try:
        good = 1 <= index(bits) <= 16
    except TypeError:
        good = False
    if not good:
        raise ValueError(f"bits is {bits!r}, expected an integer from 1 to 16.")
    if init not in get_args(Init):
        known = ", ".join(get_args(Init))
        raise ValueError(f"init is {init!r}, expected one of {known}.")


def _check(values: np.ndarray) -> None:
    if not values.size:
        raise ValueError("there are no values, expected at least one live weight.")
    finite = np.isfinite(values)
    if not finite.all():
        raise ValueError(
            f"{np.count_nonzero(~finite)} of {values.size} values are not finite, the "
            f"first of them {values[~finite][0]}; expected finite weights."
        )
    if max(values.max(), -values.min()) > np.finfo(np.float32).max:
        raise ValueError("a value overflows float32, expected float32 weights.")


def _start(
    table: Cells, clusters: int, init: str, seed: int
) -> Float[np.ndarray, " clusters"]:
    if init == "linear":
        return np.linspace(table.middle[0], table.middle[-1], clusters)
    rank = np.cumsum(table.weight)
    if init == "density":
        steps = (np.arange(clusters) + 0.5) / clusters * rank[-1]
    else:
        draws = np.random.default_rng(seed).choice(
            rank[-1], min(clusters, int(rank[-1])), replace=False
        )
        steps = np.sort(draws)
    return np.unique(table.middle[np.searchsorted(rank, steps, side="right")])


def _lloyd(
    table: Cells, centroids: Float[np.ndarray, " start"]
) -> Float[np.ndarray, " clusters"]:
    count = np.concatenate([[0.0], np.cumsum(table.weight)])
    total = np.concatenate([[0.0], np.cumsum(table.middle * table.weight)])
    for _ in range(ROUNDS):
        cuts = np.searchsorted(table.middle, _boundaries(centroids))
        cuts = np.concatenate([[0], cuts, [table.middle.size]])
        members = np.diff(count[cuts])
        kept = members > 0
        moved = np.diff(total[cuts])[kept] / members[kept]
        if moved.size == centroids.size and np.array_equal(moved, centroids):
            break
        centroids = moved
    return centroids


def _boundaries(centroids: np.ndarray) -> np.ndarray:
    return (centroids[1:] + centroids[:-1]) / 2


def _finish(
    values: Float[np.ndarray, " alive"], centroids: Float[np.ndarray, " clusters"]
) -> Codebook:
    index, count, total = nearest(values, _boundaries(centroids.astype(np.float64)))
    means = (total[count > 0] / count[count > 0]).astype(np.float32)
    # Means that round to one float32 are one cluster.
    centroids, merged = np.unique(means, return_inverse=True)
    renumber: Int[np.ndarray, " clusters"] = np.zeros(count.size, np.int64)
    renumber[count > 0] = merged
    width = np.uint8 if centroids.size <= 256 else np.uint16
    return Codebook(renumber.astype(width)[index], centroids)
