"""Params and mask out of an Orbax checkpoint, without the program that wrote it."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxprune._types import Mask, Params
from jaxprune.interop._optional import require


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
            wanted = {id(leaf) for leaf in jax.tree.leaves((params, mask))}
            abstract = jax.tree.map(
                lambda leaf: (
                    np.empty(leaf.shape, leaf.dtype)
                    if id(leaf) in wanted
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
        id(leaf): array
        for leaf, array in zip(
            jax.tree.leaves(stored), jax.tree.leaves(loaded), strict=True
        )
    }
    made = jax.tree.map(lambda leaf: np.asarray(arrays[id(leaf)]), (params, mask))
    return made


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


def _wanted(stored: Any) -> tuple[Any, Any]:
    """Gives what is stored of params and of their mask, `None` where nothing is.

    Raises:
      ValueError: as `read_orbax`.
    """
    inside = isinstance(stored, dict) and "params" in stored
    params = stored["params"] if inside else stored
    leaves = jax.tree_util.tree_leaves_with_path(params)
    if not leaves or not all(hasattr(leaf, "shape") for _, leaf in leaves):
        raise ValueError("its params are not all arrays")
    shapes = {_keys(path): leaf.shape for path, leaf in leaves}
    masks: dict[tuple[str, ...], dict[tuple[str, ...], Any]] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(stored) if inside else []:
        keys = _keys(path)
        for i in range(1, len(keys)):
            below = shapes.get(keys[i:])
            if keys[i - 1] == "mask" and below == getattr(leaf, "shape", None):
                if leaf.dtype == bool:
                    masks.setdefault(keys[:i], {})[keys[i:]] = leaf
    if len(masks) > 1:
        named = ", ".join(sorted("/".join(keys) for keys in masks))
        raise ValueError(f"it has several masks: {named}")
    if not masks:
        return params, None
    (mask,) = masks.values()
    at = lambda path, leaf: mask.get(_keys(path))
    return params, jax.tree_util.tree_map_with_path(at, params)


def _keys(path: Any) -> tuple[str, ...]:
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
