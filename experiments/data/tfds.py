"""Data sets of TFDS in the ArrayRecord format, read without TensorFlow."""

import contextlib
import functools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.config import Refused
from experiments.data.decode import Broken


@dataclass(frozen=True)
class Records:
    """A split of a data set with the features image and label."""

    classes: tuple[str, ...]
    where: str
    records: Any  # raw records by index

    def __len__(self) -> int:
        return len(self.records)

    def read(self, index: int) -> tuple[bytes, int]:
        """Gives the bytes of a file and the number of its class."""
        features = self._features(index)
        try:
            image = features["image"].bytes_list.value[0]
            return image, features["label"].int64_list.value[0]
        except IndexError as error:
            raise Broken("the record has no image or no label") from error

    def name(self, index: int) -> str:
        """Gives the record's file name, if it has one, and its place."""
        place = f"record {index} of {self.where}"
        with contextlib.suppress(Broken, IndexError, UnicodeDecodeError):
            stored = self._features(index)["file_name"].bytes_list.value[0]
            return f"{stored.decode()} ({place})"
        return place

    def _features(self, index: int) -> Any:
        try:
            return _example().FromString(self.records[index]).features.feature
        except Exception as error:  # array_record and protobuf have their own kinds
            raise Broken(f"{type(error).__name__}: {error}") from error


@functools.cache  # asked for at every record
def _example() -> Any:
    from tensorflow_datasets.proto import tf_example_pb2

    return tf_example_pb2.Example  # pyright: ignore[reportAttributeAccessIssue]


def tfds_folder(root: Path, dataset: str) -> Path | None:
    """Finds the folder of a data set's last version; `None` if there is none.

    `root` may hold data sets, or be the folder of the data set or of a version.
    """
    if (root / "dataset_info.json").is_file():
        return root
    for folder in (root / dataset, root):
        found = [path.parent for path in folder.glob("*.*.*/dataset_info.json")]
        if found:
            return max(
                found, key=lambda f: [int(n) for n in re.findall(r"\d+", f.name)]
            )
    return None


def open_tfds(folder: Path, split: str) -> Records:
    """Opens a split, or a slice of one, of a prepared data set.

    Raises:
      Refused: if there is no such split, if it is not in ArrayRecord format, or if the
        data set is not one of labelled images.
    """
    import tensorflow_datasets as tfds

    raw: Any = tfds.decode.DeserializeMethod.RAW_BYTES
    try:
        builder: Any = tfds.builder_from_directory(str(folder))
        info = builder.info
    except Exception as error:  # whatever a damaged dataset_info.json leads to
        raise Refused(f"The data set in {folder} cannot be opened: {error}") from error
    if not {"image", "label"} <= set(info.features):
        raise Refused(
            f"The data set in {folder} has the features {sorted(info.features)}, "
            "expected image and label."
        )
    try:
        records = builder.as_data_source(split, deserialize_method=raw)
    except NotImplementedError as error:
        raise Refused(_wrong_format(folder, info.file_format.value)) from error
    except ValueError as error:
        there = ", ".join(f"{n} ({s.num_examples:,})" for n, s in info.splits.items())
        raise Refused(
            f"The split {split!r} is not to be had: {folder} has {there}. "
            f"{str(error).splitlines()[0]}"
        ) from error
    except OSError as error:
        raise Refused(f"The data set in {folder} cannot be read: {error}") from error
    classes = tuple(info.features["label"].names)
    return Records(classes, f"{split} in {folder}", records)


def how_to_prepare(root: Path, dataset: str) -> str:
    """Gives the commands that prepare a data set in `root`, to be copied."""
    # The format has to be named: without it, and with a data_dir, TFDS writes
    # TFRecord, which only TensorFlow reads.
    config, note = "", ""
    if dataset == "imagenet2012":
        manual = root / "downloads" / "manual"
        config = f"download_config=tfds.download.DownloadConfig(manual_dir='{manual}')"
        note = (
            "Put ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar, both of them, "
            f"into {manual} (from https://image-net.org, after registration), and then,"
            " once, on a machine that has TensorFlow:\n"
        )
    else:
        note = "Prepare it once, on a machine that has TensorFlow, with:\n"
    return (
        f"{note}"
        "  pip install tensorflow tensorflow-datasets importlib-resources\n"
        '  python -c "import tensorflow_datasets as tfds; '
        f"tfds.builder('{dataset}', data_dir='{root}', file_format='array_record')"
        f'.download_and_prepare({config})"\n'
        "Keep file_format='array_record': without it TFDS writes TFRecord, which only "
        "TensorFlow reads.\n"
        "Or name a folder of class folders, or one with train/ and val/ that hold "
        "them, with --data-dir."
    )


def _wrong_format(folder: Path, found: str) -> str:
    root = folder.parent.parent
    out = root.with_name(f"{root.name}_array_record") / folder.relative_to(root)
    return (
        f"The data set in {folder} is in the format {found}, which only TensorFlow "
        "reads; expected array_record. Convert it, on a machine that has TensorFlow, "
        "with:\n"
        "  pip install tensorflow tensorflow-datasets importlib-resources apache-beam\n"
        f"  tfds convert_format --dataset_version_dir={folder} "
        f"--out_file_format=array_record --out_dir={out}\n"
        f"and then use --data-dir {out.parent.parent}"
    )
