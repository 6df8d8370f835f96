"""Links found by following a function's program."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from jaxprune._paths import leaf_names
from jaxprune._program import flatten
from jaxprune._types import Params
from jaxprune._weights import Constant, of_leaf
from jaxprune.units._follow import follow_step
from jaxprune.units._labels import Active, Makers
from jaxprune.units._link import Link, rows_of
from jaxprune.units._pieces import Piece
from jaxprune.units._walk import Value, Walk, share


def find_links(
    apply: Callable[..., Any], params: Params, x: PyTree
) -> tuple[Link, ...]:
    """Finds which kernel feeds which, by following `apply(params, x)`.

    Every number of every activation is followed, so it does not matter which library
    the layers come from, nor whether a convolution is written as one. A layer whose
    units are used in a way that no link describes (added to those of another, returned,
    multiplied by activations), or whose kernel or bias is read elsewhere too (by a
    norm, a penalty, a tied layer), gets links that keep all of its units and say why;
    one that none of the links names as producer keeps its units too.

    Runs on the host, operation by operation: a batch of one is enough.

    Args:
      apply: a function of params and input, such as
        `lambda p, x: model.apply({"params": p}, x)`.
      params: the params or their shapes.
      x: a sample input or its shape.

    Returns:
      The links, in order of execution.

    Raises:
      ValueError: if `apply` runs a product in a loop whose number of turns depends on
        data.
    """
    program = flatten(apply, params, x)
    leaves, names = jax.tree.leaves(params), jax.tree.leaves(leaf_names(params))
    shapes = [tuple(leaf.shape) for leaf in leaves]
    stored = dict(zip(program.inputs, range(len(leaves)), strict=False))
    walk = Walk(program, shapes, names, Makers(), [], stored, set(), set())
    values: dict[int, Value] = {
        slot: Constant(lambda value=value: value)
        for slot, value in program.constants.items()
    }
    for i, slot in enumerate(program.inputs):
        if i < len(leaves):
            values[slot] = of_leaf(i, max(leaves[i].size, 1))
        else:
            shape = program.types[slot].shape
            values[slot] = Active(np.full(shape, -1, np.int32))
    for step in program.steps:
        found = follow_step(walk, step, [values[slot] for slot in step.inputs])
        values.update(zip(step.outputs, found, strict=True))
    for slot in program.outputs:
        value = values[slot]
        if isinstance(value, Active):
            walk.makers.pin(walk.makers.of(value.label), "the function returns it")
    share(walk, [values[slot] for slot in program.outputs])
    return _assemble(walk)


def _assemble(walk: Walk) -> tuple[Link, ...]:
    found, kernels = [], dict.fromkeys(piece.leaf for piece in walk.pieces)
    roles = Counter([*kernels, *walk.makers.biases.values()])
    shared = walk.shared | {leaf for leaf, count in roles.items() if count > 1}
    shared = {walk.paths[leaf] for leaf in shared}
    for leaf in kernels:
        pieces = [piece for piece in walk.pieces if piece.leaf == leaf]
        found += _links_to(walk, leaf, pieces)
    links = []
    for producer, link in found:
        if producer in walk.makers.pinned:
            reason = f"mixing: {walk.makers.pinned[producer]}"
            link = link._replace(between=(*link.between, reason))
        for path in (link.producer, link.consumer, *(link.biases or ())):
            if path in shared:
                reason = f"mixing: {path} is read elsewhere too"
                link = link._replace(between=(*link.between, reason))
        links.append(link)
    return tuple(links)


def _links_to(walk: Walk, leaf: int, pieces: Sequence[Piece]) -> list[tuple[int, Link]]:
    makers, first = walk.makers, pieces[0]
    path = walk.paths[leaf]
    producers = [q for piece in pieces for q in makers.of(piece.rows)]
    producers = list(dict.fromkeys(producers))
    outputs = np.concatenate([piece.outputs for piece in pieces])
    whole = np.array_equal(np.sort(outputs), np.arange(makers.made[leaf].size))
    same = all(
        piece.axes == first.axes
        and [piece.through.get(q) for q in producers]
        == [first.through.get(q) for q in producers]
        for piece in pieces
    )
    groups = 1 if _alike(pieces) else len(pieces)
    links = {q: _link(walk, q, leaf, pieces, groups) for q in producers}
    found = [(q, link) for q, link in links.items() if link is not None]
    if not whole or not same:
        reason = f"{path} reads it in parts, or more than once"
    elif (groups > 1 and not producers) or (first.grouped and groups == 1):
        reason = f"{path} is in groups that read what is no unit"
    elif len(found) < len(links):
        reason = f"{path} reads it in an order that no link describes"
    elif producers and any((piece.rows <= 0).any() for piece in pieces):
        # A link for some of the rows would not say what the others are.
        reason = f"{path} reads it beside what is no unit"
    else:
        return found
    makers.pin(producers, reason)
    if groups > 1 or not whole:
        makers.pin([leaf], f"{path} is in groups or parts that no link describes")
    return []


def _alike(pieces: Sequence[Piece]) -> bool:
    """Tells whether all pieces read the same units, so that they are no groups."""
    rows = pieces[0].rows
    if len(pieces) == 1:
        return True
    alike = all(np.array_equal(piece.rows, rows) for piece in pieces)
    return alike and bool((rows > 0).any())


def _link(
    walk: Walk, producer: int, leaf: int, pieces: Sequence[Piece], groups: int
) -> Link | None:
    made, own = walk.makers.made[producer], walk.makers.made[leaf]
    biases = [walk.makers.biases.get(i) for i in (producer, leaf)]
    first = pieces[0]
    ndims = [len(walk.shapes[i]) for i in (producer, leaf, leaf)]
    axes = (made.axis, first.axes[0], own.axis)
    link = Link(
        walk.paths[producer],
        walk.paths[leaf],
        groups=groups,
        between=tuple(first.through.get(producer, ())),
        axes=tuple(a - n for a, n in zip(axes, ndims, strict=True)),  # type: ignore
        biases=tuple("" if b is None else walk.paths[b] for b in biases),  # type: ignore
    )
    if groups > 1:
        width = own.size // groups
        for g, piece in enumerate(sorted(pieces, key=lambda p: int(p.outputs[0]))):
            n = len(piece.rows)
            outputs = np.arange(g * width, (g + 1) * width)
            rows = made.first + np.arange(g * n, (g + 1) * n)
            if not np.array_equal(piece.outputs, outputs):
                return None
            if n * groups != made.size or not np.array_equal(piece.rows, rows):
                return None
        return link
    units = first.rows - made.first
    places = np.flatnonzero((units >= 0) & (units < made.size))
    if len(places) % made.size:
        return None
    fan = len(places) // made.size
    start = int(np.flatnonzero(units == 0)[0]) if (units == 0).any() else 0
    if len(units) % fan:
        return None
    for channels_first in (False, True):
        offset = start // fan if channels_first else start
        tried = link._replace(fan=fan, offset=offset, channels_first=channels_first)
        rows = rows_of(tried, made.size, len(units))
        if rows.max() >= len(units):
            continue
        if (units[rows] == np.arange(made.size)[:, None]).all():
            return tried
    return None
