"""Sparsities of leaves chosen from a scan."""

import glob
import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float

from jaxprune._checks import check_integer, is_number
from jaxprune._knapsack import BUCKETS, plan, take
from jaxprune._sensitivity import Curve, Scan


class Costs(NamedTuple):
    """What a network costs, leaf by leaf; `jaxprune.report.costs` makes it.

    Attributes:
      curves: what a leaf costs as a function of its sparsity, by path.
      fixed: what all else costs.
    """

    curves: Mapping[str, Curve]
    fixed: float = 0.0


class Solution(NamedTuple):
    """What `solve` chose.

    Attributes:
      sparsities: by path, as a glob that `to_sparsity` and the `base` of
        `sensitivity_scan` take.
      value: the metric that the scan predicts.
      total: what the network costs at these sparsities.
    """

    sparsities: dict[str, float]
    value: float
    total: float


def solve(
    scan: Scan,
    costs: Costs | None = None,
    *,
    total: int | float | None = None,
    value: int | float | None = None,
    exactly: bool = False,
    additive: Literal["value", "log"] = "value",
    between: int = 8,
) -> Solution:
    """Chooses the sparsity of every leaf: least loss at a total, or least total at one.

    What the leaves add to the loss, each alone, is taken to add up. Between levels
    curves are straight. Under this model the choice is the best on the grid, but for
    rounding: the total is missed by at most one part in 20,000 for each leaf, on the
    side of less. To check the model, measure the loss at the solution; to mend it, scan
    again with the solution as `base`.

    >>> levels = np.array([0.0, 0.5, 0.9])
    >>> curves = {"a": Curve(levels, np.array([1.0, 1.125, 1.5])),
    ...           "b": Curve(levels, np.array([1.0, 1.25, 3.0]))}
    >>> scan = Scan(1.0, {"a": 0.0, "b": 0.0}, curves, {"a": 100, "b": 100})
    >>> solve(scan, total=110, between=0)
    Solution(sparsities={'a': 0.5, 'b': 0.5}, value=1.375, total=100.0)
    >>> solve(scan, value=1.25, between=0)
    Solution(sparsities={'a': 0.5}, value=1.125, total=150.0)

    Args:
      scan: of a loss; a value that is not finite is never chosen.
      costs: what the total counts; the default is live prunable weights.
      total: at most this much, in the unit of `costs`.
      value: a loss of at most this much, predicted. Give this or `total`.
      exactly: whether all of `total` is to be spent. Where pruning lowers the loss of a
        sample, as a little of it often does, less than the total would be chosen
        otherwise, for the sake of a gain that other data may not show.
      additive: whether increases of the loss add up, or those of its logarithm.
      between: points tried between two neighbouring levels, at least 0.

    Raises:
      ValueError: if not one of `total` and `value` is given, if it is no number or
        `between` is negative, if no choice among the levels reaches it, if `costs`
        lacks a leaf, if no loss of a leaf is finite, or if one whose logarithm is
        wanted is not positive.
    """
    if (total is None) == (value is None):
        raise ValueError(
            f"total is {total} and value is {value}, expected one of them."
        )
    for name, most in (("total", total), ("value", value)):
        if most is not None and not (is_number(most) and most == most):
            raise ValueError(f"{name} is {most!r}, expected a number.")
    check_integer("between", between, 0)
    costs = weight_costs(scan) if costs is None else costs
    if missing := [path for path in scan.curves if path not in costs.curves]:
        raise ValueError(
            f"costs has no curve for {', '.join(missing)}, expected one for each leaf."
        )
    start = _forward(scan.value, additive)
    grids, losses, spent = [], [], []
    for path, curve in scan.curves.items():
        grid = _grid(curve.sparsities, between)
        values = _forward(curve.values, additive)
        loss = np.interp(grid, curve.sparsities, values) - start
        able = np.isfinite(loss)
        if not able.any():
            raise ValueError(
                f"no value of {path} is finite, and the scan began at {scan.value:g}; "
                "expected a loss of which some are."
            )
        grids.append(grid[able])
        losses.append(loss[able])
        spent.append(np.interp(grid[able], *costs.curves[path]))
    least = [cost.min() for cost in spent]
    more = [cost - low for cost, low in zip(spent, least, strict=True)]
    floor = costs.fixed + math.fsum(least)
    if total is not None:
        picked = _within(losses, more, total - floor, exactly)
        if picked is None:
            raise ValueError(
                f"total is {total:g}, expected at least {floor:g}, what is left with "
                "every leaf at its cheapest level; scan higher levels."
            )
    else:
        picked = _reaching(losses, more, float(_forward(value, additive) - start))
        if picked is None:
            raise ValueError(
                f"value is {value:g}, expected more: the scan began at {scan.value:g}, "
                "and nothing among its levels is predicted to be as low."
            )
    places = [float(i) for i in picked]
    if total is not None and between:
        places = _filled(losses, spent, picked, total - costs.fixed, exactly)
    at = lambda lists: [
        float(np.interp(place, np.arange(len(values)), values))
        for values, place in zip(lists, places, strict=True)
    ]
    shares = zip(scan.curves, at(grids), strict=True)
    added = start + math.fsum(at(losses))
    return Solution(
        {glob.escape(path): share for path, share in shares if share > 0},
        float(np.exp(added) if additive == "log" else added),
        costs.fixed + math.fsum(at(spent)),
    )


def weight_costs(scan: Scan) -> Costs:
    """Counts live weights of the leaves that were scanned."""
    ends = np.array([0.0, 1.0])
    sizes = scan.sizes.items()
    return Costs({path: Curve(ends, np.array([float(n), 0.0])) for path, n in sizes})


def _forward(value: Any, additive: str) -> Any:
    if additive == "value":
        return np.asarray(value, float)
    if additive != "log":
        raise ValueError(f"additive is {additive!r}, expected 'value' or 'log'.")
    if not np.nanmin(value) > 0:
        raise ValueError(
            f"a loss is {np.nanmin(value):g}, expected positive numbers for 'log'."
        )
    return np.log(value)


def _grid(levels: Float[np.ndarray, " levels"], between: int) -> np.ndarray:
    places = np.arange((len(levels) - 1) * (between + 1) + 1) / (between + 1)
    return np.interp(places, np.arange(len(levels)), levels)


def _within(losses: list, more: list, room: float, exactly: bool) -> list[int] | None:
    """Chooses the least loss within a cost."""
    most = math.fsum(cost.max() for cost in more)
    # Rounded sums of the least costs may pass the total by a hair.
    if room < -1e-9 * max(1.0, most):
        return None
    room = min(max(room, 0.0), most)
    if exactly:
        found = plan(losses, more, room, exactly=True)
        # Near enough for the rest to be spent between two points of the grid.
        near = found.best[-1 - len(found.best) // 200 - len(losses) :]
        if np.isfinite(near).any():
            return take(found, len(found.best) - len(near) + int(near.argmin()))
    found = plan(losses, more, room)
    return take(found, len(found.best) - 1)


def _reaching(losses: list, more: list, most: float) -> list[int] | None:
    """Chooses the least cost within a loss, on finer and finer units."""
    spare = 1 + 2 * len(more) / BUCKETS  # for what each leaf is rounded up
    room = spare * math.fsum(cost.max() for cost in more)
    while True:
        found = plan(losses, more, room)
        good = np.flatnonzero(found.best <= most + 1e-12 * max(1.0, abs(most)))
        if not good.size:
            return None
        used = int(good[0])
        if found.unit == 1.0 or not used or 2 * used > len(found.best):
            return take(found, used)
        room = spare * used * found.unit


def _filled(
    losses: list, spent: list, picked: list[int], total: int | float, exactly: bool
) -> list[float]:
    """Spends what is left, where that lowers the loss most for its cost.

    Places on the grid become fractions: the last step need not be whole.
    """
    picked = list(picked)
    places = [float(i) for i in picked]
    room = total - math.fsum(c[i] for c, i in zip(spent, picked, strict=True))
    while room > 0:
        steps = []
        for n, (loss, cost) in enumerate(zip(losses, spent, strict=True)):
            i = picked[n]
            gains = exactly or loss[i - 1] < loss[i]
            if i and cost[i - 1] > cost[i] and gains:
                more = float(cost[i - 1] - cost[i])
                steps.append((float(loss[i] - loss[i - 1]) / more, more, n))
        if not steps:
            break
        _, more, n = max(steps)
        picked[n] -= 1
        places[n] -= min(1.0, room / more)
        room -= more
    return places
