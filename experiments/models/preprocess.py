"""From pixels to the input of a network, on the device, inside jit."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Kind(NamedTuple):
    """Input = (pixels - mean) / deviation, per channel in the order of the input.

    Attributes:
      mean: in 0..255.
      deviation: in 0..255.
      bgr: whether the input's channels are blue, green, red.
    """

    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    bgr: bool = False


KINDS = {
    "unit": Kind((0.0,), (255.0,)),
    "caffe": Kind((104.0, 117.0, 123.0), (1.0, 1.0, 1.0), bgr=True),
    "torchvision": Kind(
        (0.485 * 255, 0.456 * 255, 0.406 * 255), (0.229 * 255, 0.224 * 255, 0.225 * 255)
    ),
    # Of CIFAR-10's training pixels.
    "cifar10": Kind((125.3, 123.0, 113.9), (63.0, 62.1, 66.7)),
}
"""What the networks expect: "unit" is pixels / 255, of any number of channels."""


def preprocess(pixels: jax.Array, kind: str) -> jax.Array:
    """Turns pixels into the input of a network.

    Args:
      pixels: uint8 (batch, height, width, channels), red, green, blue if three.
      kind: a key of `KINDS`, such as a network's `preprocessing`.

    Returns:
      float32, of the same shape.

    Raises:
      ValueError: if `kind` is unknown, pixels are not uint8, or they have another
        number of channels.
    """
    if kind not in KINDS:
        raise ValueError(f"kind is {kind!r}, expected one of {sorted(KINDS)}.")
    mean, deviation, bgr = KINDS[kind]
    if pixels.dtype != jnp.uint8:
        raise ValueError(
            f"pixels are {pixels.dtype}, expected uint8: values from 0 to 255."
        )
    if len(mean) not in (1, pixels.shape[-1]):
        raise ValueError(
            f"pixels have shape {pixels.shape}, expected {len(mean)} channels last, as "
            f"{kind!r} needs."
        )
    x = (pixels[..., ::-1] if bgr else pixels).astype(jnp.float32)
    if any(mean):
        x = x - np.array(mean, np.float32)
    if set(deviation) == {1.0}:
        return x
    return x / np.array(deviation, np.float32)
