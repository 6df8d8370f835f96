"""Published weights of AlexNet, VGG-16 and SqueezeNet, loaded into our params.

Each network's table says what other frameworks call its layers. Where a framework
published weights of another network under the same name, or of the same one for images
prepared in another way, as for VGG-16, the table has nothing for it and the file is
refused: its weights would load and then classify badly.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import jax

from experiments.models.network import Network
from jaxprune import Params, interop


class Names(NamedTuple):
    """What the layers of a network are called in files, by our names.

    Attributes:
      torch: in torchvision's state dict.
      caffe: in Caffe's published prototxt.
      net: our names in the order of a compressed `.net` file.
    """

    torch: Mapping[str, str] = {}
    caffe: Mapping[str, str] = {}
    net: tuple[str, ...] = ()


_ALEXNET = ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8")
_ALEXNET_TORCH = (0, 3, 6, 8, 10, 1, 4, 6)
_VGG16 = (
    *("conv1_1", "conv1_2", "conv2_1", "conv2_2", "conv3_1", "conv3_2", "conv3_3"),
    *("conv4_1", "conv4_2", "conv4_3", "conv5_1", "conv5_2", "conv5_3"),
    *("fc6", "fc7", "fc8"),
)
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


NAMES: Mapping[str, Names] = {
    "AlexNet": Names(caffe={name: name for name in _ALEXNET}, net=_ALEXNET),
    "AlexNet-torchvision": Names(torch=_torchvision(_ALEXNET, _ALEXNET_TORCH)),
    "VGG-16": Names(caffe={name: name for name in _VGG16}, net=_VGG16),
    "VGG-16-torchvision": Names(torch=_torchvision(_VGG16, _VGG16_TORCH)),
    # torchvision's SqueezeNet does not pad the last convolution: another network.
    "SqueezeNet": Names(caffe=_SQUEEZENET, net=tuple(_SQUEEZENET)),
}
"""The tables by the networks' names."""

_TORCH = ("{}.weight", "{}.bias")
_CAFFE = ("{}/0", "{}/1")


def load_weights(path: Path, params_like: Params, network: Network) -> Params:
    """Loads a file of published weights, or one that a run of ours wrote.

    The ending tells the format: `.pth` or `.pt`, `.safetensors` (torchvision's names,
    or ours, which are the leaves' paths and fit any network), `.caffemodel`, `.net`.

    Args:
      path: the file.
      params_like: the network's params or their shapes.
      network: whose params they are.

    Raises:
      ImportError: if a package that reads this format is not installed.
      OSError: if the file cannot be opened.
      ValueError: naming the file, if it is damaged or of another network, with every
        tensor that is missing, extra or misshapen; if no weights of its framework fit
        the network; or if its ending is none of these.
    """
    names = NAMES.get(network.name, Names())
    match path.suffix.lower():
        case ".pth" | ".pt":
            _refuse_unless_named(path, network, "torch")
            tensors = interop.read_torch(path)
            layers, pattern = names.torch, _TORCH
        case ".safetensors":
            tensors = interop.read_safetensors(path)
            ours = interop.same_sources(params_like)
            if not ours.keys().isdisjoint(tensors):
                return interop.load_into(params_like, tensors, ours, origin=str(path))
            _refuse_unless_named(path, network, "torch")
            layers, pattern = names.torch, _TORCH
        case ".caffemodel":
            _refuse_unless_named(path, network, "caffe")
            tensors = interop.read_caffemodel(path)
            layers, pattern = names.caffe, _CAFFE
        case ".net":
            _refuse_unless_named(path, network, "net")
            tensors = interop.read_net(path, net_shapes(params_like, names.net))
            layers, pattern = {name: name for name in names.net}, _TORCH
        case _:
            raise ValueError(
                f"{path} ends in {path.suffix!r}, expected .pth, .pt, .safetensors, "
                ".caffemodel or .net."
            )
    maps = {kernel.rpartition("/")[0]: m for kernel, m in network.flatten.items()}
    sources = interop.sources_of(params_like, layers, pattern, maps)
    return interop.load_into(params_like, tensors, sources, origin=str(path))


def net_shapes(
    params_like: Params, layers: Iterable[str]
) -> dict[str, tuple[int, ...]]:
    """Gives the weights' shapes of layers as a `.net` file has them.

    Args:
      params_like: params or their shapes.
      layers: names of layers, in the order of the file.

    Raises:
      ValueError: if the params lack one of the layers.
    """
    kernels = {
        jax.tree_util.keystr(key, simple=True, separator="/"): leaf.shape
        for key, leaf in jax.tree_util.tree_leaves_with_path(params_like)
    }
    shapes = {}
    for name in layers:
        if f"{name}/kernel" not in kernels:
            raise ValueError(f"no {name}/kernel among {', '.join(kernels)}.")
        *size, inputs, outputs = kernels[f"{name}/kernel"]
        shapes[name] = (outputs, inputs, *size)
    return shapes


def _refuse_unless_named(path: Path, network: Network, kind: str) -> None:
    fitting = [name for name, names in NAMES.items() if getattr(names, kind)]
    if network.name not in fitting:
        named = {"torch": "torchvision", "caffe": "Caffe", "net": "a .net file"}[kind]
        raise ValueError(
            f"{path} is taken for weights from {named}, which fit "
            f"{', '.join(fitting)}, not {network.name}."
        )
