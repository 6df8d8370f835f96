"""How many activations are not zero, measured on batches as they pass."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from jaxprune._masks import apply_mask
from jaxprune._program import evaluate
from jaxprune.report._trace import Trace, trace


class Reading(NamedTuple):
    """Activations that some layer reads, counted over all batches.

    Attributes:
      producers: paths of the layers that they come from; none for the input itself.
      nonzero: how many were not zero; a NaN is not.
      size: how many there were.
    """

    producers: tuple[str, ...]
    nonzero: int
    size: int


class Activations(NamedTuple):
    """What `activations` measured, to be given to `count`.

    Attributes:
      examples: how many examples the batches held.
      readings: one for each array of activations that a layer reads.
    """

    examples: int
    readings: tuple[Reading, ...]


def activations(
    apply: Callable[..., Any],
    params: PyTree,
    batches: Iterable[PyTree],
    mask: PyTree | None = None,
    *,
    examples: Callable[[PyTree], int] | None = None,
) -> Activations:
    """Counts non-zero activations on batches, in integers, one batch at a time.

    Counted is what each layer reads: the output of the layers before it as it is after
    their bias, ReLU and pooling, before it is flattened, padded, cut into patches or
    joined with others. Nothing but the counts is kept of a batch.

    Args:
      apply: `apply(params, x)`, without dropout; it is traced once for each shape of
        a batch.
      params: trained params.
      batches: what `apply` takes as `x`; may be a generator.
      mask: applied to the params first, if given.
      examples: gives the number of examples in a batch; the default is the length of
        the first axis of its first leaf.

    Raises:
      ValueError: if there is no batch, if `mask` does not fit, or if the products of
        `apply` cannot be found.
    """
    params = params if mask is None else apply_mask(params, mask)
    examples = count_examples if examples is None else examples
    programs: dict[Any, Any] = {}
    seen, totals = 0, None
    for x in batches:
        key = jax.tree.map(lambda v: (jnp.shape(v), jnp.result_type(v)), x)
        key = (jax.tree.structure(x), tuple(jax.tree.leaves(key)))
        if key not in programs:
            programs[key] = _counter(trace(apply, params, None, x))
        producers, sizes, counter = programs[key]
        rows = counter(jax.tree.leaves((params, x)))
        counts = [int(sum(jax.device_get(row).tolist())) for row in rows]
        new = [Reading(*row) for row in zip(producers, counts, sizes, strict=True)]
        totals = new if totals is None else _sum(totals, new)
        seen += examples(x)
    if totals is None:
        raise ValueError("batches is empty, expected at least one batch to count.")
    return Activations(seen, tuple(totals))


def count_examples(x: PyTree) -> int:
    """Gives the length of the first axis of the first leaf."""
    leaves = jax.tree.leaves(x)
    if not leaves or not jnp.shape(leaves[0]):
        raise ValueError(
            f"x is {x!r}, which has no first axis that counts examples; expected an "
            "array of several examples, or the number of examples as `examples`."
        )
    return int(jnp.shape(leaves[0])[0])


def producers_of(found: Trace, source: int) -> tuple[str, ...]:
    """Gives the paths of the layers whose output a source is."""
    paths = []
    for number in sorted(found.sources[source].producers):
        weight = found.products[number].weight
        paths += sorted(weight.leaves) if weight else []
    return tuple(found.leaves[leaf].path for leaf in dict.fromkeys(paths))


def _counter(found: Trace) -> tuple[list[tuple[str, ...]], list[int], Any]:
    slots = [source.slot for source in found.sources]
    producers = [producers_of(found, i) for i in range(len(slots))]

    @jax.jit
    def counter(leaves: list[Any]) -> list[Any]:
        values = evaluate(found.program, leaves, slots)
        # One number for each row, in int32, and their sum in Python's integers: an
        # array of 2**31 activations would be too long for one int32.
        rows = [
            v.reshape(v.shape[0], -1) if v.ndim else v.reshape(1, 1) for v in values
        ]
        return [jnp.count_nonzero(row, axis=1) for row in rows]

    return producers, [source.size for source in found.sources], counter


def _sum(a: list[Reading], b: list[Reading]) -> list[Reading]:
    if [r.producers for r in a] != [r.producers for r in b]:
        raise ValueError(
            "two batches run through different layers, expected the same for every "
            "batch, so that their activations can be added up."
        )
    return [
        Reading(x.producers, x.nonzero + y.nonzero, x.size + y.size)
        for x, y in zip(a, b, strict=True)
    ]
