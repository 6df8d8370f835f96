"""Published weights of AlexNet, VGG-16 and SqueezeNet, loaded into our params.

Each network's table says what other frameworks call its layers. Caffe's weights expect
BGR images from 0 to 255 less their mean, torchvision's RGB images from 0 to 1 less mean
over deviation: for VGG-16, whose shapes are the same in both, nothing but the
preprocessing tells them apart, so choose that with the file.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import jax

from jaxprune import Params, interop


class Names(NamedTuple):
    """What the layers of a network are called in files, by our names.

    Attributes:
      torch: in torchvision's state dict; empty where that network is another.
      caffe: in Caffe's published prototxt.
      net: our names in the order of a compressed `.net` file.
      maps: channels, rows and columns before the flatten, by the layer that reads it.
    """

    torch: Mapping[str, str]
    caffe: Mapping[str, str]
    net: tuple[str, ...]
    maps: Mapping[str, tuple[int, int, int]]


_ALEXNET = ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8")
_ALEXNET_TORCH = (0, 3, 6, 8, 10, 1, 4, 6)
_VGG16 = tuple(
    f"conv{block}_{i}" for block in range(1, 6) for i in range(1, 3 + (block > 2))
) + ("fc6", "fc7", "fc8")
_VGG16_TORCH = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28, 0, 3, 6)
_FIRE = {"squeeze": "squeeze1x1", "expand1": "expand1x1", "expand3": "expand3x3"}
_SQUEEZENET = {
    "conv1": "conv1",
    **{f"fire{i}/{k}": f"fire{i}/{v}" for i in range(2, 10) for k, v in _FIRE.items()},
    "conv_final": "conv10",
}


def _torchvision(names: tuple[str, ...], places: tuple[int, ...]) -> dict[str, str]:
    return {
        name: f"{'classifier' if name.startswith('fc') else 'features'}.{place}"
        for name, place in zip(names, places, strict=True)
    }


ALEXNET = Names(
    torch=_torchvision(_ALEXNET, _ALEXNET_TORCH),
    caffe={name: name for name in _ALEXNET},
    net=_ALEXNET,
    maps={"fc6": (256, 6, 6)},
)
"""torchvision's file fits `AlexNet-torchvision`, Caffe's the grouped network."""

VGG16 = Names(
    torch=_torchvision(_VGG16, _VGG16_TORCH),
    caffe={name: name for name in _VGG16},
    net=_VGG16,
    maps={"fc6": (512, 7, 7)},
)

SQUEEZENET = Names(torch={}, caffe=_SQUEEZENET, net=tuple(_SQUEEZENET), maps={})
"""Version 1.0. torchvision's does not pad the last convolution, so it is another."""


def load_weights(path: Path, params_like: Params, names: Names) -> Params:
    """Loads a file of published weights, or one that a run of ours wrote.

    The ending tells the format: `.pth` or `.pt`, `.safetensors` (torchvision's names,
    or ours, which are the leaves' paths), `.caffemodel`, `.net`.

    Args:
      path: the file.
      params_like: the network's params or their shapes.
      names: the network's table.

    Raises:
      ImportError: if a package that reads this format is not installed.
      OSError: if the file cannot be opened.
      ValueError: naming the file, if it is damaged or of another network, with every
        tensor that is missing, extra or misshapen; or if its ending is none of these.
    """
    ours = interop.same_sources(params_like)
    match path.suffix:
        case ".pth" | ".pt":
            tensors = interop.read_torch(path)
            layers, pattern = names.torch, ("{}.weight", "{}.bias")
        case ".safetensors":
            tensors = interop.read_safetensors(path)
            if not ours.keys().isdisjoint(tensors):
                return interop.load_into(params_like, tensors, ours, origin=str(path))
            layers, pattern = names.torch, ("{}.weight", "{}.bias")
        case ".caffemodel":
            tensors = interop.read_caffemodel(path)
            layers, pattern = names.caffe, ("{}/0", "{}/1")
        case ".net":
            tensors = interop.read_net(path, net_shapes(params_like, names))
            layers = {name: name for name in names.net}
            pattern = ("{}.weight", "{}.bias")
        case _:
            raise ValueError(
                f"{path} ends in {path.suffix!r}, expected .pth, .pt, .safetensors, "
                ".caffemodel or .net."
            )
    if not layers:
        raise ValueError(
            f"{path} is of a framework whose network of this name is another one."
        )
    sources = interop.sources_of(params_like, layers, pattern, names.maps)
    return interop.load_into(params_like, tensors, sources, origin=str(path))


def net_shapes(params_like: Params, names: Names) -> dict[str, tuple[int, ...]]:
    """Gives the weights' shapes as a `.net` file has them, in its order.

    Raises:
      ValueError: if the params lack one of the layers.
    """
    kernels = {
        jax.tree_util.keystr(key, simple=True, separator="/"): leaf.shape
        for key, leaf in jax.tree_util.tree_leaves_with_path(params_like)
    }
    shapes = {}
    for name in names.net:
        if f"{name}/kernel" not in kernels:
            raise ValueError(f"no {name}/kernel among {', '.join(kernels)}.")
        *size, inputs, outputs = kernels[f"{name}/kernel"]
        shapes[name] = (outputs, inputs, *size)
    return shapes
