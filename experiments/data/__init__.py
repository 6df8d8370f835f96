"""What networks are trained on and judged on: digits, CIFAR-10, photographs."""

from experiments.data.affine import distort
from experiments.data.cifar import augment, load_cifar10
from experiments.data.decode import Broken
from experiments.data.device import OnDevice
from experiments.data.digits import Digits, Split, load, put
from experiments.data.images import make_batches
from experiments.data.loader import Batch, Batches, Shard
from experiments.data.mixing import cutmix, cutout
from experiments.data.settings import Images, check_images
from experiments.data.sources import Source, check_readable, open_source


__all__ = [
    "Batch",
    "Batches",
    "Broken",
    "Digits",
    "Images",
    "OnDevice",
    "Shard",
    "Source",
    "Split",
    "augment",
    "check_images",
    "check_readable",
    "cutmix",
    "cutout",
    "distort",
    "load",
    "load_cifar10",
    "make_batches",
    "open_source",
    "put",
]
