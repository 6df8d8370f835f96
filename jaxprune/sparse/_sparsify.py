"""From params and mask to params of which some are sparse."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from jaxprune._masks import map_masked
from jaxprune._paths import leaf_names
from jaxprune._types import Mask, Params
from jaxprune.sparse._choose import DEFAULT, Costs, pays
from jaxprune.sparse._kernel import SparseKernel, to_dense, to_kernel


def sparsify(
    params: Params,
    mask: Mask,
    *,
    batch: int = 1,
    costs: Costs = DEFAULT,
    where: Callable[[str, Any], bool] | None = None,
    values: str = "float32",
    axis: int = 0,
) -> PyTree:
    """Puts matrices that run faster without their dead weights in a form for that.

    Matrices that would run slower so, convolutions, and leaves that the mask does not
    cover stay arrays, their dead weights zero. Run the result by `lift`.

    Args:
      params: the weights, on the host or a device.
      mask: True where alive, `None` at leaves, or subtrees, never pruned.
      batch: images at a time that the choice is made for; any number will run.
      costs: of a product in either form on the machine that will run it.
      where: a function of (path, leaf), for instance `jaxprune.where("fc*/kernel")`:
        the matrices to make sparse whatever they cost.
      values: what live weights are stored as, "float32", "float16" or "int8".
      axis: of the inputs of every matrix: 0 as in Flax, 1 as in PyTorch and Equinox.

    Raises:
      ValueError: if `batch` is less than 1, `where` chooses a leaf that is no matrix
        of float32, or as `to_kernel`.
    """
    if batch < 1:
        raise ValueError(f"batch is {batch}, expected 1 or more.")

    def at_leaf(leaf: Any, alive: Any, name: str) -> Any:
        matrix = leaf.ndim == 2 and leaf.dtype == jnp.float32
        if where is not None:
            chosen = where(name, leaf)
            if chosen and not matrix:
                raise ValueError(
                    f"{name} has shape {leaf.shape} and dtype {leaf.dtype}; only "
                    "float32 matrices can be sparse. Leave it out of `where`."
                )
        else:
            chosen = matrix and pays(np.asarray(alive), batch, costs, axis=axis)
        if chosen:
            return to_kernel(leaf, alive, axis=axis, values=values)
        return jnp.where(alive, leaf, 0).astype(leaf.dtype)

    return map_masked(at_leaf, params, mask, leaf_names(params))


def densify(params: PyTree) -> Params:
    """Writes every sparse leaf out as an array; float32 weights come back unchanged."""
    return jax.tree.map(
        lambda p: to_dense(p) if isinstance(p, SparseKernel) else p,
        params,
        is_leaf=lambda p: isinstance(p, SparseKernel),
    )
