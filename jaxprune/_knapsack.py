"""One choice from each of several lists: least loss within a cost, on the host."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int


BUCKETS = 20_000  # into which what may be spent is divided


class Plan(NamedTuple):
    """The best choices for every cost up to the one that was given.

    Attributes:
      best: the least loss that costs so many units.
      chosen: for each list and number of units, what to take of the list.
      units: what each choice costs, rounded up.
      unit: how much one of them is.
    """

    best: Float[np.ndarray, " room"]
    chosen: list[Int[np.ndarray, " room"]]
    units: list[Int[np.ndarray, " choices"]]
    unit: float


def plan(
    losses: Sequence[Float[np.ndarray, " choices"]],
    costs: Sequence[Float[np.ndarray, " choices"]],
    room: float,
    *,
    exactly: bool = False,
) -> Plan:
    """Finds the best choices for each cost up to `room`, by dynamic programming.

    Costs are rounded up to one part in 20,000 of `room`, unless all are whole numbers
    and few enough to be counted one by one.

    >>> losses = [np.array([0.0, 2.0]), np.array([0.0, 3.0])]
    >>> costs = [np.array([5.0, 0.0]), np.array([4.0, 1.0])]
    >>> found = plan(losses, costs, 6.0)
    >>> float(found.best[-1]), take(found, 6)
    (2.0, [1, 0])

    Args:
      losses: of the choices of each list; added up. What is not finite is not taken.
      costs: of the same choices, 0 or more.
      room: what they may cost together, 0 or more.
      exactly: whether `best` is of choices that cost just so many units, instead of at
        most so many; infinite where there are none.
    """
    whole = all(np.array_equal(cost, np.round(cost)) for cost in costs)
    unit = 1.0 if whole and room <= BUCKETS else room / BUCKETS
    size = int(room / unit + 1e-9) if unit else 0
    best = np.full(size + 1, np.inf if exactly else 0.0)
    best[0] = 0.0
    chosen, units = [], []
    for loss, cost in zip(losses, costs, strict=True):
        # A hair less, so that 3.0000000001 units are 3.
        need = np.ceil(cost / (unit or 1.0) - 1e-9)
        need = np.minimum(np.maximum(need, 0), size + 1).astype(np.int64)
        found = np.full(size + 1, np.inf)
        taken = np.full(size + 1, -1, np.int64)
        for i in np.flatnonzero(np.isfinite(loss) & (need <= size)):
            total = best[: size + 1 - need[i]] + loss[i]
            better = total < found[need[i] :]
            found[need[i] :][better] = total[better]
            taken[need[i] :][better] = i
        best = found
        chosen.append(taken)
        units.append(need)
    return Plan(best, chosen, units, unit)


def take(found: Plan, room: int) -> list[int]:
    """Gives the choices, one of each list, for so many units."""
    picked = []
    for chosen, units in zip(
        reversed(found.chosen), reversed(found.units), strict=True
    ):
        picked.append(int(chosen[room]))
        room -= int(units[picked[-1]])
    return picked[::-1]
