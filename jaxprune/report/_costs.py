"""What each leaf costs at each sparsity: FLOP, bytes or energy, for `solve`."""

from collections.abc import Mapping
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from jaxprune._criteria import magnitude
from jaxprune._sensitivity import Curve, Scan, pruner
from jaxprune._solve import Costs
from jaxprune._summary import summarize
from jaxprune._types import Criterion
from jaxprune.report._counts import Counts
from jaxprune.report._energy import ENERGY_45NM, energy
from jaxprune.report._rows import LayerCount
from jaxprune.report._storage import INDEX_BITS, Storage, storage


def costs(
    scan: Scan,
    counts: Counts,
    params: PyTree,
    mask: PyTree,
    what: Literal["flop", "bytes", "energy"],
    *,
    criterion: Criterion = magnitude,
    weight_bits: int = 32,
    index_bits: Mapping[str, int] = INDEX_BITS,
    weights_in: Literal["SRAM", "DRAM"] = "DRAM",
    cache_bytes: int = 0,
    batch: int = 1,
    table: Mapping[str, float] = ENERGY_45NM,
    **extra: Any,
) -> Costs:
    """Gives what every leaf costs at the levels of a scan.

    FLOP are those left when dead weights are skipped, and zero activations too where
    `counts` has them. Bytes are those of `storage`, whose fillers depend on where the
    live weights lie, so the leaves are pruned to find them. Energy is that of `energy`
    with one difference: whether weights come from SRAM depends on all leaves together,
    which no sum over leaves can tell. Here `weights_in` tells it, and the solution has
    to be looked at with `energy`.

    Args:
      scan: gives the leaves and their levels.
      counts: what `count` found for the same params and mask.
      params: the params that were scanned.
      mask: their mask.
      what: "flop" of one example, "bytes" of the stored network, or "energy" of one
        example in picojoules.
      criterion: what the scan pruned by.
      weight_bits: as in `storage`.
      index_bits: as in `storage`.
      weights_in: where the pruned network's weights are read from.
      cache_bytes: as in `energy`, for inputs and outputs.
      batch: as in `energy`.
      table: as in `energy`.
      **extra: what the criterion asks for.

    Raises:
      ValueError: if `what` is unknown, if a leaf that was scanned is in no row of
        `counts`, or as `storage` and `energy`.
    """
    if what not in ("flop", "bytes", "energy"):
        raise ValueError(f"what is {what!r}, expected 'flop', 'bytes' or 'energy'.")
    rows = {row.path: row for row in counts.layers}
    if missing := [path for path in scan.curves if path not in rows]:
        raise ValueError(
            f"counts has no row for {', '.join(missing)}, expected one for each leaf "
            "that was scanned; nothing multiplies by these."
        )

    def stored(counts: Counts, mask: PyTree) -> Storage:
        sizes = {"weight_bits": weight_bits, "index_bits": index_bits}
        return storage(counts, params, mask, **sizes)

    def of_rows(counts: Counts, mask: PyTree) -> dict[str, float]:
        if what == "flop":
            return {row.path: float(_flop(row)) for row in counts.layers}
        sizes = {
            row.path: row.weight_bytes + row.index_bytes
            for row in stored(counts, mask).layers
        }
        if what == "bytes":
            return {path: float(n) for path, n in sizes.items()}
        each = (table["float multiply"] + table["float add"]) / 2
        price = table[weights_in] / 4 / batch
        return {
            row.path: each * _flop(row) + price * sizes[row.path]
            for row in counts.layers
        }

    prune = pruner(criterion, tuple(scan.curves))
    values: dict[str, list[float]] = {path: [] for path in scan.curves}
    for k in range(max(len(c.sparsities) for c in scan.curves.values())):
        # Every leaf at its k-th level at once: rows do not depend on each other.
        shares = [
            c.sparsities[min(k, len(c.sparsities) - 1)] for c in scan.curves.values()
        ]
        _, pruned = prune(params, mask, jnp.asarray(shares, jnp.float32), extra)
        found = of_rows(_with_mask(counts, params, pruned), pruned)
        for path, curve in scan.curves.items():
            if k < len(curve.sparsities):
                values[path].append(found[path])
    curves = {
        path: Curve(curve.sparsities, np.array(values[path]))
        for path, curve in scan.curves.items()
    }
    rest = sum(
        cost for path, cost in of_rows(counts, mask).items() if path not in curves
    )
    if what == "bytes":
        rest += stored(counts, mask).others_bytes
    if what == "energy":
        now = stored(counts, mask)
        home = energy(counts, now, cache_bytes=cache_bytes, batch=batch, table=table)
        # Inputs and outputs, as they are read at present.
        rest += sum(
            layer.memory_pruned
            - table[home.weights_in_pruned]
            / 4
            / batch
            * (row.weight_bytes + row.index_bytes)
            for layer, row in zip(home.layers, now.layers, strict=True)
        )
        rest += table[weights_in] / 4 / batch * now.others_bytes
    return Costs(curves, float(rest))


def _flop(row: LayerCount) -> int:
    return row.flop_kept if row.flop_needed is None else row.flop_needed


def _with_mask(counts: Counts, params: PyTree, mask: PyTree) -> Counts:
    """Gives the counts that another mask would have had."""
    alive = {row.path: row.alive for row in summarize(params, mask)}

    def changed(row: LayerCount) -> LayerCount:
        kept = alive[row.path]
        if not row.followed or not row.kept:
            return row._replace(kept=kept)
        share = kept / row.kept
        return row._replace(
            kept=kept,
            flop_kept=round(row.flop_kept * share),
            flop_needed=None
            if row.flop_needed is None
            else round(row.flop_needed * share),
        )

    return counts._replace(layers=tuple(map(changed, counts.layers)))
