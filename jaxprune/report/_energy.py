"""Energy of one example by a table of operations and memory accesses."""

from collections.abc import Mapping
from typing import NamedTuple

from jaxprune.report._counts import Counts
from jaxprune.report._storage import Storage


# Picojoules of an operation on 32 bits in a 45 nm process: Han et al. 2015, figure 1.
ENERGY_45NM: Mapping[str, float] = {
    "int add": 0.1,
    "float add": 0.9,
    "register file": 1.0,
    "int multiply": 3.1,
    "float multiply": 3.7,
    "SRAM": 5.0,
    "DRAM": 640.0,
}


class LayerEnergy(NamedTuple):
    """Picojoules for one example, of one layer or of all.

    Attributes:
      path: the leaf's path, names joined by "/".
      operations: multiplying and adding everything.
      operations_pruned: the same without dead weights, and without zero activations
        where these were measured.
      memory: reading all weights and inputs, writing the outputs.
      memory_pruned: the same with the weights as `storage` stores them.
    """

    path: str
    operations: float
    operations_pruned: float
    memory: float
    memory_pruned: float


class Energy(NamedTuple):
    """What `energy` found.

    Attributes:
      layers: a row for each row of the counts, in their order.
      total: the sum of these rows, and of reading all other leaves.
      weights_in: where the weights are read from when dense, "SRAM" or "DRAM".
      weights_in_pruned: the same when pruned.
    """

    layers: tuple[LayerEnergy, ...]
    total: LayerEnergy
    weights_in: str
    weights_in_pruned: str


def energy(
    counts: Counts,
    stored: Storage,
    *,
    cache_bytes: int,
    batch: int = 1,
    table: Mapping[str, float] = ENERGY_45NM,
) -> Energy:
    """Estimates the energy of one example, dense and pruned.

    A model, not a measurement. A multiply-add is a float multiplication and a float
    addition. Every weight is read once for each batch, with its index if it has one,
    every input of a layer once, and every output written once, in words of 32 bits.
    Weights come from SRAM if those of the whole network fit into the cache together;
    inputs and outputs of a layer if they fit into what the weights leave free; all else
    comes from DRAM. Products that read no weights are left out.

    Args:
      counts: what `count` found; with activations, their zeros save operations too.
      stored: what `storage` found for the same counts.
      cache_bytes: size of the SRAM.
      batch: examples for which weights are read once.
      table: picojoules by the names of `ENERGY_45NM`.

    Raises:
      ValueError: if `stored` is of other layers, `cache_bytes` is negative or `batch`
        is not positive.

    Source:
      Han et al. 2015 (arXiv:1506.02626), figure 1 and section 1.
    """
    if cache_bytes < 0:
        raise ValueError(f"cache_bytes is {cache_bytes}, expected 0 or more.")
    if batch < 1:
        raise ValueError(f"batch is {batch}, expected at least 1 example.")
    paths = [row.path for row in stored.layers]
    if paths != [row.path for row in counts.layers]:
        raise ValueError(
            f"the storage is of the layers {paths}, expected "
            f"{[row.path for row in counts.layers]}; make it from the same counts."
        )
    dense_bytes = stored.total.dense_bytes + stored.others_bytes
    pruned_bytes = (
        stored.total.weight_bytes + stored.total.index_bytes + stored.others_bytes
    )

    def level(size: int, room: int) -> str:
        return "SRAM" if size <= room else "DRAM"

    def memory(weight_bytes: int, numbers: int, whole: int) -> float:
        home = level(whole, cache_bytes)
        room = cache_bytes - (whole if home == "SRAM" else 0)
        weights = table[home] * weight_bytes / 4 / batch
        return weights + table[level(4 * numbers, room)] * numbers

    each = (table["float multiply"] + table["float add"]) / 2
    rows = []
    for layer, row in zip(counts.layers, stored.layers, strict=True):
        needed = layer.flop_kept if layer.flop_needed is None else layer.flop_needed
        numbers = layer.inputs + layer.outputs
        pruned = row.weight_bytes + row.index_bytes
        rows.append(
            LayerEnergy(
                path=layer.path,
                operations=each * layer.flop,
                operations_pruned=each * needed,
                memory=memory(row.dense_bytes, numbers, dense_bytes),
                memory_pruned=memory(pruned, numbers, pruned_bytes),
            )
        )
    total = LayerEnergy(
        path="total",
        operations=sum(row.operations for row in rows),
        operations_pruned=sum(row.operations_pruned for row in rows),
        memory=sum(row.memory for row in rows)
        + memory(stored.others_bytes, 0, dense_bytes),
        memory_pruned=sum(row.memory_pruned for row in rows)
        + memory(stored.others_bytes, 0, pruned_bytes),
    )
    return Energy(
        tuple(rows),
        total,
        level(dense_bytes, cache_bytes),
        level(pruned_bytes, cache_bytes),
    )
