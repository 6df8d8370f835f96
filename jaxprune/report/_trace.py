"""Which products a function runs, which weights they multiply and what they read.

Found by following every value through the traced program, so it does not matter which
library, if any, the layers come from.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import PyTree

from jaxprune._masks import check_mask, map_masked
from jaxprune._paths import leaf_names
from jaxprune._program import (
    PRODUCTS,
    Program,
    Step,
    flatten,
    holds_product,
    run_step,
)
from jaxprune._weights import (
    JOINS,
    MOVES,
    Constant,
    Weight,
    count_entries,
    follow,
    mixed,
    of_leaf,
)
from jaxprune.report._flop import conv_flop, dot_flop


class Leaf(NamedTuple):
    """A leaf of params: its path, shape, number of weights and of live ones."""

    path: str
    shape: tuple[int, ...]
    size: int
    alive: int


class Source(NamedTuple):
    """Activations that a product reads, before they are cut, padded or moved for it.

    Attributes:
      slot: where the program has them.
      producers: numbers of the products whose results they are made from, with no
        other product in between; none where they come from the function's input.
      size: how many numbers, of all examples together.
    """

    slot: int
    producers: frozenset[int]
    size: int


class Product(NamedTuple):
    """A matrix product or a convolution whose result depends on the input.

    Attributes:
      kind: "dot" or "conv".
      flop: 2 for each multiply-add, those with zeros included, of all examples.
      entries: numbers in the operand that is made from weights.
      weight: that operand; `None` if both depend on the input.
      reads: positions in `Trace.sources` of what it reads.
      inputs: numbers that it reads, each once: those of its sources, or of its operand
        where that is a part of them.
      outputs: numbers in its result.
    """

    kind: str
    flop: int
    entries: int
    weight: Weight | None
    reads: tuple[int, ...]
    inputs: int
    outputs: int


class Trace(NamedTuple):
    """The leaves in tree order, the products in order of execution, what they read.

    `masks` holds those of the leaves that have one, by the number of the leaf.
    """

    program: Program
    masks: dict[int, Any]
    leaves: list[Leaf]
    products: list[Product]
    sources: list[Source]


class _Active(NamedTuple):
    """A value that depends on the function's input."""

    producers: frozenset[int]
    origins: tuple[int, ...]  # slots that it only moves the numbers of


def trace(
    apply: Callable[..., Any], params: PyTree, mask: PyTree | None, x: PyTree
) -> Trace:
    """Follows params and input through `apply(params, x)`; arrays or shapes.

    Raises:
      ValueError: if the mask does not fit the params, or a product runs where it cannot
        be counted, such as in a loop whose number of turns depends on data.
    """
    masks = _masks(params, mask)
    program = flatten(apply, params, x)
    paths = jax.tree.leaves(leaf_names(params))
    masks = {i: masks[path] for i, path in enumerate(paths) if path in masks}
    out = Trace(program, masks, [], [], [])
    values: dict[int, Weight | Constant | _Active] = {
        slot: Constant(lambda value=value: value)
        for slot, value in program.constants.items()
    }
    for i, slot in enumerate(program.inputs):
        if i >= len(paths):
            values[slot] = _Active(frozenset(), (slot,))
            continue
        shape = program.types[slot].shape
        size = math.prod(shape)
        live = int(np.count_nonzero(np.asarray(masks[i]))) if i in masks else size
        out.leaves.append(Leaf(paths[i], shape, size, live))
        values[slot] = of_leaf(i, size)
    for step in program.steps:
        found = _step(out, step, [values[slot] for slot in step.inputs], values)
        values.update(zip(step.outputs, found, strict=True))
    return out


def _masks(params: PyTree, mask: PyTree | None) -> dict[str, Any]:
    masks: dict[str, Any] = {}
    if mask is not None:
        check_mask(params, mask)
        note = lambda p, m, name: masks.__setitem__(name, m)
        map_masked(note, params, mask, leaf_names(params), elsewhere=lambda p: None)
    return masks


def _step(
    out: Trace, step: Step, inputs: list[Any], values: dict[int, Any]
) -> Sequence[Weight | Constant | _Active]:
    active = [x for x in inputs if isinstance(x, _Active)]
    weights = [x for x in inputs if isinstance(x, Weight)]
    product = step.primitive.name in PRODUCTS
    if active and not product and holds_product(step.params):
        raise ValueError(
            f"the function runs a product inside of {step.primitive.name!r}, whose "
            "operations depend on data and cannot be counted; expected loops with a "
            "fixed number of turns, such as lax.scan, and no branches around products."
        )
    if active and product:
        return [_product(out, step, inputs, values)]
    if active:
        moved = step.primitive.name in MOVES and (
            step.primitive.name in JOINS or isinstance(inputs[0], _Active)
        )
        producers = frozenset[int]().union(*(x.producers for x in active))
        origins = dict.fromkeys(slot for x in active for slot in x.origins)
        return [
            _Active(producers, tuple(origins) if moved else (slot,))
            for slot in step.outputs
        ]
    if weights and (product or holds_product(step.params)):
        return [mixed(weights) for _ in step.outputs]
    if weights:
        slots = (step.inputs[0], *step.outputs)
        return follow(step, inputs, [out.program.types[slot].shape for slot in slots])
    made: list[Any] = []

    def constant(i: int) -> Any:
        if not made:
            with jax.ensure_compile_time_eval():
                made.extend(run_step(step, [x.value() for x in inputs]))
        return made[i]

    return [Constant(lambda i=i: constant(i)) for i in range(len(step.outputs))]


def _product(
    out: Trace, step: Step, inputs: list[Any], values: dict[int, Any]
) -> _Active:
    types = [out.program.types[slot] for slot in (*step.inputs, *step.outputs)]
    left, right, result = (tuple(t.shape) for t in types[:3])
    dot = step.primitive.name == "dot_general"
    flop = (dot_flop if dot else conv_flop)(step.params, left, right, result)
    operand = next((i for i, x in enumerate(inputs) if isinstance(x, Weight)), None)
    reads = []
    for x in inputs:
        for slot in x.origins if isinstance(x, _Active) else ():
            reads.append(_source(out, slot, values))
    reads = list(dict.fromkeys(reads))
    held = sum(
        math.prod(t.shape)
        for t, x in zip(types, inputs, strict=False)
        if isinstance(x, _Active)
    )
    number = len(out.products)
    out.products.append(
        Product(
            kind="dot" if dot else "conv",
            flop=flop,
            entries=0 if operand is None else math.prod(types[operand].shape),
            weight=None if operand is None else inputs[operand],
            reads=tuple(reads),
            inputs=min(held, sum(out.sources[i].size for i in reads)),
            outputs=math.prod(result),
        )
    )
    return _Active(frozenset([number]), step.outputs)


def _source(out: Trace, slot: int, values: dict[int, Any]) -> int:
    for i, source in enumerate(out.sources):
        if source.slot == slot:
            return i
    size = math.prod(out.program.types[slot].shape)
    out.sources.append(Source(slot, values[slot].producers, size))
    return len(out.sources) - 1


def entries_of(found: Trace, product: Product) -> dict[int, tuple[int, int]]:
    """Counts the entries of a product's weight by leaf: (all, alive).

    Where they cannot be followed, all are alive and belong to the largest leaf.
    """
    weight, leaves = product.weight, found.leaves
    if weight is None:
        return {}
    if weight.codes is None:
        largest = max(weight.leaves, key=lambda i: leaves[i].size)
        return {largest: (product.entries, product.entries)}
    counts = [(leaf.size, leaf.alive) for leaf in leaves]
    return count_entries(weight, counts, found.masks, [leaf.shape for leaf in leaves])
