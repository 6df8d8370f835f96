"""Whether a matrix runs faster without its dead weights."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool

from jaxprune.sparse._layout import ADD, BLOCK, plan
from jaxprune.sparse._portable import images_at_a_time


class Costs(NamedTuple):
    """What a product costs on a machine, in nanoseconds.

    The defaults are estimates for 2 cores of an x86 processor, of which a sparse
    product uses one. `streamed`, `packed`, `dense`, `slot` and `image` are rounded from
    times of VGG-16's fc6 and fc7 on an AMD EPYC; the others were not measured alone.

    Attributes:
      cached: a weight of a dense matrix that fits `cache`, for one image.
      streamed: a weight of a dense matrix that does not.
      packed: a weight of a dense matrix as soon as there are two images.
      dense: more for each of these images, a weight.
      slot: a live weight in the sparse form, padding included, for one image.
      image: more for each further image of a group, a live weight.
      turn: of the sparse product's loop, whatever it works on.
      call: of a sparse product.
      cache: bytes of the last-level cache that one matrix may count on.
    """

    cached: float = 0.08
    streamed: float = 0.13
    packed: float = 0.5
    dense: float = 0.008
    slot: float = 0.5
    image: float = 0.09
    turn: float = 60.0
    call: float = 4000.0
    cache: int = 16 * 2**20


DEFAULT = Costs()


def dense_time(size: int, batch: int, costs: Costs) -> float:
    """Gives the nanoseconds of a dense product with `size` weights."""
    weight = costs.cached if 4 * size <= costs.cache else costs.streamed
    if batch > 1:
        weight = max(weight, costs.packed) + costs.dense * batch
    return size * weight


def sparse_time(
    alive: Bool[np.ndarray, "rows columns"], batch: int, costs: Costs, *, axis: int = 0
) -> float:
    """Gives the nanoseconds of a sparse product with the live weights of a mask."""
    made = plan(np.count_nonzero(alive, axis=axis))
    groups, images = images_at_a_time(batch)
    slot = costs.slot + costs.image * (images - 1)
    blocks = BLOCK * len(made.ends)
    added = ADD * made.pieces.owner.size * images if made.cut else 0.0
    once = blocks + added + costs.turn * made.turns + slot * made.slots
    return costs.call + groups * once


def pays(
    alive: Bool[np.ndarray, "rows columns"], batch: int, costs: Costs, *, axis: int = 0
) -> bool:
    """Tells whether the sparse product is the faster one, by a tenth at least.

    The tenth is for errors of the estimate: what is not clearly faster stays dense.
    """
    sparse = sparse_time(alive, batch, costs, axis=axis)
    return bool(1.1 * sparse < dense_time(alive.size, batch, costs))
