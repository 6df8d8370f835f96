"""A folder of class folders: DATA/train/CLASS/x.jpg, or DATA/CLASS/x.jpg."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.config import Refused
from experiments.data.decode import Broken


_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp")
_KNOWN = ("train", "validation", "val", "test")


@dataclass(frozen=True)
class Files:
    """The files of a split; their paths are bytes in one array, for they are many."""

    classes: tuple[str, ...]
    folder: Path
    paths: np.ndarray  # bytes, relative to the folder
    labels: np.ndarray  # int32

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int) -> tuple[bytes, int]:
        """Gives the bytes of a file and the number of its class."""
        try:
            with open(self._path(index), "rb") as file:
                return file.read(), int(self.labels[index])
        except OSError as error:
            raise Broken(str(error.strerror)) from error

    def name(self, index: int) -> str:
        """Gives the path of the file."""
        return self._path(index)

    def _path(self, index: int) -> str:
        return os.path.join(self.folder, os.fsdecode(self.paths[index]))


def is_folder(root: Path) -> bool:
    """Tells whether there are folders with images in them, or with such folders."""
    return any(
        _has_image(folder) or any(_has_image(inner) for inner in _folders(folder))
        for folder in _folders(root)
    )


def open_folder(root: Path, split: str) -> Files:
    """Opens a split, or a slice of one.

    Classes are numbered in the order of their names, over all splits that are there.
    Files stand in an order of their own, fixed and without regard to the class, so that
    a slice is a sample.

    Raises:
      Refused: if there is no such split, or a split without images.
    """
    import tensorflow_datasets as tfds

    layout = _layout(root)
    names = sorted({f.name for folder in layout.values() for f in _folders(folder)})
    number = {name: i for i, name in enumerate(names)}
    wanted, bracket, rest = split.strip().partition("[")
    folder = layout.get(wanted)
    if folder is None:
        raise Refused(
            f"The split {split!r} is not to be had: {root} has "
            f"{', '.join(repr(name) for name in layout)}, or slices of them such as "
            f"'{next(iter(layout))}[:90%]'."
        )
    found = [
        (f"{inner.name}/{name}", number[inner.name])
        for inner in _folders(folder)
        for name in os.listdir(inner)
        if name.lower().endswith(_SUFFIXES) and not name.startswith(".")
    ]
    if not found:
        raise Refused(
            f"There are no images in class folders in {folder}; expected CLASS/x.jpg, "
            f"with one of the endings {', '.join(_SUFFIXES)}."
        )
    encoded = [(os.fsencode(path), label) for path, label in found]
    encoded.sort(key=lambda f: (hashlib.blake2b(f[0], digest_size=8).digest(), f[0]))
    try:
        # By a name of its own, for TFDS takes 'all' for the sum of the splits.
        instruction: Any = tfds.core.ReadInstruction.from_spec(f"it{bracket}{rest}")
        parts = instruction.to_absolute({"it": _Count(len(encoded))})
    except ValueError as error:
        reason = str(error).splitlines()[0]
        raise Refused(f"The split {split!r} is not to be had: {reason}") from error
    chosen = [file for part in parts for file in encoded[part.from_ : part.to]]
    if not chosen:
        raise Refused(f"The split {split!r} of {folder} is empty.")
    return Files(
        tuple(names),
        folder,
        np.array([path for path, _ in chosen], np.bytes_),
        np.array([label for _, label in chosen], np.int32),
    )


class _Count(NamedTuple):
    """What TFDS wants to know of a split to resolve a slice of it."""

    num_examples: int


def _layout(root: Path) -> dict[str, Path]:
    """Gives the folder of each split, by the name that it may be asked for."""
    there = {name: root / name for name in _KNOWN if (root / name).is_dir()}
    if not there:
        return {"all": root}
    if "val" in there:
        there.setdefault("validation", there["val"])
    elif "validation" in there:
        there["val"] = there["validation"]
    return there


def _folders(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as entries:
            names = sorted(e.name for e in entries if e.is_dir() and e.name[0] != ".")
    except OSError:
        return []
    return [folder / name for name in names]


def _has_image(folder: Path) -> bool:
    try:
        with os.scandir(folder) as entries:
            return any(entry.name.lower().endswith(_SUFFIXES) for entry in entries)
    except OSError:
        return False
