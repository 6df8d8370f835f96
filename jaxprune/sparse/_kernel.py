"""A pruned matrix in a form made for execution."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, ArrayLike, Bool, Float

from jaxprune.sparse._layout import FAST, PORTABLE, blocks


_VALUES = ("float32", "float16", "int8")
SMALL = 2**16  # values up to which one array less is felt


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SparseKernel:
    """The live weights of a matrix, in blocks of outputs of about equal length.

    A pytree of arrays like any params, so it passes `jit`, is donated, sharded and
    moved between devices. `jaxprune.sparse.to_kernel` makes it. The arrays are few:
    each takes JAX a microsecond of every call, one that is `None` a fifth of that, and
    a small layer takes about four. So a small one of the kernel of the extra `fast`
    has but one, `packed`.

    Attributes:
      arrays: `values`, `places` unless packed, and `scale` if there is one.
      shape: of the matrix.
      blocks: (longest, pieces) of each block.
      axis: that of the inputs, 0 or 1.
      fast: whether a CPU multiplies by the kernel of the extra `fast`.
      packed: the dtype of the values where they and the places are one array.
    """

    # Arrays; but JAX also makes such trees of flags and of descriptions of arrays.
    arrays: tuple[Any, ...]
    shape: tuple[int, int] = dataclasses.field(metadata={"static": True})
    blocks: tuple[tuple[int, int], ...] = dataclasses.field(metadata={"static": True})
    axis: int = dataclasses.field(metadata={"static": True})
    fast: bool = dataclasses.field(default=False, metadata={"static": True})
    packed: str | None = dataclasses.field(default=None, metadata={"static": True})

    @property
    def values(self) -> Any:
        """(slots,), block by block, each (longest, pieces): float32, float16 or int8.

        Where packed, the bytes of these and of `places` behind them, as unsigned 16-bit
        numbers.
        """
        return self.arrays[0]

    @property
    def places(self) -> Any:
        """(slots + pieces,) or (slots + 2 * pieces,): inputs, `order` and `owner`.

        The input that each value multiplies comes first; `owner` is there if an output
        was cut. Unsigned 16-bit where they fit, else 32-bit: XLA wraps negative indices
        around, and unsigned ones spare it the work. `None` where packed.
        """
        return self.arrays[1] if self.packed is None else None

    @property
    def scale(self) -> Any:
        """(outputs,), what int8 values are multiples of, else `None`."""
        others = 2 if self.packed is None else 1
        return self.arrays[others] if len(self.arrays) > others else None

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
    def slots(self) -> int:
        """Values stored, padding included."""
        return sum(longest * pieces for longest, pieces in self.blocks)

    @property
    def pieces(self) -> int:
        """Pieces of all blocks."""
        return sum(pieces for _, pieces in self.blocks)

    @property
    def dtypes(self) -> tuple[str, str]:
        """Those of values and places."""
        if self.packed is not None:
            return self.packed, "uint16"
        return self.values.dtype.name, self.places.dtype.name

    @property
    def cut(self) -> bool:
        """Whether an output has several pieces."""
        return self.pieces > self.shape[1 - self.axis]

    @property
    def order(self) -> Any:
        """The place of each piece among those of all blocks, sorted by output."""
        return self.places[self.slots : self.slots + self.pieces]

    @property
    def owner(self) -> Any:
        """The output of each piece, sorted; `None` if no output was cut."""
        return self.places[self.slots + self.pieces :] if self.cut else None

    @property
    def behind(self) -> int:
        """Bytes of the values in front of packed places."""
        size = np.dtype(self.packed).itemsize
        return self.slots * size + self.slots * size % 2

    def unpacked(self) -> "SparseKernel":
        """The same with values and places apart."""
        if self.packed is None:
            return self
        bits, places = jnp.split(self.values, [self.behind // 2])
        size = np.dtype(self.packed).itemsize
        pairs = bits.reshape(-1, 2) if size == 4 else bits
        values = lax.bitcast_convert_type(pairs, self.packed).reshape(-1)
        values = values[: self.slots]  # int8 are of an even number
        arrays = (values, places, *self.arrays[1:])
        return dataclasses.replace(self, arrays=arrays, packed=None)

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
    check_form(values, axis)
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
    index = np.uint16 if max(wide, owner.size) <= 2**16 else np.uint32
    stored = [np.where(b.live, flat[b.position], 0) for b in made if b.live.size]
    inputs = [b.position % wide for b in made if b.live.size]
    order = np.argsort(owner, kind="stable")
    owners = [owner[order]] if owner.size > weights.shape[0] else []
    joined = lambda arrays, dtype: np.concatenate(
        arrays, axis=None, dtype=dtype, casting="unsafe"
    )
    numbers = joined([*stored, np.zeros(0)], values)
    places = joined([*inputs, order, *owners], index)
    packed = fast and numbers.size <= SMALL and index == np.uint16
    arrays = [_packed(numbers, places)] if packed else [numbers, places]
    arrays += [] if scale is None else [scale]
    return SparseKernel(
        tuple(map(jnp.asarray, arrays)),
        shape,
        tuple((b.live.shape[0], b.live.shape[1]) for b in made),
        axis,
        fast,
        values if packed else None,
    )


def _packed(values: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Joins the bytes of both, those of the values to an even number."""
    even = bytes(values.nbytes % 2)
    joined = values.tobytes() + even + places.tobytes()
    return np.frombuffer(joined, np.uint16)


def to_dense(kernel: SparseKernel) -> Float[Array, "rows columns"]:
    """Writes the matrix out, as the product sees it."""
    kernel = kernel.unpacked()
    wide, outputs = kernel.shape[kernel.axis], kernel.shape[1 - kernel.axis]
    sorted_owner = jnp.arange(outputs) if kernel.owner is None else kernel.owner
    owner = jnp.zeros_like(sorted_owner).at[kernel.order].set(sorted_owner)
    dense, first, begin = jnp.zeros((wide, outputs), jnp.float32), 0, 0
    for longest, pieces in kernel.blocks:
        end = begin + longest * pieces
        of = jnp.tile(owner[first : first + pieces], longest)
        values = kernel.values[begin:end].astype(jnp.float32)
        # Padding adds 0 to a weight that is there; no weight is stored twice.
        dense = dense.at[kernel.places[begin:end], of].add(values)
        first, begin = first + pieces, end
    if kernel.scale is not None:
        dense = dense * kernel.scale
    return dense if kernel.axis == 0 else dense.T


def check_form(values: str, axis: int) -> None:
    """Refuses what weights cannot be stored as, and an axis that a matrix has not."""
    if values not in _VALUES:
        raise ValueError(f"values is {values!r}, expected one of {', '.join(_VALUES)}.")
    if axis not in (0, 1):
        raise ValueError(f"axis is {axis}, expected 0 or 1.")
