"""Whatever file of weights is given, as flat params and their mask."""

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

import jaxprune
from jaxprune import interop
from jaxprune.compress._save import named_leaves


Flat = dict[str, Any]

_OURS = b'{"__metadata__":{"jaxprune":'


def file_of(path: Path) -> Path:
    """Gives the file of weights: of a run's folder, its `pruned.safetensors`.

    Raises:
      ValueError: if it is a folder without one.
    """
    if not path.is_dir():
        return path
    inside = path / "pruned.safetensors"
    if not inside.is_file():
        raise ValueError(
            f"{path} is a folder without pruned.safetensors, expected the folder of a "
            "finished run, or a file."
        )
    return inside


def read_given(path: Path) -> tuple[Flat, Flat]:
    """Reads a file of `jaxprune.save` or of safetensors, or the folder of a run.

    Returns:
      Arrays and masks by path, in the file's order. Of safetensors, what is not zero
      lives, in leaves of two dimensions and more.

    Raises:
      OSError: if the file cannot be opened.
      ValueError: if it is damaged, or neither kind.
    """
    path = file_of(path)
    with open(path, "rb") as file:
        begin = file.read(8 + len(_OURS))
    if begin[8:] == _OURS:
        params, mask = jaxprune.load(path)
        leaves = list(named_leaves(params, mask))
        return {name: p for name, p, _ in leaves}, {name: m for name, _, m in leaves}
    params = interop.read_safetensors(path)
    mask = {name: p != 0 if p.ndim > 1 else None for name, p in params.items()}
    return params, mask


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Gives the tree whose paths are these names.

    >>> nested({"fc1/bias": 1, "fc1/kernel": 2})
    {'fc1': {'bias': 1, 'kernel': 2}}
    """
    tree: dict[str, Any] = {}
    for name, leaf in flat.items():
        *parents, last = name.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return tree


def apply_of(model: str) -> Callable[[Any, jax.Array], Any]:
    """Finds `module:name`, a function of params and inputs or a module of flax.linen.

    Raises:
      ValueError: if there is none, or it is neither.
    """
    module, _, name = model.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"--model is {model!r}, expected module:name: {error}"
        ) from error
    found = found() if isinstance(found, type) else found
    if hasattr(found, "apply"):
        return lambda params, x: found.apply({"params": params}, x)
    if not callable(found):
        raise ValueError(
            f"--model is {model!r}, a {type(found).__name__}, expected a module of "
            "flax.linen or a function of params and inputs."
        )
    return found


def live_of(p: np.ndarray, m: np.ndarray | None) -> int:
    """Counts live weights; of a leaf without a mask all live."""
    return int(p.size if m is None else np.count_nonzero(m))
