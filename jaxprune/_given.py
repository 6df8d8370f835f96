"""Whatever file of weights is given, as flat params and their mask."""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxprune import interop
from jaxprune.compress._save import load_flat, named_leaves
from jaxprune.interop._orbax import checkpoint_of


Flat = dict[str, Any]

_OURS = b'{"__metadata__":{"jaxprune":'


def file_of(path: Path) -> Path:
    """Gives where the weights are: of a run's folder, its `pruned.safetensors`.

    Returns:
      A file, or the folder of a checkpoint.

    Raises:
      ValueError: if it is a folder with neither.
    """
    if not path.is_dir():
        return path
    inside = path / "pruned.safetensors"
    found = inside if inside.is_file() else checkpoint_of(path)
    if found is None:
        raise ValueError(
            f"{path} is a folder without pruned.safetensors, and holds no checkpoint "
            "of Orbax; expected the folder of a run, a checkpoint, or a file."
        )
    return found


def size_of(path: Path) -> int:
    """Counts the bytes of a file, or of all files of a folder."""
    files = [path] if path.is_file() else path.rglob("*")
    return sum(file.stat().st_size for file in files if file.is_file())


def read_given(path: Path) -> tuple[Flat, Flat]:
    """Reads weights, whichever way they are stored.

    Args:
      path: a file of `jaxprune.save` or of safetensors, a checkpoint of Orbax, or the
        folder of a run.

    Returns:
      Arrays and masks by path, in the file's order. Where there is no mask, what is not
      zero lives, in leaves of two dimensions and more.

    Raises:
      ImportError: if it is a checkpoint and orbax-checkpoint is not installed.
      OSError: if the file cannot be opened.
      ValueError: if it is damaged, or none of these.
    """
    path = file_of(path)
    if path.is_dir():
        params, mask = interop.read_orbax(path)
        return _flat(params, mask, guess=mask is None)
    if is_ours(path):
        return load_flat(path)
    if not _begins(path, b"{"):
        raise ValueError(
            f"{path} is not a safetensors file, nor one of jaxprune.save; expected one "
            "of these, a checkpoint of Orbax or a run's folder. To make one of another "
            "file: tensors = jaxprune.interop.read_torch(file) for .pth, or "
            "read_net(file, shapes) for .net, then "
            "jaxprune.interop.write_safetensors(out, tensors)."
        )
    return _flat(interop.read_safetensors(path), None, guess=True)


def _flat(params: Any, mask: Any, guess: bool = False) -> tuple[Flat, Flat]:
    leaves = list(named_leaves(params, mask))
    if guess:
        leaves = [(name, p, p != 0 if p.ndim > 1 else None) for name, p, _ in leaves]
    return {name: p for name, p, _ in leaves}, {name: m for name, _, m in leaves}


def is_ours(path: Path) -> bool:
    """Tells whether a path is a file of `jaxprune.save`, by its beginning."""
    return not path.is_dir() and _begins(path, _OURS)


def _begins(path: Path, header: bytes) -> bool:
    """Tells how the header begins, which comes after its length of 8 bytes."""
    with open(path, "rb") as file:
        return file.read(8 + len(header))[8:] == header


def apply_of(model: str) -> Callable[[Any, jax.Array], Any]:
    """Finds `module:name`, a function of params and inputs or a module of flax.linen.

    Raises:
      ValueError: if there is none, or it is neither.
    """
    module, _, name = model.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError, SyntaxError) as error:
        raise ValueError(
            f"--model is {model!r}, expected module:name: {error}"
        ) from error
    try:
        found = found() if isinstance(found, type) else found
    except TypeError as error:
        raise ValueError(
            f"--model is {model!r}, which is made with arguments ({error}); expected a "
            "class without, or the name of one that was made."
        ) from error
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
