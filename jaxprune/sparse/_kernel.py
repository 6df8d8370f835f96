"""A pruned matrix in a form made for execution."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float

from jaxprune.sparse._layout import FAST, PORTABLE, blocks


_VALUES = ("float32", "float16", "int8")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SparseKernel:
    """The live weights of a matrix, in blocks of outputs of about equal length.

    A pytree of arrays like any params, so it passes `jit`, is donated, sharded and
    moved between devices. `jaxprune.sparse.to_kernel` makes it.

    Attributes:
      values: (longest, pieces) of each block; float32, float16 or int8.
      inputs: the input that each value multiplies, of the shapes of `values`; unsigned
        16-bit where they fit, else 32-bit. XLA wraps negative indices around, and
        unsigned ones spare it the work.
      order: the place of each piece among those of all blocks, sorted by output.
      owner: the output of each piece, sorted; `None` if no output was cut.
      scale: (outputs,), what int8 values are multiples of, else `None`.
      shape: of the matrix.
      axis: that of the inputs, 0 or 1.
      fast: whether a CPU multiplies by the kernel of the extra `fast`.
    """

    # Arrays; but JAX also makes such trees of flags and of descriptions of arrays.
    values: tuple[Any, ...]
    inputs: tuple[Any, ...]
    order: Any
    owner: Any
    scale: Any
    shape: tuple[int, int] = dataclasses.field(metadata={"static": True})
    axis: int = dataclasses.field(metadata={"static": True})
    fast: bool = dataclasses.field(default=False, metadata={"static": True})

    @property
    def ndim(self) -> int:
        return 2

    @property
    def dtype(self) -> Any:
        """That of the matrix it stands for, not of the values stored."""
        return np.dtype("float32")

    @property
    def nbytes(self) -> int:
        """Bytes of everything it stores."""
        return sum(leaf.nbytes for leaf in jax.tree.leaves(self))

    @property
    def T(self) -> "SparseKernel":
        """The same weights, read the other way round."""
        return dataclasses.replace(self, shape=self.shape[::-1], axis=1 - self.axis)


def to_kernel(
    matrix: Float[ArrayLike, "rows columns"],
    mask: Bool[ArrayLike, "_ _"],
    *,
    axis: int = 0,
    values: str = "float32",
    fast: bool = False,
    cut: bool = True,
) -> SparseKernel:
    """Keeps the live weights of a matrix, on the host.

    Args:
      matrix: the weights.
      mask: True where alive.
      axis: that of the inputs: 0 as in Flax, 1 as in PyTorch and Equinox.
      values: what weights are stored as. "float16" rounds them; "int8" rounds them to
        multiples of 1/127 of the largest one of their output.
      fast: whether a CPU multiplies by a numba kernel, from the extra `fast`, instead
        of plain XLA. What runs it cannot be exported.
      cut: whether outputs with many live weights may be cut into pieces.

    Raises:
      ValueError: if shapes differ, `values` is not one of the three, `axis` not 0 or 1,
        or a weight does not fit into float16.
    """
    weights, alive = np.asarray(matrix, np.float32), np.asarray(mask)
    if weights.shape != alive.shape:
        raise ValueError(
            f"matrix has shape {weights.shape} and mask {alive.shape}; expected equal."
        )
    if values not in _VALUES:
        raise ValueError(f"values is {values!r}, expected one of {', '.join(_VALUES)}.")
    if axis not in (0, 1):
        raise ValueError(f"axis is {axis}, expected 0 or 1.")
    shape = (weights.shape[0], weights.shape[1])
    if axis == 0:
        weights, alive = weights.T, alive.T
    weights = np.where(alive, weights, 0)

    scale = None
    if values == "int8":
        scale = abs(weights).max(axis=1, initial=0) / np.float32(127)
        weights = np.rint(weights / np.where(scale, scale, 1)[:, None])
    elif abs(weights).max(initial=0) > np.finfo(values).max:
        raise ValueError(
            f"the largest weight is {abs(weights).max()}, which float16 cannot hold; "
            "use values='float32'."
        )
    # A convolution, which is not cut, passes over padding by itself.
    made, owner = blocks(alive, cut, FAST if fast and cut else PORTABLE)
    wide, flat = weights.shape[1], weights.reshape(-1)
    index = np.uint16 if wide <= 2**16 else np.uint32
    stored = [np.where(b.live, flat[b.position], 0) for b in made] if flat.size else []
    order = np.argsort(owner, kind="stable")
    several = owner.size > weights.shape[0]
    return SparseKernel(
        tuple(jnp.asarray(v.astype(values)) for v in stored),
        tuple(jnp.asarray((b.position % wide).astype(index)) for b in made if wide),
        jnp.asarray(order.astype(np.uint32)),
        jnp.asarray(owner[order].astype(np.int32)) if several else None,
        None if scale is None else jnp.asarray(scale),
        shape,
        axis,
        fast,
    )


def to_dense(kernel: SparseKernel) -> Float[Array, "rows columns"]:
    """Writes the matrix out, as the product sees it."""
    wide, outputs = kernel.shape[kernel.axis], kernel.shape[1 - kernel.axis]
    sorted_owner = jnp.arange(outputs) if kernel.owner is None else kernel.owner
    owner = jnp.zeros_like(sorted_owner).at[kernel.order].set(sorted_owner)
    dense, begin = jnp.zeros((wide, outputs), jnp.float32), 0
    for values, inputs in zip(kernel.values, kernel.inputs, strict=True):
        end = begin + values.shape[1]
        # Padding adds 0 to a weight that is there; no weight is stored twice.
        dense = dense.at[inputs, owner[begin:end]].add(values.astype(jnp.float32))
        begin = end
    if kernel.scale is not None:
        dense = dense * kernel.scale
    return dense if kernel.axis == 0 else dense.T
