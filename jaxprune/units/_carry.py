"""An optimizer's state for params that have become smaller."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune._paths import leaf_name
from jaxprune.units._cut import Cut, cut


def carry(
    state: Any,
    shapes: Mapping[str, tuple[int, ...]],
    cuts: Mapping[str, Cut],
    masks: Mapping[str, np.ndarray],
) -> Any:
    """Cuts what an optimizer remembers of every leaf as the leaf was cut.

    A leaf of the state belongs to a parameter when its path ends with the parameter's
    and its last axes have the parameter's shape: moments, traces, shadow copies, masks,
    and stacks of them. What is bool is a mask, and dies where the new mask is dead.

    Args:
      state: any optimizer state.
      shapes: of the params before, by path.
      cuts: what stays, of the leaves that lose something.
      masks: the new masks, of the leaves that have one.

    Raises:
      ValueError: if something of a leaf that was cut has another shape.
    """
    # The longest path first, so that "a/kernel" is not taken for "kernel".
    owners = sorted(shapes, key=lambda path: -len(path.split("/")))

    def at_leaf(path: tuple[Any, ...], leaf: Any) -> Any:
        name = leaf_name(path)
        owner = next((o for o in owners if f"/{name}".endswith(f"/{o}")), None)
        shape = getattr(leaf, "shape", ())
        if owner is None or math.prod(shape) <= 1:
            return leaf
        own = shapes[owner]
        if shape[len(shape) - len(own) :] != own:
            if owner not in cuts:
                return leaf
            raise ValueError(
                f"the optimizer's {name} has shape {shape}, which belongs to {owner} "
                f"of shape {own} but is not shaped like it, so it cannot be made "
                "smaller; begin a new optimizer state for the smaller net."
            )
        if owner in cuts:
            leaf = jnp.asarray(cut(leaf, cuts[owner]))
        if owner in masks and leaf.dtype == np.bool_:
            leaf = leaf & jnp.asarray(masks[owner])
        return leaf

    return jax.tree_util.tree_map_with_path(at_leaf, state)
