"""A pruned convolution in a form made for execution, and its direct computation."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, ArrayLike, Bool, Float, Num

from jaxprune.sparse._fast import custom_call, most_threads, target
from jaxprune.sparse._kernel import SparseKernel, to_kernel
from jaxprune.sparse._kernel import to_dense as matrix_to_dense


Padding = tuple[tuple[int, int], tuple[int, int]]
_HWIO, _STRIDE = (3, 2, 0, 1), (1, 1)
ALONE = 2**20  # weights times positions up to which a second thread does not pay


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SparseConv:
    """The live weights of a convolution's kernel, which `to_conv` makes.

    Attributes:
      matrix: that kernel as a matrix (in * rows * columns, out).
      place: the output that each of its columns, as they are stored, belongs to.
      shape: of the kernel, (rows, columns, in, out).
    """

    matrix: SparseKernel
    place: Any
    shape: tuple[int, int, int, int] = dataclasses.field(metadata={"static": True})

    @property
    def ndim(self) -> int:
        return 4

    @property
    def dtype(self) -> Any:
        """That of the kernel it stands for."""
        return self.matrix.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of everything it stores."""
        return self.matrix.nbytes + self.place.nbytes


def to_conv(
    kernel: Float[ArrayLike, "rows columns in out"],
    mask: Bool[ArrayLike, "rows columns in out"],
    *,
    values: str = "float32",
) -> SparseConv:
    """Keeps the live weights of a convolution's kernel, on the host.

    Args:
      kernel: the weights.
      mask: True where alive.
      values: what weights are stored as, as in `to_kernel`.

    Raises:
      ValueError: as `to_kernel`.
    """
    weights, alive = np.asarray(kernel), np.asarray(mask)
    # Channel by channel, so that the weights of a window read the same memory.
    flat = lambda a: a.transpose(2, 0, 1, 3).reshape(-1, a.shape[-1])
    made = to_kernel(flat(weights), flat(alive), values=values, fast=True, cut=False)
    rows, columns, inputs, outputs = weights.shape
    place = jnp.argsort(made.order).astype(jnp.uint32)
    return SparseConv(made, place, (rows, columns, inputs, outputs))


def conv_to_dense(conv: SparseConv) -> Float[Array, "rows columns in out"]:
    """Writes the kernel out, as the convolution sees it."""
    rows, columns, inputs, outputs = conv.shape
    dense = matrix_to_dense(conv.matrix).reshape(inputs, rows, columns, outputs)
    return dense.transpose(1, 2, 0, 3)


def convolve(
    x: Num[Array, "batch height width in"], conv: SparseConv, padding: Padding
) -> Num[Array, "batch _ _ out"]:
    """Convolves with stride 1, in float32.

    On a CPU with numba the kernel of the extra `fast` does it, elsewhere XLA's dense
    convolution with the kernel written out.

    Args:
      x: images.
      conv: the weights.
      padding: zeros before and after the rows, and the columns.
    """
    y = _quick(x.astype(jnp.float32), conv, padding)
    return y.astype(x.dtype)


def convolved(x: Array, conv: SparseConv, params: Any) -> Array | None:
    """Gives what XLA's convolution with these params gives, `None` if it is another.

    It is when it has strides, holes, groups, or another order of the kernel's axes.
    """
    numbers = params["dimension_numbers"]
    ones = ("window_strides", "lhs_dilation", "rhs_dilation")
    if any(tuple(params[name]) != _STRIDE for name in ones) or x.ndim != 4:
        return None
    if params["feature_group_count"] != 1 or params["batch_group_count"] != 1:
        return None
    padding = tuple((int(a), int(b)) for a, b in params["padding"])
    if tuple(numbers.rhs_spec) != _HWIO or min(min(padding)) < 0:
        return None
    order = lambda spec: (spec[0], spec[2], spec[3], spec[1])
    x = x.transpose(order(numbers.lhs_spec))
    y = convolve(x, conv, (padding[0], padding[1]))
    return y.transpose(tuple(int(k) for k in np.argsort(order(numbers.out_spec))))


def _dense(x: Array, conv: SparseConv, padding: Padding) -> Array:
    numbers = ("NHWC", "HWIO", "NHWC")
    kernel = conv_to_dense(conv)
    return lax.conv_general_dilated(
        x, kernel, (1, 1), padding, dimension_numbers=numbers
    )


def _quick(x: Array, conv: SparseConv, padding: Padding) -> Array:
    """Convolves by numba where it can, and differentiates what XLA would have done."""
    matrix = conv.matrix
    name = None
    if matrix.values and matrix.values[0].size and x.size:
        values, inputs = matrix.values[0].dtype.name, matrix.inputs[0].dtype.name
        name = target(values, inputs, "conv")
    if name is None:
        return _dense(x, conv, padding)

    @jax.custom_batching.custom_vmap
    def one(x: Any, conv: Any) -> Any:
        return lax.platform_dependent(
            x,
            conv,
            cpu=lambda x, c: _direct(x, c, padding, name),
            default=lambda x, c: _dense(x, c, padding),
        )

    @one.def_vmap
    def many(size: int, batched: Any, x: Any, conv: Any) -> Any:
        if any(jax.tree.leaves(batched[1])):
            axes = jax.tree.map(lambda b: 0 if b else None, batched)
            plain = lambda x, c: _dense(x, c, padding)
            return jax.vmap(plain, axes, axis_size=size)(x, conv), True
        y = one(x.reshape(-1, *x.shape[2:]), conv)
        return y.reshape(*x.shape[:2], *y.shape[1:]), True

    @jax.custom_jvp
    def run(x: Any, conv: Any) -> Any:
        return one(x, conv)

    @run.defjvp
    def jvp(primals: Any, tangents: Any) -> Any:
        plain = lambda x, c: _dense(x, c, padding)
        return run(*primals), jax.jvp(plain, primals, tangents)[1]

    return run(x, conv)


def _direct(x: Array, conv: SparseConv, padding: Padding, name: str) -> Array:
    """Convolves by the kernel that `target` registered as `name`."""
    rows, columns, inputs, outputs = conv.shape
    batch = x.shape[0]
    height, width = (n + sum(p) for n, p in zip(x.shape[1:3], padding, strict=True))
    channel = batch * height * width
    # What is read beyond the last channel belongs to positions that are thrown away.
    beyond = -(-(columns + 16) // channel)
    x = jnp.pad(x.transpose(3, 0, 1, 2), ((0, beyond), (0, 0), *padding))
    distance = (
        np.arange(inputs)[:, None, None] * channel
        + np.arange(rows)[:, None] * width
        + np.arange(columns)
    )
    # Bytes, in words of 64 bits, which JAX has not by default.
    table = (4 * distance.reshape(-1)).astype("<i8").view("<i4")
    used = channel - (rows - 1) * width
    positions = -(-used // 16) * 16
    work = positions * sum(v.size for v in conv.matrix.values)
    threads = min(most_threads(), 1 + work // ALONE)
    y = custom_call(
        name,
        (outputs, positions),
        (threads, 0),
        (x, conv.place, jnp.asarray(table)),
        conv.matrix,
    )
    if batch == 1:
        y = y[:, :used].reshape(outputs, 1, -1, width)
    else:
        y = jnp.pad(y[:, :used], ((0, 0), (0, channel - used)))
        y = y.reshape(outputs, batch, height, width)
    y = y[:, :, : height - rows + 1, : width - columns + 1]
    return y.transpose(1, 2, 3, 0)
