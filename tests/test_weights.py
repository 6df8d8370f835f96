"""Tables of names for published weights, against networks built by hand and our own."""

import math
import os
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import jaxprune
from experiments import models
from experiments.models import weights
from jaxprune import interop
from jaxprune.interop._caffe import caffe_message


def tree(shapes):
    """Params' shapes from kernels' shapes by layer."""
    params = {}
    for layer, shape in shapes.items():
        node = params
        for key in layer.split("/"):
            node = node.setdefault(key, {})
        node["kernel"] = jax.ShapeDtypeStruct(shape, jnp.float32)
        node["bias"] = jax.ShapeDtypeStruct(shape[-1:], jnp.float32)
    return params


def thin_vgg16():
    """VGG-16 with few channels, the same layers and the same 7 x 7 maps."""
    shapes, inputs = {}, 3
    for block, (count, wide) in enumerate(
        zip((2, 2, 3, 3, 3), (2, 4, 8, 16, 16), strict=True), 1
    ):
        for i in range(1, count + 1):
            shapes[f"conv{block}_{i}"] = (3, 3, inputs, wide)
            inputs = wide
    return tree({**shapes, "fc6": (784, 16), "fc7": (16, 16), "fc8": (16, 10)})


def full(network):
    """A network's own params' shapes."""
    images = jax.ShapeDtypeStruct((1, *network.input), jnp.float32)
    return jax.eval_shape(network.module.init, jax.random.key(0), images)["params"]


THIN_ALEXNET = tree(
    {
        "conv1": (11, 11, 3, 4),
        "conv2": (5, 5, 4, 6),
        "conv3": (3, 3, 6, 8),
        "conv4": (3, 3, 8, 6),
        "conv5": (3, 3, 6, 5),
        "fc6": (5 * 6 * 6, 9),
        "fc7": (9, 9),
        "fc8": (9, 7),
    }
)
THIN = {
    network.name: (like, network._replace(flatten={"fc6/kernel": maps}))
    for like, maps, networks in (
        (THIN_ALEXNET, (5, 6, 6), (models.ALEXNET, models.ALEXNET_TORCHVISION)),
        (thin_vgg16(), (16, 7, 7), (models.VGG16_CAFFE, models.VGG16_TORCHVISION)),
    )
    for network in networks
}
TORCHVISION = ["AlexNet-torchvision", "VGG-16-torchvision"]


def torchvision_net(torch, name):
    """The two networks' modules in torchvision's order, thin."""
    nn = torch.nn
    if name.startswith("AlexNet"):
        features = [
            nn.Conv2d(3, 4, 11), nn.ReLU(), nn.MaxPool2d(3, 2),
            nn.Conv2d(4, 6, 5), nn.ReLU(), nn.MaxPool2d(3, 2),
            nn.Conv2d(6, 8, 3), nn.ReLU(),
            nn.Conv2d(8, 6, 3), nn.ReLU(),
            nn.Conv2d(6, 5, 3), nn.ReLU(), nn.MaxPool2d(3, 2),
        ]  # fmt: skip
        head = [
            nn.Dropout(), nn.Linear(180, 9), nn.ReLU(),
            nn.Dropout(), nn.Linear(9, 9), nn.ReLU(),
            nn.Linear(9, 7),
        ]  # fmt: skip
    else:
        features, inputs = [], 3
        for wide in (2, 2, 0, 4, 4, 0, 8, 8, 8, 0, 16, 16, 16, 0, 16, 16, 16, 0):
            if wide:
                features += [nn.Conv2d(inputs, wide, 3, padding=1), nn.ReLU()]
                inputs = wide
            else:
                features.append(nn.MaxPool2d(2, 2))
        head = [
            nn.Linear(784, 16), nn.ReLU(), nn.Dropout(),
            nn.Linear(16, 16), nn.ReLU(), nn.Dropout(),
            nn.Linear(16, 10),
        ]  # fmt: skip
    return nn.ModuleDict(
        {"features": nn.Sequential(*features), "classifier": nn.Sequential(*head)}
    )


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvisions_names(name, suffix, tmp_path):
    torch = pytest.importorskip("torch", reason="PyTorch is the reference here")
    net = torchvision_net(torch, name)
    path = tmp_path / f"net{suffix}"
    state = net.state_dict()
    if suffix == ".pth":
        torch.save(state, path)
    else:
        safetensors.numpy.save_file({k: v.numpy() for k, v in state.items()}, path)
    like, network = THIN[name]
    params = weights.load_weights(path, like, network)
    last = state["classifier.6.weight"].numpy()
    np.testing.assert_array_equal(params["fc8"]["kernel"], last.T)
    # What fc6 makes of maps, flattened here over rows, columns, channels.
    maps = torch.rand((2, *network.flatten["fc6/kernel"]))
    first = next(m for m in net["classifier"] if isinstance(m, torch.nn.Linear))
    with torch.no_grad():
        expected = first(maps.flatten(1)).numpy()
    x = maps.permute(0, 2, 3, 1).reshape(2, -1).numpy()
    got = x @ np.asarray(params["fc6"]["kernel"]) + np.asarray(params["fc6"]["bias"])
    chex.assert_trees_all_close(got, expected, rtol=1e-5, atol=1e-6)


def caffe_file(path, like, network):
    """Writes random weights as Caffe does; gives what each of our leaves should be."""
    rng, net, expected = np.random.default_rng(0), caffe_message("NetParameter")(), {}
    for layer, theirs in weights.NAMES[network.name].caffe.items():
        node = like
        for key in layer.split("/"):
            node = node[key]
        *size, inputs, outputs = node["kernel"].shape
        weight = rng.normal(size=(outputs, inputs, *size)).astype(np.float32)
        bias = rng.normal(size=outputs).astype(np.float32)
        written = net.layer.add(name=theirs)
        for tensor in (weight, bias):
            blob = written.blobs.add(data=tensor.ravel().tolist())
            blob.shape.dim.extend(tensor.shape)
        expected[f"{layer}/bias"] = bias
        if f"{layer}/kernel" not in network.flatten:
            order = (2, 3, 1, 0) if size else (1, 0)
            expected[f"{layer}/kernel"] = weight.transpose(order)
    path.write_bytes(net.SerializeToString())
    return expected


@pytest.mark.parametrize("name", ["AlexNet", "VGG-16", "SqueezeNet"])
def test_caffes_names(name, tmp_path):
    squeezenet = models.SQUEEZENET
    like, network = {**THIN, "SqueezeNet": (full(squeezenet), squeezenet)}[name]
    path = tmp_path / "net.caffemodel"
    expected = caffe_file(path, like, network)
    params = weights.load_weights(path, like, network)
    found = interop.tensors_of(params, interop.same_sources(params))
    assert expected.keys() ^ found.keys() <= {"fc6/kernel"}
    for leaf, array in expected.items():
        np.testing.assert_array_equal(found[leaf], array)


@pytest.mark.parametrize(
    "network",
    [
        models.ALEXNET,
        models.ALEXNET_TORCHVISION,
        models.VGG16_CAFFE,
        models.VGG16_TORCHVISION,
        models.SQUEEZENET,
    ],
    ids=lambda network: network.name,
)
def test_the_tables_name_the_layers_of_the_networks(network):
    kernels = {key for group in network.groups.values() for key in group}
    names, found = weights.NAMES[network.name], 0
    for layers in (names.torch, names.caffe, names.net):
        if layers:
            found += 1
            assert {f"{layer}/kernel" for layer in layers} == kernels
    assert found == (1 if network.name.endswith("torchvision") else 2)
    like = full(network)
    for kernel, maps in network.flatten.items():
        assert like[kernel.split("/")[0]]["kernel"].shape[0] == math.prod(maps)


def test_our_own_safetensors(tmp_path):
    like, network = THIN["AlexNet"]
    params = jax.tree.map(lambda s: jnp.full(s.shape, 0.5, s.dtype), like)
    arrays = interop.tensors_of(params, interop.same_sources(params))
    safetensors.numpy.save_file(arrays, tmp_path / "ours.safetensors")
    loaded = weights.load_weights(tmp_path / "ours.safetensors", like, network)
    chex.assert_trees_all_equal(loaded, params)
    del arrays["fc8/bias"]
    safetensors.numpy.save_file(arrays, tmp_path / "ours.safetensors")
    with pytest.raises(
        ValueError, match=r"ours\.safetensors does not.*\n.*missing: fc8"
    ):
        weights.load_weights(tmp_path / "ours.safetensors", like, network)


def test_files_of_another_network(tmp_path):
    like, network = THIN["AlexNet"]
    path = tmp_path / "net.caffemodel"
    caffe_file(path, like, network)
    with pytest.raises(ValueError, match=r"net\.caffemodel does not fit") as caught:
        weights.load_weights(path, *THIN["VGG-16"])
    message = str(caught.value)
    assert "missing: conv1_1/0, for conv1_1/kernel (3, 3, 3, 2)" in message
    assert "extra: conv1/0 (4, 3, 11, 11)" in message
    assert "misshapen: fc8/0 (7, 9)" in message
    with pytest.raises(ValueError, match=r"ends in '\.h5', expected \.pth"):
        weights.load_weights(tmp_path / "net.h5", like, network)


@pytest.mark.parametrize(
    ("network", "ending", "message"),
    [
        (models.SQUEEZENET, "pth", "torchvision, which fit AlexNet-t.*, VGG-16-torchv"),
        (models.VGG16_CAFFE, "safetensors", "torchvision, which .*, not VGG-16"),
        (models.VGG16_TORCHVISION, "caffemodel", "Caffe, .* VGG-16, SqueezeNet, not"),
        (models.VGG16_CIFAR10, "net", r"a \.net file, which fit .* not VGG-16-CIFAR10"),
    ],
)
def test_weights_of_another_framework_are_refused(network, ending, message, tmp_path):
    path = tmp_path / f"net.{ending}"
    safetensors.numpy.save_file({"features.0.weight": np.zeros(2)}, path)
    with pytest.raises(ValueError, match=rf"net\.{ending} is .* from {message}"):
        weights.load_weights(path, full(network), network)


def test_layers_of_a_net_file_must_be_there():
    with pytest.raises(ValueError, match="no conv1/kernel among conv1_1/bias"):
        weights.net_shapes(thin_vgg16(), weights.NAMES["AlexNet"].net)


def test_an_alexnet_from_a_net_file(tmp_path):
    like, network = THIN["AlexNet"]
    rng, layers = np.random.default_rng(0), {}
    for name, shape in weights.net_shapes(like, weights.NAMES["AlexNet"].net).items():
        size = 256 if len(shape) == 4 else 16
        codebook = np.r_[0, rng.normal(size=size - 1)].astype(np.float32)
        codes = rng.integers(size, size=shape).astype(np.uint8)
        bias = rng.normal(size=shape[0]).astype(np.float32)
        layers[name] = interop.NetLayer(codebook, codes, bias)
    interop.write_net(tmp_path / "a.net", layers)
    params = weights.load_weights(tmp_path / "a.net", like, network)
    fc6 = layers["fc6"].codebook[layers["fc6"].codes]
    # Channel 4, row 2, column 3 of five 6 x 6 maps, in Caffe's order and in ours.
    there, here = 4 * 36 + 2 * 6 + 3, (2 * 6 + 3) * 5 + 4
    np.testing.assert_array_equal(params["fc6"]["kernel"][here], fc6[:, there])
    conv2 = layers["conv2"].codebook[layers["conv2"].codes]
    np.testing.assert_array_equal(
        params["conv2"]["kernel"], conv2.transpose(2, 3, 1, 0)
    )


@pytest.mark.data
@pytest.mark.skipif("JAXPRUNE_DATA" not in os.environ, reason="JAXPRUNE_DATA not set")
def test_the_published_squeezenet_as_params():
    path = Path(os.environ["JAXPRUNE_DATA"]) / "squeezenet/compressed_SqueezeNet.net"
    like = full(models.SQUEEZENET)
    params = weights.load_weights(path, like, models.SQUEEZENET)
    mask = jaxprune.mask_from_zeros(params)
    assert sum(m.size for m in jax.tree.leaves(mask)) == 1_244_448
    assert round(100 * (1 - jaxprune.sparsity(mask)), 2) == 33.42
    # Each layer's codes from the file are those of the kernel, laid out its own way.
    layers = interop.decode_net(
        path.read_bytes(), weights.net_shapes(like, weights.NAMES["SqueezeNet"].net)
    )
    for name, layer in layers.items():
        node = params
        for key in name.split("/"):
            node = node[key]
        kernel = np.asarray(node["kernel"]).transpose(3, 2, 0, 1)
        np.testing.assert_array_equal(kernel, layer.codebook[layer.codes])
