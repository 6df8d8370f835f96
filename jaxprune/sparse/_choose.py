"""Whether a matrix runs faster without its dead weights."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool

from jaxprune.sparse._layout import plan


class Costs(NamedTuple):
    """What a product costs on a machine, in nanoseconds.

    The defaults are estimates for 2 cores of an x86 processor, not measurements of this
    one: matrices break even at 12% of live weights within the cache, at 28% beyond it.

    Attributes:
      cached: a weight of a dense matrix that fits `cache`, at batch 1.
      streamed: a weight of a dense matrix that does not.
      dense: more for each further image, a weight.
      sparse: more for each further image, a live weight.
      cache: bytes of the last-level cache that one matrix may count on.
      call: of a sparse product, whatever its size.
    """

    cached: float = 0.05
    streamed: float = 0.12
    dense: float = 0.012
    sparse: float = 0.12
    cache: int = 16 * 2**20
    call: float = 4000.0


DEFAULT = Costs()


def dense_time(size: int, batch: int, costs: Costs) -> float:
    """Gives the nanoseconds of a dense product with `size` weights."""
    weight = costs.cached if 4 * size <= costs.cache else costs.streamed
    return size * (weight + costs.dense * (batch - 1))


def sparse_time(
    alive: Bool[np.ndarray, "rows columns"], batch: int, costs: Costs, *, axis: int = 0
) -> float:
    """Gives the nanoseconds of a sparse product with the live weights of a mask."""
    _, _, once = plan(np.count_nonzero(alive, axis=axis))
    return costs.call + once + costs.sparse * (batch - 1) * int(np.count_nonzero(alive))


def pays(
    alive: Bool[np.ndarray, "rows columns"], batch: int, costs: Costs, *, axis: int = 0
) -> bool:
    """Tells whether the sparse product is the faster one, by a tenth at least.

    The tenth is for errors of the estimate: what is not clearly faster stays dense.
    """
    sparse = sparse_time(alive, batch, costs, axis=axis)
    return bool(1.1 * sparse < dense_time(alive.size, batch, costs))
