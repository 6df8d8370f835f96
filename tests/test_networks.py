"""What the networks say of themselves: sizes, FLOP, links, dropouts, preprocessing."""

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy
from quick import quick

from experiments import models
from experiments.models import alexnet, layers
from experiments.models.preprocess import KINDS


NETWORKS = {
    network.name: network
    for network in (
        models.LENET300,
        models.LENET5,
        models.ALEXNET,
        models.ALEXNET_TORCHVISION,
        models.ALEXNET_CIFAR10,
        models.VGG16_CAFFE,
        models.VGG16_TORCHVISION,
        models.VGG16_CIFAR10,
        models.SQUEEZENET,
    )
}
PARAMETERS = {
    "AlexNet": 60_965_224,
    "AlexNet-torchvision": 61_100_840,
    "VGG-16": 138_357_544,
    "VGG-16-torchvision": 138_357_544,
    "SqueezeNet": 1_248_424,
}
# Tables 4 and 5 of the paper: thousands of weights, millions of FLOP.
ALEXNET_TABLE = {
    "conv1": (35, 211),
    "conv2": (307, 448),
    "conv3": (885, 299),
    "conv4": (663, 224),
    "conv5": (442, 150),
    "fc6": (38_000, 75),
    "fc7": (17_000, 34),
    "fc8": (4_000, 8),
}
VGG_TABLE = {
    "conv1_1": (2, 200),
    "conv1_2": (37, 3_700),
    "conv2_1": (74, 1_800),
    "conv2_2": (148, 3_700),
    "conv3_1": (295, 1_800),
    "conv3_2": (590, 3_700),
    "conv3_3": (590, 3_700),
    "conv4_1": (1_000, 1_800),
    "conv4_2": (2_000, 3_700),
    "conv4_3": (2_000, 3_700),
    "conv5_1": (2_000, 925),
    "conv5_2": (2_000, 925),
    "conv5_3": (2_000, 925),
    "fc6": (103_000, 206),
    "fc7": (17_000, 34),
    "fc8": (4_000, 8),
}


def images_of(network, batch=1, side=None):
    height, width, channels = network.input
    return jnp.zeros((batch, side or height, side or width, channels))


@functools.cache
def shapes_of(name) -> Any:
    network = NETWORKS[name]
    return jax.eval_shape(network.module.init, jax.random.key(0), images_of(network))[
        "params"
    ]


def by_path(tree):
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def kernels_of(name):
    return {p: k for p, k in by_path(shapes_of(name)).items() if k.ndim > 1}


def outputs_of(network) -> Any:
    """Shape and dtype of each layer's output, by path."""
    _, state = jax.eval_shape(
        lambda params, x: network.module.apply(
            {"params": params}, x, capture_intermediates=True, mutable="intermediates"
        ),
        shapes_of(network.name),
        images_of(network),
    )
    return by_path(state["intermediates"])


# Sizes.


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters(name):
    leaves = jax.tree.leaves(shapes_of(name))
    assert sum(leaf.size for leaf in leaves) == PARAMETERS[name]


def test_squeezenets_weights():
    """The count of the published file, biases apart."""
    kernels = kernels_of("SqueezeNet")
    assert sum(kernel.size for kernel in kernels.values()) == 1_244_448
    assert kernels["fire2/squeeze/kernel"].shape == (1, 1, 96, 16)
    assert kernels["fire5/expand3/kernel"].shape == (3, 3, 32, 128)
    assert kernels["conv_final/kernel"].shape == (1, 1, 512, 1000)


@pytest.mark.parametrize(
    ("name", "table", "total"),
    [("AlexNet", ALEXNET_TABLE, 1500), ("VGG-16", VGG_TABLE, 30_900)],
)
def test_weights_and_flop_are_the_papers(name, table, total):
    """To less than one unit of the last digit that is printed: it does not round."""
    kernels, outputs = kernels_of(name), outputs_of(NETWORKS[name])
    flop = {}
    for layer, (weights, millions) in table.items():
        kernel = kernels[f"{layer}/kernel"]
        assert abs(kernel.size / 1000 - weights) < unit(weights)
        positions = np.prod(outputs[f"{layer}/__call__/0"].shape[1:-1])
        flop[layer] = 2 * kernel.size * positions / 1e6
        assert abs(flop[layer] - millions) < unit(millions), layer
    assert len(kernels) == len(table)
    assert abs(sum(flop.values()) - total) < 100


def unit(printed):
    """Value of the last printed digit: millions of weights, a tenth of a billion."""
    return (
        1000
        if printed >= 1000 and printed % 1000 == 0
        else (100 if printed % 100 == 0 and printed >= 200 else 1)
    )


@pytest.mark.parametrize(
    ("name", "millions", "compression"), [("AlexNet", 6.80, 9), ("VGG-16", 10.53, 13)]
)
def test_what_the_paper_keeps(name, millions, compression):
    network, kernels = NETWORKS[name], kernels_of(name)
    assert list(network.kept) == [
        path for group in network.groups.values() for path in group
    ]
    kept = sum(network.kept[path] / 100 * k.size for path, k in kernels.items())
    assert kept / 1e6 == pytest.approx(millions, abs=0.005)
    assert round(sum(k.size for k in kernels.values()) / kept) == compression
    assert network.compression == compression


@pytest.mark.parametrize("name", NETWORKS)
def test_the_description_fits_the_params(name):
    network, kernels = NETWORKS[name], kernels_of(name)
    grouped = [path for paths in network.groups.values() for path in paths]
    assert sorted(grouped) == sorted(kernels)
    assert all(kernels[path].ndim == 4 for path in network.groups["conv"])
    assert all(kernels[path].ndim == 2 for path in network.groups["fc"])
    assert set(network.dropout) == set(network.rates)
    assert set(network.dropout.values()) <= set(kernels)
    assert set(network.kept) <= set(kernels)
    for path, shape in network.flatten.items():
        assert np.prod(shape) == kernels[path].shape[0]
    logits = jax.eval_shape(
        lambda p, x: network.module.apply({"params": p}, x),
        shapes_of(name),
        images_of(network, 2),
    )
    assert logits.shape == (2, network.classes)
    assert set(network.preprocessing.split()) <= set(KINDS)


# Links.


@pytest.mark.parametrize("name", NETWORKS)
def test_links_cover_the_network(name):
    """Every kernel's rows are named once, but those that read the image."""
    network, kernels = NETWORKS[name], kernels_of(name)
    readers = {}
    for link in network.links:
        units = kernels[link.producer].shape[-1]
        span = (link.offset, link.offset + units)
        readers.setdefault(link.consumer, []).append((span, link))
    for path, found in readers.items():
        spans = sorted(span for span, _ in found)
        assert spans[0][0] == 0
        assert all(a[1] == b[0] for a, b in itertools.pairwise(spans))
        (fan, groups), *others = {(link.fan, link.groups) for _, link in found}
        assert not others
        rows = kernels[path].shape[-2]
        assert spans[-1][1] * fan == rows * groups
        assert kernels[path].shape[-1] % groups == 0
    first, last = next(iter(network.groups.values())), list(network.groups.values())[-1]
    first = (first or last)[0]
    assert set(kernels) - set(readers) == {first}
    last = (last or network.groups["conv"])[-1]
    assert set(kernels) - {link.producer for link in network.links} == {last}


# Small enough to run: sides at which every pooling is left something.
SMALL = {
    "LeNet-300-100": (models.LENET300.module, 28),
    "LeNet-5": (models.LENET5.module, 28),
    "AlexNet": (
        models.AlexNet(hidden=(alexnet.Dense(16), alexnet.Dense(16)), classes=10),
        115,
    ),
    "AlexNet-CIFAR10": (models.ALEXNET_CIFAR10.module, 32),
    "VGG-16-CIFAR10": (models.VGG16_CIFAR10.module, 32),
    "SqueezeNet": (models.SqueezeNet(classes=10), 47),
}


@functools.cache
def small(name) -> Any:
    module, side = SMALL[name]
    images = images_of(NETWORKS[name], 2, side)
    images = jax.random.normal(jax.random.key(1), images.shape)
    return module, toy.drawn(module, images), images


def rows_of(link, unit, units, rows):
    """The rows and the output channels that read a unit, by what `Link` says."""
    if link.groups > 1:
        return [unit % rows], unit // rows
    return [p * (rows // link.fan) + link.offset + unit for p in range(link.fan)], None


@pytest.mark.parametrize(
    "name",
    quick(
        ["LeNet-5", "AlexNet", "AlexNet-CIFAR10", "SqueezeNet"],
        "LeNet-5",
        "AlexNet-CIFAR10",
    ),
)
def test_a_unit_acts_through_its_links_alone(name):
    """With the rows of one unit at 0 its own weights do not matter; else they do."""
    module, params, images = small(name)
    logits = jax.jit(lambda p: module.apply({"params": p}, images))
    flat = by_path(params)
    fc6 = flat.get("fc6/kernel")
    for producer in dict.fromkeys(link.producer for link in NETWORKS[name].links):
        links = [link for link in NETWORKS[name].links if link.producer == producer]
        if any({"LRN", "GroupNorm"} & set(link.between) for link in links):
            continue
        units = flat[producer].shape[-1]
        for chosen in (1, units - 2):
            cut, push = dict(flat), dict(flat)
            bias = producer.replace("kernel", "bias")
            for link in links:
                kernel = np.array(cut[link.consumer])
                if fc6 is not None and link.consumer == "fc6/kernel":
                    link = link._replace(fan=len(kernel) // units)
                rows, group = rows_of(link, chosen, units, kernel.shape[-2])
                width = kernel.shape[-1] // link.groups
                columns = slice(None)
                if group is not None:
                    columns = slice(group * width, (group + 1) * width)
                kernel[..., rows, columns] = 0
                cut[link.consumer] = kernel
            push[bias] = flat[bias].at[chosen].add(100.0)
            both = cut | {bias: push[bias]}
            before, pushed, after = (
                np.asarray(logits(nested(params, p))) for p in (cut, push, both)
            )
            assert abs(pushed - before).max() > 1e-3 * abs(before).max(), producer
            np.testing.assert_array_equal(after, before, err_msg=producer)


def nested(params, flat):
    leaves = [flat[path] for path in by_path(params)]
    return jax.tree.unflatten(jax.tree.structure(params), leaves)


# Dropout and dtype.


@pytest.mark.parametrize(
    "name",
    quick(
        ["AlexNet", "AlexNet-CIFAR10", "VGG-16-CIFAR10", "SqueezeNet"],
        "AlexNet-CIFAR10",
    ),
)
def test_rates_are_traced_and_used(name):
    (module, params, images), traces = small(name), []

    # Params and images are arguments: constants XLA folds, and rounds otherwise.
    @jax.jit
    def apply(params, images, rates, key):
        traces.append(rates)
        return module.apply({"params": params}, images, rates, key)

    logits = functools.partial(apply, params, images)
    # With a key, since BatchNorm goes by the batch where there is one.
    dense = jax.jit(module.apply)({"params": params}, images, None, jax.random.key(0))
    none = logits(dict.fromkeys(NETWORKS[name].rates, 0.0), jax.random.key(0))
    scale = float(abs(dense).max())
    np.testing.assert_allclose(none, dense, rtol=1e-4, atol=1e-5 * scale)
    seen = [none]
    for dropout in NETWORKS[name].rates:
        for seed in (0, 1):
            rates = dict.fromkeys(NETWORKS[name].rates, 0.0) | {dropout: 0.5}
            seen.append(logits(rates, jax.random.key(seed)))
    for i, a in enumerate(seen):
        assert all(abs(a - b).max() > 1e-3 * scale for b in seen[i + 1 :])
    assert len(traces) == 1


def test_torchvisions_dropouts():
    """They lie before fc6 and fc7, so the units dropped are conv5's and fc6's."""
    network = models.ALEXNET_TORCHVISION
    assert network.dropout == {"conv5": "conv5/kernel", "fc6": "fc6/kernel"}
    module = network.module.clone(
        hidden=(alexnet.Dense(16), alexnet.Dense(16)), classes=10
    )
    images = jax.random.normal(jax.random.key(1), (1, 63, 63, 3))
    params: Any = toy.drawn(module, images)
    rates = {"conv5": jnp.float32(1 - 1e-7), "fc6": 0.0}  # every unit dropped
    silent = params["fc6"]["bias"] + 0
    apply = jax.jit(module.apply)
    got = apply({"params": params}, images, rates, jax.random.key(2))
    x = jax.nn.relu(silent)
    for layer in ("fc7", "fc8"):
        x = jax.nn.relu(x) @ params[layer]["kernel"] + params[layer]["bias"]
    np.testing.assert_allclose(got[0], x, atol=1e-6)


@pytest.mark.parametrize("name", NETWORKS)
def test_bfloat16_is_of_the_computation_alone(name):
    network = NETWORKS[name]
    half = network._replace(module=network.module.clone(dtype=jnp.bfloat16))
    params = jax.eval_shape(half.module.init, jax.random.key(0), images_of(network))[
        "params"
    ]
    assert jax.tree.map(lambda p: (p.shape, p.dtype), params) == jax.tree.map(
        lambda p: (p.shape, p.dtype), shapes_of(name)
    )
    assert {p.dtype for p in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    outputs = outputs_of(half)
    logits = outputs.pop("__call__/0")
    assert logits.dtype == jnp.float32
    assert {out.dtype for out in outputs.values()} == {jnp.dtype("bfloat16")}


@pytest.mark.parametrize("name", ["LeNet-5", "AlexNet-CIFAR10"])
def test_bfloat16_gives_nearly_the_same(name):
    module, params, images = small(name)
    narrow = module.clone(dtype=jnp.bfloat16)
    exact, half = (
        jax.jit(m.apply)({"params": params}, images) for m in (module, narrow)
    )
    error = float(abs(half - exact).max() / abs(exact).max())
    assert 1e-5 < error < 0.05


def test_dropout_in_bfloat16_keeps_the_share():
    """0.9 drawn in bfloat16 would be 116/128 or 115/128."""
    x = jnp.ones((1000, 400), jnp.bfloat16)
    y = layers.dropout(x, 0.1, jax.random.key(0))
    assert y.dtype == jnp.bfloat16
    error = (0.1 * 0.9 / x.size) ** 0.5
    assert float((y == 0).mean()) == pytest.approx(0.1, abs=4 * error)


# Preprocessing.


def test_preprocessing_is_caffes_and_torchvisions():
    pixels = np.random.default_rng(0).integers(0, 256, (2, 5, 4, 3), np.uint8)
    caffe = pixels[..., [2, 1, 0]] - np.array([104.0, 117.0, 123.0])
    torchvision = (pixels / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    expected = {"caffe": caffe, "torchvision": torchvision, "unit": pixels / 255}
    for kind, values in expected.items():
        got = jax.jit(models.preprocess, static_argnums=1)(pixels, kind)
        assert got.dtype == jnp.float32
        np.testing.assert_allclose(got, values, rtol=1e-5, atol=1e-5)


def test_grey_images_have_one_channel():
    digits = np.full((1, 2, 2, 1), 51, np.uint8)
    np.testing.assert_allclose(models.preprocess(jnp.asarray(digits), "unit"), 0.2)


@pytest.mark.parametrize(
    ("shape", "dtype", "kind", "message"),
    [
        ((1, 2, 2, 3), "uint8", "imagenet", r"kind is 'imagenet', expected one of"),
        ((1, 2, 2, 3), "float32", "caffe", "pixels are float32, expected uint8"),
        ((1, 2, 2, 1), "uint8", "caffe", r"shape \(1, 2, 2, 1\), expected 3 channels"),
    ],
)
def test_wrong_pixels_are_refused(shape, dtype, kind, message):
    with pytest.raises(ValueError, match=message):
        models.preprocess(jnp.zeros(shape, dtype), kind)
