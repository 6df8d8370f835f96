"""How a sparsity is shared out among leaves: uniform, Erdos-Renyi, and its kernel form.

Each function gives a mapping from path to sparsity that `to_sparsity` takes:

    spread = jaxprune.erdos_renyi_kernel(params, mask, 0.9, dense=["conv1/*"])
    schedule = jaxprune.to_sparsity(jaxprune.magnitude, spread)
"""

import glob
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jaxtyping import PyTree

from jaxprune._checks import check_fraction
from jaxprune._masks import check_mask, map_masked
from jaxprune._paths import Pattern, check_patterns, leaf_names, matches, show
from jaxprune._types import Params


def uniform(
    params: Params, mask: PyTree, sparsity: float, *, dense: Sequence[Pattern] = ()
) -> dict[str, float]:
    """Gives every prunable leaf the same sparsity.

    >>> import jax.numpy as jnp
    >>> params = {"a": jnp.ones((10, 10)), "b": jnp.ones((10, 30))}
    >>> uniform(params, {"a": params["a"] > 0, "b": params["b"] > 0}, 0.6, dense=["a"])
    {'b': 0.8}

    Args:
      params: the params, or their shapes.
      mask: says which leaves are prunable; what is dead in it plays no part.
      sparsity: dead fraction in [0, 1) of all prunable weights, those of the leaves in
        `dense` included, so that the others make up for them.
      dense: globs or regular expressions of prunable leaves to leave alone; the first
        and the last layer are `jaxprune.report.first_and_last(apply, params, x)`.

    Returns:
      Sparsity by path. `to_sparsity` leaves a leaf without one as it is.

    Raises:
      ValueError: if `sparsity` is outside [0, 1), `dense` is no sequence of patterns,
        one of them matches no prunable leaf, or the other leaves are too small to reach
        the sparsity.
    """
    return _spread(params, mask, sparsity, dense, lambda shape: 1.0)


def erdos_renyi(
    params: Params,
    mask: PyTree,
    sparsity: float,
    *,
    dense: Sequence[Pattern] = (),
    channels: tuple[int, int] = (-2, -1),
) -> dict[str, float]:
    r"""Keeps more of small layers: density in proportion to (n + m) / (n m).

    n and m are the input and output channels of the leaf; its kernel size plays no
    part. A leaf whose density would pass 1 stays dense, and the others make up for it.

    Args:
      params: as in `uniform`.
      mask: as in `uniform`.
      sparsity: as in `uniform`.
      dense: as in `uniform`.
      channels: the two axes that count channels; the last two in the kernels of flax,
        the first two, (0, 1), in those of equinox and PyTorch.

    Returns:
      Sparsity by path; leaves that stay dense have none.

    Raises:
      ValueError: as `uniform`, or if a leaf has no such axes.

    Source:
      Mocanu et al. 2018 (arXiv:1707.04780), equation 3; Evci et al. 2020
      (arXiv:1911.11134), section 3.
    """

    def weight(shape: tuple[int, ...]) -> float:
        if not all(-len(shape) <= axis < len(shape) for axis in channels):
            raise ValueError(
                f"a prunable leaf has shape {shape}, expected one with the axes "
                f"{channels} of channels; leave it alone by `dense`, or use "
                "erdos_renyi_kernel."
            )
        n, m = (shape[axis] for axis in channels)
        return (n + m) / (n * m)

    return _spread(params, mask, sparsity, dense, weight)


def erdos_renyi_kernel(
    params: Params, mask: PyTree, sparsity: float, *, dense: Sequence[Pattern] = ()
) -> dict[str, float]:
    """As `erdos_renyi`, with the kernel's size: sum of the axes over their product.

    For a convolution that is (n + m + height + width) / (n m height width), in any
    order of the axes; for a dense layer it is `erdos_renyi`.

    Args:
      params: as in `uniform`.
      mask: as in `uniform`.
      sparsity: as in `uniform`.
      dense: as in `uniform`.

    Returns:
      Sparsity by path; leaves that stay dense have none.

    Raises:
      ValueError: as `uniform`.

    Source:
      Evci et al. 2020 (arXiv:1911.11134), section 3.
    """
    weight = lambda shape: sum(shape) / math.prod(shape)
    return _spread(params, mask, sparsity, dense, weight)


def _spread(
    params: Params,
    mask: PyTree,
    sparsity: float,
    dense: Sequence[Pattern],
    weight: Callable[[tuple[int, ...]], float],
) -> dict[str, float]:
    """Gives each leaf the density c * weight(shape), at most 1, c as the total asks."""
    check_fraction("sparsity", sparsity)
    if isinstance(dense, str | re.Pattern):
        raise ValueError(
            f"dense is the pattern {show(dense)}, expected a sequence of patterns."
        )
    check_patterns("dense", dense)
    shapes = _prunable(params, mask)
    for pattern in dense:
        if not any(matches(pattern, name) for name in shapes):
            raise ValueError(
                f"dense has {show(pattern)}, which matches no prunable leaf; these are "
                f"prunable: {', '.join(shapes) or 'none'}."
            )
    total = sum(map(math.prod, shapes.values()))
    free = {
        name: shape
        for name, shape in shapes.items()
        if math.prod(shape) and not any(matches(pattern, name) for pattern in dense)
    }
    dead = sparsity * total
    if dead and dead >= sum(map(math.prod, free.values())):
        raise ValueError(
            f"sparsity is {sparsity} of {total} prunable weights, expected fewer dead "
            f"than the {sum(map(math.prod, free.values()))} weights outside of `dense`."
        )
    scale = 1.0
    while free:
        sizes = {name: math.prod(shape) for name, shape in free.items()}
        alive = sum(sizes.values()) - dead
        scale = alive / sum(n * weight(free[name]) for name, n in sizes.items())
        full = [name for name in free if scale * weight(free[name]) >= 1]
        if not full:
            break
        free = {name: shape for name, shape in free.items() if name not in full}
    return {
        glob.escape(name): 1 - scale * weight(shape) for name, shape in free.items()
    }


def _prunable(params: Params, mask: PyTree) -> dict[str, tuple[int, ...]]:
    check_mask(params, mask)
    shapes: dict[str, tuple[int, ...]] = {}

    def note(p: Any, m: Any, name: str) -> None:
        shapes[name] = tuple(p.shape)

    names = leaf_names(params)
    jax.tree.leaves(map_masked(note, params, mask, names, elsewhere=lambda p: None))
    return shapes
