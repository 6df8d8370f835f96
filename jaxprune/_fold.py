"""Reductions of small arrays, made of elementwise operations alone.

XLA's CPU runtime sets memory aside for every scalar of every reducer in a program each
time that the program is called, whether the reduction runs or not. The reducers of a
schedule that prunes one step in a hundred would so cost a small net a tenth of every
step (0.4 us a scalar with jaxlib 0.10 on an AMD EPYC, 300 of them for three layers).
Slices and elementwise operations have no reducers, and take longer to compile: of 50
leaves, `by_std` 17 s instead of 6.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array


SMALL = 1 << 19  # elements; in larger arrays the reducers are what is cheap
_WAYS = 16  # slices joined at a time: each level of them is stored once


def free_axes(x: Any) -> list[int]:
    """Gives the axes of an array or its type that an explicit mesh does not split."""
    spec = tuple(getattr(getattr(x, "sharding", None), "spec", ()) or ())
    spec += (None,) * (len(x.shape) - len(spec))
    return [axis for axis, name in enumerate(spec) if name is None]


def is_small(x: Array) -> bool:
    """Tells whether `fold` is the way to reduce x: it slices all axes."""
    return x.size < SMALL and len(free_axes(jax.typeof(x))) == x.ndim


def fold(
    join: Callable[[Array, Array], Array],
    unit: int,
    terms: Callable[..., Array],
    *arrays: Array,
    lead: int = 0,
) -> Array:
    """Reduces the terms, pairwise, over all axes from `lead` on.

    The error of a sum grows with the logarithm of its length: below 19 half units in
    the last place for terms of one sign.

    Args:
      join: joins two arrays elementwise, for instance `jnp.add`.
      unit: changes nothing when joined.
      terms: computes terms from slices of the arrays, elementwise; slices are taken
        before it, so that nothing of the arrays' size is stored.
      *arrays: of one shape.
      lead: axes in front that stay.

    Returns:
      The reduced terms, of the shape of the first `lead` axes.
    """
    shape = arrays[0].shape
    axis = next((a for a in range(lead, len(shape)) if shape[a] > 1), None)
    if 0 in shape[lead:]:
        return jnp.full(shape[:lead], unit, jax.eval_shape(terms, *arrays).dtype)
    if axis is None:
        return terms(*arrays).reshape(shape[:lead])
    length = -(-shape[axis] // _WAYS)
    slices = []
    for start in range(0, shape[axis], length):
        end = min(start + length, shape[axis])
        term = terms(*(lax.slice_in_dim(x, start, end, axis=axis) for x in arrays))
        if end - start < length:
            missing = [
                (0, (start + length - end) * (a == axis), 0) for a in range(term.ndim)
            ]
            term = lax.pad(term, jnp.asarray(unit, term.dtype), missing)
        slices.append(term)
    return fold(join, unit, lambda x: x, join_all(join, slices), lead=lead)


def join_all(join: Callable[[Array, Array], Array], parts: Sequence[Array]) -> Array:
    """Joins arrays pairwise."""
    parts = list(parts)
    while len(parts) > 1:
        pairs = zip(parts[::2], parts[1::2], strict=False)
        parts = [join(a, b) for a, b in pairs] + parts[len(parts) & ~1 :]
    return parts[0]


def flattened(arrays: Sequence[Array]) -> Array | None:
    """Puts arrays into one that is quicker to reduce again and again on a GPU.

    Which takes most of the time to start a reduction of each. A CPU shares several
    arrays among its threads, and one of one axis not: there is none for it, nor one of
    what an explicit mesh splits.
    """
    split = any(len(free_axes(jax.typeof(x))) < x.ndim for x in arrays)
    if split or on_cpu():
        return None
    return jnp.concatenate([x.ravel() for x in arrays])


def on_cpu() -> bool:
    """Tells whether programs are made for a CPU; they are right on any device."""
    return jax.default_backend() == "cpu"
