"""Exact order statistics by counting: no sort, no reshape, no memory a weight."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun
from jaxtyping import Array, Int

from jaxprune._counts import (
    AIMS,
    BITS,
    NAN_KEY,
    START,
    count_upto,
    split_axis,
    subtract,
)
from jaxprune._counts import DEAD_KEY as DEAD_KEY
from jaxprune._counts import Count as Count
from jaxprune._counts import at_least as at_least
from jaxprune._counts import count_of as count_of
from jaxprune._counts import dead_count as dead_count
from jaxprune._counts import sort_key as sort_key
from jaxprune._fold import flattened, free_axes
from jaxprune._search import Bracket, between, end_by_rows, search


_SAMPLE = 1 << 16  # keys in the sample that places the first thresholds
MANY = 1 << 20  # keys in the sample that shows that enough live
# Fewer keys are counted as they are: a pass costs less than what would save it.
_ENOUGH_TO_SAMPLE = 3 << 17

# 2**-24 ... 2**-2, where weights and saliencies are: saves the passes that would
# find the exponent.
_FIRST = (DEAD_KEY, *(0x3F800000 - (e << 23) for e in (24, 14, 10, 8, 6, 4, 2)))

# Work that costs more to repeat in every pass than to keep for all of them, on arrays
# of more than a few elements.
_COSTLY = ("reduce", "arg", "random", "threefry", "cum", "while", "scan", "dot")
_COSTLY += ("conv_", "sort", "gather", "scatter", "fft", "top_k", "erf_inv", "cond")
_TRIFLE = 64


def kth_smallest(
    keys: Callable[[], Sequence[Int[Array, "..."]]], rank: Count
) -> Int[Array, ""]:
    """Finds the key with `rank` keys before it in sorted order, over all arrays.

    Each pass counts, for eight thresholds, the keys up to them. A strided sample
    gives the first thresholds; later ones are placed by interpolation in the
    bracket that is left, among even splits that bound the number of passes. Once
    few keys are left, one pass takes the least and greatest of each row, and the
    search ends on these. Every decision is made on exact counts: the sample and the
    interpolation settle only how long it takes. About four passes for weights
    that are spread smoothly.

    Args:
      keys: builds the arrays of `sort_key` from what is in memory anyway. It is
        traced once and evaluated anew in each pass, where XLA fuses it into the
        counting, unless it holds work too costly to repeat, such as random draws.
      rank: from 0 to the number of keys, exclusive.

    Returns:
      The key, exact on any sharding; the largest int32 if there are no keys.
    """
    shapes = jax.eval_shape(keys)
    total = sum(math.prod(s.shape) for s in shapes)
    if total == 0:
        return jnp.int32(NAN_KEY)
    again = recomputed(keys)

    def distance(aims: Array) -> Array:
        parts = [count_upto(key, aims) for key in again(aims)]
        return subtract(rank, parts, exact_in_int32=total < 2**31)

    start = rank.hi.astype(jnp.float32) * (1 << BITS) + rank.lo.astype(jnp.float32)
    whole = Bracket(jnp.int32(START), jnp.int32(NAN_KEY), start, start - float(total))
    aims = jnp.array(_FIRST, jnp.int32)
    fraction = min(1 / 32, _SAMPLE / total)
    if total < _ENOUGH_TO_SAMPLE:
        return search(distance, whole, aims).hi
    if 16 * _sample_size(shapes, fraction) <= total:
        aims = _sampled_aims(again(start), shapes, fraction, whole, aims)
    lanes = sum(math.prod(s.shape[: split_axis(s.shape, 256)]) for s in shapes)

    def finish(bracket: Bracket) -> Bracket:
        return end_by_rows(again(bracket.lo), bracket)

    # Of so many keys, three share a row in about one search of a hundred.
    few = 0.4 * lanes ** (2 / 3)
    return search(distance, whole, aims, finish=finish, few=few).hi


def recomputed(keys: Callable[[], Sequence[Array]]) -> Callable[[Array], list[Array]]:
    """Makes a function of a loop variable that computes `keys` anew in every turn.

    XLA moves what does not depend on the loop out of it and would store the keys, four
    bytes a weight; a barrier makes their operands depend on it. Keys that hold work
    too costly to repeat, such as random draws, are stored after all.
    """
    closed = jax.make_jaxpr(keys)()
    if _costly(closed.jaxpr):
        kept = list(keys())
        return lambda tie: kept
    # Nothing is differentiated through a mask.
    operands = [lax.stop_gradient(c) for c in closed.consts]

    def again(tie: Array) -> list[Array]:
        tied, _ = lax.optimization_barrier((operands, tie))
        return list(jaxpr_as_fun(ClosedJaxpr(closed.jaxpr, tied))())

    return again


def _costly(jaxpr: Any) -> bool:
    for eqn in jaxpr.eqns:
        sizes = [math.prod(v.aval.shape) for v in (*eqn.invars, *eqn.outvars)]
        if eqn.primitive.name.startswith(_COSTLY) and max(sizes, default=0) > _TRIFLE:
            return True
        inner = [getattr(v, "jaxpr", None) for v in eqn.params.values()]
        if any(_costly(j) for j in inner if j is not None):
            return True
    return False


def sample(key: Array) -> Array:
    """Gives an array of a million or so keys from all over a larger one."""
    if key.size <= MANY:
        return key
    strides = _strides(jax.typeof(key), MANY / key.size)
    return lax.slice(key, (0,) * key.ndim, key.shape, strides)


def _strides(key: Any, fraction: float) -> list[int]:
    strides = [1] * len(key.shape)
    # Rows before columns: whole cache lines. Both, since rows or columns may differ.
    for axis in sorted(free_axes(key), key=lambda a: -key.shape[a]):
        left = 1 / (fraction * math.prod(strides))
        strides[axis] = max(1, min(round(left), key.shape[axis] // 16))
    return strides


def _sample_size(shapes: Sequence[Any], fraction: float) -> int:
    return sum(
        math.prod(
            -(-n // by) for n, by in zip(s.shape, _strides(s, fraction), strict=True)
        )
        for s in shapes
    )


def _sampled_aims(
    keys: list[Array],
    shapes: Sequence[Any],
    fraction: float,
    whole: Bracket,
    first: Array,
) -> Int[Array, " aims"]:
    """Spreads the first thresholds over where a sample says that the rank is."""
    samples = [
        lax.slice(k, (0,) * k.ndim, k.shape, _strides(s, fraction))
        for k, s in zip(keys, shapes, strict=True)
    ]
    samples = lax.optimization_barrier(samples)
    ratios = [k.size / max(1, s.size) for k, s in zip(keys, samples, strict=True)]
    flat = flattened(samples)
    pairs = zip(samples, ratios, strict=True)
    weights = jnp.concatenate([jnp.full(s.size, ratio) for s, ratio in pairs])

    def distance(aims):
        if flat is None:
            parts = zip(samples, ratios, strict=True)
            return whole.d_lo - sum(
                count_upto(s, aims)[0].astype(jnp.float32) * ratio for s, ratio in parts
            )
        upto = jnp.where(flat <= aims[:, None], weights, 0)
        return whole.d_lo - jnp.sum(upto, axis=1)

    total, size = whole.d_lo - whole.d_hi, sum(s.size for s in samples)
    share = whole.d_lo / total
    sigma = total * jnp.sqrt(jnp.maximum(share * (1 - share), 1 / size) / size)
    found = search(distance, whole, first, margin=3 * sigma, stop=8 * sigma)
    even = jnp.arange(AIMS, dtype=jnp.float32) / (AIMS - 1)
    return between(found, even, inside=False)
