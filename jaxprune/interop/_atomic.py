"""Files that are written whole or not at all."""

import os
from os import PathLike
from pathlib import Path


def write_whole(path: str | PathLike[str], data: bytes) -> None:
    """Writes a file under another name beside its own, and renames it when it is whole.

    Raises:
      OSError: if it cannot be written.
    """
    part = Path(path).with_name(f".{Path(path).name}.part")
    try:
        part.write_bytes(data)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
