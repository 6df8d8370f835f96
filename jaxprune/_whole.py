"""Files that are written whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path


@contextmanager
def whole_file(path: str | PathLike[str]) -> Iterator[Path]:
    """Gives another name beside a file's, and renames it when it is written.

    A link stays one: the file that it names is written.

    Raises:
      OSError: if there is no folder for it, or if a folder, a device or the like has
        its name, which renaming would put out of the way.
    """
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file():
        raise OSError(f"{os.fspath(path)!r} is no file, expected the name of one.")
    if not target.parent.is_dir():
        raise FileNotFoundError(
            f"{os.fspath(path)!r} cannot be written: there is no folder "
            f"{str(target.parent)!r}, make it first."
        )
    part = target.with_name(f".{target.name}.part")
    try:
        yield part
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)


def write_whole(path: str | PathLike[str], data: bytes) -> None:
    """Writes a file under another name beside its own, and renames it when it is whole.

    Raises:
      OSError: as `whole_file`, or if it cannot be written.
    """
    with whole_file(path) as part:
        part.write_bytes(data)
