"""Settings of photographs: a frozen dataclass, from which tyro makes the flags."""

import dataclasses
from pathlib import Path

from experiments.config import Refused
from experiments.data.transforms import Convention, crop_of


@dataclasses.dataclass(frozen=True)
class Images:
    """Which photographs are trained on and judged on, and how they are read."""

    #: Folder of TFDS that holds the data set, or a folder of class folders, alone or
    #: below train/ and val/. None: TFDS_DATA_DIR, else ~/tensorflow_datasets.
    data_dir: Path | None = None
    #: Name of the data set in a folder of TFDS.
    dataset: str = "imagenet2012"
    #: Split to train on; a slice of it as TFDS writes them, 'train[:10000]' or
    #: 'train[:95%]'. Class folders that lie in the data folder itself are split 'all'.
    train_split: str = "train"
    #: Split to judge on, or a slice of it.
    eval_split: str = "validation"
    #: caffe: the photograph squashed to a square, of which a crop is taken.
    #: torchvision: random boxes to train on, the middle of the photograph to judge on.
    convention: Convention = "caffe"
    #: Side of the square (caffe), length of the shorter side to judge on (torchvision).
    resize: int = 256
    #: Side of what the network sees. None: what the network was made for, 227 for
    #: Caffe's AlexNet, 224 for VGG-16 and torchvision's AlexNet.
    crop: int | None = None
    #: Processes that decode, beside each process that trains; 0: threads of that
    #: process, whose Python is the limit beyond some 8 cores: one for each 8 is a good
    #: number. They hand batches over in /dev/shm, which a container may have little of.
    workers: int = 0
    #: Threads that decode, in each of these processes. None: one for each core that the
    #: process may use, divided among them.
    threads: int | None = None
    #: Batches that lie ready on the device.
    prefetch: int = 2
    #: Broken images that each process leaves out, with a warning, before it stops.
    max_broken: int = 20


def crop_side(images: Images) -> int:
    """Gives the side of what the network sees."""
    return crop_of(images.convention) if images.crop is None else images.crop


def check_images(images: Images) -> None:
    """Checks ranges.

    Raises:
      Refused: naming the flag, its value and what was expected.
    """
    side, threads = crop_side(images), images.threads
    rules = (
        ("resize", images.resize, images.resize >= 1, "1 or more"),
        ("crop", side, 1 <= side <= images.resize, f"1 to {images.resize} (--resize)"),
        ("workers", images.workers, images.workers >= 0, "0 or more"),
        ("threads", threads, threads is None or threads >= 1, "1 or more"),
        ("prefetch", images.prefetch, images.prefetch >= 1, "1 or more"),
        ("max-broken", images.max_broken, images.max_broken >= 0, "0 or more"),
    )
    for flag, value, good, expected in rules:
        if not good:
            raise Refused(f"--{flag} is {value}, expected {expected}.")
