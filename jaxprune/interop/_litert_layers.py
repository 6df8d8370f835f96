"""Layers with weights, and window reductions, as a traced function has them."""

from typing import Any

import numpy as np

from jaxprune._program import Step
from jaxprune.interop._litert_nodes import Node, conv, dense, pool, reshape
from jaxprune.interop._litert_views import (
    View,
    Walk,
    node_made,
    node_of,
    source_of,
    view_of,
    whole,
)
from jaxprune.interop._litert_windows import Product


def product(walk: Walk, step: Step) -> View:
    (axes, batch) = step.params["dimension_numbers"]
    sides = list(zip(step.inputs, axes, strict=True))
    turned = isinstance(walk.values[step.inputs[0]], np.ndarray)
    (slot, inner), (other, rows) = reversed(sides) if turned else sides
    matrix = walk.values[other]
    if not isinstance(matrix, np.ndarray):
        return _of_activations(walk, step)
    if any(batch):
        raise ValueError("it multiplies every example, or channel, by its own matrix")
    x, at, fill = view_of(walk, slot)
    if isinstance(x, Product) or len(at) > 1 or fill not in (None, 0):
        x = node_of(walk, slot)
        at = whole(x).at
    at = np.moveaxis(at[0], inner, range(-len(inner), 0))
    matrix = np.moveaxis(matrix, rows, range(len(rows)))
    outer, ours = at.shape[: -len(inner)], matrix.shape[len(rows) :]
    size = int(np.prod(at.shape[-len(inner) :]))
    name = walk.names.get(other, "")
    matrix, shape = matrix.reshape(size, -1), (*outer, *ours)
    made = whole(Product(x, at.reshape(-1, size), matrix, shape, at.shape, name))
    if not turned:
        return made
    axes = range(1, 1 + len(outer)), range(-len(outer), 0)
    return made._replace(at=np.moveaxis(made.at, *axes))


def _of_activations(walk: Walk, step: Step) -> View:
    """Multiplies activations, as attention does, for each example by itself."""
    inner, batch = step.params["dimension_numbers"]
    shared = list(zip(*batch, strict=True))
    sources = [_source(walk, slot) for slot in step.inputs]
    # `jnp.matmul` leaves out the axis of a batch of 1.
    left_out = (0, 0) not in shared or sources[0][1].shape[0] > 1
    if left_out:
        free = [
            0 not in (*dims, *each) for dims, each in zip(inner, batch, strict=True)
        ]
        if all(free) and all(at.shape[0] == 1 for _, at in sources):
            raise ValueError("it multiplies activations of different examples")
        sources = [(node, at[None]) for node, at in sources]
        inner = [[k + 1 for k in dims] for dims in inner]
        shared = [(0, 0), *((i + 1, k + 1) for i, k in shared)]
    first = shared.index((0, 0))
    shared.insert(0, shared.pop(first))
    operands, shape = [], []
    for i, (node, at) in enumerate(sources):
        each, summed = [pair[i] for pair in shared], inner[i]
        free = [k for k in range(at.ndim) if k not in (*each, *summed)]
        if at.size < np.prod(node.shape):  # cut out first
            node = node_made(View(node, at[None]))
            at = whole(node).at[0]
        sides = (free, summed) if i == 0 else (summed, free)
        turned = at.transpose(*each, *sides[0], *sides[1])
        size = [int(np.prod([at.shape[k] for k in side])) for side in sides]
        rows = node_made(View(node, turned[None]))
        operands.append(reshape(rows, (*turned.shape[: len(each)], *size)))
        shape += [at.shape[k] for k in free]
    left, right = operands
    size = (*left.shape[:-1], right.shape[-1])
    made = reshape(Node("matmul", size, (left, right)), (*left.shape[:-2], *shape))
    view = whole(made)
    if left_out:
        return view._replace(at=view.at[:, 0])
    return view._replace(at=np.moveaxis(view.at, 1, 1 + first))


def _source(walk: Walk, slot: int) -> tuple[Node, np.ndarray]:
    """Gives an operator, and which of its numbers a value has."""
    of, at, fill = view_of(walk, slot)
    if isinstance(of, Product) or len(at) > 1 or fill is not None:
        of, at = source_of(walk, slot)
    return of, at[0]


def convolve(walk: Walk, step: Step) -> View:
    params, kernel = step.params, walk.values[step.inputs[1]]
    given, weights, made = params["dimension_numbers"]
    batches, dilation = params["batch_group_count"], params["lhs_dilation"]
    if len(given) != 4 or batches > 1 or set(dilation) != {1}:
        raise ValueError(
            f"it has a convolution of {len(given) - 2} axes, {batches} batch groups "
            f"and input dilation {dilation}, expected 2 axes and neither"
        )
    if not isinstance(kernel, np.ndarray):
        raise ValueError("it convolves activations with activations")
    view = view_of(walk, step.inputs[0])
    n, c, *place = (axis + 1 for axis in given)
    x = view._replace(at=view.at.transpose(0, n, *place, c))
    out, into, *place = weights
    node = conv(
        node_made(x),
        kernel.transpose(*place, into, out),
        params["window_strides"],
        params["padding"],
        params["rhs_dilation"],
        walk.names.get(step.inputs[1], ""),
        params["feature_group_count"],
    )
    n, c, *place = (axis + 1 for axis in made)
    view = whole(node)
    return view._replace(at=np.moveaxis(view.at, (1, 2, 3, 4), (n, *place, c)))


def window_max(walk: Walk, step: Step) -> View:
    x, size, strides, borders = _windows(walk, step)
    return whole(pool(x, size, strides, borders))


def window_sum(walk: Walk, step: Step) -> View:
    """Sums windows over an image as their mean, windows over channels as a product."""
    params = step.params
    *others, size = params["window_dimensions"]
    *borders, (before, after) = params["padding"]
    steps = {*params["window_strides"], *params["base_dilation"]}
    if size == 1 or {*others, *steps} != {1} or any(map(any, borders)):
        x, sizes, strides, borders = _windows(walk, step)
        mean = pool(x, sizes, strides, borders, 0.0, "average")
        count = np.array([np.prod(sizes)], np.float32)
        return whole(Node("mul", mean.shape, (mean, count)))
    x, apart = node_of(walk, step.inputs[0]), params["window_dilation"][-1]
    outputs = x.shape[-1] + before + after - (size - 1) * apart
    band = np.zeros((x.shape[-1], outputs), np.float32)
    for k in range(size):
        band += np.eye(*band.shape, before - k * apart)
    return whole(dense(x, band))


def _windows(walk: Walk, step: Step) -> tuple[Node, Any, Any, Any]:
    """Gives windows over an image: it, and along its axes size, strides, borders."""
    params, x = step.params, node_of(walk, step.inputs[0])
    size, strides = params["window_dimensions"], params["window_strides"]
    borders = params["padding"]
    dilated = {*params["base_dilation"], *params["window_dilation"]} != {1}
    moving = len(x.shape) != 4 or size[::3] != (1, 1) or strides[::3] != (1, 1)
    if dilated or moving or any(map(any, borders[::3])):
        raise ValueError(
            f"it has windows {size} on {x.shape}, expected them over the middle axes "
            "of (batch, height, width, channels), without dilation"
        )
    return x, size[1:3], strides[1:3], borders[1:3]
