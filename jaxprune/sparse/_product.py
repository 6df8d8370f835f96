"""The product with a pruned matrix: by numba on a CPU where it may, else by XLA."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Num

from jaxprune.sparse._fast import fast, target
from jaxprune.sparse._kernel import SparseKernel
from jaxprune.sparse._portable import portable


def product(x: Num[Array, "..."], kernel: SparseKernel) -> Num[Array, "..."]:
    """Multiplies: the sum over the last axis of `x` and the inputs of the kernel.

    Equals `jnp.tensordot(x, matrix, (-1, kernel.axis))`, summed in float32.

    Args:
      x: (..., inputs), of floating point.
      kernel: the weights.

    Returns:
      (..., outputs), of the dtype of `x`.

    Raises:
      ValueError: if the last axis of `x` is not the kernel's inputs.
    """
    wide, outputs = kernel.shape[kernel.axis], kernel.shape[1 - kernel.axis]
    if x.ndim == 0 or x.shape[-1] != wide:
        raise ValueError(
            f"x has shape {x.shape}; expected {wide} last, the inputs of a kernel of "
            f"shape {kernel.shape} on axis {kernel.axis}."
        )
    lead, batch = x.shape[:-1], math.prod(x.shape[:-1])
    rows = x.astype(jnp.float32).reshape(batch, wide)
    if not kernel.values or not batch:
        return jnp.zeros((*lead, outputs), x.dtype)
    y = _quick(rows, kernel) if kernel.fast else portable(rows, kernel)
    return y.reshape(*lead, outputs).astype(x.dtype)


@jax.custom_jvp
def _quick(
    rows: Float[Array, "batch inputs"], kernel: SparseKernel
) -> Float[Array, "batch outputs"]:
    """Multiplies by numba on a CPU, else by XLA."""
    return _mapped(rows, kernel)


@_quick.defjvp
def _jvp(primals: Any, tangents: Any) -> tuple[Array, Array]:
    """Differentiates what XLA would have done: it is linear, so it has a transpose."""
    return _quick(*primals), jax.jvp(portable, primals, tangents)[1]


@jax.custom_batching.custom_vmap
def _mapped(rows: Array, kernel: SparseKernel) -> Array:
    values, inputs = kernel.values[0].dtype.name, kernel.inputs[0].dtype.name
    name = target(values, inputs, "many" if rows.shape[0] > 1 else "one")
    if name is None:
        return portable(rows, kernel)
    return lax.platform_dependent(
        rows, kernel, cpu=lambda x, k: fast(x, k, name), default=portable
    )


@_mapped.def_vmap
def _batched(
    size: int, batched: Any, rows: Array, kernel: SparseKernel
) -> tuple[Array, bool]:
    """Makes one product of many with the same kernel."""
    of_rows, of_kernel = batched
    if any(jax.tree.leaves(of_kernel)):
        axes = jax.tree.map(lambda b: 0 if b else None, (of_rows, of_kernel))
        return jax.vmap(portable, axes, axis_size=size)(rows, kernel), True
    together = _mapped(rows.reshape(-1, rows.shape[-1]), kernel)
    return together.reshape(*rows.shape[:-1], -1), True
