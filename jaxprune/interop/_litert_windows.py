"""Convolutions and pooling found in where their numbers come from.

A network may write them as slices, transposes, products and maxima. Whichever way it
did, each number made is a sum, or a maximum, over numbers of an image, and their places
move evenly with the place of the number made.
"""

import itertools
from typing import NamedTuple

import numpy as np

from jaxprune.interop._litert_moves import Line, fit
from jaxprune.interop._litert_nodes import Node, conv, pool, reshape


class Product(NamedTuple):
    """A product of numbers of a tensor with a matrix.

    Attributes:
      x: the tensor.
      at: which of its numbers each row has, (rows, in); -1: zero.
      kernel: (in, out).
      shape: of the product, whose numbers are those of (rows, out).
      given: shape of what is multiplied, whose numbers are those of (rows, in).
      name: of the kernel's leaf.
    """

    x: Node
    at: np.ndarray
    kernel: np.ndarray
    shape: tuple[int, ...]
    given: tuple[int, ...]
    name: str


def pooling(x: Node, at: np.ndarray, fill: float) -> Node | None:
    """Gives the maximum of the numbers `at`, (reads, 1, height, width, channels)."""
    if len(x.shape) != 4 or at.ndim != 5 or at.shape[4] != x.shape[3]:
        return None
    pixel, channel = _pixels(at[:, 0], x.shape[3])
    ours = (channel == np.arange(x.shape[3])) | (pixel < 0)
    if not ours.all() or (pixel != pixel[..., :1]).any():
        return None
    pixel = pixel[..., 0]
    pixel = pixel[(pixel >= 0).any((1, 2))]
    lines = fit(pixel, x.shape[1:3])
    if lines is None or not _is_box(np.stack([line.start for line in lines], 1)):
        return None
    size, strides, borders = [], [], []
    for line, count, n in zip(lines, at.shape[2:4], x.shape[1:3], strict=True):
        low, length = int(line.start.min()), int(np.ptp(line.start)) + 1
        stride = line.step if line.known else length
        size.append(length)
        strides.append(stride)
        borders.append(_border(low, length, stride, count, n))
    return pool(x, size, strides, borders, fill)


def largest(x: Node, at: np.ndarray) -> Node | None:
    """Gives the maximum of the numbers `at`, (reads, *shape), over whole axes."""
    places = np.arange(np.prod(x.shape)).reshape(x.shape)
    read = np.sort(at.reshape(len(at), -1), axis=0)
    for count in range(1, len(x.shape)):
        for axes in itertools.combinations(range(1, len(x.shape)), count):
            rows = np.moveaxis(places, axes, range(count))
            rows = rows.reshape(np.prod(rows.shape[:count]), -1)
            if len(rows) == len(at) and np.array_equal(np.sort(rows, axis=0), read):
                shape = [1 if i in axes else n for i, n in enumerate(x.shape)]
                inputs = x, np.array(axes, np.int32)
                return reshape(Node("largest", tuple(shape), inputs), at.shape[1:])
    return None


def convolution(product: Product, at: np.ndarray) -> Node | None:
    """Gives the maximum of `at`, (reads, 1, height, width, out), of a product.

    That is a convolution, and the pooling after it if there are several reads.
    """
    x, matrix = product.x, product.kernel
    if len(x.shape) != 4 or at.ndim != 5 or at.shape[1] != 1 or (at < 0).any():
        return None
    row, column = np.divmod(at[:, 0], matrix.shape[1])
    row, column = row[..., 0], column[:, 0, 0]
    if (at[:, 0] != row[..., None] * matrix.shape[1] + column[:, None, None]).any():
        return None
    read = [
        _read(x, product.at[places], matrix[:, columns])
        for places, columns in zip(row, column, strict=True)
    ]
    reads = [one for one in read if one is not None]
    lows = np.array([one.low for one in reads])
    if len(reads) < len(read) or not all(
        np.array_equal(one.kernel, reads[0].kernel) for one in reads
    ):
        return None
    kernel, strides, borders, size, jumps = reads[0].kernel, [], [], [], []
    for axis, line in enumerate(reads[0].lines):
        starts, n = np.unique(lows[:, axis]), x.shape[1 + axis]
        apart = int(starts[1] - starts[0]) if len(starts) > 1 else line.step
        jump = line.step // apart if line.known else len(starts)
        if (np.diff(starts) != apart).any() or (line.known and line.step % apart):
            return None
        count = (at.shape[2 + axis] - 1) * jump + len(starts)
        low, length = int(starts[0]), kernel.shape[axis]
        # Dead rows at the rim of a kernel are not told from rows that it has not.
        unused = n - ((count - 1) * apart + low + length)
        ends = (max(low, 0), max(unused // apart * apart, 0))
        kernel = np.pad(kernel, [(0, 0)] * axis + [ends] + [(0, 0)] * (3 - axis))
        low, length = min(low, 0), length + sum(ends)
        borders.append(_border(low, length, apart, count, n))
        strides.append(apart)
        size.append(len(starts))
        jumps.append(jump)
    if len(lows) != np.prod(size) or len(np.unique(lows, axis=0)) != len(lows):
        return None
    made = conv(x, kernel, strides, borders, name=product.name)
    return made if len(reads) == 1 else pool(made, size, jumps, [(0, 0)] * 2)


class _Read(NamedTuple):
    """The kernel by which an image is read, and where its first row and column are."""

    kernel: np.ndarray
    lines: list[Line]
    low: list[int]


def _read(x: Node, at: np.ndarray, matrix: np.ndarray) -> _Read | None:
    """Gives the kernel of `at`, (height, width, in), and a matrix (in, out)."""
    live = matrix.any(1) & (at >= 0).any((0, 1))
    at, matrix = np.moveaxis(at[..., live], -1, 0), matrix[live]
    pixel, channel = _pixels(at, x.shape[3])
    channels = np.where(pixel >= 0, channel, -1).max((1, 2))
    if ((channel != channels[:, None, None]) & (pixel >= 0)).any():
        return None
    lines = fit(pixel, x.shape[1:3])
    if lines is None:
        return None
    low = [int(line.start.min()) for line in lines]
    shape = [int(np.ptp(line.start)) + 1 for line in lines]
    kernel = np.zeros((*shape, x.shape[3], matrix.shape[1]), np.float32)
    rows, columns = (line.start - first for line, first in zip(lines, low, strict=True))
    np.add.at(kernel, (rows, columns, channels), matrix)
    return _Read(kernel, lines, low)


def _pixels(at: np.ndarray, channels: int) -> tuple[np.ndarray, np.ndarray]:
    return np.where(at < 0, -1, at // channels), at % channels


def _is_box(starts: np.ndarray) -> bool:
    """Tells whether places (reads, axes) fill a box."""
    size = int(np.prod(np.ptp(starts, axis=0) + 1))
    return len(np.unique(starts, axis=0)) == size


def _border(low: int, size: int, stride: int, count: int, n: int) -> tuple[int, int]:
    """Gives what windows need before and after an axis; of a rest at its end, none."""
    after = (count - 1) * stride + low + size - n
    return -low, 0 if -stride < after < 0 else after
