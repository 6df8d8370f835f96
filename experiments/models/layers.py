"""Layers of the LeNets, convolution with pooling, and dropout for all networks.

Arrays are NHWC: (batch, height, width, channels). Convolution kernels are HWIO.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from jaxprune import sparse


_MANY = 32  # images, from which folding a kernel is soon made up for

xavier = nn.initializers.variance_scaling(1.0, "fan_in", "uniform")
"""Caffe's "xavier": uniform in plus or minus sqrt(3 / fan_in)."""


class ConvPool(nn.Module):
    """Convolution without padding, 2 x 2 max pooling, bias.

    The bias is added after the pooling, to a quarter of the values: a constant added
    to every channel commutes with a maximum, rounding included.

    Attributes:
      features: number of output channels.
      size: rows and columns of the kernel, odd.
      dtype: of the computation; params are float32.
    """

    features: int
    size: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (self.size, self.size, x.shape[-1], self.features)
        kernel = self.param("kernel", xavier, shape)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        x, kernel, bias = (a.astype(self.dtype) for a in (x, kernel, bias))
        return conv_pool(x, kernel, bias)


class BatchNorm(nn.Module):
    """Batch normalisation whose running statistics are params like any other.

    A batch that is trained on is normalised by its own mean and variance. The gradient
    of the running ones is what they are above those, so that the optimizer, SGD that
    is, leads them there at its own rate: with a learning rate that falls to 0 they
    average over ever more batches. Where a batch is computed in parts, the gradient is
    added up over them. A network so needs no state beside its params, and
    what prunes, saves or judges params needs to know of none. flax's keeps them in a
    collection of their own.

    Attributes:
      dtype: of the result; it is computed in float32.

    Source:
      Ioffe and Szegedy 2015 (arXiv:1502.03167), section 3.
    """

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        zeros, ones, shape = nn.initializers.zeros, nn.initializers.ones, x.shape[-1:]
        scale = self.param("scale", ones, shape)
        bias = self.param("bias", zeros, shape)
        mean = self.param("mean", zeros, shape)
        variance = self.param("variance", ones, shape)
        x = x.astype(jnp.float32)
        if train:
            axes = tuple(range(x.ndim - 1))
            of_batch = x.mean(axes)
            # One pass over x for both.
            spread = jnp.square(x).mean(axes) - jnp.square(of_batch)
            mean = follow(mean, of_batch)
            variance = follow(variance, jnp.maximum(spread, 0))
        by = scale * lax.rsqrt(variance + 1e-5)
        return (x * by + (bias - mean * by)).astype(self.dtype)


@jax.custom_vjp
def follow(follower: jax.Array, value: jax.Array) -> jax.Array:
    """Gives `value`; the gradient of `follower` is follower - value, whatever comes."""
    del follower
    return value


follow.defvjp(
    lambda follower, value: (value, follower - value),
    lambda ahead, gradient: (ahead, gradient),
)


@jax.jit
def conv_pool(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    """Does what `ConvPool` does, under `jit`: `Network.sparse_layers` can name it."""
    return conv_max_pool(x, kernel) + bias


def conv_max_pool(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolves without padding and takes the maximum of every 2 x 2 window.

    Two formulations of the same function: `conv_max_pool_dot` for a batch to train on
    where the default backend is a CPU, `conv_max_pool_xla` otherwise: for few images
    folding the kernel takes longest. Either is right anywhere.

    Args:
      x: (batch, height, width, in), height and width even.
      kernel: (size, size, in, out), size odd.

    Returns:
      (batch, (height - size + 1) / 2, (width - size + 1) / 2, out).
    """
    if jax.default_backend() == "cpu" and len(x) >= _MANY:
        return conv_max_pool_dot(x, kernel)
    return conv_max_pool_xla(x, kernel)


def conv_max_pool_xla(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`conv_max_pool` by XLA's convolution, for accelerators."""
    x = lax.conv_general_dilated(
        x, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return max_pool(x)


def conv_max_pool_dot(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`conv_max_pool` by one matrix product, for CPUs.

    The four values under a pooling window come from four copies of the kernel, each
    shifted by a row or a column or both, moved in steps of two. So the images and the
    four shifted kernels are folded (`_fold`); what is left is a convolution with
    stride 1 over a quarter of the positions, whose output channels are four groups,
    and pooling is the maximum over the groups. With a 5 x 5 kernel 31% of the product
    is zeros, but the patches take 9/25 of the memory that those of the plain
    convolution take, and the gradient with respect to `x` adds 3 + 3 slices, not 25.
    With `conv_max_pool_xla` LeNet-5's training step takes about twice the time.
    """
    size, _, inputs, outputs = kernel.shape
    shifted = jnp.stack(
        [
            jnp.pad(kernel, ((row, 1 - row), (column, 1 - column), (0, 0), (0, 0)))
            for row in (0, 1)
            for column in (0, 1)
        ]
    )
    weights = _fold(shifted.reshape(4, size + 1, size + 1, inputs * outputs))
    weights = (
        weights.reshape(4, -1, outputs).transpose(1, 0, 2).reshape(-1, 4 * outputs)
    )

    x = _fold(x)
    n = (size + 1) // 2
    height, width = x.shape[1] - n + 1, x.shape[2] - n + 1
    # Columns, then rows: 3 + 3 slices to add in the backward pass instead of 9.
    x = jnp.concatenate([x[:, :, j : j + width] for j in range(n)], axis=-1)
    x = jnp.concatenate([x[:, i : i + height] for i in range(n)], axis=-1)

    y = x.reshape(-1, x.shape[-1]) @ weights
    y = y.reshape(-1, height, width, 4, outputs)
    return first_max([y[..., group, :] for group in range(4)])


def sparse_conv_pool(
    x: jax.Array, kernel: sparse.SparseConv, bias: jax.Array
) -> jax.Array:
    """Does what `conv_pool` does, by the live weights of a kernel alone."""
    return sparse.convolve(x, kernel, ((0, 0), (0, 0)), pool=2, bias=bias)


def max_pool(x: jax.Array) -> jax.Array:
    """Takes the maximum of every 2 x 2 window, with stride 2.

    The gradient goes to the first maximum in row-major order, as in PyTorch.

    Args:
      x: (batch, height, width, channels), height and width even.

    Returns:
      (batch, height / 2, width / 2, channels).
    """
    return first_max([x[:, i::2, j::2] for i in (0, 1) for j in (0, 1)])


@jax.custom_jvp
def relu(x: jax.Array) -> jax.Array:
    """Rectified linear units, max(x, 0), with the gradient told by what comes out.

    `jax.nn.relu` asks x, and XLA puts x in the place of its maximum where that is asked
    for a sign, so that a GPU cannot do it as part of the convolution in front, and x is
    kept beside it: half of what a step of VGG-16 needs. The gradient at 0 is 0, and
    at NaN what comes is passed on.

    Args:
      x: any shape.

    Returns:
      Array of the shape and dtype of `x`.
    """
    return jnp.maximum(x, 0)


@relu.defjvp
def _relu_jvp(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    (y,), (tangent,) = map(relu, primals), tangents
    return y, jnp.where(y != 0, tangent, jnp.zeros_like(tangent))


def dropout(x: jax.Array, rate: jax.Array | float, rng: jax.Array) -> jax.Array:
    """Drops units with probability `rate` and scales the rest by 1 / (1 - rate).

    `rate` may be a traced scalar, so that a rate that falls while the network is
    being pruned does not compile anew; flax's `Dropout` takes static rates only.
    At rate 0 the result is `x`, bit for bit. The draw is in float32 whatever the dtype
    of `x`, since bfloat16 has few probabilities to choose from.

    Args:
      x: activations, any shape; each element is a unit.
      rate: probability of dropping a unit, in [0, 1).
      rng: key for the draw.

    Returns:
      Array of the shape and dtype of `x`.
    """
    keep = 1 - jnp.asarray(rate, jnp.float32)
    kept = jax.random.bernoulli(rng, keep, x.shape)
    return jnp.where(kept, x / keep.astype(x.dtype), 0)


def _fold(x: jax.Array) -> jax.Array:
    """Moves each 2 x 2 block into channels: (b, h, w, c) to (b, h/2, w/2, 4 c)."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // 2, 2, width // 2, 2, channels)
    x = x.transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(batch, height // 2, width // 2, 4 * channels)


def first_max(arrays: Sequence[jax.Array]) -> jax.Array:
    """Elementwise maximum; of equal values the first gets the gradient, NaN wins."""
    if len(arrays) == 1:
        return arrays[0]
    half = len(arrays) // 2
    a, b = first_max(arrays[:half]), first_max(arrays[half:])
    return jnp.where((b > a) | (b != b), b, a)
