"""A pruned convolution in a form made for execution, and its direct computation."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, ArrayLike, Bool, Float, Num

from jaxprune.sparse._conv_worker import LINES, NARROW, STEP
from jaxprune.sparse._fast import custom_call, most_threads, target
from jaxprune.sparse._kernel import SparseKernel, to_kernel
from jaxprune.sparse._kernel import to_dense as matrix_to_dense
from jaxprune.sparse._product import check_floating


Padding = tuple[tuple[int, int], tuple[int, int]]
_HWIO, _STRIDE = (3, 2, 0, 1), (1, 1)
ALONE = 2**20  # weights times positions up to which a second thread does not pay
_VECTOR = 16  # positions that are computed at once, at the least
_POOLED = 2**12  # positions that a thread computes before it takes maxima


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SparseConv:
    """The live weights of a convolution's kernel, which `to_conv` makes.

    Attributes:
      matrix: that kernel as a matrix (in * rows * columns, out).
      shape: of the kernel, (rows, columns, in, out).
    """

    matrix: SparseKernel
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
        return self.matrix.nbytes


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
    return SparseConv(made, (rows, columns, inputs, outputs))


def conv_to_dense(conv: SparseConv) -> Float[Array, "rows columns in out"]:
    """Writes the kernel out, as the convolution sees it."""
    rows, columns, inputs, outputs = conv.shape
    dense = matrix_to_dense(conv.matrix).reshape(inputs, rows, columns, outputs)
    return dense.transpose(1, 2, 0, 3)


def convolve(
    x: Num[Array, "batch height width in"],
    conv: SparseConv,
    padding: Padding,
    *,
    pool: int = 1,
    bias: Num[Array, "..."] | None = None,
) -> Num[Array, "batch _ _ out"]:
    """Convolves with stride 1, in float32; takes maxima of windows and adds a bias.

    On a CPU with numba the kernel of the extra `fast` does it, elsewhere XLA's dense
    convolution with the kernel written out.

    Args:
      x: images, of floating point.
      conv: the weights.
      padding: zeros before and after the rows, and the columns.
      pool: rows and columns of a window, and the distance between windows; rows and
        columns that fill none are left out.
      bias: (out,), what is added in the end.

    Raises:
      ValueError: if `x` is not of floating point, `pool` not positive, the result
        smaller than a window, or `bias` has another shape.
    """
    check_floating(x)
    rows, columns, _, outputs = conv.shape
    if bias is not None and bias.shape != (outputs,):
        raise ValueError(f"bias has shape {bias.shape}, expected ({outputs},).")
    height, width = (n + sum(p) for n, p in zip(x.shape[1:3], padding, strict=True))
    if not 1 <= pool <= max(1, min(height - rows, width - columns) + 1):
        raise ValueError(
            f"pool is {pool}, expected 1 or more, and not more than the rows and "
            f"columns of the result, {height - rows + 1} x {width - columns + 1}."
        )
    bias = None if bias is None else bias.astype(jnp.float32)
    y = _quick(x.astype(jnp.float32), conv, bias, padding, pool)
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


def _dense(
    x: Array, conv: SparseConv, bias: Array | None, padding: Padding, pool: int
) -> Array:
    numbers = ("NHWC", "HWIO", "NHWC")
    kernel = conv_to_dense(conv)
    y = lax.conv_general_dilated(x, kernel, (1, 1), padding, dimension_numbers=numbers)
    return _finish(y, bias, pool)


def _finish(y: Array, bias: Array | None, pool: int) -> Array:
    """Takes the maximum of every window, (batch, height, width, out), and adds."""
    if pool > 1:
        size = (1, pool, pool, 1)
        y = lax.reduce_window(y, -jnp.inf, lax.max, size, size, "VALID")
    return y if bias is None else y + bias


def _quick(
    x: Array, conv: SparseConv, bias: Array | None, padding: Padding, pool: int
) -> Array:
    """Convolves by numba where it can, and differentiates what XLA would have done."""
    matrix = conv.matrix
    name = None
    if matrix.slots and x.size:
        name = target(*matrix.dtypes, "conv")
    plain = lambda x, conv, bias: _dense(x, conv, bias, padding, pool)
    if name is None:
        return plain(x, conv, bias)

    @jax.custom_batching.custom_vmap
    def one(x: Any, conv: Any, bias: Any) -> Any:
        direct = lambda x, conv, bias: _direct(x, conv, bias, padding, pool, name)
        return lax.platform_dependent(x, conv, bias, cpu=direct, default=plain)

    @one.def_vmap
    def many(size: int, batched: Any, x: Any, conv: Any, bias: Any) -> Any:
        if any(jax.tree.leaves(batched[1:])):
            axes = jax.tree.map(lambda b: 0 if b else None, batched)
            return jax.vmap(plain, axes, axis_size=size)(x, conv, bias), True
        y = one(x.reshape(-1, *x.shape[2:]), conv, bias)
        return y.reshape(*x.shape[:2], *y.shape[1:]), True

    @jax.custom_jvp
    def run(x: Any, conv: Any, bias: Any) -> Any:
        return one(x, conv, bias)

    @run.defjvp
    def jvp(primals: Any, tangents: Any) -> Any:
        return run(*primals), jax.jvp(plain, primals, tangents)[1]

    return run(x, conv, bias)


def _direct(
    x: Array,
    conv: SparseConv,
    bias: Array | None,
    padding: Padding,
    pool: int,
    name: str,
) -> Array:
    """Convolves by the kernel that `target` registered as `name`."""
    rows, columns, inputs, outputs = conv.shape
    batch = x.shape[0]
    height, width = (n + sum(p) for n, p in zip(x.shape[1:3], padding, strict=True))
    channel = batch * height * width
    used = channel - (rows - 1) * width
    needed = used - columns + 1  # positions that read nothing beyond the image
    positions = max(used, _VECTOR)
    if pool > 1 and positions > _POOLED:
        y = _direct(x, conv, None, padding, 1, name)
        return _finish(y, bias, pool)
    # A small image is read beyond its last channel, for positions thrown away.
    beyond = -(-(columns + _VECTOR) // channel) if needed < _VECTOR else 0
    x = jnp.pad(x.transpose(3, 0, 1, 2), ((0, beyond), (0, 0), *padding))
    distance = (
        np.arange(inputs)[:, None, None] * channel
        + np.arange(rows)[:, None] * width
        + np.arange(columns)
    )
    shape = (height - rows + 1) // pool, (width - columns + 1) // pool
    lines = batch * height - rows + 1
    # Where a row of outputs is a vector, the positions between are left out.
    narrow = width - columns + 1 == NARROW < width and lines >= LINES
    count = lines * width if narrow else max(needed, _VECTOR)
    step = LINES * width if narrow else STEP
    window = [count, step, int(narrow), width, height * width, batch, *shape]
    window += [pool if pool > 1 else 0]
    table = [*window, *(4 * distance.reshape(-1)).tolist()]  # distances in bytes
    work = positions * conv.matrix.slots
    threads = min(most_threads(), 1 + work // ALONE)
    if pool > 1:
        out, sums = (outputs, batch * math.prod(shape)), positions
    else:
        out, sums = (outputs, positions), 0
    sums = (threads, sums)
    y = custom_call(name, out, sums, positions, x, conv.matrix, bias, table)
    if pool > 1:
        y = y.reshape(outputs, batch, *shape)
    elif batch == 1:
        y = y[:, :used].reshape(outputs, 1, -1, width)
    else:
        y = jnp.pad(y[:, :used], ((0, 0), (0, channel - used)))
        y = y.reshape(outputs, batch, height, width)
    if pool == 1:
        y = y[:, :, : height - rows + 1, : width - columns + 1]
    return y.transpose(1, 2, 3, 0)
