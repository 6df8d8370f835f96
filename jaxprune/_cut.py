"""Cutting a mask at a threshold, with a floor under every leaf."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxprune._masks import check_mask, map_masked
from jaxprune._sample import MANY, sample
from jaxprune._select import DEAD_KEY, at_least, recomputed, sort_key
from jaxprune._types import Mask, Params, Scores


_LAST = 2**31 - 1  # after every position


class _Cut(NamedTuple):
    key: Array  # weights with a larger key live
    end: Array  # and those with this key, before this position in the leaf

    def keeps(self, key: Array, at: Array) -> Array:
        return (key > self.key) | ((key == self.key) & (at < self.end))


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
    leaves = jax.tree.leaves(mask)
    floors = _floors(keys, leaves, thresholds, min_keep)
    new = []
    for i, (m, key, t) in enumerate(zip(leaves, keys(), thresholds, strict=True)):
        if i in floors:
            found = floors[i]
            new.append(m & found.keeps(key, _position(key.shape, found.end)))
        else:
            new.append(m if t is None else m & (key >= t))
    return jax.tree.unflatten(jax.tree.structure(mask), new)


def _floors(
    keys: Callable[[], list[Array]],
    leaves: Sequence[Array],
    thresholds: Sequence[Array | None],
    min_keep: int,
) -> dict[int, _Cut]:
    """Lowers the thresholds of leaves in which fewer than `min_keep` would live."""
    start, keep, again = {}, {}, {}
    for i, (m, t) in enumerate(zip(leaves, thresholds, strict=True)):
        if t is not None and min(min_keep, m.size):
            start[i] = _Cut(t, jnp.int32(_LAST))
            keep[i] = min(min_keep, m.size)
            # Built anew for the count: XLA would store a key that two computations
            # share.
            again[i] = recomputed(lambda i=i: [keys()[i]])
    if not start:
        return start

    def enough(i: int, part: Callable[[Array], Array] = lambda key: key) -> Array:
        (key,) = again[i](start[i].key)
        return at_least(keep[i], part(key) >= start[i].key)

    # Nearly always a part of each leaf shows that enough live. A loop of at most one
    # turn for the rest, since a GPU waits for the host at every condition.
    shown = {i: enough(i, sample) for i in start}

    def turn(state: Any) -> Any:
        cuts = {
            i: jax.lax.cond(
                shown[i] if leaves[i].size <= MANY else enough(i),
                lambda i=i: start[i],
                lambda i=i: _keep_largest(again[i], keep[i]),
            )
            for i in start
        }
        return cuts, jnp.zeros((), bool)

    state = start, ~jnp.stack(list(shown.values())).all()
    return jax.lax.while_loop(lambda state: state[1], turn, state)[0]


def _keep_largest(again: Callable[[Array], list[Array]], keep: int) -> _Cut:
    """Cuts below the `keep` largest keys of a leaf, equal ones by position.

    A bisection, bit by bit, of the largest key and then the smallest end with which so
    many live; run only for a leaf that would fall below the floor.
    """

    def set_bit(i: Array, found: tuple[Array, Array]) -> tuple[Array, Array]:
        # First whether the live ones suffice, with key 0; then the bits of the key, and
        # those that the end is less than its largest by.
        bit = jnp.where(i > 0, jnp.int32(1 << 30) >> ((i - 1) % 31), 0)
        key = jnp.where(i < 32, jnp.maximum(found[0], 0) | bit, found[0])
        end = jnp.where(i < 32, found[1], found[1] - bit)
        (k,) = again(key)
        reached = at_least(keep, _Cut(key, end).keeps(k, _position(k.shape, key)))
        return jnp.where(reached, key, found[0]), jnp.where(reached, end, found[1])

    # With fewer live ones the dead fill up; the mask keeps them dead.
    start = jnp.int32(DEAD_KEY), jnp.int32(_LAST)
    return _Cut(*jax.lax.fori_loop(0, 63, set_bit, start))


def _position(shape: tuple[int, ...], tie: Array) -> Array:
    """Numbers the weights of a leaf row by row; ties past 2**31 weights share one.

    As in `recomputed`, a barrier keeps XLA from storing the numbers outside of the loop
    whose variable `tie` is.
    """
    if math.prod(shape) > _LAST:
        return jnp.zeros(shape, jnp.int32)
    strides = [jnp.int32(math.prod(shape[axis + 1 :])) for axis in range(len(shape))]
    tied, _ = jax.lax.optimization_barrier((strides, tie))
    at = jnp.zeros(shape, jnp.int32)
    for axis in range(len(shape)):
        at += tied[axis] * jax.lax.broadcasted_iota(jnp.int32, shape, axis)
    return at
