"""Where each leaf comes from, and how its axes lie there and here."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import numpy as np

from jaxprune._paths import leaf_name
from jaxprune._types import Params


class Layout(NamedTuple):
    """An order of axes and its inverse.

    Attributes:
      name: the axes as the source has them, for messages.
      read: from the source's order to ours; a ValueError if the array cannot have it.
      write: from ours back to the source's.
    """

    name: str
    read: Callable[[np.ndarray], np.ndarray]
    write: Callable[[np.ndarray], np.ndarray]


class Source(NamedTuple):
    """The tensor that a leaf is loaded from, and how that tensor is laid out."""

    name: str
    layout: Layout


def _axes(name: str, read: tuple[int, ...]) -> Layout:
    write = tuple(int(i) for i in np.argsort(read))
    return Layout(name, lambda a: a.transpose(read), lambda a: a.transpose(write))


AS_IS = Layout("as is", lambda a: a, lambda a: a)
"""Biases, and files of our own."""

CONV = _axes("out, in, height, width", (2, 3, 1, 0))
"""Convolutions of PyTorch and Caffe, grouped ones too; ours: height, width, in, out."""

DENSE = _axes("out, in", (1, 0))
"""Dense layers of PyTorch and Caffe; ours are (in, out)."""


def flattened(channels: int, height: int, width: int) -> Layout:
    """Gives the layout of a dense layer that reads flattened feature maps.

    PyTorch and Caffe flatten over channels, height, width, and we over height, width,
    channels, so the inputs are in another order beside the layer being transposed.

    >>> flattened(2, 1, 2).read(np.array([[11, 12, 21, 22]]))[:, 0]
    array([11, 21, 12, 22])

    Args:
      channels: of the feature maps, like the other two before the flatten.
      height: rows of the feature maps.
      width: columns of the feature maps.
    """
    maps = (channels, height, width)

    def read(a: np.ndarray) -> np.ndarray:
        out, _ = a.shape
        return CONV.read(a.reshape(out, *maps)).reshape(-1, out)

    def write(a: np.ndarray) -> np.ndarray:
        _, out = a.shape
        return CONV.write(a.reshape(height, width, channels, out)).reshape(out, -1)

    return Layout(f"out, in = {channels} x {height} x {width}", read, write)


def sources_of(
    params_like: Params,
    layers: Mapping[str, str],
    names: tuple[str, str] = ("{}.weight", "{}.bias"),
    maps: Mapping[str, tuple[int, int, int]] | None = None,
) -> dict[str, Source]:
    """Derives where every leaf of a network comes from, given the layers' names.

    Leaves of four dimensions are convolutions, of two dense layers, of one biases.

    >>> like = {"fc": {"kernel": jax.ShapeDtypeStruct((3, 2), np.float32)}}
    >>> sources_of(like, {"fc": "classifier.0"})["fc/kernel"].name
    'classifier.0.weight'

    Args:
      params_like: params or their shapes; a layer is a path less its last segment.
      layers: the source's name of each of our layers.
      names: how the source names weight and bias of a layer, "{}" being the layer:
        PyTorch's as by default, Caffe's ("{}/0", "{}/1").
      maps: channels, height and width before the flatten, for each of our dense
        layers that reads flattened feature maps.

    Raises:
      ValueError: if `layers` or `maps` name a layer that the params lack, if a layer
        is not in `layers`, if a leaf has another number of dimensions, or if two
        leaves would come from one tensor, as scale and bias of a norm would.
    """
    maps = {} if maps is None else maps
    found: dict[str, Source] = {}
    present: set[str] = set()
    for key, leaf in jax.tree_util.tree_leaves_with_path(params_like):
        path = leaf_name(key)
        layer = path.rpartition("/")[0]
        present.add(layer)
        if layer not in layers:
            raise ValueError(
                f"`layers` has no name for {layer!r}, the layer of {path}; it names "
                f"{', '.join(layers)}."
            )
        if leaf.ndim not in (1, 2, 4):
            raise ValueError(
                f"{path} has shape {leaf.shape}, expected one, two or four dimensions; "
                "give it a Source by hand."
            )
        if leaf.ndim == 2 and layer in maps:
            layout = flattened(*maps[layer])
        else:
            layout = {1: AS_IS, 2: DENSE, 4: CONV}[leaf.ndim]
        name = names[leaf.ndim == 1].format(layers[layer])
        if twin := next((p for p, source in found.items() if source.name == name), ""):
            raise ValueError(
                f"{twin} and {path} would both come from {name}; give them Sources by "
                "hand."
            )
        found[path] = Source(name, layout)
    if absent := [layer for layer in (*layers, *maps) if layer not in present]:
        raise ValueError(
            f"`layers` or `maps` name {', '.join(absent)}, which the params lack; they "
            f"have {', '.join(sorted(present))}."
        )
    return found


def same_sources(params_like: Params) -> dict[str, Source]:
    """Gives the sources of a file whose tensors are named and laid out as ours are."""
    paths = jax.tree_util.tree_leaves_with_path(params_like)
    return {leaf_name(key): Source(leaf_name(key), AS_IS) for key, _ in paths}
