"""Layers with weights, and window reductions, as a traced function has them."""

from typing import Any

import numpy as np

from jaxprune._program import Step
from jaxprune.interop._litert_nodes import Node, conv, dense, pool
from jaxprune.interop._litert_views import (
    View,
    Walk,
    node_made,
    node_of,
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
    if any(batch) or not isinstance(matrix, np.ndarray):
        raise ValueError("it multiplies activations with activations")
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
    made = whole(Product(x, at.reshape(-1, size), matrix, shape, name))
    if not turned:
        return made
    axes = range(1, 1 + len(outer)), range(-len(outer), 0)
    return made._replace(at=np.moveaxis(made.at, *axes))


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
