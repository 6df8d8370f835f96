"""The search for a key of given rank: brackets, where to look next, when to end."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from jaxprune._counts import AIMS, NAN_KEY, START, count_upto, reduce_many, split_axis
from jaxprune._fold import flattened, join_all


# Where to look, in deviations of the estimate, and two even splits, which bound the
# number of passes whatever the keys are.
_NEAR = (-4.0, -1.0, -0.3, 0.3, 1.0, 4.0)
_CURVED = 0.04  # of the width, added to the outermost: keys are not spread evenly
_EVEN = (1 / 3, 2 / 3)
_FEW = 16  # so many keys, or fewer, are split evenly


class Bracket(NamedTuple):
    """The wanted key is in (lo, hi]; d_* is rank minus the keys up to there."""

    lo: Int[Array, ""]
    hi: Int[Array, ""]
    d_lo: Float[Array, ""]
    d_hi: Float[Array, ""]


def width_of(bracket: Bracket) -> Array:
    """Counts the keys that the bracket could hold, in uint32: it may pass 2**31."""
    return bracket.hi.astype(jnp.uint32) - bracket.lo.astype(jnp.uint32)


def between(bracket: Bracket, fractions: Array, *, inside: bool = True) -> Array:
    """Gives the keys at these fractions of the bracket's width."""
    width = width_of(bracket)
    offset = (fractions * width.astype(jnp.float32)).astype(jnp.uint32)
    if inside:
        offset = jnp.clip(offset, 1, jnp.maximum(width, 2) - 1)
    return (bracket.lo.astype(jnp.uint32) + offset).astype(jnp.int32)


def aim(bracket: Bracket, margin: Array | float) -> Int[Array, " aims"]:
    """Places the next thresholds, near where the rank should be by interpolation."""
    size = bracket.d_lo - bracket.d_hi
    guess = (bracket.d_lo + 0.5) / size
    # Of keys spread evenly; never under one key's share.
    spread = jnp.sqrt(jnp.maximum(guess * (1 - guess), 1 / size) / size)
    # Scalar by scalar: a constant array would cost something at every call (_fold).
    near = []
    for n in _NEAR:
        side = math.copysign(1, n)
        slack = _CURVED if abs(n) == max(_NEAR) else 0.0
        near.append(guess + n * spread + side * (slack + margin / size))
    mixed = jnp.stack([*(jnp.clip(x, 0, 1) for x in near), *map(jnp.float32, _EVEN)])
    even = jnp.arange(1, AIMS + 1, dtype=jnp.float32) / (AIMS + 1)
    keys = between(bracket, jnp.where(size < _FEW, even, mixed))
    # Keys are linear in the value within one exponent only: over more, interpolate
    # the value.
    low = lax.bitcast_convert_type(jnp.maximum(bracket.lo, 0), jnp.float32)
    high = lax.bitcast_convert_type(jnp.minimum(bracket.hi, 0x7F7FFFFF), jnp.float32)
    value = lax.bitcast_convert_type(low + mixed * (high - low), jnp.int32)
    value = jnp.clip(value, bracket.lo + 1, bracket.hi - 1)
    linear = (
        (jnp.arange(AIMS) < len(_NEAR)) & (size >= _FEW) & (width_of(bracket) >> 23 > 0)
    )
    return jnp.where(linear, value, keys)


def search(
    distance: Callable[[Array], Array],
    bracket: Bracket,
    aims: Array,
    *,
    margin: Array | float = 0.0,
    stop: Array | float = 0.0,
    finish: Callable[[Bracket], Bracket] | None = None,
    few: float = 0.0,
) -> Bracket:
    """Narrows the bracket until it is one key wide or holds at most `stop` keys.

    With a margin, it keeps that many keys on either side of the rank. When at most
    `few` keys are left `finish` is tried, and with fewer again if it fails.
    """

    def count(bracket, aims, few):
        d = distance(aims)
        low, high = d >= margin, d < -margin
        new = Bracket(
            join_all(jnp.maximum, list(jnp.where(low, aims, bracket.lo))),
            join_all(jnp.minimum, list(jnp.where(high, aims, bracket.hi))),
            join_all(jnp.minimum, list(jnp.where(low, d, bracket.d_lo))),
            join_all(jnp.maximum, list(jnp.where(high, d, bracket.d_hi))),
        )
        # With a margin every aim may fall within it, or cut off a key or two.
        same_size = new.d_lo - new.d_hi > 0.9 * (bracket.d_lo - bracket.d_hi)
        width = width_of(bracket)
        same_width = width_of(new) >= width - (width >> 3)
        stalled = same_size & same_width & (margin > 0)
        return new, few, stalled

    def close(bracket, aims, few):
        return finish(bracket) if finish else bracket, few / 8, jnp.bool_(False)

    def turn(state):
        bracket, aims, few, _ = state
        if finish is None:
            bracket, few, stalled = count(bracket, aims, few)
        else:
            size = bracket.d_lo - bracket.d_hi
            state = lax.cond(size <= few, close, count, bracket, aims, few)
            bracket, few, stalled = state
        return bracket, aim(bracket, margin), few, stalled

    def more(state):
        bracket, _, _, stalled = state
        size = bracket.d_lo - bracket.d_hi
        return (width_of(bracket) > 1) & (size > stop) & ~stalled

    state = (bracket, aims, jnp.float32(few), jnp.bool_(False))
    return lax.while_loop(more, turn, state)[0]


def end_by_rows(keys: list[Array], bracket: Bracket) -> Bracket:
    """Ends the search if no row of any array has more than two keys in the bracket."""
    ends, most = [], jnp.int32(0)
    for key in keys:
        inside = (key > bracket.lo) & (key <= bracket.hi)
        columns = (
            inside.astype(jnp.int32),
            jnp.where(inside, key, NAN_KEY),
            jnp.where(inside, key, START),
        )
        axes = range(split_axis(key.shape, 256), key.ndim)
        held, least, greatest = reduce_many(columns, axes, "alm")
        most = jnp.maximum(most, jnp.max(held))
        ends += [least, jnp.where(held == 2, greatest, NAN_KEY)]
    flat = flattened(ends)
    ends = ends if flat is None else [flat]

    def distance(aims):
        counts = [count_upto(end, aims)[0].astype(jnp.float32) for end in ends]
        return bracket.d_lo - sum(counts)

    even = jnp.arange(1, AIMS + 1, dtype=jnp.float32) / (AIMS + 1)
    found = search(distance, bracket, between(bracket, even))
    return jax.tree.map(lambda x, y: jnp.where(most <= 2, x, y), found, bracket)
