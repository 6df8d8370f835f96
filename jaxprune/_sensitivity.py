"""How each leaf alone bears pruning: the scan. What to choose from it is `_solve`."""

import functools
import glob
from collections.abc import Callable, Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from jaxprune._checks import check_fraction
from jaxprune._counts import dead_number
from jaxprune._criteria import magnitude
from jaxprune._masks import apply_mask
from jaxprune._paths import lookup
from jaxprune._points import Known, Point, append, begin, fingerprint
from jaxprune._summary import LayerReport, summarize
from jaxprune._thresholds import to_sparsity
from jaxprune._types import Criterion, Mask, Params


class Curve(NamedTuple):
    """A quantity as a function of one leaf's sparsity.

    Attributes:
      sparsities: dead fractions of the leaf, rising.
      values: the quantity at each of them.
    """

    sparsities: Float[np.ndarray, " levels"]
    values: Float[np.ndarray, " levels"]


class Scan(NamedTuple):
    """What `sensitivity_scan` measured.

    Attributes:
      value: the metric with every leaf at its base.
      base: sparsity of each leaf while another one is scanned, by path.
      curves: the metric as a function of one leaf's sparsity, by its path; each holds
        the leaf's base too.
      sizes: weights of each leaf, by path.
    """

    value: float
    base: dict[str, float]
    curves: dict[str, Curve]
    sizes: dict[str, int]


def sensitivity_scan(
    evaluate: Callable[[Params], Any],
    params: Params,
    mask: Mask,
    sparsities: Sequence[float] | Mapping[Any, Sequence[float]],
    criterion: Criterion = magnitude,
    *,
    base: Mapping[Any, float] | None = None,
    retrain: Callable[[Params, Mask], Params] | None = None,
    file: str | PathLike[str] | None = None,
    report: Callable[[Point, int, int], Any] | None = None,
    **extra: Any,
) -> Scan:
    """Measures how each leaf alone bears pruning.

    For every prunable leaf and every level, that leaf is pruned to that sparsity, the
    others stay at their base, and `evaluate` is called. Shapes do not change and the
    sparsities are traced, so pruning compiles once, and so does a jitted `evaluate`.
    A level at which nothing more would die than at the base is not measured again.

    Args:
      evaluate: gives the metric of params, a scalar; for `solve` a loss, the mean over
        data that the params were not trained on.
      params: trained params.
      mask: names the prunable leaves; what is dead in it stays dead.
      sparsities: levels in [0, 1), dead fractions of a leaf's weights; or a mapping
        from glob or regular expression to levels, whose first match counts for a leaf,
        and which leaves the others at their base.
      criterion: what to prune by.
      base: sparsities at which the leaves stay while another one is scanned, by glob or
        regular expression, such as those of a `Solution`; the default is the mask's.
      retrain: gives params again after a few steps of training with this mask, the same
        for every point. The default is no retraining.
      file: where each point is written as it is measured, so that a scan that was
        interrupted, or given more levels, goes on from there. It belongs to these
        params, mask, base and scores by the criterion; `evaluate` and `retrain` it does
        not know.
      report: called with each new point, the number of points that are known, and the
        number wanted.
      **extra: what the criterion asks for, such as `grads`.

    Raises:
      ValueError: if a level or base is outside [0, 1), the levels of a leaf are no
        sequence, a pattern matches no prunable leaf, the mask does not fit, the metric
        is no scalar, or `file` is that of another scan.

    Source:
      Han et al. 2015 (arXiv:1506.02626), figure 6.
    """
    file = None if file is None else Path(file)
    rows = {r.path: r for r in summarize(params, mask) if r.prunable and r.size}
    start = {path: _dead(row, 0.0) for path, row in rows.items()}
    for path, level in _by_leaf(base or {}, rows, "base").items():
        start[path] = _dead(rows[path], level)
    wanted = dict.fromkeys([Point("", 0, 0.0)])
    for path, levels in _by_leaf(sparsities, rows, "sparsities").items():
        if isinstance(levels, str) or not isinstance(levels, Iterable):
            raise ValueError(
                f"the levels of {path} are {levels!r}, expected a sequence of "
                "fractions in [0, 1)."
            )
        counts = sorted({_dead(rows[path], level) for level in levels} - {start[path]})
        wanted |= dict.fromkeys(Point(path, dead, 0.0) for dead in counts)
    prune = pruner(criterion, tuple(rows))

    def measure(point: Point) -> float:
        counts = start | ({point.leaf: point.dead} if point.leaf else {})
        shares = [counts[path] / row.size for path, row in rows.items()]
        pruned, alive = prune(params, mask, jnp.asarray(shares, jnp.float32), extra)
        if retrain is not None:
            pruned = apply_mask(retrain(pruned, alive), alive)
        value = np.asarray(evaluate(pruned))
        if value.shape:
            raise ValueError(
                f"evaluate gave an array of shape {value.shape}, expected one number; "
                "take the mean over examples."
            )
        return float(value)

    known: Known = {}
    if file is not None:
        scores = criterion(params, mask, jnp.zeros((), jnp.int32), **extra)
        about = fingerprint(params, mask, scores, start, retrained=retrain is not None)
        known = begin(file, about)
    done = sum(point[:2] in known for point in wanted)
    for point in wanted:
        if point[:2] not in known:
            found = point._replace(value=measure(point))
            known[found[:2]] = found.value
            if file is not None:
                append(file, found)
            done += 1
            if report is not None:
                report(found, done, len(wanted))
    values = {point[:2]: known[point[:2]] for point in wanted}
    whole = values.pop(("", 0))
    curves = {}
    for path, row in rows.items():
        curve = {dead: v for (leaf, dead), v in values.items() if leaf == path}
        counts, measured = zip(
            *sorted({**curve, start[path]: whole}.items()), strict=True
        )
        curves[path] = Curve(np.array(counts) / row.size, np.array(measured))
    shares = {path: start[path] / row.size for path, row in rows.items()}
    return Scan(whole, shares, curves, {path: row.size for path, row in rows.items()})


@functools.lru_cache(maxsize=8)
def pruner(criterion: Criterion, names: tuple[str, ...]) -> Any:
    """Makes the function that prunes each leaf to its own, traced sparsity.

    Kept, so that several scans compile it once.
    """

    @jax.jit
    def prune(
        params: Params, mask: Mask, shares: Array, extra: PyTree
    ) -> tuple[Params, Mask]:
        each = {
            glob.escape(name): lambda step, i=i: shares[i]
            for i, name in enumerate(names)
        }
        step = jnp.zeros((), jnp.int32)
        mask = to_sparsity(criterion, each)(params, mask, step, **extra)
        return apply_mask(params, mask), mask

    return prune


def _dead(row: LayerReport, level: float) -> int:
    """Counts what is dead at a level, by the rule of `to_sparsity`."""
    check_fraction("a level", level)
    return max(dead_number(level, row.size), row.size - row.alive)


def _by_leaf(value: Any, rows: Mapping[str, Any], what: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return dict.fromkeys(rows, value)
    found = zip(rows, lookup(value, list(rows), what), strict=True)
    return {path: v for path, v in found if v is not None}
