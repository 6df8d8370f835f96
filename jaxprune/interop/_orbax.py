"""Params and mask out of an Orbax checkpoint, without the program that wrote it."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias

import jax
import numpy as np

from jaxprune._types import Mask, Params
from jaxprune.interop._optional import require


_Keys: TypeAlias = tuple[str, ...]


def read_orbax(path: str | PathLike[str]) -> tuple[Params, Mask | None]:
    """Reads the params of a checkpoint, and their mask if it has one.

    The params are what is stored as "params", or all of it if nothing is. Their mask is
    what is stored as "mask", wherever that lies, such as in the state of
    `jaxprune.prune`: booleans of the shapes that params of the same paths have. Nothing
    else is read. Orbax does not notice a flipped bit.

    Args:
      path: a checkpoint; or a folder of such, named by their steps, or one that has
        such a folder, `checkpoints`, of which the last step is read.

    Returns:
      The params as dicts and lists of NumPy arrays; and their mask, `None` where there
      is none, and `None` by itself if there is none at all.

    Raises:
      ImportError: if orbax-checkpoint is not installed.
      ValueError: if there is no checkpoint, or it cannot be read, holds no arrays, or
        has several masks.
    """
    found = checkpoint_of(Path(path))
    if found is None:
        raise ValueError(f"{path} is no checkpoint of Orbax, and holds none.")
    ocp = require("orbax.checkpoint", "orbax").v1
    with _quiet():
        try:
            stored = ocp.metadata(found.absolute()).metadata
            params, mask = _wanted(stored)
            wanted = {*params.values(), *mask.values()}
            abstract = jax.tree_util.tree_map_with_path(
                lambda path, leaf: (
                    np.empty(leaf.shape, leaf.dtype)
                    if _keys(path) in wanted
                    else ocp.PLACEHOLDER
                ),
                stored,
            )
            loaded = ocp.load(found.absolute(), abstract)
        except Exception as error:
            # What a damaged one raises depends on the damage.
            raise ValueError(
                f"{found} cannot be read as a checkpoint of Orbax: "
                f"{type(error).__name__}: {error}"
            ) from error
    arrays = {
        _keys(path): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(loaded)
        if _keys(path) in wanted
    }
    tree = loaded["params"] if _has_params(loaded) else loaded
    fill = lambda places: jax.tree_util.tree_map_with_path(
        lambda path, _: arrays.get(places.get(_keys(path))), tree
    )
    return fill(params), fill(mask) if mask else None


def checkpoint_of(path: Path) -> Path | None:
    """Finds a checkpoint: a folder itself, its last step, or that of `checkpoints`."""
    for folder in (path, path / "checkpoints"):
        if _is_one(folder):
            return folder
        steps = [step for step in folder.glob("*") if step.name.isdigit()]
        if steps := [step for step in steps if _is_one(step)]:
            return max(steps, key=lambda step: int(step.name))
    return None


def _is_one(folder: Path) -> bool:
    marks = ("_CHECKPOINT_METADATA", "_METADATA")
    return any((folder / mark).is_file() for mark in marks)


def _wanted(stored: Any) -> tuple[dict[_Keys, _Keys], dict[_Keys, _Keys]]:
    """Gives where params and their masks are stored, by the params' own paths.

    Raises:
      ValueError: as `read_orbax`.
    """
    first = ("params",) if _has_params(stored) else ()
    leaves = jax.tree_util.tree_leaves_with_path(stored)
    leaves = {_keys(path): leaf for path, leaf in leaves}
    params = {
        keys[len(first) :]: keys for keys in leaves if keys[: len(first)] == first
    }
    if not params or not all(hasattr(leaves[at], "shape") for at in params.values()):
        raise ValueError("its params are not all arrays")
    masks: dict[_Keys, dict[_Keys, _Keys]] = {}
    for keys, leaf in leaves.items():
        for i in (i for i, key in enumerate(keys, 1) if key == "mask"):
            of = params.get(keys[i:]) if first else None
            shape = None if of is None else leaves[of].shape
            if shape == getattr(leaf, "shape", ()) and leaf.dtype == bool:
                masks.setdefault(keys[:i], {})[keys[i:]] = keys
    if len(masks) > 1:
        named = ", ".join(sorted("/".join(keys) for keys in masks))
        raise ValueError(f"it has several masks: {named}")
    return params, next(iter(masks.values()), {})


def _has_params(tree: Any) -> bool:
    return isinstance(tree, dict) and "params" in tree


def _keys(path: Any) -> _Keys:
    return tuple(jax.tree_util.keystr((key,), simple=True) for key in path)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps Orbax's warnings about layouts and shardings off the screen."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(level)
