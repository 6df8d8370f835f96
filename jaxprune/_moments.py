"""Forgetting what an optimizer remembers of dead weights."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxprune._masks import check_mask, map_masked
from jaxprune._paths import leaf_keys
from jaxprune._types import Mask, Params


def reset_moments(
    inner_state: optax.OptState, params: Params, mask: Mask
) -> optax.OptState:
    """Zeroes what an optimizer remembers of dead weights.

    A leaf of `inner_state` belongs to a parameter when its path ends with the
    parameter's path and its shape is the parameter's: true of mu, nu, traces and shadow
    copies, false of counts and factored statistics, which are left alone. `prune` does
    not need it; it is for schedules that revive weights and for optimizers that keep a
    copy of the params, such as `schedule_free`.

    Args:
      inner_state: the state of any optax transformation.
      params: the parameters it was made for.
      mask: dead weights are False; `None` leaves are not touched.

    Raises:
      ValueError: as `check_mask`.
    """
    check_mask(params, mask)
    # Leaves that are never pruned count too, for they own their moments.
    whole = map_masked(lambda p, m: m, params, mask, elsewhere=lambda p: None)
    owners = jax.tree.leaves(jax.tree_util.tree_map_with_path(_Owner, params, whole))
    # The longest path first, so that "a/kernel" is not taken for "kernel".
    owners.sort(key=lambda owner: -len(owner.keys))

    def at_leaf(path: tuple[Any, ...], leaf: Any) -> Any:
        same = [o for o in owners if o.shape == getattr(leaf, "shape", None)]
        keys = leaf_keys(path)
        # First by the kinds of keys too: Adam's field "mu" is no layer of that name.
        for owner in same:
            if path[len(path) - len(owner.path) :] == owner.path:
                return owner.reset(leaf)
        for owner in same:
            if keys[len(keys) - len(owner.keys) :] == owner.keys:
                return owner.reset(leaf)
        return leaf

    return jax.tree_util.tree_map_with_path(at_leaf, inner_state)


class _Owner:  # not a pytree, so that it is a leaf
    def __init__(self, path: tuple[Any, ...], p: Any, mask: Any):
        self.path, self.keys = path, leaf_keys(path)  # none, if params are one array
        self.shape, self.mask = p.shape, mask

    def reset(self, leaf: Any) -> Any:
        if self.mask is None:
            return leaf
        return jnp.where(self.mask, leaf, jnp.zeros_like(leaf))
