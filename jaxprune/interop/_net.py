"""Compressed `.net` files, whose coding `_netcode.py` describes, from and to disk."""

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path

import numpy as np

from jaxprune._whole import write_whole
from jaxprune.interop._netcode import NetLayer, decode_net, encode_net


def read_net(
    path: str | PathLike[str], shapes: Mapping[str, Sequence[int]]
) -> dict[str, np.ndarray]:
    """Reads a compressed `.net` file as dense float32 arrays.

    Args:
      path: the file.
      shapes: the weight's shape of every layer by name, in the order of the file:
        (out, in / groups, height, width) or (out, in).

    Returns:
      Arrays named "conv1.weight", "conv1.bias" and so on.

    Raises:
      OSError: if the file cannot be opened.
      ValueError: as `decode_net`.
    """
    return net_tensors(decode_net(Path(path).read_bytes(), shapes, origin=str(path)))


def net_tensors(layers: Mapping[str, NetLayer]) -> dict[str, np.ndarray]:
    """Gives the dense weights and biases of layers, as `read_net` names them."""
    tensors = {}
    for name, layer in layers.items():
        tensors[f"{name}.weight"] = layer.codebook[layer.codes]
        tensors[f"{name}.bias"] = layer.bias
    return tensors


def write_net(path: str | PathLike[str], layers: Mapping[str, NetLayer]) -> None:
    """Writes a compressed `.net` file, whole or not at all.

    Raises:
      OSError: if the file cannot be written.
      ValueError: as `encode_net`.
    """
    write_whole(path, encode_net(layers))
