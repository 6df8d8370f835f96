"""From params and mask to params of which some are sparse."""

from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from jaxprune._masks import check_mask, map_masked
from jaxprune._paths import leaf_names
from jaxprune._scope import Rules
from jaxprune._types import Mask, Params
from jaxprune.sparse._choose import Costs, choose, conv_pays
from jaxprune.sparse._conv import SparseConv, conv_to_dense, to_conv
from jaxprune.sparse._costs import default_costs
from jaxprune.sparse._groups import SparseGroups, groups_to_dense, to_groups
from jaxprune.sparse._kernel import SparseKernel, check_form, to_dense, to_kernel


def sparsify(
    params: Params,
    mask: Mask,
    *,
    batch: int = 1,
    costs: Costs | None = None,
    where: Callable[[str, Any], bool] | None = None,
    values: str = "float32",
    axis: int = 0,
    fast: bool | None = None,
    convolutions: bool = False,
    groups: Mapping[str, int] | None = None,
    positions: Mapping[str, int] | None = None,
) -> PyTree:
    """Puts matrices that run faster without their dead weights in a form for that.

    What would run slower so, and leaves that the mask does not cover, stay arrays,
    their dead weights zero. Run the result by `lift`.

    Args:
      params: the weights, on the host or a device.
      mask: True where alive, `None` at leaves, or subtrees, never pruned.
      batch: images at a time that the choice is made for; any number will run.
      costs: of a product in every form on the machine that will run it, for instance
        by `read_costs`; the default is `default_costs`.
      where: a function of (path, leaf), for instance `jaxprune.where("fc*/kernel")`:
        the leaves to make sparse whatever they cost, all covered by the mask.
      values: what live weights are stored as, "float32", "float16" or "int8".
      axis: of the inputs of every matrix: 0 as in Flax, 1 as in PyTorch and Equinox.
      fast: whether sparse matrices are run by the kernel of the extra `fast`, on a
        CPU; the default is where it is installed and faster. What is exported takes
        False.
      convolutions: whether kernels (rows, columns, in, out) of convolutions are taken
        as well. Only the extra `fast` gains by them, where the model gives them to
        XLA's convolution as they are, with stride 1.
      groups: how many groups a convolution has, by the path of its kernel; the default
        is one.
      positions: how many outputs each channel of a convolution has for one image, by
        the path of its kernel, as `jaxprune.report.positions` counts them; they matter
        for small images, where the call of a convolution costs as much as its work.

    Raises:
      ValueError: if the mask does not fit the params, `batch` is less than 1, a rule of
        `where` matches no leaf, `where` chooses one that cannot be sparse or that the
        mask does not cover, `groups` names one that is no convolution's kernel,
        `positions` names no leaf or holds a number below 1, or as `to_groups`,
        `to_kernel` and `default_costs`.
    """
    check_mask(params, mask)
    check_form(values, axis)
    if where is not None:
        _check_where(where, params, mask)
    groups, positions = groups or {}, positions or {}
    _check_groups(groups, params)
    _check_positions(positions, params)
    if batch < 1:
        raise ValueError(f"batch is {batch}, expected 1 or more.")
    costs = default_costs() if costs is None else costs
    numba = find_spec("numba") is not None if fast is None else fast
    convolutions = convolutions and numba

    def form(alive: np.ndarray, name: str) -> str:
        if alive.ndim == 4:
            known = positions.get(name)
            pays = conv_pays(alive, costs, positions=known, batch=batch)
            return "conv" if where is not None or pays else "dense"
        dense = where is None
        return choose(alive, batch, costs, axis=axis, fast=fast, dense=dense)

    def at_leaf(leaf: Any, alive: Any, name: str) -> Any:
        fits = leaf.ndim == 2 or (leaf.ndim == 4 and convolutions)
        fits = fits and leaf.dtype == jnp.float32 and leaf.size > 0
        chosen = fits if where is None else where(name, leaf)
        if chosen and not fits:
            raise ValueError(
                f"{name} has shape {leaf.shape} and dtype {leaf.dtype}; only float32 "
                "matrices can be sparse, and with numba and convolutions=True kernels "
                "of convolutions, if they hold any weights. Leave it out of `where`."
            )
        best = form(np.asarray(alive), name) if chosen else "dense"
        if best == "dense":
            return jnp.where(alive, leaf, 0).astype(leaf.dtype)
        if best == "conv" and groups.get(name, 1) > 1:
            return to_groups(leaf, alive, groups[name], values=values)
        if best == "conv":
            return to_conv(leaf, alive, values=values)
        by_numba = best == "fast" if fast is None else fast
        return to_kernel(leaf, alive, axis=axis, values=values, fast=by_numba)

    return map_masked(at_leaf, params, mask, leaf_names(params))


def _check_where(where: Callable[[str, Any], bool], params: Params, mask: Mask) -> None:
    paths = leaf_names(params)
    names, leaves = jax.tree.leaves(paths), jax.tree.leaves(params)
    if isinstance(where, Rules):
        where.check(names)
    never = map_masked(lambda *_: None, paths, mask, elsewhere=lambda name: name)
    never = set(jax.tree.leaves(never))
    for name, leaf in zip(names, leaves, strict=True):
        # A bias that a rule takes along could not be sparse anyway.
        if name in never and leaf.ndim >= 2 and where(name, leaf):
            raise ValueError(
                f"{name} is chosen by `where` but not covered by the mask, so it has "
                "no dead weights to leave out. Leave it out of `where`."
            )


def _check_groups(groups: Mapping[str, int], params: Params) -> None:
    names, leaves = jax.tree.leaves(leaf_names(params)), jax.tree.leaves(params)
    kernels = {
        n: leaf for n, leaf in zip(names, leaves, strict=True) if jnp.ndim(leaf) == 4
    }
    for path, count in groups.items():
        if path not in kernels:
            raise ValueError(
                f"groups has {path!r}, expected the path of a convolution's kernel: "
                f"{', '.join(kernels) or 'there is none'}."
            )
        outputs = kernels[path].shape[-1]
        if count < 1 or outputs % count:
            raise ValueError(
                f"groups has {count} for {path!r}, expected a divisor of its {outputs} "
                "outputs."
            )


def _check_positions(positions: Mapping[str, int], params: Params) -> None:
    names = jax.tree.leaves(leaf_names(params))
    for path, count in positions.items():
        if path not in names:
            raise ValueError(
                f"positions has {path!r}, expected a leaf: {', '.join(names)}."
            )
        if count < 1:
            raise ValueError(f"positions has {count} for {path!r}, expected 1 or more.")


def densify(params: PyTree) -> Params:
    """Writes every sparse leaf out as an array; float32 weights come back unchanged."""
    return jax.tree.map(to_array, params, is_leaf=is_sparse)


def is_sparse(leaf: Any) -> bool:
    """Tells whether a leaf is in a form for execution."""
    return isinstance(leaf, SparseKernel | SparseConv | SparseGroups)


def to_array(leaf: Any) -> Any:
    """Writes a leaf out if it is sparse."""
    if isinstance(leaf, SparseGroups):
        return groups_to_dense(leaf)
    if isinstance(leaf, SparseConv):
        return conv_to_dense(leaf)
    return to_dense(leaf) if isinstance(leaf, SparseKernel) else leaf
