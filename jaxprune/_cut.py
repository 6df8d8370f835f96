"""Cutting a mask at a threshold, with a floor under every leaf."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxprune._masks import check_mask, map_masked
from jaxprune._select import DEAD_KEY, at_least, recomputed, sort_key
from jaxprune._types import Mask, Params, Scores


_LAST = 2**31 - 1  # the largest key, and the largest position


class _Cut(NamedTuple):
    key: Array  # weights with a larger key live
    last: Array  # and those with this key, up to this position in the leaf


def keys_of(params: Params, mask: Mask, scores: Scores) -> list[Array]:
    """Gives the sort keys of the leaves that the mask covers, in tree order."""
    check_mask(params, mask)
    keyed = map_masked(
        lambda w, m, s: sort_key(s, m), params, mask, scores, elsewhere=lambda w: None
    )
    return jax.tree.leaves(keyed)


def cut(
    mask: Mask,
    keys: Callable[[], list[Array]],
    thresholds: Sequence[Array | None],
    min_keep: int = 0,
) -> Mask:
    """Keeps the live weights whose key is at least their leaf's threshold.

    Args:
      mask: what is alive before.
      keys: rebuilds the keys of the leaves that the mask covers.
      thresholds: a key for each of these leaves; `None` leaves the leaf as it is.
      min_keep: weights that stay alive in each leaf, as far as so many were.
    """
    new = []
    for i, (m, key, t) in enumerate(
        zip(jax.tree.leaves(mask), keys(), thresholds, strict=True)
    ):
        if t is not None and min(min_keep, m.size):
            new.append(m & _above_floor(lambda i=i: keys()[i], key, t, min_keep))
        else:
            new.append(m if t is None else m & (key >= t))
    return jax.tree.unflatten(jax.tree.structure(mask), new)


def _above_floor(
    rebuild: Callable[[], Array], key: Array, threshold: Array, min_keep: int
) -> Array:
    keep = min(min_keep, key.size)
    # Built anew for the count: XLA would store a key that two computations share.
    again = recomputed(lambda: [rebuild()])
    found = jax.lax.cond(
        at_least(keep, again(threshold)[0] >= threshold),
        lambda: _Cut(threshold, jnp.int32(_LAST)),
        lambda: _keep_largest(again, keep),
    )
    at = _position(key.shape, found.last)
    return (key > found.key) | ((key == found.key) & (at <= found.last))


def _keep_largest(again: Callable[[Array], list[Array]], keep: int) -> _Cut:
    """Cuts below the `keep` largest keys of a leaf, equal ones by position.

    Two bisections, run only for a leaf that would fall below the floor.
    """
    live = at_least(keep, again(jnp.int32(0))[0] >= 0)
    key = _last(lambda k: at_least(keep, again(k)[0] >= k))
    key = jnp.where(live, key, DEAD_KEY)

    def too_few(end: Array) -> Array:
        (k,) = again(end)
        before = (k == key) & (_position(k.shape, end) < end)
        return ~at_least(keep, (k > key) | before)

    return _Cut(key, _last(too_few))


def _last(holds: Callable[[Array], Array]) -> Array:
    """Finds the last of 0, 1, ..., 2**31 - 1 up to which it holds, if it does at 0."""

    def set_bit(i: Any, found: Array) -> Array:
        more = found | (jnp.int32(1 << 30) >> i)
        return jnp.where(holds(more), more, found)

    return jax.lax.fori_loop(0, 31, set_bit, jnp.int32(0))


def _position(shape: tuple[int, ...], tie: Array) -> Array:
    """Numbers the weights of a leaf row by row; ties past 2**31 weights share one.

    As in `recomputed`, a barrier keeps XLA from storing the numbers outside of the loop
    whose variable `tie` is.
    """
    strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    if math.prod(shape) > _LAST:
        return jnp.zeros(shape, jnp.int32)
    tied, _ = jax.lax.optimization_barrier((jnp.array(strides, jnp.int32), tie))
    at = jnp.zeros(shape, jnp.int32)
    for axis in range(len(shape)):
        at += tied[axis] * jax.lax.broadcasted_iota(jnp.int32, shape, axis)
    return at
