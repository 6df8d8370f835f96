"""Ways to share out a total among layers, and pruning by them."""

import functools
import glob
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxprune


Shares = Mapping[str, float]  # sparsity of each layer, by path as a glob


def others(params: Any, mask: Any, total: float) -> dict[str, Shares | float]:
    """Gives the ways that the solved one is compared with, leaving `total` weights.

    "global" is one threshold for all layers, told by the sparsity of all together.
    "uniform" is one sparsity for all layers, higher than that of the total where some
    layers are sparser already. "uniform-live" kills the same share of each layer's live
    weights; where all weights are alive that is the same.
    """
    rows = [r for r in jaxprune.summarize(params, mask) if r.prunable]
    size, live = sum(r.size for r in rows), sum(r.alive for r in rows)
    left = lambda share: sum(min(r.alive, (1 - share) * r.size) for r in rows)
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if left(middle) > total else (low, middle)
    paths = [glob.escape(row.path) for row in rows]
    thinned = [1 - row.alive / row.size * total / live for row in rows]
    ways = {"global": 1 - total / size, "uniform": dict.fromkeys(paths, high)}
    if live < size:
        ways["uniform-live"] = dict(zip(paths, thinned, strict=True))
    return ways


def prune(params: Any, mask: Any, way: Shares | float) -> tuple[Any, Any]:
    """Prunes each layer to its share, or all by one threshold."""
    if not isinstance(way, Mapping):
        schedule = jaxprune.to_sparsity(jaxprune.magnitude, way, scope="global")
        return jaxprune.prune_now(params, schedule, mask)
    rows = [r for r in jaxprune.summarize(params, mask) if r.prunable]
    paths = tuple(glob.escape(row.path) for row in rows)
    shares = jnp.asarray([way.get(path, 0.0) for path in paths], jnp.float32)
    return _pruner(paths)(params, mask, shares)


@functools.cache
def _pruner(paths: tuple[str, ...]) -> Any:
    """Compiles once for all shares."""

    @jax.jit
    def run(params: Any, mask: Any, shares: jax.Array) -> Any:
        each = {path: lambda step, i=i: shares[i] for i, path in enumerate(paths)}
        mask = jaxprune.to_sparsity(jaxprune.magnitude, each)(params, mask, 0)
        return jaxprune.apply_mask(params, mask), mask

    return run


def alive(mask: Any) -> int:
    """Counts live prunable weights."""
    return sum(int(np.count_nonzero(m)) for m in jax.tree.leaves(mask))
