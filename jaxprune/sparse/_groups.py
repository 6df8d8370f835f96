"""A pruned convolution whose channels come in groups: a sparse one for each group."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float

from jaxprune.sparse._conv import SparseConv, conv_to_dense, convolved, to_conv


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SparseGroups:
    """The live weights of a grouped convolution's kernel, which `to_groups` makes.

    Attributes:
      parts: the convolution of each group.
    """

    parts: tuple[SparseConv, ...]

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Of the kernel it stands for, (rows, columns, in / groups, out)."""
        rows, columns, inputs, outputs = self.parts[0].shape
        return (rows, columns, inputs, outputs * len(self.parts))

    @property
    def ndim(self) -> int:
        return 4

    @property
    def dtype(self) -> Any:
        """That of the kernel it stands for."""
        return self.parts[0].dtype

    @property
    def nbytes(self) -> int:
        """Bytes of everything it stores."""
        return sum(part.nbytes for part in self.parts)


def to_groups(
    kernel: Float[ArrayLike, "rows columns in out"],
    mask: Bool[ArrayLike, "rows columns in out"],
    groups: int,
    *,
    values: str = "float32",
) -> SparseGroups:
    """Keeps the live weights of a grouped convolution's kernel, on the host.

    Args:
      kernel: the weights; `in` counts the inputs of one group.
      mask: True where alive.
      groups: of inputs and outputs.
      values: what weights are stored as, as in `to_kernel`.

    Raises:
      ValueError: if `groups` does not divide the outputs, or as `to_kernel`.
    """
    outputs = np.shape(kernel)[-1]
    if groups < 1 or outputs % groups:
        raise ValueError(
            f"groups is {groups}, expected a divisor of {outputs} outputs."
        )
    split = lambda a: np.split(np.asarray(a), groups, axis=-1)
    pairs = zip(split(kernel), split(mask), strict=True)
    return SparseGroups(tuple(to_conv(k, m, values=values) for k, m in pairs))


def groups_to_dense(conv: SparseGroups) -> Float[Array, "rows columns in out"]:
    """Writes the kernel out, as the convolution sees it."""
    return jnp.concatenate([conv_to_dense(part) for part in conv.parts], axis=-1)


def split(conv: SparseGroups, params: Any) -> list[SparseConv] | None:
    """Gives what splitting the kernel with these params gives, if that is its parts."""
    if params["axis"] != 3 or len(set(params["sizes"])) != 1:
        return None
    return list(conv.parts) if len(params["sizes"]) == len(conv.parts) else None


def grouped(x: Array, conv: SparseGroups, params: Any) -> Array | None:
    """Gives what XLA's convolution with these params gives, `None` if it is another.

    As `convolved`, with as many groups as `conv` has.
    """
    if params["feature_group_count"] != len(conv.parts):
        return None
    numbers = params["dimension_numbers"]
    one = {**params, "feature_group_count": 1}
    inputs = jnp.split(x, len(conv.parts), axis=numbers.lhs_spec[1])
    outputs: list[Array] = []
    for a, part in zip(inputs, conv.parts, strict=True):
        y = convolved(a, part, one)
        if y is None:
            return None
        outputs.append(y)
    return jnp.concatenate(outputs, axis=numbers.out_spec[1])
