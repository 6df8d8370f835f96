"""Mending what is predicted by what is measured: scans around the best so far."""

import glob
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np

from jaxprune._criteria import magnitude
from jaxprune._sensitivity import Scan, sensitivity_scan
from jaxprune._solve import Costs, Solution, solve, weight_costs
from jaxprune._types import Criterion, Mask, Params


def refine(
    evaluate: Callable[[Params], Any],
    params: Params,
    mask: Mask,
    start: Mapping[Any, float],
    criterion: Criterion = magnitude,
    *,
    total: int | float,
    costs: Costs | None = None,
    exactly: bool = True,
    additive: Literal["value", "log"] = "value",
    reach: float = 0.3,
    rounds: int = 6,
    report: Callable[[Solution, bool], Any] | None = None,
    **extra: Any,
) -> Solution:
    """Improves sparsities by scans around them.

    A scan of a dense network tells what leaves lose one at a time; pruned together they
    lose more, or less. So each round scans every leaf a little to both sides of the
    best sparsities so far, solves again within that reach, and measures the solution.
    What is better becomes the place to go on from; when nothing is, the reach is
    halved.

    Args:
      evaluate: as in `sensitivity_scan`, a loss.
      params: trained params.
      mask: what is alive of them.
      start: sparsities by glob or regular expression, those of a `Solution` or any.
      criterion: what to prune by.
      total: as in `solve`.
      costs: as in `solve`.
      exactly: as in `solve`.
      additive: as in `solve`.
      reach: how far from the best a leaf is scanned at first, as a share of its live
        weights, in (0, 1).
      rounds: how many scans are made, each of two points a leaf.
      report: called after each round with its solution, whose value is measured, and
        whether it is the best so far.
      **extra: what the criterion asks for.

    Returns:
      The best sparsities, with the value that was measured.

    Raises:
      ValueError: if `reach` is outside (0, 1), or as `sensitivity_scan` and `solve`.
    """
    if not 0 < reach < 1:
        raise ValueError(f"reach is {reach}, expected a share in (0, 1).")

    def scan(base: Mapping[Any, float], levels: Any) -> Scan:
        return sensitivity_scan(
            evaluate, params, mask, levels, criterion, base=base, **extra
        )

    now = scan(start, [])
    best = _as_solution(now, costs)
    # Half a weight of each leaf is lost in rounding.
    slack = 1e-3 * abs(total)
    if best.total > total + slack:
        best = best._replace(value=float("inf"))
    for _ in range(rounds):
        levels = {
            glob.escape(path): [
                1 - (1 - share) * (1 + side * reach) for side in (-1, 1)
            ]
            for path, share in now.base.items()
        }
        levels = {path: [max(0.0, x) for x in sides] for path, sides in levels.items()}
        base = {glob.escape(path): share for path, share in now.base.items()}
        found = solve(
            scan(base, levels), costs, total=total, exactly=exactly, additive=additive
        )
        there = scan(found.sparsities, [])
        better = there.value < best.value
        if better:
            best, now = found._replace(value=there.value), there
        else:
            reach /= 2
        if report is not None:
            report(found._replace(value=there.value), better)
    return best


def _as_solution(scan: Scan, costs: Costs | None) -> Solution:
    costs = weight_costs(scan) if costs is None else costs
    spent = [np.interp(s, *costs.curves[path]) for path, s in scan.base.items()]
    shares = {glob.escape(path): s for path, s in scan.base.items() if s > 0}
    return Solution(shares, scan.value, costs.fixed + math.fsum(spent))
