"""How a mask is cut: to a sparsity, or at a multiple of the standard deviation."""

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from jaxprune._checks import (
    check_fraction,
    check_function,
    check_integer,
    is_number,
)
from jaxprune._criteria import magnitude
from jaxprune._cut import cut, keys_of
from jaxprune._deviation import layer_std
from jaxprune._masks import check_mask, map_masked
from jaxprune._paths import check_patterns, leaf_names, lookup
from jaxprune._select import (
    Count,
    dead_count,
    kth_smallest,
    kth_smallest_each,
    sort_key,
)
from jaxprune._types import Criterion, Mask, MaskSchedule, Params, Step


def to_sparsity(
    criterion: Criterion,
    sparsity: float | optax.Schedule | Mapping[Any, float | optax.Schedule],
    *,
    scope: Literal["leaf", "global"] = "leaf",
    min_keep: int = 1,
) -> MaskSchedule:
    """Kills the lowest-scored weights until a fraction `sparsity` of them is dead.

    Of n prunable weights in scope, the dead counted as lowest, those scoring below the
    (d + 1)-th smallest die, where d = (q n + 2**23) >> 24 and q = round(2**24 s), the
    sparsity s being read as float32. Weights tied with it live, and so does a NaN, so
    that pruning never hides one; the dead stay dead. The threshold is exact, found with
    no sort, reshape or concatenation, so sharded leaves stay where they are. Scores are
    read as float32: those of float64 or of integers that it cannot tell apart are tied.

    Args:
      criterion: scores, for instance `magnitude`.
      sparsity: dead fraction in [0, 1) of the prunable weights, not of all weights: a
        constant, or an optax schedule of the step, whose values are clipped to [0, 1];
        or a mapping from glob or regular expression to either, whose first match counts
        for a leaf, and which leaves the others alone.
      scope: rank within each leaf, or over all prunable leaves at once.
      min_keep: weights that must stay alive in every leaf, as far as so many were; of
        equal ones those that come first in the leaf.

    Raises:
      ValueError: if `criterion` is no function, a constant `sparsity` is outside
        [0, 1), `scope` is unknown, a mapping is given for the global scope or has a key
        that is no pattern, or `min_keep` is negative; at the first call if a key of the
        mapping matches no prunable leaf, or if a schedule's value is no scalar.

    Source:
      Zhu and Gupta 2017 (arXiv:1710.01878), equation 1, is
      `optax.polynomial_schedule(0.0, final, 3, steps, begin)`.
    """
    check_function("criterion", criterion, "jaxprune.magnitude")
    for s in _values(sparsity, "sparsity"):
        if not callable(s):
            check_fraction("sparsity", s)
    if scope not in ("leaf", "global"):
        raise ValueError(f"scope is {scope!r}, expected 'leaf' or 'global'.")
    if scope == "global" and isinstance(sparsity, Mapping):
        raise ValueError(
            "a mapping gives sparsities to leaves, expected one number or schedule for "
            "scope 'global'; use scope 'leaf'."
        )
    check_integer("min_keep", min_keep, 0)

    def schedule(params: Params, mask: Mask, step: Step, **extra: Any) -> Mask:
        def keys() -> list[Array]:
            return keys_of(params, mask, criterion(params, mask, step, **extra))

        def dead(s: Any, size: int, spare: int) -> Count:
            now: Any = s(step) if callable(s) else s
            if not is_number(now):
                raise ValueError(
                    f"a schedule of the sparsity gave {now!r}, expected a scalar."
                )
            return dead_count(now, size, spare)

        sizes = [m.size for m in jax.tree.leaves(mask)]
        spares = [size - min(min_keep, size) for size in sizes]
        if scope == "global":
            threshold = kth_smallest(keys, dead(sparsity, sum(sizes), sum(spares)))
            thresholds = [threshold for _ in sizes]
            return cut(mask, keys, thresholds, min_keep)
        # Within a leaf the count of the dead already leaves `min_keep` alive.
        wanted = {
            i: dead(s, size, spare)
            for i, (s, size, spare) in enumerate(
                zip(
                    _by_leaf(sparsity, params, mask, "sparsity"),
                    sizes,
                    spares,
                    strict=True,
                )
            )
            if s is not None
        }
        found = kth_smallest_each([_one(keys, i) for i in wanted], [*wanted.values()])
        thresholds = dict(zip(wanted, found, strict=True))
        return cut(mask, keys, [thresholds.get(i) for i in range(len(sizes))])

    return schedule


def by_std(
    quality: float | Mapping[Any, float],
    *,
    std: PyTree | None = None,
    min_keep: int = 1,
) -> MaskSchedule:
    r"""Kills weights smaller than `quality` standard deviations of their layer.

    A weight dies when :math:`|w| < q \sigma`. The deviation is taken over the live
    weights of one leaf, unless `std` gives one for each leaf, for instance
    `layer_std(params, mask)` of the dense net, kept by the caller and in the
    checkpoint. The paper leaves open whether zeros count from the second round on;
    counting them would shrink the threshold every round. A leaf with a NaN weight has
    no deviation, and nothing in it dies.

    A deviation is a float sum, which rounds differently when the leaf is laid out over
    devices: weights within 1e-6, relatively, of the threshold may then differ.

    Args:
      quality: a positive factor without units, for all leaves or by glob or regular
        expression, whose first match counts for a leaf, and which leaves the others
        alone.
      std: deviations fixed beforehand, a scalar for each leaf, `None` where the mask
        is `None`.
      min_keep: as in `to_sparsity`.

    Raises:
      ValueError: if a factor is not positive, a key of `quality` is no pattern or
        `min_keep` is negative, or at the first call if a key matches no prunable leaf,
        or if `std` is not such a tree.

    Source:
      Han et al. 2015 (arXiv:1506.02626), section 3.
    """
    for q in _values(quality, "quality"):
        if not (is_number(q) and 0 < q < math.inf):
            raise ValueError(f"quality is {q!r}, expected a positive factor.")
    check_integer("min_keep", min_keep, 0)

    def schedule(params: Params, mask: Mask, step: Step, **extra: Any) -> Mask:
        def keys() -> list[Array]:
            return keys_of(params, mask, magnitude(params, mask, step))

        sigmas = layer_std(params, mask) if std is None else _given(std, params, mask)
        thresholds = [
            None if q is None else _std_key(q * sigma)
            for q, sigma in zip(
                _by_leaf(quality, params, mask, "quality"),
                jax.tree.leaves(sigmas),
                strict=True,
            )
        ]
        return cut(mask, keys, thresholds, min_keep)

    return schedule


def _values(value: Any, what: str) -> list[Any]:
    if not isinstance(value, Mapping):
        return [value]
    check_patterns(what, value)
    return list(value.values())


def _one(keys: Callable[[], list[Array]], i: int) -> Callable[[], list[Array]]:
    return lambda: [keys()[i]]


def _given(std: PyTree, params: Params, mask: Mask) -> PyTree:
    def at_leaf(w: Any, m: Any, sigma: Any, name: str) -> Array:
        if not is_number(sigma):
            raise ValueError(f"std of {name} is {sigma!r}, expected a scalar.")
        return jnp.asarray(sigma, jnp.float32)

    check_mask(params, mask)
    try:
        return map_masked(
            at_leaf, params, mask, std, leaf_names(params), elsewhere=lambda w: None
        )
    except (ValueError, TypeError) as error:
        raise ValueError(
            "by_std: std does not hold one deviation for each leaf that the mask "
            f"covers ({error}); make it with jaxprune.layer_std(params, mask)."
        ) from error


def _std_key(threshold: Array) -> Array:
    # A deviation that is NaN kills nothing.
    alive = jnp.ones((), bool)
    return jnp.where(jnp.isnan(threshold), -1, sort_key(threshold, alive))


def _by_leaf(value: Any, params: Params, mask: Mask, what: str) -> list[Any]:
    names = map_masked(
        lambda p, m, name: name, params, mask, leaf_names(params),
        elsewhere=lambda p: None,
    )  # fmt: skip
    names = jax.tree.leaves(names)
    if isinstance(value, Mapping):
        return lookup(value, names, what)
    return [value for _ in names]
