"""Exact counts: beyond 2**31 in two words, and how many weights a sparsity kills."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jaxprune._fold import fold, is_small, join_all, on_cpu


AIMS = 8  # thresholds counted in one pass
BITS = 24  # of the low word of a Count
_SHORT_ROW = 64  # keys counted into one number, at least, of a small array
ROW = 384  # keys that are counted into one number, at least
NAN_KEY = 2**31 - 1  # above +inf, so that pruning never hides a NaN
DEAD_KEY = -1
START = -2  # below every key


class Count(NamedTuple):
    """A non-negative integer below 2**55, as hi * 2**24 + lo with 0 <= lo < 2**24.

    Two int32 words, because int32 alone is wrong beyond 2**31 weights, float32
    beyond 2**24, and int64 is off by default in JAX.
    """

    hi: Int[Array, "..."]
    lo: Int[Array, "..."]


def count_of(n: int) -> Count:
    """Makes a `Count` from a Python integer in [0, 2**55)."""
    return Count(jnp.int32(n >> BITS), jnp.int32(n % (1 << BITS)))


def dead_number(sparsity: float, total: int, min_keep: int = 1) -> int:
    """Counts on the host what `dead_count` does, with so many kept alive.

    >>> dead_number(0.7, 10), dead_number(0.99, 3)
    (7, 2)
    """
    q = round(float(np.float32(sparsity)) * (1 << BITS))
    dead = (q * total + (1 << (BITS - 1))) >> BITS
    return min(dead, max(total - min_keep, 0))


def dead_count(
    sparsity: float | Float[Array, ""] | Int[Array, ""], total: int, most: int
) -> Count:
    """Computes how many of `total` weights are dead at `sparsity`, in integers.

    That is min((q * total + 2**23) >> 24, most) with q = round(s * 2**24), s being
    `sparsity` as float32: 7 of 10 at 0.7, the same for a constant and for a traced
    value, and right beyond 2**31 weights.

    Args:
      sparsity: dead fraction, a float or a scalar, traced or not; clipped to [0, 1].
      total: prunable weights in scope, below 2**48.
      most: never more than this many.
    """
    share = jnp.clip(jnp.asarray(sparsity).astype(jnp.float32), 0.0, 1.0)
    q = jnp.round(share * (1 << BITS)).astype(jnp.int32)
    # Schoolbook product in limbs of 12 bits, so that nothing passes 2**31.
    digits = [(total >> (12 * k)) % 4096 for k in range(4)]
    limbs, carry = [], jnp.int32(0)
    for k in range(6):
        for word, shift in ((q & 4095, 0), (q >> 12, 1)):
            if 0 <= k - shift < 4:
                carry += word * digits[k - shift]
        carry += 2048 if k == 1 else 0
        limbs.append(carry & 4095)
        carry >>= 12
    dead = Count(limbs[4] + (limbs[5] << 12), limbs[2] + (limbs[3] << 12))
    cap = count_of(most)
    fits = (dead.hi < cap.hi) | ((dead.hi == cap.hi) & (dead.lo <= cap.lo))
    return Count(jnp.where(fits, dead.hi, cap.hi), jnp.where(fits, dead.lo, cap.lo))


def sort_key(
    scores: Float[Array, "*shape"], mask: Bool[Array, "*shape"]
) -> Int[Array, "*shape"]:
    """Maps scores to int32 keys that sort as |score| does.

    Non-negative floats order like their bit patterns, so -0 equals 0, denormals
    are told apart and infinity is large; NaN is the largest key and dead weights
    are -1, below all live ones. Scores of other widths are read as float32.
    """
    bits = lax.bitcast_convert_type(jnp.abs(scores.astype(jnp.float32)), jnp.int32)
    bits = jnp.where(bits > 0x7F800000, NAN_KEY, bits)
    return jnp.where(mask, bits, DEAD_KEY)


def split_axis(shape: tuple[int, ...], row: int) -> int:
    """Gives the axis from which on the axes hold at least `row` elements."""
    axis, size = len(shape), 1
    while axis and size < row:
        axis -= 1
        size *= shape[axis]
    return axis


def reduce_many(columns: Sequence[Array], axes: Sequence[int], ops: str) -> tuple:
    """Reduces several arrays at once: ops is a letter for each, a(dd), l(east), m(ost).

    One reduction with several outputs, since XLA's CPU backend fuses scores into
    it and vectorises it; a reduction with one output it cuts in three, and stores
    four bytes an element for the first.
    """
    join = {"a": lax.add, "l": lax.min, "m": lax.max}
    unit = {"a": 0, "l": NAN_KEY, "m": START}

    def both(left, right):
        return tuple(join[op](x, y) for op, x, y in zip(ops, left, right, strict=True))

    units = tuple(jnp.int32(unit[op]) for op in ops)
    return tuple(lax.reduce(tuple(columns), units, both, tuple(axes)))


def at_least(keep: int, flags: Bool[Array, "..."]) -> Bool[Array, ""]:
    """Tells whether at least `keep` flags are set."""
    if is_small(flags) and on_cpu():
        return fold(jnp.add, 0, lambda f: f.astype(jnp.int32), flags) >= keep
    axis = split_axis(flags.shape, ROW)
    ones = flags.astype(jnp.int32)
    # The largest flag adds nothing but a second output: see `reduce_many`.
    rows, largest = reduce_many((ones, ones), range(axis, flags.ndim), "am")
    # A row need not be counted past `keep`, so the sum does not overflow.
    return (jnp.sum(jnp.minimum(rows, keep)) >= keep) & (jnp.max(largest) >= 0)


def count_upto(key: Array, aims: Array) -> tuple[Array, ...]:
    """Counts keys up to each aim: (count,) in int32, or words (hi, lo) of 12 bits."""
    small = is_small(key) and on_cpu()
    axis = split_axis(key.shape, _SHORT_ROW if small else max(ROW, key.size >> 19))
    bits = max(1, math.prod(key.shape[axis:]).bit_length())
    # Counts of a short row share words: fewer sums, fewer scalars (see `_fold`), and
    # XLA's model of a GPU would rather store keys than build them for eight sums.
    share = max(1, 31 // bits) if small or not on_cpu() else 1
    sums = _row_counts(key, aims, axis, bits, share)
    lead = range(axis)
    if small:
        return (fold(jnp.add, 0, lambda x: x, jnp.stack(sums), lead=1),)
    if key.size < 2**31:
        return (jnp.stack(reduce_many(sums, lead, "a" * AIMS) if axis else sums),)
    words = [s >> 12 for s in sums] + [s & 4095 for s in sums]
    words = reduce_many(words, lead, "a" * len(words)) if axis else words
    return jnp.stack(words[:AIMS]), jnp.stack(words[AIMS:])


def _row_counts(
    key: Array, aims: Array, axis: int, bits: int, share: int
) -> list[Array]:
    """Counts the keys up to each aim in each row: the axes from `axis` on.

    So many counts as `share` are added up in one word, each in so many bits.
    """
    words = []
    for first in range(0, AIMS, share):
        flags = [
            jnp.where(key <= aims[i], jnp.int32(1 << bits * (i - first)), 0)
            for i in range(first, min(AIMS, first + share))
        ]
        words.append(join_all(jnp.add, flags))
    sums = reduce_many(words, range(axis, key.ndim), "a" * len(words))
    mask = (1 << bits) - 1
    return [
        (sums[i // share] >> bits * (i % share)) & mask if share > 1 else sums[i]
        for i in range(AIMS)
    ]


def subtract(rank: Count, parts: list[tuple], *, exact_in_int32: bool) -> Array:
    """Subtracts counts from rank: float32 of the right sign, exact when small."""
    hi, lo = jnp.int32(0), jnp.int32(0)
    if exact_in_int32:
        lo = sum(part[0] for part in parts)
        hi, lo = lo >> BITS, lo & 0xFFFFFF
    else:
        for part in parts:
            high, low = part if len(part) == 2 else (part[0] >> 12, part[0] & 4095)
            lo += ((high & 4095) << 12) + (low & 0xFFFFFF)
            hi += (high >> 12) + (low >> BITS) + (lo >> BITS)
            lo &= 0xFFFFFF
    high, low = (rank.hi - hi).astype(jnp.float32), (rank.lo - lo).astype(jnp.float32)
    return high * (1 << BITS) + low
