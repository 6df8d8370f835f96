"""Tensors by name into params, all or nothing, and back."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune._paths import leaf_name
from jaxprune._types import Params
from jaxprune.interop._layout import Source


def load_into(
    params_like: Params,
    tensors: Mapping[str, Any],
    sources: Mapping[str, Source],
    *,
    origin: str = "the source",
) -> Params:
    """Makes params of tensors that were read from a file of another framework.

    Everything is compared before anything is made, and every disagreement is told at
    once, so that a file of another network is recognised as such. A tensor that is
    not wanted is best dropped from `tensors` beforehand.

    Args:
      params_like: the params wanted, as arrays or `jax.ShapeDtypeStruct`s, any
        structure. Where a leaf has a sharding, or is committed to its devices, the
        new leaf goes there too.
      tensors: what a reader gave: arrays by name.
      sources: for each leaf's path the tensor it comes from, as `sources_of` gives.
      origin: what `tensors` came from, for the message.

    Returns:
      Arrays in the structure and with the dtypes of `params_like`, none of which
      shares memory with `tensors`.

    Raises:
      ValueError: listing the tensors that are missing, that are extra, and whose
        shape or dtype does not fit, or that overflow the dtype wanted.
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(params_like)
    wanted = {leaf_name(key): leaf for key, leaf in leaves}
    problems = [
        f"no leaf: {path}, for which there is a source; the leaves are "
        f"{', '.join(wanted)}"
        for path in sources
        if path not in wanted
    ]
    arrays = []
    for path, leaf in wanted.items():
        try:
            arrays.append(_fit(path, leaf, tensors, sources))
        except _Misfit as misfit:
            problems.append(str(misfit))
    used = {source.name for source in sources.values()}
    problems += [
        f"extra: {name} {np.shape(tensors[name])}"
        for name in tensors
        if name not in used
    ]
    if problems:
        raise ValueError(
            f"{origin} does not fit these params; nothing was loaded:\n  "
            + "\n  ".join(problems)
        )
    placed = [
        jax.device_put(array, _place(leaf))
        for array, leaf in zip(arrays, wanted.values(), strict=True)
    ]
    return jax.tree.unflatten(structure, placed)


def tensors_of(params: Params, sources: Mapping[str, Source]) -> dict[str, np.ndarray]:
    """Gives the tensors that `load_into` would make `params` of: its inverse.

    They are copies, laid out as the source has them.

    >>> from jaxprune.interop import DENSE
    >>> params = {"fc": {"kernel": jnp.array([[1, 2]])}}
    >>> tensors_of(params, {"fc/kernel": Source("fc.weight", DENSE)})
    {'fc.weight': array([[1],
           [2]], dtype=int32)}

    Raises:
      ValueError: naming the leaf, if `sources` lacks it or cannot lay it out.
    """
    tensors = {}
    for key, leaf in jax.tree_util.tree_leaves_with_path(params):
        path = leaf_name(key)
        if path not in sources:
            raise ValueError(f"there is no source for {path}: give it one.")
        name, layout = sources[path]
        try:
            tensors[name] = np.array(layout.write(np.asarray(leaf)), order="C")
        except ValueError:
            raise ValueError(
                f"{path} has shape {leaf.shape}, which cannot be written as "
                f"({layout.name})."
            ) from None
    return tensors


class _Misfit(Exception):
    """What is wrong with one tensor."""


def _fit(
    path: str, leaf: Any, tensors: Mapping[str, Any], sources: Mapping[str, Source]
) -> np.ndarray:
    """Gives a leaf's new value: a copy, in our layout and dtype."""
    if path not in sources:
        raise _Misfit(f"no source: {path}, expected one for every leaf")
    name, layout = sources[path]
    if name not in tensors:
        raise _Misfit(f"missing: {name}, for {path} {leaf.shape}")
    given = np.asarray(tensors[name])
    try:
        array = layout.read(given)
    except ValueError:
        raise _Misfit(
            f"misshapen: {name} {given.shape}, expected ({layout.name}), for {path} "
            f"{leaf.shape}"
        ) from None
    if array.shape != leaf.shape:
        raise _Misfit(
            f"misshapen: {name} {given.shape}, which as ({layout.name}) gives "
            f"{array.shape}, expected {leaf.shape} for {path}"
        )
    if _kind(given.dtype) != _kind(leaf.dtype):
        raise _Misfit(f"wrong dtype: {name} {given.dtype}, for {path} {leaf.dtype}")
    # A copy in any case: an array of JAX may not change when a tensor does.
    with np.errstate(over="ignore"):
        converted = np.array(array, dtype=leaf.dtype, order="C")
    if given.dtype != leaf.dtype and _overflows(array, converted):
        raise _Misfit(
            f"overflow: {name} has values beyond the range of {leaf.dtype}, for {path}"
        )
    return converted


def _overflows(array: np.ndarray, converted: np.ndarray) -> bool:
    """Whether a value became another integer, or infinite; NumPy tells of few."""
    if jnp.issubdtype(converted.dtype, jnp.inexact):
        return bool((np.isinf(converted) & ~np.isinf(array)).any())
    return not np.array_equal(array, converted)


def _kind(dtype: Any) -> Any:
    for kind in (jnp.floating, jnp.integer, jnp.complexfloating):
        if jnp.issubdtype(dtype, kind):
            return kind
    return dtype


def _place(leaf: Any) -> Any:
    """Where the new leaf goes: where the old one is bound to be, if anywhere."""
    if isinstance(leaf, jax.Array) and not leaf.committed:
        return None
    return getattr(leaf, "sharding", None)
