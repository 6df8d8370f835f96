"""Layers with weights, and window reductions, as a traced function has them."""

import numpy as np

from jaxprune.interop._litert_nodes import conv, pool
from jaxprune.interop._litert_views import (
    View,
    Walk,
    node_made,
    node_of,
    view_of,
    whole,
)
from jaxprune.interop._litert_windows import Product
from jaxprune.report._program import Step


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
    groups = params["feature_group_count"] * params["batch_group_count"]
    if len(given) != 4 or groups > 1 or set(params["lhs_dilation"]) != {1}:
        raise ValueError(
            f"it has a convolution of {len(given) - 2} axes, {groups} groups and input "
            f"dilation {params['lhs_dilation']}, expected 2 axes and neither"
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
    )
    n, c, *place = (axis + 1 for axis in made)
    view = whole(node)
    return view._replace(at=np.moveaxis(view.at, (1, 2, 3, 4), (n, *place, c)))


def window_max(walk: Walk, step: Step) -> View:
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
    return whole(pool(x, size[1:3], strides[1:3], borders[1:3]))
