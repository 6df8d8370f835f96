"""The standard deviation of each layer's live weights."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, PyTree

from jaxprune._fold import fold, is_small, on_cpu
from jaxprune._masks import check_mask, map_masked
from jaxprune._types import Mask, Params


def layer_std(params: Params, mask: Mask) -> PyTree:
    r"""Gives the standard deviation of each leaf's live weights, in float32.

    The population's: :math:`\sigma^2 = \sum_{live} |w - \bar w|^2 / n_{live}`.

    >>> layer_std({"w": jnp.array([[1.0, 3.0, 9.0]])},
    ...           {"w": jnp.array([[True, True, False]])})
    {'w': Array(1., dtype=float32)}

    Returns:
      A scalar for each leaf that the mask covers, `None` for the others; 0 where
      nothing lives.

    Raises:
      ValueError: as `check_mask`.

    Source:
      Han et al. 2015 (arXiv:1506.02626), section 3.
    """
    check_mask(params, mask)

    def at_leaf(w: Any, m: Any) -> Array:
        m = jnp.asarray(m)
        alive = jnp.maximum(_sum(lambda m: m.astype(jnp.float32), m), 1)

        def variance(w: Any) -> Array:
            w = jnp.asarray(w, jnp.float32)
            mean = _sum(lambda w, m: jnp.where(m, w, 0), w, m) / alive
            squares = _sum(lambda w, m: jnp.where(m, jnp.square(w - mean), 0), w, m)
            return squares / alive

        if jnp.iscomplexobj(w):
            return jnp.sqrt(variance(jnp.real(w)) + variance(jnp.imag(w)))
        return jnp.sqrt(variance(w))

    return map_masked(at_leaf, params, mask, elsewhere=lambda w: None)


def _sum(terms: Callable[..., Array], *arrays: Array) -> Array:
    """Adds pairwise or with compensation: the sum hardly depends on the order.

    The two outputs have a second use: XLA's CPU backend fuses the terms into such a
    reduction, and stores them for one with a single output.
    """
    if is_small(arrays[0]) and on_cpu():
        return fold(jnp.add, 0, terms, *arrays)
    return _compensated(terms(*arrays))


@jax.custom_jvp
def _compensated(x: Array) -> Array:
    unit = (jnp.float32(0), jnp.float32(0))
    parts = (x, jnp.zeros_like(x))
    # All axes but the last first: XLA spreads the last one over threads and lanes.
    for axes in (range(x.ndim - 1), range(1)) if x.ndim > 1 else (range(x.ndim),):
        parts = lax.reduce(parts, unit, _two_sum, tuple(axes))
    total, lost = parts
    return total + lost


@_compensated.defjvp
def _compensated_jvp(primals: Any, tangents: Any) -> tuple[Array, Array]:
    # JAX has no derivative of a reduction whose second operand is constant.
    return _compensated(*primals), jnp.sum(*tangents)


def _two_sum(a: tuple[Array, Array], b: tuple[Array, Array]) -> tuple[Array, Array]:
    # Knuth, The Art of Computer Programming 2, 4.2.2, theorem B: the error is exact.
    total = a[0] + b[0]
    rounded = total - a[0]
    error = (a[0] - (total - rounded)) + (b[0] - rounded)
    return total, a[1] + b[1] + error
