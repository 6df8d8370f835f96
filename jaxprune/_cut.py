"""Cutting a mask at a threshold, with a floor under every leaf."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxprune._masks import check_mask, map_masked
from jaxprune._select import holds, recomputed, sort_key
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
    (counted,) = again(threshold)
    found = jax.lax.cond(
        holds(counted, threshold, keep),
        lambda: _Cut(threshold, jnp.int32(_LAST)),
        lambda: _keep_largest(again, keep),
    )
    at = _position(key.shape)
    return (key > found.key) | ((key == found.key) & (at <= found.last))


def _keep_largest(again: Callable[[Array], list[Array]], keep: int) -> _Cut:
    """Cuts below the `keep` largest keys of a leaf, equal ones by position.

    One pass a weight kept, run only for a leaf that would fall below the floor.
    """

    def next_largest(_: Any, last: _Cut) -> _Cut:
        (key,) = again(last.key)
        at = _position(key.shape)
        left = (key < last.key) | ((key == last.key) & (at > last.last))
        unit = (jnp.int32(-1), jnp.int32(_LAST))
        pairs = (jnp.where(left, key, -1), at)
        return _Cut(*jax.lax.reduce(pairs, unit, _larger, range(key.ndim)))

    start = _Cut(jnp.int32(_LAST), jnp.int32(-1))
    return jax.lax.fori_loop(0, keep, next_largest, start)


def _larger(a: tuple[Array, Array], b: tuple[Array, Array]) -> tuple[Array, Array]:
    first = (a[0] > b[0]) | ((a[0] == b[0]) & (a[1] < b[1]))
    return jnp.where(first, a[0], b[0]), jnp.where(first, a[1], b[1])


def _position(shape: tuple[int, ...]) -> Array:
    """Numbers the weights of a leaf row by row; ties past 2**31 weights share one."""
    at, stride = jnp.zeros(shape, jnp.int32), 1
    for axis in reversed(range(len(shape))):
        at += min(stride, _LAST) * jax.lax.broadcasted_iota(jnp.int32, shape, axis)
        stride *= shape[axis]
    return at if stride <= _LAST else jnp.zeros(shape, jnp.int32)
