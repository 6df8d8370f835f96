"""What the ImageNet networks share: grouped convolution, LRN and Caffe's max pooling.

Arrays are NHWC: (batch, height, width, channels). Convolution kernels are HWIO.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from experiments.models.layers import first_max


_FEW_PIXELS, _MANY_PIXELS, _MANY_INPUTS = 16, 784, 16


def grouped_conv(
    x: jax.Array,
    kernel: jax.Array,
    *args: Any,
    feature_group_count: int = 1,
    **kwargs: Any,
) -> jax.Array:
    """`lax.conv_general_dilated`, with a convolution for each group where it pays.

    On CPUs XLA has no fast grouped convolution: on 2 cores AlexNet's conv2 (2 groups,
    16 images) took 0.51 s forward and 2.47 s with its gradients, as two convolutions
    0.12 s and 0.44 s. Pass it to `nn.Conv` as `conv_general_dilated`.

    Args:
      x: (batch, height, width, in).
      kernel: (rows, columns, in / groups, out).
      *args: passed on: strides, padding.
      feature_group_count: groups.
      **kwargs: passed on.

    Returns:
      (batch, height, width, out).
    """
    groups = feature_group_count
    if groups == 1 or jax.default_backend() != "cpu":
        return lax.conv_general_dilated(
            x, kernel, *args, feature_group_count=groups, **kwargs
        )
    parts = zip(
        jnp.split(x, groups, axis=-1), jnp.split(kernel, groups, axis=-1), strict=True
    )
    outs = [lax.conv_general_dilated(a, b, *args, **kwargs) for a, b in parts]
    return jnp.concatenate(outs, axis=-1)


def same_conv(
    x: jax.Array, kernel: jax.Array, strides: Any, padding: Any, **kwargs: Any
) -> jax.Array:
    """`lax.conv_general_dilated` with stride 1, in the way that is fast on CPUs.

    XLA is slow there where the image is smaller than the kernel: with its gradients,
    3 x 3 over 16 maps of 2 x 2 x 512 took one core 0.70 s, and as one product 0.02 s.
    It may be slow, too, in the gradient of a kernel over a large image, which it has as
    another convolution: 32 maps of 32 x 32 x 64 took two cores 0.73 s, and 0.18 s as a
    product for each of the kernel's 9 places. Of the sizes tried, from 28 x 28 and 16
    channels on none took longer with all its gradients, smaller ones did.
    Pass it to `nn.Conv` with `padding="SAME"`, stride 1, no dilation and no groups.

    Args:
      x: (batch, height, width, in).
      kernel: (rows, columns, in, out), rows and columns odd.
      strides: passed on.
      padding: passed on.
      **kwargs: passed on.

    Returns:
      (batch, height, width, out).
    """
    (height, width), (rows, columns) = x.shape[1:3], kernel.shape[:2]
    convolve = lambda x, kernel: lax.conv_general_dilated(
        x, kernel, strides, padding, **kwargs
    )
    if jax.default_backend() != "cpu":
        return convolve(x, kernel)
    precision = kwargs.get("precision")
    if height * width <= _FEW_PIXELS:
        flat, x = kernel.reshape(-1, kernel.shape[-1]), _bordered(x, rows, columns)
        seen = [
            x[:, i : i + height, j : j + width]
            for i in range(rows)
            for j in range(columns)
        ]
        return jnp.matmul(jnp.concatenate(seen, -1), flat, precision=precision)
    if height * width < _MANY_PIXELS or x.shape[3] < _MANY_INPUTS:
        return convolve(x, kernel)

    @jax.custom_vjp
    def convolved(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return convolve(x, kernel)

    def back(saved: Any, y: jax.Array) -> tuple[jax.Array, jax.Array]:
        x, kernel = saved
        (dx,) = jax.linear_transpose(lambda x: convolve(x, kernel), x)(y)
        padded = _bordered(x, rows, columns)

        def place(at: jax.Array) -> jax.Array:
            row, column = jnp.divmod(at, columns)
            seen = lax.dynamic_slice(padded, (0, row, column, 0), x.shape)
            return jnp.einsum("bhwi,bhwo->io", seen, y, precision=precision)

        # In turn: XLA would hold what all places see, 9 images, at once.
        dkernel = lax.map(place, jnp.arange(rows * columns))
        return dx, dkernel.reshape(kernel.shape)

    convolved.defvjp(lambda *given: (convolve(*given), given), back)
    return convolved(x, kernel)


def _bordered(x: jax.Array, rows: int, columns: int) -> jax.Array:
    """Gives images the border of zeros that a kernel reaches into."""
    return jnp.pad(x, ((0, 0), (rows // 2,) * 2, (columns // 2,) * 2, (0, 0)))


def max_pool(x: jax.Array, size: int, stride: int) -> jax.Array:
    """Takes the maximum of square windows, as many as it takes to cover the image.

    That is Caffe's rounding: the last window may reach past the border, where PyTorch
    leaves the rest out unless `ceil_mode` is set. The gradient goes to the first
    maximum in row-major order, as in PyTorch.

    XLA's own window reduction is slow on CPUs, above all its gradient: 16 feature maps
    of 55 x 55 x 96 took 14 ms and 178 ms there, slices 1.4 ms and 18 ms. For a TPU v5e
    XLA estimates 1.13 times as many cycles for VGG-16's whole step with slices as with
    the reduction, and 6% less memory; nothing was run on one. A GPU takes slices where
    windows do not overlap, all of a window at once.

    Args:
      x: (batch, height, width, channels), height and width at least 1.
      size: rows and columns of a window.
      stride: distance between windows, from 1 to `size`.

    Returns:
      (batch, ceil((height - size) / stride) + 1, the same of width, channels).
    """
    rows, columns = (max(-(-(n - size) // stride), 0) + 1 for n in x.shape[1:3])
    height, width = (stride * (n - 1) + size for n in (rows, columns))
    border = ((0, height - x.shape[1]), (0, width - x.shape[2]))
    border = ((0, 0), *border, (0, 0))
    backend = jax.default_backend()
    if backend == "tpu" or (backend != "cpu" and size != stride):
        window, step = (1, size, size, 1), (1, stride, stride, 1)
        return lax.reduce_window(x, -jnp.inf, lax.max, window, step, border)
    if any(after for _, after in border):
        x = jnp.pad(x, border, constant_values=-jnp.inf)
    # In one go: else a GPU reads the image twice, and keeps more of it.
    if backend != "cpu":
        places = [(i, j) for i in range(size) for j in range(size)]
        return first_max([x[:, i::stride, j::stride] for i, j in places])
    # Columns, then rows: 3 + 3 slices instead of 9, and still row-major at a tie.
    ends = [stride * (n - 1) + 1 for n in (rows, columns)]
    x = first_max([x[:, :, j : j + ends[1] : stride] for j in range(size)])
    return first_max([x[:, i : i + ends[0] : stride] for i in range(size)])


def lrn(
    x: jax.Array,
    size: int = 5,
    alpha: float = 1e-4,
    beta: float = 0.75,
    k: float = 1.0,
) -> jax.Array:
    """Local response normalisation across channels, as Caffe and PyTorch compute it.

    x / (k + alpha / size * sum of x^2 over the `size` channels around)^beta, computed
    in float32. For the gradient only `x` is kept and the rest computed again.

    Args:
      x: (..., channels).
      size: channels in a window, odd; those past the ends count as 0.
      alpha: factor of the mean square.
      beta: the exponent.
      k: what is added.

    Returns:
      Array of the shape and dtype of `x`.

    Raises:
      ValueError: if `size` is even.

    Source:
      Krizhevsky, Sutskever and Hinton 2012, section 3.3, but for alpha / size, where
      the paper has alpha.
    """
    if size % 2 == 0:
        raise ValueError(f"size is {size}, expected an odd number of channels.")

    @jax.checkpoint
    def normalised(x: jax.Array) -> jax.Array:
        window, ones = (1,) * (x.ndim - 1) + (size,), (1,) * x.ndim
        x32 = x.astype(jnp.float32)
        sums = lax.reduce_window(x32 * x32, 0.0, lax.add, window, ones, "SAME")
        return (x32 * _power(k + alpha / size * sums, beta)).astype(x.dtype)

    return normalised(x)


def _power(scale: jax.Array, beta: float) -> jax.Array:
    """Gives scale^-beta; two roots are cheaper than a logarithm and an exponential."""
    if beta != 0.75:
        return scale**-beta
    root = lax.rsqrt(scale)
    return root * jnp.sqrt(root)
