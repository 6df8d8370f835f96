"""Where photographs are read from: a data set of TFDS, or a folder of class folders.

Both are read by index, in any order, without TensorFlow, and can be sent to another
process.
"""

import os
from pathlib import Path
from typing import Protocol

from experiments.config import Refused
from experiments.data.decode import Broken, decode
from experiments.data.folder import is_folder, open_folder
from experiments.data.settings import Images
from experiments.data.tfds import how_to_prepare, open_tfds, tfds_folder


class Source(Protocol):
    """The photographs of one split; the order is that of the files, and fixed."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of their numbers."""
        ...

    def __len__(self) -> int: ...

    def read(self, index: int) -> tuple[bytes, int]:
        """Gives the bytes of a file and the number of its class.

        Raises:
          Broken: if they cannot be read.
        """
        ...

    def name(self, index: int) -> str:
        """Names the file, for messages."""
        ...


def data_root(data_dir: Path | None) -> Path:
    """Gives the data folder: the flag's, else TFDS_DATA_DIR, else TFDS's default."""
    root = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return Path(root).expanduser()


def open_source(images: Images, split: str) -> Source:
    """Opens a split of the data folder, of whichever kind that is.

    Args:
      images: settings.
      split: name of the split, or a slice of it: 'validation[:800]'.

    Raises:
      Refused: if there is no such data, with the commands that prepare it, or no such
        split, with those that there are.
    """
    root = data_root(images.data_dir)
    folder = tfds_folder(root, images.dataset)
    if folder is not None:
        return open_tfds(folder, split)
    if is_folder(root):
        return open_folder(root, split)
    what = "holds neither" if root.is_dir() else "is not there, with neither"
    raise Refused(
        f"No images: the data folder {root} (--data-dir, else TFDS_DATA_DIR, else "
        f"~/tensorflow_datasets) {what} {images.dataset} of TFDS nor class folders "
        f"with images in them.\n{how_to_prepare(root, images.dataset)}"
    )


def check_readable(source: Source, split: str) -> None:
    """Reads the first and the last image: a run must not find out after days.

    Raises:
      Refused: if neither can be read.
    """
    reasons = []
    for index in (0, len(source) - 1):
        try:
            decode(source.read(index)[0])
        except Broken as error:
            reasons.append(f"{source.name(index)}: {error}")
    if len(reasons) == 2:
        raise Refused(
            f"of split {split} neither the first nor the last image can be read, "
            f"expected photographs: {reasons[0]}; {reasons[1]}."
        )
