"""Penalties on live weights, to be added to a loss."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxprune._masks import check_mask, map_masked
from jaxprune._types import Mask, Params


def l1(params: Params, mask: Mask) -> Float[Array, ""]:
    r"""Sums :math:`|w|` over the live prunable weights, in float32.

    >>> l1({"w": jnp.array([1.0, -2.0, 4.0])}, {"w": jnp.array([True, True, False])})
    Array(3., dtype=float32)

    Raises:
      ValueError: as `check_mask`.

    Source:
      Han et al. 2015 (arXiv:1506.02626), section 3.1: L1 is the better one right after
      pruning, L2 after retraining.
    """
    return _total(lambda size: size, params, mask)


def l2(params: Params, mask: Mask) -> Float[Array, ""]:
    r"""Sums :math:`|w|^2 / 2` over the live prunable weights, in float32.

    The half makes its gradient `w`, so that the strength reads as a weight decay. Of
    params that `prune` updates the dead ones are zero, so that a mask of ones gives the
    same; the state's own costs copies, for it is read beside the next one.

    >>> l2({"w": jnp.array([1.0, -2.0, 4.0])}, {"w": jnp.array([True, True, False])})
    Array(2.5, dtype=float32)

    Raises:
      ValueError: as `check_mask`.

    Source:
      As `l1`.
    """
    return _total(lambda size: jnp.square(size) / 2, params, mask)


def _total(f, params: Params, mask: Mask) -> Float[Array, ""]:
    check_mask(params, mask)

    def at_leaf(w: Any, m: Any) -> Array:
        if not jnp.iscomplexobj(w):
            w = jnp.asarray(w, jnp.float32)  # |-128| is no int8
        # Not after f, whose gradient at a dead NaN would be one.
        live = jnp.where(m, w, jnp.zeros_like(w))
        return jnp.sum(f(jnp.abs(live).astype(jnp.float32)))

    terms = map_masked(at_leaf, params, mask, elsewhere=lambda w: None)
    return jax.tree.reduce(jnp.add, terms, jnp.zeros((), jnp.float32))
