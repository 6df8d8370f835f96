"""Exact order statistics by counting: no sort, no reshape, no memory a weight."""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun
from jaxtyping import Array, Int

from jaxprune._counts import (
    BITS,
    NAN_KEY,
    START,
    count_upto,
    subtract,
)
from jaxprune._counts import DEAD_KEY as DEAD_KEY
from jaxprune._counts import Count as Count
from jaxprune._counts import at_least as at_least
from jaxprune._counts import count_of as count_of
from jaxprune._counts import dead_count as dead_count
from jaxprune._counts import sort_key as sort_key
from jaxprune._fold import on_cpu
from jaxprune._sample import sample_size, sampled_aims
from jaxprune._search import (
    SURE,
    Bracket,
    apart,
    end_by_rows,
    row_axis,
    search,
    together,
)


_SAMPLE = 1 << 16  # keys in the sample that places the first thresholds
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
    return kth_smallest_each([keys], [rank])[0]


def kth_smallest_each(
    keys: Sequence[Callable[[], Sequence[Int[Array, "..."]]]], ranks: Sequence[Count]
) -> list[Int[Array, ""]]:
    """Does what `kth_smallest` does for several ranks, each among arrays of its own.

    On a CPU one after the other. A GPU searches those at once that take about as many
    passes, for it waits for the host at each turn of a loop.
    """
    found = [jnp.int32(NAN_KEY) for _ in keys]
    parts: dict[Any, list[tuple[int, _Wanted]]] = {}
    for i, (build, rank) in enumerate(zip(keys, ranks, strict=True)):
        wanted = _wanted(build, rank)
        if wanted is not None:
            alone = i if on_cpu() else None
            parts.setdefault((wanted.way, alone), []).append((i, wanted))
    for (way, _), part in parts.items():
        bracket = _find(way, [wanted for _, wanted in part])
        for (i, _), one in zip(part, apart(bracket, len(part)), strict=True):
            found[i] = one.hi
    return found


class _Wanted(NamedTuple):
    """A rank that is searched.

    Attributes:
      again: builds the keys anew in every turn.
      shapes: of the keys, with their shardings.
      fraction: of the keys that a sample takes.
      whole: the bracket of all keys.
      distance: the rank minus the keys up to each aim.
      way: "few" keys are counted as they are; "sampled" places the first aims; "many"
        have no axis long enough for a sample.
    """

    again: Callable[[Array], list[Array]]
    shapes: Sequence[Any]
    fraction: float
    whole: Bracket
    distance: Callable[[Array], Array]
    way: Literal["few", "many", "sampled"]


def _wanted(keys: Callable[[], Sequence[Array]], rank: Count) -> _Wanted | None:
    shapes = jax.eval_shape(keys)
    total = sum(math.prod(s.shape) for s in shapes)
    if total == 0:
        return None
    again = recomputed(keys)

    def distance(aims: Array) -> Array:
        parts = [count_upto(key, aims) for key in again(aims)]
        return subtract(rank, parts, exact_in_int32=total < 2**31)

    start = rank.hi.astype(jnp.float32) * (1 << BITS) + rank.lo.astype(jnp.float32)
    whole = Bracket(jnp.int32(START), jnp.int32(NAN_KEY), start, start - float(total))
    # A small leaf that is sampled is searched together with the large ones.
    fraction = min(1 / 32 if on_cpu() else 1.0, _SAMPLE / total)
    size = sample_size(shapes, fraction)
    if on_cpu() and total < _ENOUGH_TO_SAMPLE:
        way = "few"
    elif 16 * size <= total or (not on_cpu() and size <= 4 * _SAMPLE):
        way = "sampled"
    else:
        way = "many"
    return _Wanted(again, shapes, fraction, whole, distance, way)


def _find(way: str, wanted: list[_Wanted]) -> Bracket:
    whole = together([w.whole for w in wanted])
    aims = together([jnp.array(_FIRST, jnp.int32) for _ in wanted])

    def distance(aims: Array) -> Array:
        each = zip(wanted, apart(aims, len(wanted)), strict=True)
        return together([w.distance(a) for w, a in each])

    if way == "few":
        return search(distance, whole, aims)
    if way == "sampled":
        keys = [w.again(w.whole.d_lo) for w in wanted]
        shapes, fractions = [w.shapes for w in wanted], [w.fraction for w in wanted]
        aims = sampled_aims(keys, shapes, fractions, whole, aims)
    rows = [
        sum(math.prod(s.shape[: row_axis(s.shape)]) for s in w.shapes) for w in wanted
    ]
    # Of so many keys, three share a row in about one search of a hundred.
    few = together([jnp.float32(max(SURE, 0.4 * n ** (2 / 3))) for n in rows])

    def finish(bracket: Bracket) -> Bracket:
        each = zip(wanted, apart(bracket.lo, len(wanted)), strict=True)
        return end_by_rows([w.again(lo) for w, lo in each], bracket)

    return search(distance, whole, aims, finish=finish, few=few)


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
