"""Links found in programs: against those written by hand, and by what they do."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from paper_nets import INPUTS, apply, params
from quick import quick
from test_networks import NETWORKS, SMALL, shapes_of
from toy import by_name

import jaxprune
from jaxprune.units import Link, dead_units, find_links, remove_dead
from jaxprune.units._link import mixes


def shape(*of):
    return jax.ShapeDtypeStruct(of, jnp.float32)


def by_ends(links):
    return {(link.producer, link.consumer): link for link in links}


# By hand and found.


@pytest.mark.parametrize("name", quick(SMALL, "LeNet-5", "SqueezeNet"))
def test_found_links_are_those_by_hand(name):
    network = NETWORKS[name]
    x = shape(1, *network.input)
    logits = lambda p, x: network.module.apply({"params": p}, x)
    found = by_ends(find_links(logits, shapes_of(name), x))
    by_hand = by_ends(network.links)
    assert found.keys() == by_hand.keys()
    for ends, link in by_hand.items():
        other = found[ends]
        assert other.biases == tuple(path.replace("kernel", "bias") for path in ends)
        plain = link._replace(between=(), biases=None)
        assert other._replace(between=(), biases=None) == plain
        if mixes(link):
            # Of BatchNorm a found link names the params, of LRN what couples its units.
            how = "acts on it and others together"
            how = how if "LRN" in link.between else "/variance acts on it"
            assert how in str(mixes(other))
        else:
            # Which constants pass a maximum need not be said.
            acts = tuple(b for b in link.between if b != "max pool")
            assert other.between == acts


def test_the_papers_nets_as_plain_functions():
    """Grouped convolution and pooling as XLA has them; LeNet-5 with ReLUs."""
    for name in ("LeNet-5", "AlexNet"):
        x = shape(1, *INPUTS[name])
        found = by_ends(find_links(apply(name), params(name), x))
        expected = {
            "LeNet-5": [
                Link("conv1/kernel", "conv2/kernel"),
                Link("conv2/kernel", "fc1/kernel", fan=16),
                Link("fc1/kernel", "fc2/kernel"),
            ],
            "AlexNet": [
                Link("conv1/kernel", "conv2/kernel", groups=2),
                Link("conv2/kernel", "conv3/kernel"),
                Link("conv3/kernel", "conv4/kernel", groups=2),
                Link("conv4/kernel", "conv5/kernel", groups=2),
                Link("conv5/kernel", "fc1/kernel", fan=36),
                Link("fc1/kernel", "fc2/kernel"),
                Link("fc2/kernel", "fc3/kernel"),
            ],
        }[name]
        assert [*found] == [(link.producer, link.consumer) for link in expected]
        for link in expected:
            padded = name == "AlexNet" and "conv" in link.consumer
            between = ("relu", "zero padding") if padded else ("relu",)
            ends = link[:2]
            biases = tuple(path.replace("kernel", "bias") for path in ends)
            assert found[ends] == link._replace(between=between, biases=biases)


# Other layouts and frameworks: removing by what is found changes nothing.


def random_like(shapes, seed=0):
    """Params and mask: a third of the units have no inputs, a third of weights live."""
    rng = np.random.default_rng(seed)

    def make(p):
        return jnp.asarray(rng.normal(size=p.shape) / 2, jnp.float32)

    return jax.tree.map(make, shapes)


def prune_units(tree, axes, seed=1):
    """Kills a third of the units of each kernel, along the axis that counts them."""
    rng = np.random.default_rng(seed)
    masks = {}
    for path, leaf in by_name(tree).items():
        alive = np.ones(leaf.shape, bool)
        if path in axes:
            units = rng.random(leaf.shape[axes[path]]) < 1 / 3
            np.moveaxis(alive, axes[path], 0)[units] = False
        masks[path] = alive
    names = jax.tree.leaves(jaxprune._paths.leaf_names(tree))
    mask = jax.tree.unflatten(jax.tree.structure(tree), [masks[n] for n in names])
    return jaxprune.apply_mask(tree, mask), mask


@pytest.mark.slow
def test_equinox_layers_with_channels_first():
    """Kernels (out, in, ...), biases (out, 1, 1), and a flatten over channels first."""
    keys = jax.random.split(jax.random.key(0), 4)
    model = {
        "a": eqx.nn.Conv2d(2, 6, 3, key=keys[0]),
        "b": eqx.nn.Conv2d(6, 9, 3, key=keys[1]),
        "c": eqx.nn.Linear(36, 8, key=keys[2]),
        "d": eqx.nn.Linear(8, 3, use_bias=False, key=keys[3]),
    }
    tree, static = eqx.partition(model, eqx.is_array)

    def run(tree, x):
        m: Any = eqx.combine(tree, static)
        x = jax.nn.relu(m["b"](jax.nn.relu(m["a"](x))))
        x = eqx.nn.MaxPool2d(2, 2)(x).reshape(-1)
        return m["d"](jax.nn.relu(m["c"](x)))

    links = by_ends(find_links(run, tree, shape(2, 8, 8)))
    relu = ("relu",)
    assert links == {
        ("a/weight", "b/weight"): Link(
            "a/weight", "b/weight", between=relu, axes=(-4, -3, -4),
            biases=("a/bias", "b/bias"),
        ),
        ("b/weight", "c/weight"): Link(
            "b/weight", "c/weight", 4, between=relu, channels_first=True,
            axes=(-4, -1, -2), biases=("b/bias", "c/bias"),
        ),
        ("c/weight", "d/weight"): Link(
            "c/weight", "d/weight", between=relu, axes=(-2, -1, -2),
            biases=("c/bias", ""),
        ),
    }  # fmt: skip
    pruned, mask = prune_units(tree, {"a/weight": 0, "b/weight": 0})
    small = remove_dead(pruned, mask, list(links.values()))
    assert all(u.kept < u.size for u in small.units[:2])
    assert any(u.folded for u in small.units)
    x = jax.random.normal(jax.random.key(9), (2, 8, 8))

    def forward(p, x):
        """The same by shapes alone, for equinox's modules remember their widths."""
        numbers = ("NCHW", "OIHW", "NCHW")
        x = x[None]
        for name in ("a", "b"):
            x = jax.lax.conv_general_dilated(
                x, p[name].weight, (1, 1), "VALID", dimension_numbers=numbers
            )
            x = jax.nn.relu(x + p[name].bias)
        window = (1, 1, 2, 2)
        x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, window, "VALID")
        x = jax.nn.relu(p["c"].weight @ x.reshape(-1) + p["c"].bias)
        return p["d"].weight @ x

    np.testing.assert_allclose(forward(pruned, x), run(pruned, x), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(
        forward(small.params, x), run(pruned, x), rtol=1e-5, atol=1e-5
    )


def mean_net(p, x):
    """GELU, mean pooling and a padded one, then the mean over what is left."""
    conv = lambda x, w: jax.lax.conv_general_dilated(
        x, w, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    window = (1, 2, 2, 1)
    add = lambda x, pad: jax.lax.reduce_window(x, 0.0, jax.lax.add, window, window, pad)
    x = add(jax.nn.gelu(conv(x, p["a"]["kernel"]) + p["a"]["bias"]), "VALID") / 4
    x = jnp.tanh(conv(x, p["b"]["kernel"]) + p["b"]["bias"])
    x = add(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    x = jax.nn.silu(x.mean((1, 2)))
    return x @ p["c"]["kernel"] + p["c"]["bias"]


@pytest.mark.slow
def test_any_function_of_one_unit_is_evaluated():
    """A constant becomes gelu of it, silu of tanh of it: what the program computes."""
    shapes = {
        "a": {"kernel": shape(3, 3, 2, 9), "bias": shape(9)},
        "b": {"kernel": shape(2, 2, 9, 9), "bias": shape(9)},
        "c": {"kernel": shape(9, 3), "bias": shape(3)},
    }
    tree = random_like(shapes)
    links = find_links(mean_net, tree, shape(1, 10, 10, 2))
    assert [link[:2] for link in links] == [
        ("a/kernel", "b/kernel"), ("b/kernel", "c/kernel"),
    ]  # fmt: skip
    tree, mask = prune_units(tree, {"a/kernel": 3, "b/kernel": 3})
    tree["b"]["bias"] = tree["b"]["bias"].at[0].set(0)
    mask["b"]["kernel"][..., 0] = False  # 0, so that a border of zeros is no matter
    tree = jaxprune.apply_mask(tree, mask)
    x = jax.random.normal(jax.random.key(3), (2, 10, 10, 2))
    small = remove_dead(tree, mask, links)
    a, b = small.units
    assert a.folded
    assert not a.stay
    assert 0 in b.zero
    assert [*b.stay] == [
        "it is constant, and zero padding lies between it and c/kernel"
    ]
    np.testing.assert_allclose(
        mean_net(small.params, x), mean_net(tree, x), rtol=1e-5, atol=1e-5
    )


def test_two_inputs_side_by_side_and_a_scan():
    """Concatenation of two layers, read by a kernel that a scan multiplies."""

    def run(p, x):
        h = [jax.nn.relu(x @ p[n]["kernel"] + p[n]["bias"]) for n in ("a", "b")]
        x = jnp.concatenate(h, axis=-1)
        _, x = jax.lax.scan(
            lambda none, x: (none, jax.nn.relu(x @ p["c"]["kernel"])), None, x[None]
        )
        return x[0] @ p["d"]["kernel"]

    shapes = {
        "a": {"kernel": shape(3, 6), "bias": shape(6)},
        "b": {"kernel": shape(3, 5), "bias": shape(5)},
        "c": {"kernel": shape(11, 7)},
        "d": {"kernel": shape(7, 2)},
    }
    tree, mask = prune_units(random_like(shapes), {"a/kernel": 1, "c/kernel": 1})
    links = find_links(run, tree, shape(1, 3))
    assert [(*link[:2], link.offset) for link in links] == [
        ("a/kernel", "c/kernel", 0),
        ("b/kernel", "c/kernel", 6),
        ("c/kernel", "d/kernel", 0),
    ]
    mask["c"]["kernel"][7] = False  # unit 1 of b
    tree = jaxprune.apply_mask(tree, mask)
    small = remove_dead(tree, mask, links)
    assert small.units[1].unread == (1,)
    assert small.units[2].kept < 7
    x = jax.random.normal(jax.random.key(3), (4, 3))
    np.testing.assert_allclose(run(small.params, x), run(tree, x), rtol=1e-5, atol=1e-6)


# What no link describes keeps all of its units, and says why.


def dense(p, x):
    return x @ p["kernel"] + p["bias"]


def residual(p, x):
    h = jax.nn.relu(dense(p["a"], x))
    return dense(p["c"], h + jax.nn.relu(dense(p["b"], h)))


def attention(p, x):
    h = jax.nn.relu(dense(p["a"], x))
    return jax.nn.softmax(dense(p["b"], h) @ dense(p["c"], h).T) @ h


def returned(p, x):
    h = jax.nn.relu(dense(p["a"], x))
    return dense(p["c"], jax.nn.relu(dense(p["b"], h))), h


def shared(p, x):
    h = jax.nn.relu(dense(p["a"], x))
    return dense(p["c"], jax.nn.relu(dense(p["b"], jax.nn.relu(dense(p["b"], h)))))


def sliced(p, x):
    h = jax.nn.relu(dense(p["a"], x))
    h = dense(p["b"], jnp.concatenate([h[:, ::2], h[:, 1::2]], -1))
    return dense(p["c"], jax.nn.relu(h))


def scaled(p, x):
    h = jax.nn.relu(dense(p["a"], x) * p["b"]["bias"])
    return dense(p["c"], h)


def fixed(p, x):
    h = jax.nn.relu(dense(p["a"], x)) * np.arange(6, dtype=np.float32)
    return dense(p["c"], h)


def late_bias(p, x):
    h = jax.nn.relu(x @ p["a"]["kernel"]) + p["a"]["bias"]
    return dense(p["c"], h)


def beside_input(p, x):
    h = jax.nn.relu(dense(p["a"], x))
    return dense(p["c"], jnp.concatenate([h[:, :3], x[:, :3]], -1))


def backwards(p, x):
    h = [jax.nn.relu(dense(p[n], x)) for n in "ab"]
    return dense(p["c"], jnp.concatenate([h[0][:, 2::-1], h[1][:, :3]], -1))


def grouped_input(p, x):
    x = jax.lax.conv_general_dilated(
        x[:, None], p["a"]["kernel"][None, :3], (1,), "VALID",
        dimension_numbers=("NWC", "WIO", "NWC"), feature_group_count=2,
    )[:, 0]  # fmt: skip
    return dense(p["c"], jax.nn.relu(x + p["a"]["bias"]))


KEPT = {
    residual: {"a": "acts on it and others together", "b": "others together"},
    attention: {"a": "multiplies it by no weights"},
    returned: {"a": "the function returns it"},
    shared: {"a": "b/kernel reads it in parts, or more than once", "b": "b/bias"},
    sliced: {"a": "b/kernel reads it in an order that no link describes"},
    scaled: {"a": "b/bias acts on it"},
    fixed: {"a": "a fixed array acts on it"},
    late_bias: {"a": "a/bias acts on it"},
    beside_input: {"a": "beside what is no unit"},
    backwards: {"a": "in an order", "b": "in an order"},
    grouped_input: {"a": ""},
}


@pytest.mark.parametrize("run", KEPT)
def test_what_no_link_describes_is_kept(run):
    one = {"kernel": shape(6, 6), "bias": shape(6)}
    tree = random_like({name: one for name in "abc"})
    mask = jaxprune.mask_from_zeros(tree)
    for name in "ab":
        mask[name]["kernel"] = mask[name]["kernel"].at[:, :2].set(False)
        mask["c"]["kernel"] = mask["c"]["kernel"].at[4].set(False)
    links = find_links(run, tree, shape(1, 6))
    reasons = {link.producer[0]: mixes(link) for link in links if mixes(link)}
    for name, reason in KEPT[run].items():
        if name in reasons:
            assert reason in str(reasons[name])
        else:
            assert not any(link.producer[0] == name for link in links), name
    small = remove_dead(jaxprune.apply_mask(tree, mask), mask, links)
    for name in KEPT[run]:
        assert small.params[name]["kernel"].shape[1] == 6
    if run is returned:  # the rest is still found
        assert small.units[1].kept < 6
    x = jax.random.normal(jax.random.key(0), (4, 6))
    if run is not fixed:
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5),
            run(small.params, x),
            run(jaxprune.apply_mask(tree, mask), x),
        )


def normed(p, x):
    h = jax.nn.relu(dense(p["a"], x))
    return dense(p["c"], h) / jnp.linalg.norm(p["a"]["kernel"])


def penalised(p, x):
    h = jax.nn.relu(dense(p["a"], x))
    return dense(p["c"], h), (p["c"]["kernel"] ** 2).mean()


def bias_read(p, x):
    h = jax.nn.relu(dense(p["a"], x))
    return dense(p["c"], h) + p["a"]["bias"].sum()


def embedded(p, x):
    rows = p["c"]["kernel"][(x[:, 0] > 0).astype(int)]
    return jax.nn.relu(dense(p["a"], rows)) @ p["c"]["kernel"].T


def joined(p, x):
    h = jax.nn.relu(dense(p["a"], x)) @ p["c"]["kernel"]
    return jnp.concatenate([h, p["a"]["kernel"]])


def one_bias(p, x):
    h = jax.nn.relu(dense(p["a"], x))
    h = jax.nn.relu(h @ p["b"]["kernel"] + p["a"]["bias"])
    return dense(p["c"], h)


ELSEWHERE = {
    normed: "a/kernel", penalised: "c/kernel", bias_read: "a/bias",
    embedded: "c/kernel", joined: "a/kernel", one_bias: "a/bias",
}  # fmt: skip


@pytest.mark.parametrize("run", ELSEWHERE)
def test_what_is_read_elsewhere_too_is_kept(run):
    """Units 0 and 1 of each layer have no inputs and biases, 4 and 5 no readers."""
    one = {"kernel": shape(6, 6), "bias": shape(6)}
    tree: Any = random_like({name: one for name in "abc"})
    for layer in tree.values():
        layer["kernel"] = layer["kernel"].at[:, :2].set(0).at[4:].set(0)
    mask = jaxprune.mask_from_zeros(tree)
    links = find_links(run, tree, shape(3, 6))
    small = remove_dead(tree, mask, links)
    x = jax.random.normal(jax.random.key(0), (3, 6))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5),
        run(small.params, x),
        run(tree, x),
    )
    assert f"{ELSEWHERE[run]} is read elsewhere too" in [mixes(link) for link in links]


def negated(p, x):
    h = jax.nn.relu(x @ p["a"]["kernel"] - p["a"]["bias"])
    return dense(p["c"], jax.nn.relu(h @ p["b"]["kernel"] + 2 * p["b"]["bias"]))


def minus_bias(p, x):
    h = jax.nn.relu(x @ p["a"]["kernel"] + -p["a"]["bias"])
    return dense(p["c"], jax.nn.relu(dense(p["b"], h)))


def scaled_kernel(p, x):
    h = jax.nn.relu(dense(p["a"], x))
    return h @ (3 * p["c"]["kernel"]) + p["c"]["bias"]


def masked_kernel(p, x):
    h = jax.nn.relu(dense(p["a"], x))
    keep = np.arange(36).reshape(6, 6) % 3 > 0
    return h @ jnp.where(keep, p["c"]["kernel"], 0) + p["c"]["bias"]


def tiled_kernel(p, x):
    h = jax.nn.relu(dense(p["a"], x))
    return (
        jnp.concatenate([h, h], 1) @ jnp.tile(p["c"]["kernel"], (2, 1)) + p["c"]["bias"]
    )


def halves_added(p, x):
    h, none = jax.nn.relu(dense(p["a"], x)), jnp.zeros((len(x), 3))
    left = jnp.concatenate([h[:, :3], none], 1)
    right = jnp.concatenate([none, h[:, 3:]], 1)
    return dense(p["c"], jax.nn.gelu(left + right))


def over_rows(p, x):
    """A convolution of width 1 over rows."""
    numbers, kernel = ("NWC", "WIO", "NWC"), p["c"]["kernel"][None]
    x = jax.lax.conv_general_dilated(
        x, kernel, (1,), "VALID", dimension_numbers=numbers
    )
    return x + p["c"]["bias"]


def bordered(p, x):
    """Zeros before the first row, joined to them by hand."""
    h = jax.nn.relu(dense(p["a"], x))[None]
    zeros = jnp.zeros((1, 1, h.shape[-1]))
    return over_rows(p, jnp.concatenate([zeros, h], 1))


def infinite_border(p, x):
    h = jax.nn.relu(dense(p["a"], x))[None]
    h = jnp.pad(h, ((0, 0), (1, 1), (0, 0)), constant_values=-jnp.inf)
    return dense(p["c"], jnp.exp(h).sum(1))


def pooled_border(p, x):
    """A maximum of two rows, of which one may be beyond the border."""
    h = jax.nn.relu(dense(p["a"], x))
    h = jnp.pad(h, ((0, 1), (0, 0)), constant_values=-jnp.inf)
    a, b = h[:-1], h[1:]
    return dense(p["c"], jnp.where((b > a) | (b != b), b, a))


ODD = [
    negated, minus_bias, scaled_kernel, masked_kernel, tiled_kernel, halves_added,
    bordered, infinite_border, pooled_border,
]  # fmt: skip


@pytest.mark.parametrize("run", ODD)
def test_a_constant_is_folded_only_where_that_is_exact(run):
    """Units 0 and 1 of every layer have no inputs, and biases above 0 and below."""
    one = {"kernel": shape(6, 6), "bias": shape(6)}
    tree: Any = random_like({name: one for name in "abc"})
    mask = jaxprune.mask_from_zeros(tree)
    for name in "ab":
        tree[name]["bias"] = tree[name]["bias"].at[:2].set(jnp.array([0.7, -0.4]))
        mask[name]["kernel"] = mask[name]["kernel"].at[:, :2].set(False)
    tree = jaxprune.apply_mask(tree, mask)
    links = find_links(run, tree, shape(3, 6))
    small = remove_dead(tree, mask, links)
    x = jax.random.normal(jax.random.key(0), (3, 6))
    np.testing.assert_allclose(run(small.params, x), run(tree, x), rtol=1e-5, atol=1e-5)
    if run is pooled_border:
        assert small.units[0][2:] == ((), (1,), (0,), {})


def test_reasons_reach_the_report():
    one = {"kernel": shape(6, 6), "bias": shape(6)}
    tree = random_like({name: one for name in "abc"})
    mask = jaxprune.mask_from_zeros(tree)
    mask["a"]["kernel"] = mask["a"]["kernel"].at[:, :2].set(False)
    (a, *_) = dead_units(tree, mask, find_links(returned, tree, shape(1, 6)))
    assert a.kept == 6
    assert a.stay == {"the function returns it": (0, 1)}
