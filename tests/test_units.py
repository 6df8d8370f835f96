"""Removing dead units: against hand-worked nets, reachability by NumPy, and PyTorch."""

import importlib
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from quick import quick
from toy import assert_dead_are_zero, by_name

import jaxprune
from jaxprune.units import Link, dead_units, remove_dead
from jaxprune.units._carry import carry
from jaxprune.units._cut import Cut


WIDTHS = (4, 6, 5, 3)
MLP = (
    Link("l0/kernel", "l1/kernel"),
    Link("l1/kernel", "l2/kernel"),
)


def mlp(params, x, xp: Any = np):
    for i in range(len(params)):
        x = x @ params[f"l{i}"]["kernel"] + params[f"l{i}"]["bias"]
        x = x if i == len(params) - 1 else xp.maximum(x, 0)
    return x


def kernels(**alive):
    """A mask of kernels alone."""
    return {n: {"kernel": jnp.asarray(a, bool), "bias": None} for n, a in alive.items()}


def as_numpy(tree):
    return jax.tree.map(np.asarray, tree)


# Worked by hand.


def hand_worked():
    """Two inputs, five units, one output.

    Unit 0 lives; 1 and 2 have no inputs and biases 2 and -1; 3 has no output; 4 has an
    input from nowhere but its own output.
    """
    params = {
        "l0": {
            "kernel": jnp.array([[1.0, 0, 0, 5, 7], [0, 0, 0, 6, 0]]),
            "bias": jnp.array([0.5, 2.0, -1.0, 4.0, 8.0]),
        },
        "l1": {
            "kernel": jnp.array([[3.0], [10.0], [100.0], [0.0], [1.0]]),
            "bias": jnp.array([1.0]),
        },
    }
    mask = kernels(l0=[[1, 0, 0, 1, 1], [0, 0, 0, 1, 0]], l1=[[1], [1], [1], [0], [1]])
    return params, mask


def test_what_goes_is_what_goes_by_hand():
    params, mask = hand_worked()
    links = [Link("l0/kernel", "l1/kernel")]
    (units,) = dead_units(params, mask, links)
    assert units == ("l0/kernel", 5, (3,), (2,), (1,), {})
    assert units.kept == 2
    small = remove_dead(params, mask, links)
    expected = {
        "l0": {"kernel": [[1, 7], [0, 0]], "bias": [0.5, 8]},
        "l1": {"kernel": [[3], [1]], "bias": [1 + 2 * 10]},  # relu(2) times 10 goes in
    }
    for path, leaf in by_name(small.params).items():
        np.testing.assert_array_equal(leaf, by_name(expected_arrays(expected))[path])
    alive = by_name(small.mask)
    np.testing.assert_array_equal(alive["l0/kernel"], [[1, 1], [0, 0]])
    np.testing.assert_array_equal(alive["l1/kernel"], [[1], [1]])
    assert small.mask["l0"]["bias"] is None
    assert small.opt_state is None
    assert small.units == [units]


def expected_arrays(tree):
    return jax.tree.map(np.asarray, tree, is_leaf=lambda x: isinstance(x, list))


def test_nothing_of_the_callers_is_changed():
    params, mask = as_numpy(hand_worked()[0]), hand_worked()[1]
    before = jax.tree.map(np.copy, params)
    remove_dead(params, mask, [Link("l0/kernel", "l1/kernel")])
    jax.tree.map(np.testing.assert_array_equal, params, before)


def test_a_net_without_dead_units_stays():
    params = hand_worked()[0]
    mask = jaxprune.dense_mask(params)
    small = remove_dead(params, mask, [Link("l0/kernel", "l1/kernel")])
    jax.tree.map(np.testing.assert_array_equal, small.params, params)
    jax.tree.map(np.testing.assert_array_equal, small.mask, mask)


# Against reachability, in random nets.


def masks_of_kernels():
    return st.tuples(*(hnp.arrays(bool, pair) for pair in itertools.pairwise(WIDTHS)))


@settings(max_examples=60, deadline=None)
@given(masks_of_kernels(), st.integers(0, 2**32 - 1))
def test_units_on_a_path_from_input_to_output_are_left(alive, seed):
    """A constant is folded wherever it is, so a unit is useful if a path runs by it."""
    rng = np.random.default_rng(seed)
    params = {
        f"l{i}": {
            "kernel": (rng.normal(size=m.shape) * m).astype(np.float32),
            "bias": rng.normal(size=m.shape[1]).astype(np.float32),
        }
        for i, m in enumerate(alive)
    }
    mask = kernels(**{f"l{i}": m for i, m in enumerate(alive)})
    fed, read = [np.ones(WIDTHS[0], bool)], [np.ones(WIDTHS[-1], bool)]
    for m in alive:
        fed.append((fed[-1][:, None] & m).any(0))
    for m in reversed(alive):
        read.insert(0, (m & read[0]).any(1))
    useful = [f & r for f, r in zip(fed, read, strict=True)][1:-1]
    small = remove_dead(params, mask, MLP)
    for layer, left in zip(small.units, useful, strict=True):
        assert layer.kept == max(left.sum(), 1)
        gone = {*layer.unread, *layer.zero, *layer.folded}
        assert gone <= set(np.flatnonzero(~left).tolist())
        reasons = {} if left.any() else {"a layer keeps one unit in each group"}
        assert set(layer.stay) == set(reasons)
    x = rng.normal(size=(7, WIDTHS[0]))
    after = mlp(as_numpy(small.params), x)
    np.testing.assert_allclose(after, mlp(params, x), rtol=1e-5, atol=1e-5)
    assert_dead_are_zero(small.params, small.mask)
    again = remove_dead(small.params, small.mask, MLP)
    assert [u.kept for u in again.units] == [u.kept for u in small.units]


# Convolutions: JAX before, PyTorch after.


def conv_net(params, x):
    """Two convolutions without padding, pooling, flatten, two dense layers."""
    for name in ("c0", "c1"):
        x = jax.lax.conv_general_dilated(
            x, params[name]["kernel"], (1, 1), "VALID",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )  # fmt: skip
        x = jax.nn.relu(x + params[name]["bias"])
    x = jax.lax.reduce_window(
        x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID"
    )
    x = x.reshape(len(x), -1)
    x = jax.nn.relu(x @ params["d0"]["kernel"] + params["d0"]["bias"])
    return x @ params["d1"]["kernel"] + params["d1"]["bias"]


CONV = (
    Link("c0/kernel", "c1/kernel"),
    Link("c1/kernel", "d0/kernel", fan=4, between=("relu", "max pool")),
    Link("d0/kernel", "d1/kernel"),
)


def pruned(shapes, seed=0, unfed=0.3, unread=0.2):
    """Random params; whole columns and rows of the kernels are dead, and half besides.

    Rows are killed by unit, so that with a flatten a unit loses all it feeds.
    """
    rng = np.random.default_rng(seed)
    params, mask = {}, {}
    for name, shape in shapes.items():
        kernel = rng.normal(size=shape).astype(np.float32)
        alive = rng.random(shape) < 0.5
        alive &= rng.random(shape[-1]) >= unfed
        params[name] = {
            "kernel": kernel / np.float32(np.prod(shape[:-1])) ** 0.5 * alive,
            "bias": rng.normal(size=shape[-1]).astype(np.float32) / 2,
        }
        mask[name] = {"kernel": alive, "bias": None}
    return params, mask


def kill_rows(params, mask, links, seed=1, share=0.2):
    """Kills all that some units feed."""
    rng = np.random.default_rng(seed)
    for producer in dict.fromkeys(link.producer for link in links):
        name = producer.rpartition("/")[0]
        n = params[name]["bias"].size
        chosen = np.flatnonzero(rng.random(n) < share)
        for link in (li for li in links if li.producer == producer):
            reader = link.consumer.rpartition("/")[0]
            rows = params[reader]["kernel"].shape[-2]
            for u in chosen:
                for p in range(link.fan):
                    row = p * (rows // link.fan) + link.offset + u
                    params[reader]["kernel"][..., row, :] = 0
                    mask[reader]["kernel"][..., row, :] = False
    return params, mask


def test_convolutions_against_torch():
    torch: Any = pytest.importorskip("torch")
    nn = torch.nn.functional
    shapes = {
        "c0": (3, 3, 2, 8), "c1": (3, 3, 8, 10), "d0": (40, 12), "d1": (12, 3),
    }  # fmt: skip
    params, mask = kill_rows(*pruned(shapes), CONV)
    small = remove_dead(params, mask, CONV)
    assert [u.kept < u.size for u in small.units] == [True] * 3
    assert any(u.folded for u in small.units[:2])  # through convolutions too
    assert all(not u.stay for u in small.units)
    x = np.random.default_rng(2).normal(size=(3, 8, 8, 2)).astype(np.float32)
    before = conv_net(params, x)

    p = jax.tree.map(lambda a: torch.from_numpy(np.array(a)), small.params)
    y = torch.from_numpy(x.transpose(0, 3, 1, 2).copy())
    for name in ("c0", "c1"):
        weight = p[name]["kernel"].permute(3, 2, 0, 1)
        y = nn.relu(nn.conv2d(y, weight, p[name]["bias"]))
    y = nn.max_pool2d(y, 2).permute(0, 2, 3, 1).reshape(3, -1)
    y = nn.relu(nn.linear(y, p["d0"]["kernel"].T, p["d0"]["bias"]))
    y = nn.linear(y, p["d1"]["kernel"].T, p["d1"]["bias"])
    np.testing.assert_allclose(y.numpy(), before, rtol=1e-5, atol=1e-5)


def fire_net(params, x):
    """SqueezeNet's module in PyTorch, between a convolution and a dense layer."""
    torch: Any = importlib.import_module("torch")
    nn = torch.nn.functional
    p = jax.tree.map(lambda a: torch.from_numpy(np.array(a)), params)

    def conv(name, x, padding=0):
        weight = p[name]["kernel"].permute(3, 2, 0, 1)
        return nn.relu(nn.conv2d(x, weight, p[name]["bias"], padding=padding))

    x = conv("squeeze", conv("first", torch.from_numpy(x)))
    x = torch.cat([conv("one", x), conv("three", x, 1)], 1)
    x = conv("last", nn.max_pool2d(x, 2, ceil_mode=True))
    x = x.permute(0, 2, 3, 1).reshape(len(x), -1)
    return nn.linear(x, p["out"]["kernel"].T, p["out"]["bias"]).numpy()


FIRE = (
    Link("first/kernel", "squeeze/kernel"),
    Link("squeeze/kernel", "one/kernel"),
    Link("squeeze/kernel", "three/kernel", between=("relu", "zero padding")),
    Link("one/kernel", "last/kernel"),
    Link("three/kernel", "last/kernel", offset=3),
    Link("last/kernel", "out/kernel", fan=4),
)
FIRE_SHAPES = {
    "first": (2, 2, 2, 4),
    "squeeze": (1, 1, 4, 4),
    "one": (1, 1, 4, 3),
    "three": (3, 3, 4, 5),
    "last": (2, 2, 8, 4),
    "out": (16, 3),
}
PARTS = [name for name in FIRE_SHAPES if name != "out"]


@pytest.mark.slow
@settings(max_examples=30, deadline=None)
@given(
    st.fixed_dictionaries({n: hnp.arrays(bool, FIRE_SHAPES[n][-1]) for n in PARTS}),
    st.fixed_dictionaries({n: hnp.arrays(bool, FIRE_SHAPES[n][-1]) for n in PARTS}),
    st.integers(0, 2**32 - 1),
)
def test_a_fire_module_with_any_units_dead_computes_the_same(unfed, unread, seed):
    pytest.importorskip("torch")
    params, mask = pruned(FIRE_SHAPES, seed, unfed=0)
    for name in PARTS:
        kill_units(params, mask, name, np.flatnonzero(unfed[name]))
    for link in FIRE:
        units = unread[link.producer.removesuffix("/kernel")]
        rows = params[link.consumer.removesuffix("/kernel")]["kernel"].shape[-2]
        at = np.flatnonzero(units)[:, None] + link.offset
        at = at + np.arange(link.fan) * (rows // link.fan)
        for tree, dead in ((params, 0), (mask, False)):
            kernel = tree[link.consumer.removesuffix("/kernel")]["kernel"]
            kernel[..., at.ravel(), :] = dead
    small = remove_dead(params, mask, FIRE)
    x = np.random.default_rng(0).normal(size=(2, 2, 6, 6)).astype(np.float32)
    after = fire_net(small.params, x)
    np.testing.assert_allclose(after, fire_net(params, x), rtol=1e-5, atol=1e-5)
    for layer in small.units:
        name = layer.layer.removesuffix("/kernel")
        gone = {*layer.unread, *layer.zero, *layer.folded}
        told = gone.union(*layer.stay.values())
        assert set(np.flatnonzero(unfed[name] | unread[name]).tolist()) <= told
        # Only into the padded convolution a constant cannot go.
        held = [why for why in layer.stay if not why.startswith("a layer keeps")]
        assert all("zero padding" in why for why in held)
        assert not held or name == "squeeze"
    offset = {u.layer: u.kept for u in small.units}["one/kernel"]
    links = [link._replace(offset=offset) if link.offset else link for link in FIRE]
    again = remove_dead(small.params, small.mask, links)
    assert all(u.kept == u.size for u in again.units)


# What stays, and why.


def two_convs(padding, bias=(2.0, -1.0, 0.5), own=True):
    """Units 0 and 1 have no inputs; one bias is positive, the other is not."""
    alive = np.ones((1, 1, 2, 3), bool)
    alive[..., :2] = False
    rng = np.random.default_rng(0)
    params = {
        "a": {
            "kernel": (rng.normal(size=alive.shape) * alive).astype(np.float32),
            "bias": np.asarray(bias, np.float32),
        },
        "b": {"kernel": rng.normal(size=(3, 3, 3, 2)).astype(np.float32)},
    }
    mask = {
        "a": {"kernel": alive, "bias": None},
        "b": {"kernel": np.ones((3, 3, 3, 2), bool)},
    }
    if own:
        params["b"]["bias"] = rng.normal(size=2).astype(np.float32)
        mask["b"]["bias"] = None
    between = ("relu", "zero padding") if padding else ("relu",)

    def apply(params, x):
        conv = lambda x, w, pad: jax.lax.conv_general_dilated(
            x, w, (1, 1), [(pad, pad)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        x = jax.nn.relu(conv(x, params["a"]["kernel"], 0) + params["a"]["bias"])
        return conv(x, params["b"]["kernel"], padding) + params["b"].get("bias", 0)

    return apply, params, mask, [Link("a/kernel", "b/kernel", between=between)]


def images(channels=2):
    x = np.random.default_rng(5).normal(size=(2, 6, 6, channels))
    return jnp.asarray(x, jnp.float32)


def test_through_zero_padding_only_a_zero_goes():
    apply, params, mask, links = two_convs(padding=1)
    small = remove_dead(params, mask, links)
    reason = "it is constant, and zero padding lies between it and b/kernel"
    assert small.units[0][2:] == ((), (1,), (), {reason: (0,)})
    np.testing.assert_allclose(
        apply(small.params, images()), apply(params, images()), atol=1e-5
    )
    # Folded all the same, it would be wrong at the border.
    folded = remove_dead(params, mask, [links[0]._replace(between=("relu",))])
    wrong = apply(folded.params, images()) - apply(params, images())
    assert abs(wrong[:, 1:-1, 1:-1]).max() < 1e-5
    assert abs(wrong).max() > 0.1


def test_without_padding_the_constant_is_folded():
    apply, params, mask, links = two_convs(padding=0)
    small = remove_dead(params, mask, links)
    assert small.units[0][2:] == ((), (1,), (0,), {})
    np.testing.assert_allclose(
        apply(small.params, images()), apply(params, images()), atol=1e-5
    )


def test_a_constant_needs_a_bias_to_go_to():
    _, params, mask, links = two_convs(padding=0, own=False)
    (units,) = dead_units(params, mask, links)
    assert units.zero == (1,)
    assert units.stay == {"b/kernel has no bias to take up a constant": (0,)}
    _, params, mask, links = two_convs(padding=0)
    mask["b"]["bias"] = np.array([True, False])
    params["b"]["bias"][1] = 0
    (units,) = dead_units(params, mask, links)
    reason = "b/bias, which would take up a constant, is itself pruned"
    assert units.stay == {reason: (0,)}


def test_a_bias_that_is_not_finite_is_left():
    _, params, mask, links = two_convs(padding=0, bias=(np.nan, np.inf, 0.0))
    (units,) = dead_units(params, mask, links)
    assert units.kept == 3
    assert units.stay == {"its bias is not finite": (0, 1)}


@pytest.mark.parametrize("norm", ["LRN", "GroupNorm"])
def test_what_acts_on_its_neighbours_stays(norm):
    _, params, mask, _ = two_convs(padding=0)
    mask["b"]["kernel"][:, :, 2] = False
    between = ("relu", norm)
    (units,) = dead_units(params, mask, [Link("a/kernel", "b/kernel", between=between)])
    neighbours = f"through {norm} it acts on its neighbours"
    constant = f"it is constant, and {norm} lies between it and b/kernel"
    zero = neighbours if norm == "LRN" else constant  # LRN leaves 0 as it is
    expected = {constant: [0], neighbours: [2]}
    expected[zero] = sorted([*expected[zero], 1])
    assert units.kept == 3
    assert units.stay == {reason: tuple(found) for reason, found in expected.items()}


def grouped(params, x):
    for name, groups in (("a", 1), ("b", 2), ("c", 2)):
        x = jax.lax.conv_general_dilated(
            x, params[name]["kernel"], (1, 1), "VALID",
            dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups,
        )  # fmt: skip
        x = jax.nn.relu(x + params[name]["bias"])
    return x


GROUPED = (
    Link("a/kernel", "b/kernel", groups=2),
    Link("b/kernel", "c/kernel", groups=2),
)


def grouped_net():
    shapes = {"a": (1, 1, 2, 8), "b": (3, 3, 4, 8), "c": (1, 1, 4, 2)}
    params, mask = pruned(shapes, unfed=0)
    for name in shapes:
        mask[name]["kernel"][:] = True
        rng = np.random.default_rng(len(name))
        params[name]["kernel"] = rng.normal(size=shapes[name]).astype(np.float32)
    return params, mask


def kill_units(params, mask, name, units):
    for u in units:
        params[name]["kernel"][..., u] = 0
        mask[name]["kernel"][..., u] = False


def test_groups_keep_equal_widths():
    params, mask = grouped_net()
    kill_units(params, mask, "a", (0, 2, 5))  # two in the first group, one in the other
    kill_units(params, mask, "b", (6,))
    small = remove_dead(params, mask, GROUPED)
    a, b = small.units
    assert a.kept == 6
    assert a.stay == {"groups keep equal widths": (2,)}
    assert b.kept == 8
    assert b.stay == {"groups keep equal widths": (6,)}
    assert small.params["b"]["kernel"].shape == (3, 3, 3, 8)
    np.testing.assert_allclose(
        grouped(small.params, images()), grouped(params, images()), rtol=1e-5, atol=1e-5
    )


def test_groups_keep_equal_widths_whatever_reads_them():
    params, mask = pruned({"a": (2, 8), "b": (4, 8), "c": (8, 2)}, unfed=0)
    for leaf in mask.values():
        leaf["kernel"][:] = True
    kill_units(params, mask, "b", (6,))
    links = [Link("a/kernel", "b/kernel", groups=2), Link("b/kernel", "c/kernel")]
    assert dead_units(params, mask, links)[1].stay == {"groups keep equal widths": (6,)}


def test_rows_leave_each_group_at_places_of_their_own():
    """Row 1 of the first group and rows 0 and 3 of the second: the kernel is parted."""
    params, mask = grouped_net()
    kill_units(params, mask, "a", (1, 3, 4, 7))
    kill_units(params, mask, "b", (0, 7))
    small = remove_dead(params, mask, GROUPED)
    assert [u.kept for u in small.units] == [4, 6]
    kernel = small.params["b"]["kernel"]
    first, second = params["b"]["kernel"][..., :4], params["b"]["kernel"][..., 4:]
    np.testing.assert_array_equal(kernel[..., :3], first[:, :, [0, 2], 1:])
    np.testing.assert_array_equal(kernel[..., 3:], second[:, :, [1, 2], :3])
    np.testing.assert_allclose(
        grouped(small.params, images()), grouped(params, images()), rtol=1e-5, atol=1e-5
    )


def test_a_layer_keeps_a_unit_in_each_group():
    params, mask = grouped_net()
    kill_units(params, mask, "a", range(8))
    small = remove_dead(params, mask, GROUPED)
    assert small.units[0].kept == 2
    assert set(small.units[0].stay) == {"a layer keeps one unit in each group"}
    np.testing.assert_allclose(
        grouped(small.params, images()), grouped(params, images()), rtol=1e-5, atol=1e-5
    )


def test_widths_can_be_kept_multiples():
    """Of 8 units 3 are dead."""
    params, mask = pruned({"a": (4, 8), "b": (8, 2)}, unfed=0)
    for name, shape in (("a", (4, 8)), ("b", (8, 2))):
        mask[name]["kernel"] = np.ones(shape, bool)
    kill_units(params, mask, "a", (0, 2, 3))
    chain = [Link("a/kernel", "b/kernel")]
    for multiple, kept in ((1, 5), (2, 6), (3, 6), (4, 8), (5, 5), (7, 7)):
        (units,) = dead_units(params, mask, chain, multiple=multiple)
        assert units.kept == kept
        last = (0, 2, 3)[8 - kept :]
        reason = f"widths are multiples of {multiple}"
        assert units.stay == ({reason: last} if last else {})
    params, mask = grouped_net()
    kill_units(params, mask, "a", (0, 2, 5, 7))
    for multiple, kept in ((2, 4), (3, 6), (8, 8)):
        assert dead_units(params, mask, GROUPED, multiple=multiple)[0].kept == kept
    with pytest.raises(ValueError, match="multiple is 0, expected 1 or more"):
        remove_dead(params, mask, GROUPED, multiple=0)


# Optimizers.


OPTIMIZERS = {
    "sgd": lambda: optax.sgd(0.1, momentum=0.9),
    "adam": lambda: optax.adam(0.01),
    "adamw, clipped": lambda: optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(optax.constant_schedule(0.01))
    ),
    "schedule free": lambda: optax.contrib.schedule_free_sgd(0.1),
}


@pytest.mark.parametrize("name", quick(OPTIMIZERS, "sgd"))
def test_training_goes_on_as_it_would_have(name):
    """Three more steps of the small net end where three of the large one do."""
    importlib.import_module("optax.contrib")
    tx = jaxprune.prune(OPTIMIZERS[name](), jaxprune.hold, lambda p: mask)
    rng = np.random.default_rng(3)
    alive = [rng.random((a, b)) < 0.5 for a, b in itertools.pairwise(WIDTHS)]
    alive[0][:, 1] = False  # no input, and a bias that keeps it at 0
    alive[1][2] = False  # no reader
    alive[1][:, 4] = alive[2][4] = False  # neither
    params: Any = {
        f"l{i}": {
            "kernel": jnp.asarray(rng.normal(size=m.shape) * m, jnp.float32),
            "bias": jnp.asarray(rng.normal(size=m.shape[1]), jnp.float32),
        }
        for i, m in enumerate(alive)
    }
    params["l0"]["bias"] = params["l0"]["bias"].at[1].set(-1.0)
    mask = kernels(**{f"l{i}": m for i, m in enumerate(alive)})
    x = jnp.asarray(rng.normal(size=(8, WIDTHS[0])), jnp.float32)
    loss = lambda p: jnp.square(mlp(p, x, jnp) - 1).mean()

    def steps(params, state, n=3):
        for _ in range(n):
            updates, state = tx.update(jax.grad(loss)(params), state, params)
            params = optax.apply_updates(params, updates)
        return params, state

    params, state = steps(params, tx.init(params))
    small = remove_dead(params, jaxprune.get_mask(state), MLP, state)
    assert [u.kept for u in small.units] == [4, 4]
    jaxprune.verify(small.params, small.opt_state)
    jax.tree.map(
        np.testing.assert_array_equal, jaxprune.get_mask(small.opt_state), small.mask
    )
    again = jaxprune.prune(OPTIMIZERS[name](), jaxprune.hold, small.mask)
    fresh = jax.eval_shape(again.init, small.params)
    shapes = lambda tree: jax.tree.map(lambda a: (a.shape, a.dtype), tree)
    assert shapes(small.opt_state) == shapes(fresh)
    large, _ = steps(params, state)
    after, _ = steps(small.params, small.opt_state)
    # Adam divides by a small number: a rounding is magnified.
    np.testing.assert_allclose(
        mlp(as_numpy(after), x), mlp(as_numpy(large), x), rtol=1e-4, atol=1e-4
    )


def test_stacks_of_moments_are_cut():
    params, mask = hand_worked()
    tx = optax.lbfgs(memory_size=3)
    state = tx.init(params)
    small = remove_dead(params, mask, [Link("l0/kernel", "l1/kernel")], state)
    got = optax.tree.get(small.opt_state, "diff_params_memory")
    assert got["l0"]["kernel"].shape == (3, 2, 2)


def test_moments_of_a_path_that_ends_like_another():
    """Nothing of "a/kernel" or "a_kernel" is cut as "kernel" is, whatever its shape."""
    shapes = {"kernel": (2, 3), "a/kernel": (2, 3), "a_kernel": (2, 3)}
    cuts = {"kernel": Cut((-1, np.array([True, False, True])))}
    whole = jnp.ones((2, 3))
    mu = {"kernel": whole, "a": {"kernel": whole}, "a_kernel": whole}
    rows = {"a": {"kernel": jnp.ones(2)}}
    found = carry({"mu": mu, "rows": rows}, shapes, cuts, {})
    expected = {"mu": mu | {"kernel": whole[:, ::2]}, "rows": rows}
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_masks_that_an_optimizer_keeps_die_as_the_new_one_does():
    alive = np.array([[True, False], [False, True]])
    state = {"alive": {"w": jnp.ones((2, 2), bool)}, "mu": {"w": jnp.ones((2, 2))}}
    found = carry(state, {"w": (2, 2)}, {}, {"w": alive})
    np.testing.assert_array_equal(found["alive"]["w"], alive)
    np.testing.assert_array_equal(found["mu"]["w"], state["mu"]["w"])


def test_factored_statistics_are_refused():
    params, mask = hand_worked()
    tx = optax.adafactor(0.1, min_dim_size_to_factor=2)
    with pytest.raises(ValueError, match=r"v_row/l0/kernel has shape \(2,\)"):
        remove_dead(params, mask, [Link("l0/kernel", "l1/kernel")], tx.init(params))
    whole = optax.adafactor(0.1).init(params)  # not factored at this size
    small = remove_dead(params, mask, [Link("l0/kernel", "l1/kernel")], whole)
    shapes = lambda tree: jax.tree.map(lambda a: a.shape, tree)
    fresh = optax.adafactor(0.1).init(small.params)
    assert shapes(small.opt_state) == shapes(fresh)


# Refusals.


@pytest.mark.parametrize(
    ("link", "message"),
    [
        (Link("l0/weight", "l1/kernel"), "a link names l0/weight, expected one of"),
        (Link("l0/kernel", "l2/kernel"), "l2/kernel has 5 rows .* do not fit 6 units"),
        (Link("l0/kernel", "l1/kernel", offset=1), "offset 1 and 1 groups"),
        (Link("l0/kernel", "l1/kernel", fan=4), "with fan 4"),
        (Link("l0/kernel", "l1/kernel", groups=2), "2 groups"),
        (Link("l0/kernel", "l1/kernel", axes=(-1, -3, -1)), "no axis -3"),
        (Link("l0/kernel", "l1/kernel", between=("ReLU",)), "'ReLU' lies between"),
        (Link("l0/kernel", "l1/kernel", biases=("l2/bias", "")), "expected 6 numbers"),
        (Link("l0/kernel", "l1/kernel", axes=(-2, -1, -2)), "4 of the 5 rows"),
        (Link("l1/kernel", "l1/kernel"), "name 5 of the 6 rows of l1/kernel"),
    ],
)
def test_links_that_do_not_fit_are_refused(link, message):
    params, mask = pruned({f"l{i}": s for i, s in enumerate(((4, 6), (6, 5), (5, 3)))})
    with pytest.raises(ValueError, match=message):
        dead_units(params, mask, [link])


def test_links_that_contradict_each_other_are_refused():
    params, mask = pruned({"a": (2, 3), "b": (2, 3), "c": (6, 2)})
    both = [Link("a/kernel", "c/kernel"), Link("b/kernel", "c/kernel", offset=2)]
    with pytest.raises(ValueError, match="links to c/kernel contradict each other"):
        dead_units(params, mask, both)
    dead_units(params, mask, [both[0], both[1]._replace(offset=3)])


def test_which_leaf_is_the_bias_must_be_clear():
    params = {"w0": jnp.ones((2, 3)), "b0": jnp.ones(3), "w1": jnp.ones((3, 2))}
    mask = jaxprune.dense_mask(params)
    with pytest.raises(
        ValueError, match="b0 may be the bias of w0, but none is called"
    ):
        dead_units(params, mask, [Link("w0", "w1")])
    dead_units(params, mask, [Link("w0", "w1", biases=("b0", ""))])


def test_a_mask_that_does_not_fit_is_refused():
    params, _ = hand_worked()
    mask = kernels(l0=np.ones((2, 2)), l1=np.ones((5, 1)))
    with pytest.raises(ValueError, match="the mask of l0/kernel has shape"):
        remove_dead(params, mask, [Link("l0/kernel", "l1/kernel")])
