"""Criteria: what a weight is worth. Each is as long as its formula."""

import zlib
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
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
    overflow nor vanish. Of complex numbers it is a bound on that change, whether or not
    the gradients are conjugated.

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
        return jnp.abs(w).astype(jnp.float32) * jnp.abs(g).astype(jnp.float32)

    return map_masked(score, params, mask, grads, elsewhere=lambda w: None)


def random(key: Array) -> Criterion:
    """Makes a criterion that draws scores uniformly from [0, 1): the control.

    A draw is a function of the key, the step, the leaf's path and the weight's place in
    the leaf, so it depends neither on the other leaves nor on how the leaf is laid out
    over devices. It is a hash rather than one of JAX's generators, so that it is cheap
    enough to be made anew in each pass over the weights, and no score is stored.

    Args:
      key: a typed key, `jax.random.key(0)`, or one of the old kind.

    Raises:
      ValueError: if `key` is no key.

    Source:
      The finalizer of MurmurHash3 (Appleby 2011), once for each axis.
    """
    try:
        jax.eval_shape(jax.random.bits, key)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"key is {key!r}, expected a key such as jax.random.key(0)."
        ) from error

    def criterion(params: Params, mask: Mask, step: Step, **extra: Any) -> Scores:
        del extra
        at_step = jax.random.fold_in(key, step)

        def score(w: Array, m: Array, name: str) -> Array:
            at_leaf = jax.random.fold_in(at_step, zlib.crc32(name.encode()))
            return _hashed_uniform(at_leaf, w.shape)

        return map_masked(
            score, params, mask, leaf_names(params), elsewhere=lambda w: None
        )

    return criterion


def _hashed_uniform(key: Array, shape: tuple[int, ...]) -> Array:
    salts = jax.random.bits(key, (len(shape) + 1,), jnp.uint32)
    bits = jnp.broadcast_to(salts[-1], shape)
    for axis in range(len(shape)):
        place = lax.broadcasted_iota(jnp.uint32, shape, axis)
        bits = _scramble(bits ^ (place + salts[axis]))
    return (bits >> 8).astype(jnp.float32) * jnp.float32(2.0**-24)


def _scramble(x: Array) -> Array:
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
