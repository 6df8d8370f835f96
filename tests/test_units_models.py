"""Removing dead units from the networks of the paper and from SqueezeNet."""

import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from quick import quick
from test_networks import NETWORKS
from test_units import kill_units

import jaxprune
from experiments import models
from experiments.models import alexnet
from experiments.models.network import resized
from experiments.models.weights import load_weights
from jaxprune.units import remove_dead


# Narrow enough to compile quickly: module, side of the image, which layers cannot lose
# units through what lies behind them.
VGG = {f"conv{b}_{i}": 12 for b in range(1, 6) for i in range(1, 4)}
FIRES = {f"fire{i}/expand{k}": 12 for i in range(2, 10) for k in (1, 3)}
NETS = {
    "LeNet-300-100": (models.LENET300.module, 28, ()),
    "LeNet-5": (models.LENET5.module, 28, ()),
    "AlexNet": (
        models.AlexNet(
            hidden=(alexnet.Dense(16), alexnet.Dense(16)),
            classes=10,
            widths={f"conv{i}": 16 for i in range(1, 6)},
        ),
        115,
        ("conv1", "conv2"),  # LRN
    ),
    "AlexNet-CIFAR10": (
        models.ALEXNET_CIFAR10.module.clone(
            widths={f"conv{i}": 16 for i in range(1, 6)} | {"fc6": 20, "fc7": 20}
        ),
        32,
        (),
    ),
    "VGG-16": (models.VGG16(units=24, classes=10, widths=VGG), 32, ()),
    "VGG-16-CIFAR10": (
        models.VGG16(units=24, classes=10, batch_norm=True, widths=VGG),
        32,
        (*VGG, "fc6", "fc7"),  # BatchNorm
    ),
    "SqueezeNet": (models.SqueezeNet(classes=10, widths=FIRES), 47, ()),
}


def small_network(name):
    module, side, _ = NETS[name]
    network = NETWORKS[name]
    x = np.random.default_rng(1).normal(size=(2, side, side, network.input[2]))
    x = jnp.asarray(x, jnp.float32)
    shapes: Any = jax.eval_shape(module.init, jax.random.key(0), x)["params"]
    network = resized(network._replace(module=module), shapes)
    # The images are smaller than the description's, so a flatten is of less.
    links = []
    for link in network.links:
        if link.fan > 1:
            rows = by_name_of(shapes)[link.consumer].shape[-2]
            link = link._replace(
                fan=rows // by_name_of(shapes)[link.producer].shape[-1]
            )
        links.append(link)
    return network._replace(links=tuple(links)), shapes, x


def by_name_of(shapes):
    return {
        jax.tree_util.keystr(key, simple=True, separator="/"): leaf
        for key, leaf in jax.tree_util.tree_leaves_with_path(shapes)
    }


def flat_pruned(network, shapes):
    """Random params and masks by layer; in either half of a layer's units three die.

    The first and the second have no inputs, and biases above and below 0; nothing reads
    the third.
    """
    rng = np.random.default_rng(7)
    params: dict[str, Any] = {}
    for path, leaf in by_name_of(shapes).items():
        name, _, part = path.rpartition("/")
        draw = rng.normal(size=leaf.shape).astype(np.float32)
        if leaf.ndim > 1:
            draw *= np.float32(2 / np.prod(leaf.shape[:-1]) ** 0.5)
        draw = draw / 4 if leaf.ndim == 1 else draw
        draw = abs(draw) + 0.5 if part == "variance" else draw
        params.setdefault(name, {})[part] = draw + 1 if part == "scale" else draw
    masks = {
        name: {
            part: np.ones(p.shape, bool) if part == "kernel" else None
            for part, p in leaves.items()
        }
        for name, leaves in params.items()
    }
    for producer in dict.fromkeys(link.producer for link in network.links):
        layer = params[producer.rpartition("/")[0]]
        half = layer["kernel"].shape[-1] // 2
        for first in (0, half):
            layer["bias"][first : first + 2] = 0.3, -0.3
            kill_units(params, masks, producer.rpartition("/")[0], (first, first + 1))
        for link in network.links:
            if link.producer == producer:
                kill_rows(params, masks, link, (2, half + 2))
    return params, masks


def kill_rows(params, masks, link, units):
    """Kills all that some units feed in a reader, by what `Link` says."""
    name = link.consumer.rpartition("/")[0]
    *_, rows, outputs = params[name]["kernel"].shape
    for u in units:
        for p in range(link.fan):
            row = p * (rows // link.fan) + link.offset + u
            columns = slice(None)
            if link.groups > 1:
                group, row = divmod(u, rows)
                width = outputs // link.groups
                columns = slice(group * width, (group + 1) * width)
            params[name]["kernel"][..., row, columns] = 0
            masks[name]["kernel"][..., row, columns] = False


def nested(flat):
    out: dict[str, Any] = {}
    for name, leaves in flat.items():
        *parents, last = name.split("/")
        home = out
        for parent in parents:
            home = home.setdefault(parent, {})
        home[last] = leaves
    return out


@pytest.mark.parametrize(
    "name",
    quick(NETS, "LeNet-300-100", "LeNet-5"),
)
def test_the_smaller_net_computes_the_same_and_trains_on(name):
    network, shapes, x = small_network(name)
    params, mask = map(nested, flat_pruned(network, shapes))
    state = jaxprune.prune(optax.adam(1e-3), jaxprune.hold, mask).init(params)
    small = remove_dead(params, mask, network.links, state)
    smaller = resized(network, small.params)

    logits = lambda net: jax.jit(lambda p: net.module.apply({"params": p}, x))
    before, after = logits(network)(params), logits(smaller)(small.params)
    scale = float(abs(before).max())
    assert float(abs(before - before.mean(0)).max()) > 1e-3 * scale  # not constant
    np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-5 * scale)

    kept = {u.layer.removesuffix("/kernel"): (u.kept, u.size) for u in small.units}
    for layer, (left, size) in kept.items():
        assert (left < size) == (layer not in NETS[name][2]), layer
    widths = lambda p: {n: leaf.shape for n, leaf in by_name_of(p).items()}
    fresh = jax.eval_shape(smaller.module.init, jax.random.key(0), x)["params"]
    assert widths(fresh) == widths(small.params)

    tx = jaxprune.prune(optax.adam(1e-3), jaxprune.hold, small.mask)

    def step(p, state):
        loss = lambda p: smaller.module.apply({"params": p}, x).std()
        updates, state = tx.update(jax.grad(loss)(p), state, p)
        return optax.apply_updates(p, updates), state

    next_ = jax.eval_shape(step, small.params, small.opt_state)
    assert jax.tree.map(jnp.shape, next_[0]) == jax.tree.map(jnp.shape, small.params)
    # What is left can be pruned no further.
    again = remove_dead(small.params, small.mask, smaller.links)
    assert all(u.kept == u.size for u in again.units)


def test_what_stays_in_alexnet_says_why():
    network, shapes, _ = small_network("AlexNet")
    params, mask = flat_pruned(network, shapes)
    small = remove_dead(nested(params), nested(mask), network.links)
    units = {u.layer: u for u in small.units}
    constant = "it is constant, and {} lies between it and {}/kernel"
    assert units["conv1/kernel"].stay == {
        constant.format("LRN", "conv2"): (0, 8),
        "through LRN it acts on its neighbours": (1, 2, 9, 10),
    }
    assert units["conv3/kernel"][2:] == (
        (2, 10), (1, 9), (), {constant.format("zero padding", "conv4"): (0, 8)},
    )  # fmt: skip
    assert units["conv5/kernel"][2:] == ((2, 10), (1, 9), (0, 8), {})
    assert units["fc7/kernel"].folded == (0, 8)


def test_flatten_and_offsets_follow():
    network, shapes, _ = small_network("SqueezeNet")
    params, mask = flat_pruned(network, shapes)
    small = remove_dead(nested(params), nested(mask), network.links)
    smaller = resized(network, small.params)
    widths = {u.layer: u.kept for u in small.units}
    offsets = {link[:2]: link.offset for link in smaller.links if link.offset}
    assert (
        offsets[("fire2/expand3/kernel", "fire3/squeeze/kernel")]
        == (widths["fire2/expand1/kernel"])
    )
    network, shapes, _ = small_network("LeNet-5")
    params, mask = flat_pruned(network, shapes)
    small = remove_dead(params, mask, network.links)
    kept = small.units[1].kept
    assert resized(network, small.params).flatten == {"fc1/kernel": (kept, 4, 4)}
    assert small.params["fc1"]["kernel"].shape[0] == 16 * kept


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.skipif("JAXPRUNE_DATA" not in os.environ, reason="JAXPRUNE_DATA not set")
def test_the_published_squeezenet_has_one_dead_unit():
    """Of fire7's 1 x 1 branch, by its rows in fire8; the logits are the same."""
    path = Path(os.environ["JAXPRUNE_DATA"]) / "squeezenet/compressed_SqueezeNet.net"
    network = models.SQUEEZENET
    x = jax.random.normal(jax.random.key(0), (1, *network.input)) * 60
    like = jax.eval_shape(network.module.init, jax.random.key(0), x)["params"]
    params = load_weights(path, like, network)
    mask = jaxprune.mask_from_zeros(params)
    kernels = by_name_of(params)
    idle, bare = {}, {}
    for link in network.links:
        n = kernels[link.producer].shape[-1]
        rows = kernels[link.consumer][..., link.offset : link.offset + n, :]
        unread = ~np.any(rows, axis=(0, 1, 3))
        idle[link.producer] = idle.get(link.producer, True) & unread
        bare[link.producer] = ~np.any(kernels[link.producer], axis=(0, 1, 2))
    dead = {n: units | bare[n] for n, units in idle.items() if (units | bare[n]).any()}
    small = remove_dead(params, mask, network.links)
    went = {u.layer: u.unread for u in small.units if u.kept < u.size}
    assert went == {n: tuple(np.flatnonzero(units)) for n, units in dead.items()}
    assert [*went] == ["fire7/expand1/kernel"]
    smaller = resized(network, small.params)
    logits = lambda net: jax.jit(lambda p: net.module.apply({"params": p}, x))
    before, after = logits(network)(params), logits(smaller)(small.params)
    np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-5)
