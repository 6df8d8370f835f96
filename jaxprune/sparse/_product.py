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


def product(
    x: Num[Array, "..."],
    kernel: SparseKernel,
    bias: Num[Array, "..."] | None = None,
) -> Num[Array, "..."]:
    """Multiplies: the sum over the last axis of `x` and the inputs of the kernel.

    Equals `jnp.tensordot(x, matrix, (-1, kernel.axis))`, summed in float32, and the
    bias added to that.

    Args:
      x: (..., inputs), of floating point.
      kernel: the weights.
      bias: (outputs,), what is added to each.

    Returns:
      (..., outputs), of the dtype of `x`.

    Raises:
      ValueError: if `x` is not of floating point, its last axis not the kernel's
        inputs, or the shape of `bias` not that of its outputs.
    """
    check_floating(x)
    wide, outputs = kernel.shape[kernel.axis], kernel.shape[1 - kernel.axis]
    if x.ndim == 0 or x.shape[-1] != wide:
        raise ValueError(
            f"x has shape {x.shape}; expected {wide} last, the inputs of a kernel of "
            f"shape {kernel.shape} on axis {kernel.axis}."
        )
    if bias is not None and bias.shape != (outputs,):
        raise ValueError(f"bias has shape {bias.shape}, expected ({outputs},).")
    lead, batch = x.shape[:-1], math.prod(x.shape[:-1])
    rows = x.astype(jnp.float32).reshape(batch, wide)
    bias = None if bias is None else bias.astype(jnp.float32)
    if not kernel.slots or not batch:
        y = jnp.zeros((batch, outputs)) + (0 if bias is None else bias)
    else:
        y = (_quick if kernel.fast else _plain)(rows, kernel, bias)
    return y.reshape(*lead, outputs).astype(x.dtype)


def _plain(rows: Array, kernel: SparseKernel, bias: Array | None) -> Array:
    y = portable(rows, kernel)
    return y if bias is None else y + bias


@jax.custom_jvp
def _quick(
    rows: Float[Array, "batch inputs"],
    kernel: SparseKernel,
    bias: Float[Array, " outputs"] | None,
) -> Float[Array, "batch outputs"]:
    """Multiplies by numba on a CPU, else by XLA."""
    return _mapped(rows, kernel, bias)


@_quick.defjvp
def _jvp(primals: Any, tangents: Any) -> tuple[Array, Array]:
    """Differentiates what XLA would have done: it is linear, so it has a transpose."""
    return _quick(*primals), jax.jvp(_plain, primals, tangents)[1]


@jax.custom_batching.custom_vmap
def _mapped(rows: Array, kernel: SparseKernel, bias: Array | None) -> Array:
    name = target(*kernel.dtypes, "many" if rows.shape[0] > 1 else "one")
    if name is None:
        return _plain(rows, kernel, bias)
    quick = lambda x, k, b: fast(x, k, b, name)
    return lax.platform_dependent(rows, kernel, bias, cpu=quick, default=_plain)


@_mapped.def_vmap
def _batched(
    size: int, batched: Any, rows: Array, kernel: SparseKernel, bias: Array | None
) -> tuple[Array, bool]:
    """Makes one product of many with the same kernel."""
    if any(jax.tree.leaves(batched[1:])):
        axes = jax.tree.map(lambda b: 0 if b else None, tuple(batched))
        apply = jax.vmap(_plain, axes, axis_size=size)
        return apply(rows, kernel, bias), True
    together = _mapped(rows.reshape(-1, rows.shape[-1]), kernel, bias)
    return together.reshape(*rows.shape[:-1], -1), True


def check_floating(x: Any) -> None:
    """Refuses what a product in float32 would be rounded to."""
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(
            f"x is {x.dtype}, expected floating point, for the result has its dtype; "
            "convert it beforehand, x.astype(jnp.float32)."
        )
