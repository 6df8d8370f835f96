"""Values while a traced function is followed: numbers of tensors, moved about."""

from typing import Any, NamedTuple, TypeAlias

import numpy as np

from jaxprune._program import Program
from jaxprune.interop._litert_moves import moved
from jaxprune.interop._litert_nodes import Node, dense, reshape
from jaxprune.interop._litert_windows import (
    Product,
    convolution,
    largest,
    pooling,
)


class View(NamedTuple):
    """Numbers of a tensor moved about, or the largest of several of them.

    Attributes:
      of: the tensor.
      at: which numbers, (reads, *shape), int32; -1: `fill`.
      fill: a number, or `None` if there is no -1.
    """

    of: Node | Product
    at: np.ndarray
    fill: float | None = None


class Test(NamedTuple):
    """What a comparison gives, computed only where no maximum is found in it.

    Attributes:
      kind: "gt", "ge", "lt", "le", "eq" or "ne" of two slots; "or", "and" or "not" of
        tests.
      of: these.
    """

    kind: str
    of: tuple[Any, ...]


Value: TypeAlias = View | Test | np.ndarray


class Walk(NamedTuple):
    """What is known while a program is followed: values and leaves' names, by slot."""

    program: Program
    values: dict[int, Value]
    names: dict[int, str]


def whole(of: Node | Product) -> View:
    """Views all of a tensor as it is."""
    at = np.arange(np.prod(of.shape), dtype=np.int32)
    return View(of, at.reshape(1, *of.shape))


def view_of(walk: Walk, slot: int) -> View:
    """Gives the value of a slot.

    Raises:
      ValueError: if it is no view.
    """
    value = walk.values[slot]
    if isinstance(value, View):
        return value
    what = "a comparison" if isinstance(value, Test) else "a constant"
    shape = walk.program.types[slot].shape
    raise ValueError(f"{what} of shape {shape} is where an activation was expected")


def node_of(walk: Walk, slot: int) -> Node:
    """Gives the operator that makes the value of a slot, and notes it there.

    Raises:
      ValueError: as `node_made`, or if it is no activation.
    """
    node = node_made(view_of(walk, slot))
    walk.values[slot] = whole(node)
    return node


def source_of(walk: Walk, slot: int) -> tuple[Node, np.ndarray]:
    """Gives the operator from whose numbers a value is made, each once, in any order.

    Returns:
      The operator; and which of its numbers the value has, (1, *shape).

    Raises:
      ValueError: as `node_of`.
    """
    of, at, _ = view_of(walk, slot)
    if isinstance(of, Product) and len(at) == 1 and convolution(of, at) is None:
        of = _product(of) or of
        walk.values[slot] = View(of, at)  # so that it is computed once
    if isinstance(of, Node) and len(at) == 1:
        places = np.arange(np.prod(of.shape))
        if np.array_equal(np.sort(at, None), places):
            return of, at
    node = node_of(walk, slot)
    return node, whole(node).at


def node_made(view: View) -> Node:
    """Gives the operator that makes what is viewed.

    Raises:
      ValueError: if none does, or its first axis is not the batch.
    """
    node = made_of(view)
    if node is None:
        raise ValueError(
            f"numbers of shape {view.at.shape[1:]} are moved, or the largest of some "
            "are taken, in a way that is no convolution, pooling, maximum over axes, "
            "slice or flatten"
        )
    if node.shape[:1] != (1,):
        raise ValueError(
            f"an activation has shape {node.shape} for a batch of 1, expected the "
            "batch as its first axis"
        )
    return node


def made_of(view: View) -> Node | None:
    """Gives the operator that makes what is viewed; `None` if none does."""
    x, at, fill = view
    if isinstance(x, Product):
        node = convolution(x, at)
        if node is not None:
            return node
        node = _product(x)
        return None if node is None else made_of(View(node, at, fill))
    if len(at) > 1:
        made = pooling(x, at, -np.inf if fill is None else fill)
        return largest(x, at) if made is None else made
    if fill is None and np.array_equal(at.ravel(), np.arange(np.prod(x.shape))):
        return reshape(x, at.shape[1:])
    return moved(x, at[0], fill or 0.0)


def _product(product: Product) -> Node | None:
    """Gives the operator of a product as it is, before anything is moved."""
    x, at, matrix, shape, given, name = product
    size = int(np.prod(x.shape))
    if len(at) > 1 and len(shape) == 4:
        found = convolution(product, whole(product).at)
        if found is not None:
            return found
    rows = None
    if at.min() >= 0 and (len(at) > 1 or at.size < size):
        rows = made_of(View(x, at.reshape(1, *given)))
    if rows is None and len(at) == 1:
        places = at[0]
        if not np.array_equal(places, np.arange(size)):
            weight = np.zeros((size, matrix.shape[1]), np.float32)
            np.add.at(weight, places[places >= 0], matrix[places >= 0])
            matrix = weight
        return dense(reshape(x, (1, size)), matrix, name)
    if rows is None or rows.shape[0] != 1:
        return None
    if rows.shape[-1] != len(matrix):
        rows = reshape(rows, (1, *at.shape))
    return reshape(dense(rows, matrix, name), shape)
