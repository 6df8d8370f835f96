"""Samples of keys: they place the first thresholds, or show that enough live."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Int

from jaxprune._counts import AIMS
from jaxprune._fold import free_axes
from jaxprune._search import SURE, Bracket, between, counter, search, together


MANY = 1 << 20  # keys in the sample that shows that enough live


def sample(key: Array) -> Array:
    """Gives an array of a million or so keys from all over a larger one."""
    if key.size <= MANY:
        return key
    return _strided(key, jax.typeof(key), MANY / key.size)


def sample_size(shapes: Sequence[Any], fraction: float) -> int:
    """Counts the keys of a sample of arrays of these types."""
    return sum(
        math.prod(
            -(-n // by) for n, by in zip(s.shape, _strides(s, fraction), strict=True)
        )
        for s in shapes
    )


def sampled_aims(
    keys: Sequence[list[Array]],
    shapes: Sequence[Sequence[Any]],
    fractions: Sequence[float],
    whole: Bracket,
    first: Array,
) -> Int[Array, "*ranks aims"]:
    """Spreads the first thresholds over where samples say that the ranks are.

    Args:
      keys: for each rank, the arrays in which it is counted.
      shapes: their types, with shardings.
      fractions: of the keys of each rank, how many its sample takes.
      whole: the bracket of all keys, of each rank.
      first: the thresholds for the samples.
    """
    samples, ratios, sizes, missing = [], [], [], []
    for arrays, types, fraction in zip(keys, shapes, fractions, strict=True):
        pairs = zip(arrays, types, strict=True)
        parts = lax.optimization_barrier([_strided(*p, fraction) for p in pairs])
        samples.append(parts)
        full, taken = ([math.prod(x.shape) for x in xs] for xs in (types, parts))
        ratios.append([n / max(1, k) for n, k in zip(full, taken, strict=True)])
        sizes.append(jnp.float32(sum(taken)))
        missing.append(jnp.float32(sum(taken) < sum(full)))
    upto, size = counter(samples, ratios), together(sizes)
    total = whole.d_lo - whole.d_hi
    share = whole.d_lo / total
    sigma = total * jnp.sqrt(jnp.maximum(share * (1 - share), 1 / size) / size)
    sigma *= together(missing)  # a sample of all keys is exact
    found = search(
        lambda aims: whole.d_lo[..., None] - upto(aims),
        whole,
        first,
        margin=3 * sigma,
        stop=jnp.maximum(8 * sigma, SURE),
    )
    even = jnp.arange(AIMS, dtype=jnp.float32) / (AIMS - 1)
    return between(found, even, inside=False)


def _strided(key: Array, shape: Any, fraction: float) -> Array:
    return lax.slice(key, (0,) * key.ndim, key.shape, _strides(shape, fraction))


def _strides(key: Any, fraction: float) -> list[int]:
    strides = [1] * len(key.shape)
    # Rows before columns: whole cache lines. Both, since rows or columns may differ.
    for axis in sorted(free_axes(key), key=lambda a: -key.shape[a]):
        left = 1 / (fraction * math.prod(strides))
        strides[axis] = max(1, min(round(left), key.shape[axis] // 16))
    return strides
