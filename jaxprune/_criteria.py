"""Criteria: what a weight is worth. Each is as long as its formula."""

import zlib
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from jaxprune._masks import map_masked
from jaxprune._paths import leaf_names
from jaxprune._types import Criterion, Mask, Params, Scores, Step


def magnitude(params: Params, mask: Mask, step: Step, **extra: Any) -> Scores:
    r"""Scores a weight by its magnitude, :math:`|w|`.

    >>> magnitude({"w": jnp.array([-2.0, 1.0])}, {"w": jnp.array([True, True])}, 0)
    {'w': Array([2., 1.], dtype=float32)}

    Source:
      Han et al. 2015 (arXiv:1506.02626), section 3.
    """
    del step, extra
    return map_masked(lambda w, m: jnp.abs(w), params, mask, elsewhere=lambda w: None)


def saliency(
    params: Params, mask: Mask, step: Step, *, grads: PyTree, **extra: Any
) -> Scores:
    r"""Scores a weight by :math:`|w g|`, the first-order change of the loss without it.

    The product is taken in float32, where those of half-precision numbers neither
    overflow nor vanish.

    >>> saliency({"w": jnp.array([-2.0, 1.0])}, {"w": jnp.array([True, True])}, 0,
    ...          grads={"w": jnp.array([0.5, 3.0])})
    {'w': Array([1., 3.], dtype=float32)}

    Args:
      params: weights.
      mask: `None` where nothing is scored.
      step: not used.
      grads: gradients of the loss; `prune` gives the raw ones it was handed.
      **extra: not used.

    Source:
      Molchanov et al. 2017 (arXiv:1611.06440), section 2.2, for single weights.
    """
    del step, extra

    def score(w: Array, m: Array, g: Array) -> Array:
        return jnp.abs(w.astype(jnp.float32) * g.astype(jnp.float32))

    return map_masked(score, params, mask, grads, elsewhere=lambda w: None)


def random(key: Array) -> Criterion:
    """Makes a criterion that draws scores uniformly from [0, 1): the control.

    The draws are a function of the key, the step and the leaf's path, so they depend
    neither on the other leaves nor on how the leaf is laid out over devices.

    Args:
      key: a typed key, `jax.random.key(0)`, or one of the old kind.
    """

    def criterion(params: Params, mask: Mask, step: Step, **extra: Any) -> Scores:
        del extra
        at_step = jax.random.fold_in(key, step)

        def score(w: Array, m: Array, name: str) -> Array:
            at_leaf = jax.random.fold_in(at_step, zlib.crc32(name.encode()))
            return jax.random.uniform(at_leaf, w.shape)

        return map_masked(
            score, params, mask, leaf_names(params), elsewhere=lambda w: None
        )

    return criterion
