"""The LeNets: sizes of the paper, PyTorch as the reference, pooling, dropout."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.models import LENET5, LENET300, layers


NETWORKS = {"lenet300": LENET300, "lenet5": LENET5}
SIZES = {
    "lenet300": {"fc1": (784, 300), "fc2": (300, 100), "fc3": (100, 10)},
    "lenet5": {
        "conv1": (5, 5, 1, 20),
        "conv2": (5, 5, 20, 50),
        "fc1": (800, 500),
        "fc2": (500, 10),
    },
}
FORMULATIONS = {
    "dot": layers.conv_max_pool_dot,
    "xla": layers.conv_max_pool_xla,
}


@functools.cache
def params_of(name) -> Any:  # read only
    images = jnp.zeros((1, 28, 28, 1))
    return NETWORKS[name].module.init(jax.random.key(0), images)["params"]


def apply(network, params, *args) -> Any:  # flax's own type is a union
    return network.module.apply({"params": params}, *args)


def digits(batch=7, seed=0):
    draw = np.random.default_rng(seed)
    images = draw.random((batch, 28, 28, 1), dtype=np.float32)
    return images, draw.integers(0, 10, batch)


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


@pytest.fixture(params=FORMULATIONS)
def formulation(request, monkeypatch):
    way = FORMULATIONS[request.param]
    monkeypatch.setattr(layers, "conv_pool", lambda x, k, bias: way(x, k) + bias)
    return request.param


# Sizes.


@pytest.mark.parametrize(
    ("name", "count"), [("lenet300", 266_610), ("lenet5", 431_080)]
)
def test_parameters(name, count):
    params = params_of(name)
    assert sum(p.size for p in jax.tree.leaves(params)) == count
    kernels = {layer: leaf["kernel"].shape for layer, leaf in params.items()}
    assert kernels == SIZES[name]
    assert {leaf["bias"].shape for leaf in params.values()} == {
        shape[-1:] for shape in SIZES[name].values()
    }
    assert all(p.dtype == jnp.float32 for p in jax.tree.leaves(params))


@pytest.mark.parametrize(
    ("name", "rounded", "survivors"),
    [
        ("lenet300", {"fc1": 235, "fc2": 30, "fc3": 1}, 22),
        ("lenet5", {"conv1": 0.5, "conv2": 25, "fc1": 400, "fc2": 5}, 36),
    ],
)
def test_thousands_of_weights_are_the_papers(name, rounded, survivors):
    network = NETWORKS[name]
    sizes = {f"{k}/kernel": np.prod(shape) for k, shape in SIZES[name].items()}
    assert {k: round(v / 1000, 0 if v > 999 else 1) for k, v in sizes.items()} == {
        f"{k}/kernel": v for k, v in rounded.items()
    }
    assert list(network.kept) == list(sizes)
    kept = sum(network.kept[path] / 100 * size for path, size in sizes.items())
    assert round(kept / 1000) == survivors


@pytest.mark.parametrize("name", NETWORKS)
def test_tables_name_kernels(name):
    network = NETWORKS[name]
    kernels = {f"{layer}/kernel" for layer in SIZES[name]}
    grouped = [path for paths in network.groups.values() for path in paths]
    assert sorted(grouped) == sorted(kernels)
    assert set(network.dropout) == set(network.rates)
    assert set(network.dropout.values()) <= kernels
    assert all(0 < rate < 1 for rate in network.rates.values())


def test_init_is_caffes_xavier():
    for layer, leaf in params_of("lenet5").items():
        fan_in = np.prod(leaf["kernel"].shape[:-1])
        assert not leaf["bias"].any(), layer
        assert abs(leaf["kernel"]).max() <= np.sqrt(3 / fan_in)
        assert np.std(leaf["kernel"]) == pytest.approx(fan_in**-0.5, rel=0.1)


# PyTorch as the reference.


def torch_logits(torch, name, params, images):
    """The same network from torch layers, with leaves that collect gradients."""
    F = torch.nn.functional
    leaves = {
        f"{layer}/{kind}": torch.tensor(np.asarray(leaf[kind]), requires_grad=True)
        for layer, leaf in params.items()
        for kind in leaf
    }

    def conv(x, layer):  # HWIO to torch's OIHW
        kernel = leaves[f"{layer}/kernel"].permute(3, 2, 0, 1)
        return F.max_pool2d(F.conv2d(x, kernel, leaves[f"{layer}/bias"]), 2)

    def dense(x, layer):
        return x @ leaves[f"{layer}/kernel"] + leaves[f"{layer}/bias"]

    x = torch.from_numpy(images).permute(0, 3, 1, 2)
    if name == "lenet300":
        x = F.relu(dense(x.flatten(1), "fc1"))
        return dense(F.relu(dense(x, "fc2")), "fc3"), leaves
    x = conv(conv(x, "conv1"), "conv2").permute(0, 2, 3, 1).flatten(1)
    return dense(F.relu(dense(x, "fc1")), "fc2"), leaves


@pytest.mark.usefixtures("formulation")
@pytest.mark.parametrize("name", NETWORKS)
def test_logits_and_gradients_are_torchs(name):
    torch = pytest.importorskip("torch", reason="PyTorch is the reference here")
    network, (images, labels) = NETWORKS[name], digits()
    params = jax.tree.map(lambda p: p + 0.01, params_of(name))  # biases count too

    def loss_of(params):
        logits = apply(network, params, images)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean(), logits

    grads, logits = jax.jit(jax.grad(loss_of, has_aux=True))(params)
    expected, leaves = torch_logits(torch, name, params, images)
    torch.nn.functional.cross_entropy(expected, torch.from_numpy(labels)).backward()

    np.testing.assert_allclose(
        logits, expected.detach(), rtol=1e-4, atol=1e-4 * float(abs(logits).max())
    )
    for path, leaf in leaves.items():
        layer, kind = path.split("/")
        got, scale = grads[layer][kind], float(leaf.grad.abs().max())
        assert scale > 0
        np.testing.assert_allclose(
            got, leaf.grad, rtol=1e-4, atol=1e-4 * scale, err_msg=path
        )


# Convolution and pooling.


@pytest.mark.parametrize(
    ("side", "size", "inputs"),
    [
        (6, 1, 3),
        pytest.param(8, 3, 2, marks=pytest.mark.slow),
        pytest.param(12, 5, 4, marks=pytest.mark.slow),
    ],
)
def test_both_formulations_agree(side, size, inputs):
    x = normal(0, 3, side, side, inputs)
    kernel = normal(1, size, size, inputs, 6)
    out = (side - size + 1) // 2
    cotangent = normal(2, 3, out, out, 6)

    def value_and_grads(f):
        y, pullback = jax.vjp(f, x, kernel)
        return y, pullback(cotangent)

    got = jax.jit(value_and_grads, static_argnums=0)(layers.conv_max_pool_dot)
    expected = jax.jit(value_and_grads, static_argnums=0)(layers.conv_max_pool_xla)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
        got,
        expected,
    )


def test_pooling_is_the_maximum():
    x = normal(0, 3, 6, 4, 5)
    np.testing.assert_array_equal(
        layers.max_pool(x), x.reshape(3, 3, 2, 2, 2, 5).max((2, 4))
    )
    nan = x.at[0, 0, 1, 2].set(jnp.nan)
    assert jnp.isnan(layers.max_pool(nan)).sum() == 1


@pytest.mark.parametrize(
    ("window", "winner"),
    [
        ([5, 5, 5, 5], 0),
        ([1, 5, 5, 5], 1),
        ([1, 2, 5, 5], 2),
        ([5, 1, 1, 5], 0),
        ([1, 5, 1, 5], 1),
        ([0, -1, -1, 0], 0),
        ([1, 2, 3, 4], 3),
    ],
)
def test_a_tie_sends_the_gradient_to_the_first(window, winner):
    x = jnp.array(window, jnp.float32).reshape(1, 2, 2, 1)
    got = jax.grad(lambda x: layers.max_pool(x).sum())(x).ravel()
    np.testing.assert_array_equal(got, np.eye(4)[winner])
    torch = pytest.importorskip("torch", reason="PyTorch is the reference here")
    t = torch.tensor(np.asarray(x).reshape(1, 1, 2, 2), requires_grad=True)
    torch.nn.functional.max_pool2d(t, 2).sum().backward()
    np.testing.assert_array_equal(got, t.grad.ravel())


def test_a_tie_within_the_network_sends_the_gradient_to_the_first():
    """A constant image ties every window; both formulations choose alike."""
    x, kernel = jnp.ones((1, 8, 8, 1)), jnp.ones((3, 3, 1, 2))
    grads = [
        jax.grad(lambda x, f=f: f(x, kernel).sum())(x) for f in FORMULATIONS.values()
    ]
    np.testing.assert_array_equal(*grads)
    assert not grads[0][0, -1].any()  # the last row is in no first window


# Dropout.


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.8])
def test_dropout_statistics(rate):
    n = 40_000
    y = np.asarray(layers.dropout(jnp.ones((200, n // 200)), rate, jax.random.key(1)))
    dropped = y == 0
    np.testing.assert_allclose(y[~dropped], 1 / (1 - rate), rtol=1e-6)
    error = np.sqrt(rate * (1 - rate) / n)
    assert abs(dropped.mean() - rate) < 4 * error


def test_rate_zero_is_the_identity():
    x = normal(0, 30, 40)
    np.testing.assert_array_equal(layers.dropout(x, 0.0, jax.random.key(2)), x)
    drop = jax.jit(layers.dropout)
    np.testing.assert_array_equal(drop(x, jnp.float32(0), jax.random.key(2)), x)


@pytest.mark.parametrize("name", NETWORKS)
def test_rates_are_traced_and_used(name):
    network, params, (images, _) = NETWORKS[name], params_of(name), digits()
    traces = []

    @jax.jit
    def logits(rates, key):
        traces.append(rates)
        return apply(network, params, images, rates, key)

    dense = apply(network, params, images)
    rates = dict.fromkeys(network.rates, 0.0)
    none = logits(rates, jax.random.key(0))
    np.testing.assert_allclose(none, dense, rtol=1e-4, atol=1e-5)
    seen = [none]
    for dropout in network.rates:
        for seed in (0, 1):
            seen.append(logits(rates | {dropout: 0.5}, jax.random.key(seed)))
    for i, a in enumerate(seen):
        assert all(abs(a - b).max() > 1e-3 for b in seen[i + 1 :])
    assert len(traces) == 1


def test_wrong_rates_are_refused():
    params, (images, _) = params_of("lenet5"), digits()
    with pytest.raises(ValueError, match=r"rates names \['fc2'\].*\['fc1'\]"):
        apply(LENET5, params, images, {"fc2": 0.5}, jax.random.key(0))
    with pytest.raises(ValueError, match="rng is None"):
        apply(LENET5, params, images, {"fc1": 0.5})
