"""Masks by other means than jaxprune's: what its choice is timed beside."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


SPARSITY = 0.9


def dead_of(size: int) -> int:
    """Gives how many of `size` weights die: jaxprune's integer rule."""
    return (round(float(np.float32(SPARSITY)) * 2**24) * size + 2**23) >> 24


def floor(weights: list[jax.Array]) -> list[jax.Array]:
    """Reads each weight once and writes one byte for it."""
    return [jnp.abs(w) >= 0.05 for w in weights]


def full_sort(weights: list[jax.Array], groups: list[list[int]]) -> list[jax.Array]:
    """Sorts all magnitudes of a group, then cuts at the wanted one."""
    masks = []
    for group in groups:
        flat = [jnp.abs(weights[i]).ravel() for i in group]
        joined = jnp.sort(flat[0] if len(flat) == 1 else jnp.concatenate(flat))
        cut = joined[dead_of(joined.size)]
        masks += [jnp.abs(weights[i]) >= cut for i in group]
    return masks


def np_partition(weights: list[np.ndarray], groups: list[list[int]]) -> list:
    """Partitions a copy of all magnitudes of a group."""
    masks = []
    for group in groups:
        each = [np.abs(weights[i]).ravel() for i in group]
        flat = each[0] if len(each) == 1 else np.concatenate(each)
        d = dead_of(flat.size)
        flat.partition(d)
        masks += [np.abs(weights[i]) >= flat[d] for i in group]
    return masks


def torch_kthvalue(torch: Any, weights: list[Any], groups: list[list[int]]) -> list:
    """As np_partition, with torch.kthvalue."""
    masks = []
    for group in groups:
        flat = [weights[i].abs().ravel() for i in group]
        joined = flat[0] if len(flat) == 1 else torch.cat(flat)
        cut = torch.kthvalue(joined, dead_of(joined.numel()) + 1).values
        masks += [weights[i].abs() >= cut for i in group]
    return masks
