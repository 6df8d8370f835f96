"""The search for a key of given rank: brackets, where to look next, when to end.

Of one rank, where brackets are scalars, or of several at once, an axis in front: a GPU
waits for the host at every turn of a loop, so that one loop for all is quicker there.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from jaxprune._counts import AIMS, NAN_KEY, START, count_upto, reduce_many, split_axis
from jaxprune._fold import flattened, join_all, on_cpu


# Where to look, in deviations of the estimate, and two even splits, which bound the
# number of passes whatever the keys are.
_NEAR = (-4.0, -1.0, -0.3, 0.3, 1.0, 4.0)
_CURVED = 0.04  # of the width, added to the outermost: keys are not spread evenly
_EVEN = (1 / 3, 2 / 3)
_FEW = 16  # so many keys, or fewer, are split evenly
SURE = 2.0  # keys that a search surely ends on, in whatever rows they are


class Bracket(NamedTuple):
    """The wanted key is in (lo, hi]; d_* is rank minus the keys up to there."""

    lo: Int[Array, "*ranks"]
    hi: Int[Array, "*ranks"]
    d_lo: Float[Array, "*ranks"]
    d_hi: Float[Array, "*ranks"]


def width_of(bracket: Bracket) -> Array:
    """Counts the keys that the bracket could hold, in uint32: it may pass 2**31."""
    return bracket.hi.astype(jnp.uint32) - bracket.lo.astype(jnp.uint32)


def between(bracket: Bracket, fractions: Array, *, inside: bool = True) -> Array:
    """Gives the keys at these fractions of the bracket's width."""
    width = width_of(bracket)[..., None]
    fractions = _for_each(bracket, fractions)
    offset = (fractions * width.astype(jnp.float32)).astype(jnp.uint32)
    if inside:
        offset = jnp.clip(offset, 1, jnp.maximum(width, 2) - 1)
    return (bracket.lo.astype(jnp.uint32)[..., None] + offset).astype(jnp.int32)


def _for_each(bracket: Bracket, x: Array) -> Array:
    # Told in full: a user may have forbidden that ranks are promoted.
    return jnp.broadcast_to(x, (*bracket.lo.shape, x.shape[-1]))


def aim(bracket: Bracket, margin: Array | float) -> Int[Array, "*ranks aims"]:
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
    near = [jnp.clip(x, 0, 1) for x in near]
    mixed = jnp.stack([*near, *(jnp.full_like(size, x) for x in _EVEN)], axis=-1)
    even = _for_each(bracket, jnp.arange(1, AIMS + 1, dtype=jnp.float32) / (AIMS + 1))
    many = (size >= _FEW)[..., None]
    keys = between(bracket, jnp.where(many, mixed, even))
    # Keys are linear in the value within one exponent only: over more, interpolate
    # the value.
    low = lax.bitcast_convert_type(jnp.maximum(bracket.lo, 0), jnp.float32)
    high = lax.bitcast_convert_type(jnp.minimum(bracket.hi, 0x7F7FFFFF), jnp.float32)
    value = low[..., None] + mixed * (high - low)[..., None]
    value = lax.bitcast_convert_type(value, jnp.int32)
    value = jnp.clip(value, bracket.lo[..., None] + 1, bracket.hi[..., None] - 1)
    wide = (width_of(bracket) >> 23 > 0)[..., None]
    guessed = _for_each(bracket, jnp.arange(AIMS) < len(_NEAR))
    return jnp.where(guessed & many & wide, value, keys)


def search(
    distance: Callable[[Array], Array],
    bracket: Bracket,
    aims: Array,
    *,
    margin: Array | float = 0.0,
    stop: Array | float = 0.0,
    finish: Callable[[Bracket], Bracket] | None = None,
    few: Array | float = 0.0,
) -> Bracket:
    """Narrows brackets until each is one key wide or holds at most `stop` keys.

    With a margin, it keeps that many keys on either side of the rank. When at most
    `few` keys are left in each `finish` is tried, and with fewer again where it fails.
    """
    edge = margin[..., None] if isinstance(margin, jax.Array) else margin

    def count(bracket, aims, few):
        d = distance(aims)
        low, high = d >= edge, d < -edge
        lo, hi, d_lo, d_hi = (x[..., None] for x in bracket)
        new = Bracket(
            _joined(jnp.maximum, jnp.where(low, aims, lo)),
            _joined(jnp.minimum, jnp.where(high, aims, hi)),
            _joined(jnp.minimum, jnp.where(low, d, d_lo)),
            _joined(jnp.maximum, jnp.where(high, d, d_hi)),
        )
        # With a margin every aim may fall within it, or cut off a key or two.
        same_size = new.d_lo - new.d_hi > 0.9 * (bracket.d_lo - bracket.d_hi)
        width = width_of(bracket)
        same_width = width_of(new) >= width - (width >> 3)
        stalled = same_size & same_width & (margin > 0)
        return new, few, stalled

    def close(bracket, aims, few):
        bracket = finish(bracket) if finish else bracket
        return bracket, few / 8, jnp.zeros_like(few, bool)

    def turn(state):
        bracket, aims, few, _ = state
        if finish is None:
            bracket, few, stalled = count(bracket, aims, few)
        else:
            ready = bracket.d_lo - bracket.d_hi <= few
            if ready.ndim:
                ready = (ready | (width_of(bracket) <= 1)).all()
            state = lax.cond(ready, close, count, bracket, aims, few)
            bracket, few, stalled = state
        return bracket, aim(bracket, margin), few, stalled

    def more(state):
        bracket, _, _, stalled = state
        size = bracket.d_lo - bracket.d_hi
        goes_on = (width_of(bracket) > 1) & (size > stop) & ~stalled
        return goes_on.any() if goes_on.ndim else goes_on

    few = jnp.broadcast_to(jnp.float32(few), bracket.lo.shape)
    state = (bracket, aims, few, jnp.zeros_like(few, bool))
    return lax.while_loop(more, turn, state)[0]


def _joined(join: Callable[[Array, Array], Array], x: Array) -> Array:
    return join_all(join, list(jnp.moveaxis(x, -1, 0)))


def end_by_rows(keys: Sequence[list[Array]], bracket: Bracket) -> Bracket:
    """Ends searches in which no row of any array has more than two keys left.

    Args:
      keys: for each rank, the arrays in which it is counted.
      bracket: of each rank.
    """
    ends, most = [], []
    for arrays, one in zip(keys, apart(bracket, len(keys)), strict=True):
        ends.append([])
        most.append(jnp.int32(0))
        for key in arrays:
            inside = (key > one.lo) & (key <= one.hi)
            columns = (
                inside.astype(jnp.int32),
                jnp.where(inside, key, NAN_KEY),
                jnp.where(inside, key, START),
            )
            axes = range(row_axis(key.shape), key.ndim)
            held, least, greatest = reduce_many(columns, axes, "alm")
            most[-1] = jnp.maximum(most[-1], jnp.max(held))
            ends[-1] += [least, jnp.where(held == 2, greatest, NAN_KEY)]
    upto = counter(ends)
    even = jnp.arange(1, AIMS + 1, dtype=jnp.float32) / (AIMS + 1)
    found = search(
        lambda aims: bracket.d_lo[..., None] - upto(aims),
        bracket,
        between(bracket, even),
    )
    ended = together(most) <= 2
    return jax.tree.map(lambda x, y: jnp.where(ended, x, y), found, bracket)


def row_axis(shape: tuple[int, ...]) -> int:
    """Gives the axis from which on a search ends on rows.

    A leaf of few rows needs more passes, and on a GPU those that are searched together
    with it would wait for it: there rows may be short.
    """
    return split_axis(shape, 256 if on_cpu() else 64)


def together(trees: Sequence[Any]) -> Any:
    """Stacks what there is of each rank; of one alone there is no axis."""
    if len(trees) == 1:
        return trees[0]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def apart(tree: Any, ranks: int) -> list[Any]:
    """Undoes `together`."""
    if ranks == 1:
        return [tree]
    return [jax.tree.map(lambda x, i=i: x[i], tree) for i in range(ranks)]


def counter(
    keys: Sequence[list[Array]], ratios: Sequence[list[float]] | None = None
) -> Callable[[Array], Float[Array, "*ranks aims"]]:
    """Makes the function that counts small arrays of keys up to each aim.

    Args:
      keys: for each rank, the arrays in which it is counted; `NAN_KEY` is not.
      ratios: what a key of each array counts for; 1 by default.
    """
    flat = [x for x in map(flattened, keys) if x is not None]
    if len(flat) < len(keys):
        return lambda aims: together(
            [
                _upto(arrays, ratios[i] if ratios else None, aim)
                for i, (arrays, aim) in enumerate(
                    zip(keys, apart(aims, len(keys)), strict=True)
                )
            ]
        )
    longest = max(x.size for x in flat)
    pad = lambda x, fill: jnp.pad(x, (0, longest - x.size), constant_values=fill)
    key = together([pad(x, NAN_KEY) for x in flat])[..., None, :]
    count = lambda under: jnp.sum(under, axis=-1, dtype=jnp.int32).astype(jnp.float32)
    if ratios is None:
        return lambda aims: count(key <= aims[..., None])
    if all(len(each) == 1 for each in ratios):
        ratio = together([jnp.float32(each[0]) for each in ratios])[..., None]
        return lambda aims: count(key <= aims[..., None]) * ratio
    shares = [
        jnp.concatenate(
            [jnp.full(k.size, r, jnp.float32) for k, r in zip(*each, strict=True)]
        )
        for each in zip(keys, ratios, strict=True)
    ]
    share = together([pad(x, 0) for x in shares])[..., None, :]
    return lambda aims: jnp.sum(jnp.where(key <= aims[..., None], share, 0), axis=-1)


def _upto(keys: list[Array], ratios: list[float] | None, aims: Array) -> Array:
    counts = [count_upto(key, aims)[0].astype(jnp.float32) for key in keys]
    if ratios is None:
        return join_all(jnp.add, counts)
    return join_all(
        jnp.add, [n * ratio for n, ratio in zip(counts, ratios, strict=True)]
    )
