"""Weights, operations and activations of every layer."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from jaxtyping import PyTree

from jaxprune.report._activations import (
    Activations,
    Reading,
    count_examples,
    producers_of,
    share,
)
from jaxprune.report._trace import Trace, entries_of, trace


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


class Counts(NamedTuple):
    """What `count` found.

    Attributes:
      layers: a row for each leaf that a product reads, in order of execution.
      total: the sum of these rows; its `activations` is weighted by units.
      others: weights of all other leaves, such as biases and norms, all alive or not.
      others_kept: live ones among them.
      flop_unweighted: FLOP for one example of products that read no params, such as
        those of attention; in no row, and never saved by pruning.
      examples: how many examples the activations were measured on; 0 if on none.
    """

    layers: tuple[LayerCount, ...]
    total: LayerCount
    others: int
    others_kept: int
    flop_unweighted: int
    examples: int


def count(
    apply: Callable[..., Any],
    params: PyTree,
    mask: PyTree | None,
    x: PyTree,
    *,
    activations: Activations | Mapping[str, float] | None = None,
    examples: int | None = None,
) -> Counts:
    """Counts weights, operations and activations, layer by layer and in total.

    The operations are found by tracing `apply`, not by a table of layers, so any
    function of params and input will do: linen, NNX, equinox under `jax.vmap`, plain
    functions. Zeros that a program pads its kernels with are no weights, and products
    with them are counted apart, in `flop_run`.

    >>> apply = lambda w, x: x @ w
    >>> mask = jnp.array([[True, False, False]] * 4)
    >>> row, = count(apply, jnp.ones((4, 3)), mask, jnp.ones((2, 4))).layers
    >>> row.weights, row.kept, row.flop, row.flop_kept
    (12, 4, 24, 8)

    Args:
      apply: `apply(params, x)`, without dropout.
      params: the params, or their shapes.
      mask: their mask; `None`, for all or at a leaf, where nothing is pruned.
      x: a sample input, array or shape.
      activations: what `jaxprune.report.activations` measured with the same `apply`, or
        the share in [0, 1] of non-zeros in the output of each layer, by path; layers
        that nothing reads from need none.
      examples: how many examples `x` holds; the default is the length of its first
        axis.

    Raises:
      ValueError: if the mask does not fit, if a product cannot be counted, or if
        `activations` are those of another function.

    Source:
      Han et al. 2015 (arXiv:1506.02626), tables 2 to 5. Their FLOP% is `flop_needed`
      over `flop`.
    """
    found = trace(apply, params, mask, x)
    examples = count_examples(x) if examples is None else examples
    shares = _shares(found, activations)
    rows: dict[int, LayerCount] = {}
    unweighted = 0
    for number, product in enumerate(found.products):
        if product.weight is None:
            unweighted += _each(product.flop, examples)
        else:
            _add(rows, found, number, examples, shares)
    layers = tuple(rows.values())
    rest = [leaf for i, leaf in enumerate(found.leaves) if i not in rows]
    return Counts(
        layers=layers,
        total=_total(layers),
        others=sum(leaf.size for leaf in rest),
        others_kept=sum(leaf.alive for leaf in rest),
        flop_unweighted=unweighted,
        examples=activations.examples if isinstance(activations, Activations) else 0,
    )


def first_and_last(
    apply: Callable[..., Any], params: PyTree, x: PyTree
) -> tuple[str, str]:
    """Gives the paths of the first and of the last layer in order of execution.

    >>> apply = lambda p, x: jnp.tanh(x @ p["in"]) @ p["a"]
    >>> shapes = {"a": jnp.ones((3, 2)), "in": jnp.ones((4, 3))}
    >>> first_and_last(apply, shapes, jnp.ones((1, 4)))
    ('in', 'a')

    Raises:
      ValueError: if `apply` multiplies no leaf of params.
    """
    layers = count(apply, params, None, x, examples=1).layers
    if not layers:
        raise ValueError("the function multiplies no leaf of params, so has no layers.")
    return layers[0].path, layers[-1].path


def _each(flop: int, examples: int) -> int:
    if flop % examples:
        raise ValueError(
            f"x is said to hold {examples} examples, but a product takes {flop} FLOP, "
            "which they cannot share evenly; pass the number as `examples`."
        )
    return flop // examples


def _shares(
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
        return [share([r]) for r in activations.readings]
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


def _add(
    rows: dict[int, LayerCount],
    found: Trace,
    number: int,
    examples: int,
    shares: list[float] | None,
) -> None:
    """Adds a product to the row of its weight, or to those of its weights."""
    product = found.products[number]
    entries = entries_of(found, product)
    sizes = [found.sources[i].size for i in product.reads]
    active = None
    if shares is not None:
        active = share(
            # The network's own input counts as dense, whatever it holds.
            Reading((), shares[i] * n if found.sources[i].producers else n, n)
            for i, n in zip(product.reads, sizes, strict=True)
        )
    flop = _each(product.flop, examples)
    every = sum(total for total, _ in entries.values())
    for leaf, (total, alive) in entries.items():
        path, shape, size, kept = found.leaves[leaf]
        dense, live = flop * total // product.entries, flop * alive // product.entries
        outputs, units = _each(product.outputs, examples), _units(found, leaf, examples)
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
            inputs=sum(sizes) // examples,
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


def _total(rows: tuple[LayerCount, ...]) -> LayerCount:
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
