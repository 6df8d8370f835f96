"""One row for each layer: how the products of a trace are shared out among leaves."""

import math
from collections.abc import Mapping
from typing import NamedTuple

from jaxprune.report._activations import (
    Activations,
    producers_of,
)
from jaxprune.report._trace import Trace, entries_of


class LayerCount(NamedTuple):
    """One row: a leaf of params that products read, or the total of all rows.

    FLOP are for one example, 2 for each multiply-add. Only products count, not the
    additions of biases, pooling or normalisation.

    Attributes:
      path: the leaf's path, names joined by "/".
      kind: "conv" if a convolution reads it, or if it has four or more axes, as the
        kernel of a convolution that is computed by a matrix product; else "fc".
      shape: the leaf's shape.
      weights: number of weights.
      kept: number of live weights.
      flop: needed when nothing is skipped; a convolution counts its whole kernel at
        every position, at the border too.
      flop_kept: needed when products with dead weights are skipped.
      flop_needed: needed when those with zero activations are skipped too: `flop_kept`
        times the share of non-zeros in what the layer reads, the network's input
        counting 100%; rounded. `None` without activations.
      flop_run: what the program multiplies in fact, the zeros included that it pads
        weights with.
      activations: share of non-zeros in this layer's output, as the next layers read
        it; 1 for the last layer; `None` without activations.
      units: numbers in that output for one example.
      inputs: numbers that the layer reads for one example.
      outputs: numbers that its product gives for one example.
      followed: False where the program computes something else from the weights before
        it multiplies them, so that a dead weight need not save anything; `flop_kept` is
        then `flop`.
    """

    path: str
    kind: str
    shape: tuple[int, ...]
    weights: int
    kept: int
    flop: int
    flop_kept: int
    flop_needed: int | None
    flop_run: int
    activations: float | None
    units: int
    inputs: int
    outputs: int
    followed: bool


def per_example(flop: int, examples: int) -> int:
    """Divides what a product takes for all examples, which must come out even."""
    if flop % examples:
        raise ValueError(
            f"x is said to hold {examples} examples, but a product takes {flop} FLOP, "
            "which they cannot share evenly; pass the number as `examples`."
        )
    return flop // examples


def shares_of(
    found: Trace, activations: Activations | Mapping[str, float] | None
) -> list[float] | None:
    """Gives the share of non-zeros of every source."""
    if activations is None:
        return None
    producers = [producers_of(found, i) for i in range(len(found.sources))]
    if isinstance(activations, Activations):
        if [r.producers for r in activations.readings] != producers:
            raise ValueError(
                "the activations were measured on layers that read from "
                f"{[r.producers for r in activations.readings]}, expected {producers}; "
                "measure them with the same apply."
            )
        return [r.nonzero / max(1, r.size) for r in activations.readings]
    for path in {path for paths in producers for path in paths} - set(activations):
        raise ValueError(
            f"activations has no share for {path}, expected one in [0, 1]."
        )
    for path, value in activations.items():
        if not 0 <= value <= 1:
            raise ValueError(
                f"activations of {path} is {value}, expected one in [0, 1]."
            )
    return [
        sum(activations[path] for path in paths) / len(paths) if paths else 1.0
        for paths in producers
    ]


def add_product(
    rows: dict[int, LayerCount],
    found: Trace,
    number: int,
    examples: int,
    shares: list[float] | None,
) -> None:
    """Adds a product to the row of its weight, or to those of its weights.

    Args:
      rows: by number of the leaf; changed in place.
      found: the trace.
      number: of the product in it.
      examples: how many the trace was made with.
      shares: what `shares_of` gives.
    """
    product = found.products[number]
    entries = entries_of(found, product)
    sizes = [found.sources[i].size for i in product.reads]
    active = None
    if shares is not None:
        # The network's own input counts as dense, whatever it holds.
        known = [shares[i] if found.sources[i].producers else 1 for i in product.reads]
        active = math.fsum(map(math.prod, zip(known, sizes, strict=True)))
        active /= max(1, sum(sizes))
    flop = per_example(product.flop, examples)
    # A matrix may have no columns.
    every = max(1, sum(total for total, _ in entries.values()))
    held = max(1, product.entries)
    for leaf, (total, alive) in entries.items():
        path, shape, size, kept = found.leaves[leaf]
        dense, live = flop * total // held, flop * alive // held
        outputs, units = (
            per_example(product.outputs, examples),
            _units(found, leaf, examples),
        )
        row = LayerCount(
            path=path,
            kind="conv" if product.kind == "conv" or len(shape) > 3 else "fc",
            shape=shape,
            weights=size,
            kept=kept,
            flop=dense,
            flop_kept=live,
            flop_needed=None if active is None else round(live * active),
            flop_run=flop * total // every,
            activations=_output_share(found, leaf, shares),
            units=units or outputs,
            inputs=product.inputs // examples,
            outputs=outputs,
            followed=product.weight is not None and product.weight.codes is not None,
        )
        rows[leaf] = _joined(rows[leaf], row) if leaf in rows else row


def _reading(found: Trace, leaf: int) -> list[int]:
    """Gives the sources that hold the output of the layer of a leaf."""
    mine = {
        n for n, p in enumerate(found.products) if p.weight and leaf in p.weight.leaves
    }
    return [i for i, s in enumerate(found.sources) if s.producers & mine]


def _units(found: Trace, leaf: int, examples: int) -> int:
    return sum(found.sources[i].size for i in _reading(found, leaf)) // examples


def _output_share(found: Trace, leaf: int, shares: list[float] | None) -> float | None:
    if shares is None:
        return None
    read = _reading(found, leaf)
    sizes = [found.sources[i].size for i in read]
    weighted = math.fsum(shares[i] * n for i, n in zip(read, sizes, strict=True))
    return weighted / sum(sizes) if read else 1.0


def _joined(a: LayerCount, b: LayerCount) -> LayerCount:
    """Adds a second use of the same weights, as in a recurrent layer."""
    names = ("flop", "flop_kept", "flop_needed", "flop_run", "inputs", "outputs")
    sums = {
        name: None if getattr(a, name) is None else getattr(a, name) + getattr(b, name)
        for name in names
    }
    return a._replace(**sums, followed=a.followed and b.followed)


def total_of(rows: tuple[LayerCount, ...]) -> LayerCount:
    """Adds up all rows; the shares of activations are weighted by units."""
    add = lambda name: sum(getattr(row, name) for row in rows)
    known = all(row.activations is not None for row in rows)
    units = add("units")
    active = math.fsum((row.activations or 0.0) * row.units for row in rows)
    return LayerCount(
        path="total",
        kind="",
        shape=(),
        weights=add("weights"),
        kept=add("kept"),
        flop=add("flop"),
        flop_kept=add("flop_kept"),
        flop_needed=add("flop_needed") if known else None,
        flop_run=add("flop_run"),
        activations=active / max(1, units) if known else None,
        units=units,
        inputs=add("inputs"),
        outputs=add("outputs"),
        followed=all(row.followed for row in rows),
    )
