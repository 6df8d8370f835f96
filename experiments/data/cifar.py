"""CIFAR-10, whole in memory, and its augmentation, which runs on the device."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from experiments.config import Refused
from experiments.data.decode import Broken, decode
from experiments.data.digits import Split
from experiments.data.sources import data_root
from experiments.data.tfds import how_to_prepare, open_tfds, tfds_folder


def load_cifar10(data_dir: Path | None, split: str) -> Split:
    """Reads a split of CIFAR-10.

    Args:
      data_dir: folder of TFDS that holds cifar10/; `None`: TFDS_DATA_DIR, else
        ~/tensorflow_datasets.
      split: 'train', 'test' or a slice, 'train[:45000]'.

    Returns:
      Images, uint8, (n, 32, 32, 3), RGB, and labels, int32, (n,), in the order of the
      files.

    Raises:
      Refused: if it is not there, with the commands that prepare it; if there is no
        such split; if an image is broken.
    """
    root = data_root(data_dir)
    folder = tfds_folder(root, "cifar10")
    if folder is None:
        raise Refused(
            f"CIFAR-10 is not in {root}, the data folder (--data-dir, else "
            f"TFDS_DATA_DIR, else ~/tensorflow_datasets).\n"
            f"{how_to_prepare(root, 'cifar10')}"
        )
    records = open_tfds(folder, split)
    images = np.empty((len(records), 32, 32, 3), np.uint8)
    labels = np.empty(len(records), np.int32)
    for index in range(len(records)):
        try:
            data, labels[index] = records.read(index)
            pixels = decode(data)
            if pixels.shape != images.shape[1:]:
                raise Broken(f"its shape is {pixels.shape}, expected (32, 32, 3)")
            images[index] = pixels
        except Broken as error:
            raise Refused(f"{records.name(index)} is broken: {error}") from error
    return Split(images, labels)


def augment(key: jax.Array, images: jax.Array, pad: int = 4) -> jax.Array:
    """Shifts each image by up to `pad` pixels and reflects every second one.

    Args:
      key: of what is drawn.
      images: (n, height, width, channels), of any dtype.
      pad: black pixels around an image, of which a crop of its own size is taken.

    Returns:
      Images of the same shape and dtype.

    Source:
      He et al. 2016 (arXiv:1512.03385), section 4.2.
    """
    count, height, width, channels = images.shape
    shift_key, flip_key = jax.random.split(key)
    corners = jax.random.randint(shift_key, (count, 2), 0, 2 * pad + 1)
    flips = jax.random.bernoulli(flip_key, shape=(count,))
    padded = jnp.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))

    def one(image: jax.Array, corner: jax.Array, flip: jax.Array) -> jax.Array:
        start = (corner[0], corner[1], 0)
        crop = jax.lax.dynamic_slice(image, start, (height, width, channels))
        return jnp.where(flip, crop[:, ::-1], crop)

    return jax.vmap(one)(padded, corners, flips)
