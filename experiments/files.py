"""Files of a run: written under another name, then renamed, so never half there."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from experiments.config import Refused, Settings, as_dict, decisive, difference


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Gives another name beside a file's, and renames it when it is written."""
    part = path.with_name(f".{path.name}.part")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes a file whole."""
    with whole_file(path) as part:
        part.write_text(text)


def save_weights(path: Path, params: Any, about: dict[str, str] | None = None) -> None:
    """Writes params as safetensors, named by path: "fc1/kernel" and so on."""
    arrays = {
        jax.tree_util.keystr(key, simple=True, separator="/"): np.ascontiguousarray(
            leaf
        )
        for key, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
    with whole_file(path) as part:
        # `save_file` would let only the owner read it.
        part.write_bytes(save(arrays, metadata=about))


def save_arrays(path: Path, **arrays: np.ndarray) -> None:
    """Writes arrays by name as npz."""
    with whole_file(path) as part, part.open("wb") as file:
        np.savez(file, **cast(Any, arrays))


def load_weights(path: Path, like: Any) -> Any:
    """Reads what `save_weights` wrote, as NumPy arrays in the structure of `like`.

    Raises:
      Refused: if the file is not there, is damaged, or is of another network.
    """
    try:
        arrays = load_file(path)
    except (OSError, SafetensorError) as error:
        raise Refused(f"{path} cannot be read ({error}); start anew.") from error
    leaves, structure = jax.tree_util.tree_flatten_with_path(like)
    names = [jax.tree_util.keystr(k, simple=True, separator="/") for k, _ in leaves]
    if sorted(names) != sorted(arrays):
        raise Refused(f"{path} holds {sorted(arrays)}, expected {sorted(names)}.")
    return jax.tree.unflatten(structure, [arrays[name] for name in names])


def check_run(folder: Path, config: Settings) -> None:
    """Checks that a run may begin or go on in a folder; changes nothing.

    Raises:
      Refused: if the folder holds a run and neither `resume` nor `overwrite` is set, if
        it holds anything else, if there is nothing to resume, or if the run there has
        other settings.
    """
    run = config.run
    if not _held(folder):
        if run.resume and not folder.exists():
            raise Refused(f"there is no run in {folder}: leave --resume out to begin.")
        return
    settings = _read_settings(folder / "config.json")
    if run.overwrite:
        return
    if not run.resume:
        state = "finished" if (folder / "result.json").exists() else "unfinished"
        raise Refused(
            f"{folder} holds a run, {state}. Give --resume to "
            f"{'print it again' if state == 'finished' else 'continue it'}, "
            "--overwrite to delete it, or another --out."
        )
    if changed := difference(settings, decisive(config)):
        raise Refused(
            f"{folder} holds a run with other settings: {changed}. Give the flags "
            "it was begun with, or another --out."
        )


def make_run(folder: Path, config: Settings) -> None:
    """Makes a run folder, or opens one to continue; never mixes two runs.

    Raises:
      Refused: as `check_run`; nothing has been changed then.
    """
    check_run(folder, config)
    if _held(folder):
        if config.run.resume:
            return
        clear_run(folder)
    folder.mkdir(parents=True, exist_ok=True)
    about = json.dumps(as_dict(config), indent=2) + "\n"
    write_text(folder / "config.json", about)


def clear_run(folder: Path) -> None:
    """Empties a run folder, the settings last: until then it can be told for a run."""
    settings = folder / "config.json"
    for path in folder.iterdir():
        if path != settings:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    settings.unlink(missing_ok=True)


def _held(folder: Path) -> list[Path]:
    """Lists a folder, without settings that a kill left half-written."""
    if not folder.exists():
        return []
    if not folder.is_dir():
        raise Refused(f"{folder} is a file, expected a folder; choose another --out.")
    return [path for path in folder.iterdir() if path.name != ".config.json.part"]


def _read_settings(about: Path) -> dict[str, Any]:
    try:
        return decisive(json.loads(about.read_text()))
    except (OSError, ValueError, KeyError, AttributeError):
        raise Refused(
            f"{about.parent} holds files but no readable config.json, so it is not a "
            "run of this program; choose another --out."
        ) from None
