"""The product with a pruned matrix in plain XLA, for every platform."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jaxprune.sparse._kernel import SparseKernel
from jaxprune.sparse._layout import NARROW


def portable(
    rows: Float[Array, "batch inputs"], kernel: SparseKernel
) -> Float[Array, "batch outputs"]:
    """Multiplies every row."""
    kernel = kernel.unpacked()
    batch, wide = rows.shape
    outputs = kernel.shape[1 - kernel.axis]
    groups, images = images_at_a_time(batch)
    if images <= 3:  # a vector has the cheapest gather
        y = _columns(rows[0] if batch == 1 else rows.T, kernel)
    else:
        rows = jnp.pad(rows, ((0, groups * images - batch), (0, 0)))
        grouped = rows.reshape(groups, images // 2, 2, wide).transpose(0, 3, 1, 2)
        y = jnp.moveaxis(lax.map(lambda c: _columns(c, kernel), grouped), 0, 1)
    return y.reshape(outputs, -1)[:, :batch].T


def images_at_a_time(batch: int) -> tuple[int, int]:
    """Gives the groups that images are multiplied in, and how many each has.

    A CPU's compiler makes vector code of a gather of (8, 2) or (4, 2) values, and
    scalar code, 4 times slower, of (16,), (2, 4) or (6, 2). Padding with images of
    zeros costs less than that.

    >>> images_at_a_time(3), images_at_a_time(5), images_at_a_time(17)
    ((1, 3), (1, 8), (2, 16))
    """
    if batch <= 3:
        return 1, batch
    return (1, 8) if batch <= 8 else (-(-batch // 16), 16)


def _columns(columns: Array, kernel: SparseKernel) -> Array:
    """Multiplies (inputs, ...) of float32 to (outputs, ...)."""
    sizes = [longest * pieces for longest, pieces in kernel.blocks]
    begins = itertools.accumulate(sizes, initial=0)
    blocks = zip(begins, kernel.blocks, strict=False)
    sums = [_sum(kernel, begin, block, columns) for begin, block in blocks]
    y = jnp.concatenate(sums).at[kernel.order].get(mode="promise_in_bounds")
    if kernel.owner is not None:
        outputs = kernel.shape[1 - kernel.axis]
        y = jax.ops.segment_sum(y, kernel.owner, outputs, indices_are_sorted=True)
    return y if kernel.scale is None else y * _beside(kernel.scale, columns)


def _sum(
    kernel: SparseKernel, begin: int, block: tuple[int, int], columns: Array
) -> Array:
    """Adds up values times inputs, a row of a block at a time."""
    length, pieces = block

    def turn(k: Any, sums: Array) -> Array:
        # XLA is spared to wrap the start around, which took a sixth of the time.
        row = lambda a: lax.dynamic_slice(
            a, (begin + k * pieces,), (pieces,), allow_negative_indices=False
        )
        seen = columns.at[row(kernel.places)].get(mode="promise_in_bounds")
        return sums + _beside(row(kernel.values).astype(jnp.float32), columns) * seen

    zeros = jnp.zeros((pieces, *columns.shape[1:]), jnp.float32)
    if not length:  # a block of outputs without live weights
        return zeros
    # A turn over few pieces costs more than its work. Over many images several turns
    # load and store their sums once, and share the fork where XLA cuts a turn among
    # threads. One image has neither: unrolled, fc6 of VGG-16 was an eighth slower.
    unroll = 4 if pieces <= NARROW or columns.ndim > 1 else 1
    return lax.fori_loop(0, length, turn, zeros, unroll=unroll)


def _beside(vector: Array, columns: Array) -> Array:
    """Gives a vector the axes of columns."""
    return vector.reshape(-1, *(1,) * (columns.ndim - 1))
