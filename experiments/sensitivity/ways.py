"""Ways to share out a total among layers, which the solved one is compared with."""

import glob
from typing import Any

import jax
import numpy as np

import jaxprune


def others(mask: Any, params: Any, total: float) -> dict[str, jaxprune.MaskSchedule]:
    """Gives the schedules that leave at most `total` prunable weights alive.

    "global" is one threshold for all layers; "uniform" one sparsity for all, which is
    higher than the total's where some are sparser already; "uniform-live" kills the
    same share of each layer's live weights, and is the same where all are alive.
    """
    rows = [r for r in jaxprune.summarize(params, mask) if r.prunable]
    size, alive = sum(r.size for r in rows), sum(r.alive for r in rows)
    magnitude, prune_to = jaxprune.magnitude, jaxprune.to_sparsity
    left = lambda share: sum(min(r.alive, (1 - share) * r.size) for r in rows)
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if left(middle) > total else (low, middle)
    live = {glob.escape(r.path): 1 - r.alive / r.size * total / alive for r in rows}
    return {
        "global": prune_to(magnitude, 1 - total / size, scope="global"),
        "uniform": prune_to(magnitude, high),
    } | ({} if size == alive else {"uniform-live": prune_to(magnitude, live)})


def prune(params: Any, mask: Any, schedule: jaxprune.MaskSchedule) -> tuple[Any, Any]:
    """Prunes, and gives params and mask."""
    return jaxprune.prune_now(params, schedule, mask)


def alive(mask: Any) -> int:
    """Counts live prunable weights."""
    return sum(int(np.count_nonzero(m)) for m in jax.tree.leaves(mask))
