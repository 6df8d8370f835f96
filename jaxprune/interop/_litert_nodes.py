"""What a `.tflite` file computes: operators, each with the tensor that it makes.

A bias, and a ReLU, go into the operator before them where it takes them. Tensors are
(batch, ...), images (batch, height, width, channels); shapes are those of a batch of 1.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

import numpy as np


Borders: TypeAlias = Sequence[tuple[int, int]]
"""Of each axis, how much is added before and after; what is cut off is negative."""

_LAYERS = ("conv", "depthwise", "dense")


@dataclasses.dataclass(frozen=True, eq=False)
class Node:
    """An operator and the tensor that it makes.

    Attributes:
      kind: what it does.
      shape: of the tensor.
      inputs: nodes and constants. Of "conv", "depthwise" and "dense": the input,
        weights, (rows, columns, in, out), (rows, columns, 1, out) or (in, out), and a
        bias (out,).
      options: whole numbers and words, by the operator.
      relu: whether negative numbers become 0 at its end.
      name: of the weights.
    """

    kind: str
    shape: tuple[int, ...]
    inputs: tuple[Any, ...] = ()
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    relu: bool = False
    name: str = ""


def conv(
    x: Node,
    kernel: np.ndarray,
    strides: Sequence[int],
    borders: Borders,
    dilation: Sequence[int] = (1, 1),
    name: str = "",
    groups: int = 1,
) -> Node:
    """Convolves an image with a kernel (rows, columns, in / groups, out)."""
    if 1 < groups < x.shape[3]:  # not every interpreter has groups
        n, parts = kernel.shape[2], []
        for i, part in enumerate(np.split(kernel, groups, axis=3)):
            cut = (-i * n, (i + 1) * n - x.shape[3])
            ours = bordered(x, [(0, 0), (0, 0), (0, 0), cut])
            of = f"{name}/{i}" if name else ""
            parts.append(conv(ours, part, strides, borders, dilation, of))
        shape = (*parts[0].shape[:3], kernel.shape[3])
        return Node("concat", shape, tuple(parts), {"axis": 3})
    size = [(n - 1) * d + 1 for n, d in zip(kernel.shape[:2], dilation, strict=True)]
    x, padding, shape = _covered(x, size, strides, borders, 0.0, True)
    inputs = x, kernel, np.zeros(kernel.shape[3], np.float32)
    options = {"strides": strides, "dilation": dilation, "padding": padding}
    kind = "depthwise" if groups > 1 else "conv"
    return Node(kind, (1, *shape, kernel.shape[3]), inputs, options, name=name)


def pool(
    x: Node,
    size: Sequence[int],
    strides: Sequence[int],
    borders: Borders,
    fill: float = -np.inf,
    kind: Literal["pool", "average"] = "pool",
) -> Node:
    """Takes the maximum of windows, or their mean, outside the image of `fill`."""
    own = fill == -np.inf or not np.any(borders)
    x, padding, shape = _covered(x, size, strides, borders, fill, own)
    options = {"size": size, "strides": strides, "padding": padding}
    return Node(kind, (1, *shape, x.shape[3]), (x,), options)


def dense(x: Node, weight: np.ndarray, name: str = "") -> Node:
    """Multiplies the last axis by a weight (in, out)."""
    inputs = x, weight, np.zeros(weight.shape[1], np.float32)
    return Node("dense", (*x.shape[:-1], weight.shape[1]), inputs, name=name)


def reshape(x: Node, shape: Sequence[int]) -> Node:
    """Gives the numbers, in their order, another shape."""
    x = x.inputs[0] if x.kind == "reshape" else x
    return x if x.shape == tuple(shape) else Node("reshape", tuple(shape), (x,))


def bordered(x: Node, borders: Borders, fill: float = 0.0) -> Node:
    """Cuts off and adds at the ends of every axis."""
    ends = zip(x.shape, borders, strict=True)
    cut = [(max(-a, 0), n - max(-b, 0)) for n, (a, b) in ends]
    x = sliced(x, [a for a, _ in cut], [b for _, b in cut], [1] * len(cut))
    more = np.maximum(borders, 0).astype(np.int32)
    if not more.any():
        return x
    shape = tuple(int(n) for n in x.shape + more.sum(1))
    return Node("pad", shape, (x, more), {"fill": fill})


def sliced(x: Node, begin: list[int], end: list[int], step: list[int]) -> Node:
    """Takes every `step`th from `begin` to before `end` of every axis."""
    shape = tuple(len(range(*ends)) for ends in zip(begin, end, step, strict=True))
    if shape == x.shape:
        return x
    ends = (np.array(v, np.int32) for v in (begin, end, step))
    return Node("slice", shape, (x, *ends))


def added(x: Node, constant: np.ndarray) -> Node:
    """Adds numbers; one for each channel as a bias, if an operator takes it."""
    if not np.any(constant):
        return x
    constant = shortest(constant, x.shape)
    within = _biased(x, constant) if constant.shape == x.shape[-1:] else None
    return within or Node("add", x.shape, (x, constant))


def rectified(x: Node) -> Node:
    """Takes the larger of every number and 0."""
    if x.kind in (*_LAYERS, "pool", "average", "add", "sub", "mul", "div"):
        return dataclasses.replace(x, relu=True)
    return Node("relu", x.shape, (x,))


def shortest(constant: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Gives one number a channel, if the constant has no others, or all of them."""
    full = np.broadcast_to(constant, shape).astype(np.float32)
    rows = full.reshape(-1, shape[-1])
    return rows[0] if (rows == rows[0]).all() else full


def _biased(x: Node, bias: np.ndarray) -> Node | None:
    if x.relu:
        return None
    if x.kind in _LAYERS:
        return dataclasses.replace(x, inputs=(*x.inputs[:2], x.inputs[2] + bias))
    if x.kind == "pool":  # a constant commutes with the maximum, rounding included
        within = _biased(x.inputs[0], bias)
        return within and dataclasses.replace(x, inputs=(within,))
    return None


def _covered(
    x: Node,
    size: Sequence[int],
    strides: Sequence[int],
    borders: Borders,
    fill: float,
    own: bool,
) -> tuple[Node, Literal["SAME", "VALID"], list[int]]:
    """Gives what windows run over, by which of LiteRT's paddings, and their number.

    `own` tells whether the operator's own borders are of `fill`.
    """
    height_width = x.shape[1:3]
    same, windows = [], []
    for n, length, stride in zip(height_width, size, strides, strict=True):
        windows.append(-(-n // stride))
        total = max((windows[-1] - 1) * stride + length - n, 0)
        same.append((total // 2, total - total // 2))
    if own and [tuple(pair) for pair in borders] == same:
        return x, "SAME", windows
    x = bordered(x, [(0, 0), *borders, (0, 0)], fill)
    windows = [
        (n - length) // stride + 1
        for n, length, stride in zip(x.shape[1:3], size, strides, strict=True)
    ]
    return x, "VALID", windows
