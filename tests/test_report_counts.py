"""Counts of operations against the paper's tables, PyTorch, NumPy and by hand."""

from decimal import ROUND_HALF_UP, Decimal

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import paper_nets
import pytest
from flax import nnx
from jax import lax

import jaxprune
from experiments.models import LENET5, layers
from jaxprune import report


UNITS = {"K": Decimal(10**3), "M": Decimal(10**6), "B": Decimal(10**9)}
# Where the paper's rounding is its own: the exact numbers.
MISPRINTS = {
    ("AlexNet", "conv4", "663K"): 663_552,
    ("AlexNet", "total", "1.5B"): 1_448_813_632,  # its own rows add up to 1.449B
    ("VGG-16", "conv2_2", "148K"): 147_456,
}
NUMBERS = ("NHWC", "HWIO", "NHWC")


def printed(exact, text):
    """An exact number to as many digits as `text` was printed with, halves up."""
    number, unit = Decimal(text[:-1]), text[-1]
    return f"{(exact / UNITS[unit]).quantize(number, ROUND_HALF_UP)}{unit}"


def kept_mask(shape, percent):
    size = int(np.prod(shape))
    return (np.arange(size) < round(size * percent / 100)).reshape(shape)


@pytest.mark.parametrize("name", paper_nets.TABLES)
def test_the_tables_of_the_paper(name):
    *rows, total = paper_nets.table(name)
    params = paper_nets.params(name)
    mask = {
        layer: {"kernel": kept_mask(params[layer]["kernel"].shape, float(kept)),
                "bias": None}
        for layer, *_, kept, _ in rows
    }  # fmt: skip
    shares = {f"{layer}/kernel": float(act) / 100 for layer, _, _, act, *_ in rows}
    x = jax.ShapeDtypeStruct((2, *paper_nets.INPUTS[name]), jnp.float32)
    counts = report.count(paper_nets.apply(name), params, mask, x, activations=shares)
    assert [row.path for row in counts.layers] == list(shares)
    assert counts.flop_unweighted == 0
    for row, (layer, weights, flop, act, kept, needed) in zip(
        (*counts.layers, counts.total), (*rows, total), strict=True
    ):
        for exact, text in ((row.weights, weights), (row.flop, flop)):
            if (name, layer, text) in MISPRINTS:
                assert exact == MISPRINTS[name, layer, text]
            else:
                assert printed(exact, text) == text, layer
        assert row.flop_run == row.flop
        if layer != "total":
            assert row.activations == pytest.approx(float(act) / 100)
        assert 100 * row.kept / row.weights == pytest.approx(float(kept), abs=0.65)
        assert row.flop_needed is not None
        assert 100 * row.flop_needed / row.flop == pytest.approx(float(needed), abs=1)


def test_exact_totals():
    """The exact numbers of PAPER.md 1.4, and what skipping dead weights alone saves."""
    exact = {
        "LeNet-300-100": (266_200, 410, 8.2),
        "LeNet-5": (430_500, 580, 18.1),
        "AlexNet": (60_954_656, 10_568, 41.6),
        "VGG-16": (138_344_128, 13_416, 32.6),
    }
    for name, (weights, biases, percent) in exact.items():
        x = jax.ShapeDtypeStruct((1, *paper_nets.INPUTS[name]), jnp.float32)
        params = paper_nets.params(name)
        counts = report.count(paper_nets.apply(name), params, None, x)
        assert (counts.total.weights, counts.others) == (weights, biases)
        assert counts.total.flop_needed is None
        *rows, _ = paper_nets.table(name)
        flop = {row.path.split("/")[0]: row.flop for row in counts.layers}
        kept = sum(flop[layer] * float(kept) for layer, *_, kept, _ in rows)
        assert kept / counts.total.flop == pytest.approx(percent, abs=0.06)


# Channels in and out, kernel, input, then stride, padding, dilation and groups.
CONVS = {
    "plain": (3, 8, (3, 3), (9, 9), 1, 0, 1, 1),
    "strided, padded": (4, 6, (5, 3), (11, 8), 2, 2, 1, 1),
    "grouped": (8, 12, (3, 3), (7, 7), 1, 1, 1, 4),
    "grouped, strided": (4, 8, (3, 3), (10, 9), 3, 1, 1, 2),
    "depthwise": (6, 12, (3, 3), (8, 8), 1, 1, 1, 6),
    "dilated": (2, 4, (3, 3), (12, 12), 1, 0, 3, 1),
    "1d": (4, 4, (5,), (20,), 2, 2, 1, 2),
    "3d": (2, 4, (3, 3, 3), (6, 6, 6), 1, 1, 1, 1),
}


# With stride 1 these are plain convolutions, to JAX and to us, borders and all.
TRANSPOSED = {
    "transposed": (4, 6, (5, 3), (11, 8), 2, 2, 1, 1),
    "transposed, dilated": (3, 2, (3, 3), (4, 5), 3, 0, 2, 1),
}


@pytest.mark.parametrize("case", [*CONVS, *TRANSPOSED])
def test_convolutions_as_pytorch_counts_them(case):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    from torch.utils.flop_counter import FlopCounterMode

    transposed = case in TRANSPOSED
    inputs, outputs, kernel, size, stride, pad, dilation, groups = (CONVS | TRANSPOSED)[
        case
    ]
    rank = len(kernel)
    name = f"conv{'_transpose' if transposed else ''}{rank}d"
    x = torch.zeros(3, inputs, *size)
    shape = (inputs, outputs) if transposed else (outputs, inputs // groups)
    w = torch.zeros(*shape, *kernel)
    with FlopCounterMode(display=False) as counter:
        out = getattr(torch.nn.functional, name)(
            x, w, stride=stride, padding=pad, dilation=dilation, groups=groups
        )

    def apply(w, x):
        if transposed:
            spans = [dilation * (k - 1) - pad for k in kernel]
            return lax.conv_general_dilated(
                x, w, (1,) * rank, [(s, s) for s in spans],
                lhs_dilation=(stride,) * rank, rhs_dilation=(dilation,) * rank,
                dimension_numbers=lax.ConvDimensionNumbers(
                    tuple(range(rank + 2)), (1, 0, *range(2, rank + 2)),
                    tuple(range(rank + 2)),
                ),
            )  # fmt: skip
        return lax.conv_general_dilated(
            x, w, (stride,) * rank, [(pad, pad)] * rank,
            rhs_dilation=(dilation,) * rank, feature_group_count=groups,
        )  # fmt: skip

    assert jax.eval_shape(apply, jnp.zeros(w.shape), jnp.zeros(x.shape)).shape == tuple(
        out.shape
    )
    (row,) = report.count(
        apply, jnp.zeros(w.shape), None, jnp.zeros(x.shape), examples=1
    ).layers
    # PyTorch counts the products of a transposed convolution without dilated zeros too.
    assert row.flop == counter.get_total_flops()
    assert row.kind == "conv"


@pytest.mark.parametrize("case", CONVS)
def test_kept_operations_by_convolving_the_mask(case):
    """The sum of a convolution of ones with the mask is the number of products."""
    inputs, outputs, kernel, size, stride, _, dilation, groups = CONVS[case]
    rank = len(kernel)
    shape = (outputs, inputs // groups, *kernel)
    mask = np.random.default_rng(0).random(shape) < 0.3

    def apply(w, x):
        return lax.conv_general_dilated(
            x, w, (stride,) * rank, [(0, 0)] * rank, rhs_dilation=(dilation,) * rank,
            feature_group_count=groups,
        )  # fmt: skip

    x = jnp.ones((2, inputs, *size))
    (row,) = report.count(apply, jnp.zeros(shape), jnp.asarray(mask), x).layers
    products = apply(jnp.asarray(mask, jnp.float32), x).sum() / 2
    assert row.flop_kept == 2 * int(products)
    assert row.kept == mask.sum()


def test_positions_are_those_of_an_output():
    image = jax.ShapeDtypeStruct((1, 28, 28, 1), jnp.float32)
    params = jax.eval_shape(LENET5.module.init, jax.random.key(0), image)["params"]
    apply = lambda params, x: LENET5.module.apply({"params": params}, x)
    found = {"conv1": 24 * 24, "conv2": 8 * 8, "fc1": 1, "fc2": 1}
    want = {f"{name}/kernel": count for name, count in found.items()}
    assert report.positions(apply, params, image) == want
    # Strided, in two groups, padded.
    conv = lambda w, x: lax.conv_general_dilated(
        x, w, (2, 3), "SAME", dimension_numbers=NUMBERS, feature_group_count=2
    )
    assert report.positions(conv, jnp.ones((3, 3, 2, 6)), jnp.ones((1, 9, 9, 4))) == {
        "": 5 * 3
    }


def test_lenet5_counts_the_same_however_it_convolves(monkeypatch):
    """On a CPU its kernels are padded and folded, and it multiplies 1.44 as much."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 28, 28, 1)).astype(np.float32)
    params = jax.eval_shape(LENET5.module.init, jax.random.key(1), x)["params"]
    params = jax.tree.map(
        lambda p: (rng.normal(size=p.shape) / 20).astype(np.float32), params
    )
    mask = jax.tree.map(lambda p: np.abs(p) > 0.05 if p.ndim > 1 else None, params)
    found = {}
    for way in (layers.conv_max_pool_dot, layers.conv_max_pool_xla):
        run = lambda x, kernel, bias, way=way: way(x, kernel) + bias
        monkeypatch.setattr(layers, "conv_pool", run)
        apply = lambda params, x: LENET5.module.apply({"params": params}, x)
        measured = report.activations(apply, params, [x], mask)
        found[way] = report.count(apply, params, mask, x, activations=measured)
    folded, plain = found.values()
    assert [row.flop for row in plain.layers] == [576_000, 3_200_000, 800_000, 10_000]
    assert [row.flop_kept for row in plain.layers] == [
        row.flop * row.kept // row.weights for row in plain.layers
    ]
    assert plain.total.flop_run == plain.total.flop
    for a, b in zip(folded.layers, plain.layers, strict=True):
        factor = 36 / 25 if a.kind == "conv" else 1
        assert a.flop_run == factor * b.flop_run
        assert a._replace(flop_run=b.flop_run) == b


SHAPE = (3, 10, 10, 2)


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Conv(8, (3, 3), padding="VALID", feature_group_count=2, name="a")(x)
        x = nn.max_pool(nn.relu(x), (2, 2), (2, 2))
        x = nn.relu(nn.Dense(6, name="b")(x.reshape(x.shape[0], -1)))
        return nn.Dense(4, use_bias=False, name="c")(x)


class Nnx(nnx.Module):
    def __init__(self, rngs):
        self.a = nnx.Conv(
            2, 8, (3, 3), padding="VALID", feature_group_count=2, rngs=rngs
        )
        self.b = nnx.Linear(128, 6, rngs=rngs)
        self.c = nnx.Linear(6, 4, use_bias=False, rngs=rngs)

    def __call__(self, x):
        x = nnx.max_pool(nnx.relu(self.a(x)), (2, 2), (2, 2))
        return self.c(nnx.relu(self.b(x.reshape(x.shape[0], -1))))


class Equinox(eqx.Module):
    a: eqx.nn.Conv2d
    b: eqx.nn.Linear
    c: eqx.nn.Linear

    def __call__(self, x):
        x = jax.nn.relu(self.a(jnp.moveaxis(x, -1, 0)))
        x = jnp.moveaxis(eqx.nn.MaxPool2d(2, 2)(x), 0, -1)
        return self.c(jax.nn.relu(self.b(x.reshape(-1))))


def linen_params():
    params = Linen().init(jax.random.key(0), jnp.zeros(SHAPE))["params"]
    # Biases that are not zero, so that ReLU treats no two units alike.
    return jax.tree.map(lambda p: p + 0.1 * jnp.sin(jnp.arange(p.shape[-1])), params)


def frameworks():
    """Name to (apply, params), all with the same weights."""
    params = linen_params()

    def plain(params, x):
        a, b, c = (params[name] for name in "abc")
        x = lax.conv_general_dilated(
            x, a["kernel"], (1, 1), "VALID", dimension_numbers=NUMBERS,
            feature_group_count=2,
        )  # fmt: skip
        x = jnp.maximum(x + a["bias"], 0)
        x = x.reshape(-1, 4, 2, 4, 2, 8).max((2, 4))
        x = jnp.maximum(x.reshape(-1, 128) @ b["kernel"] + b["bias"], 0)
        return x @ c["kernel"]

    net = Nnx(nnx.Rngs(0))
    graph, state = nnx.split(net, nnx.Param)
    nnx.replace_by_pure_dict(state, params)
    keys = jax.random.split(jax.random.key(0), 3)
    model = Equinox(
        eqx.nn.Conv2d(2, 8, 3, groups=2, key=keys[0]),
        eqx.nn.Linear(128, 6, key=keys[1]),
        eqx.nn.Linear(6, 4, use_bias=False, key=keys[2]),
    )
    where = lambda m: [m.a.weight, m.a.bias, m.b.weight, m.b.bias, m.c.weight]
    model = eqx.tree_at(
        where,
        model,
        [
            params["a"]["kernel"].transpose(3, 2, 0, 1),
            params["a"]["bias"][:, None, None],
            params["b"]["kernel"].T,
            params["b"]["bias"],
            params["c"]["kernel"].T,
        ],
    )
    weights, static = eqx.partition(model, eqx.is_inexact_array)
    return {
        "plain": (plain, params),
        "linen": (lambda p, x: Linen().apply({"params": p}, x), params),
        "nnx": (lambda p, x: nnx.merge(graph, p)(x), state),
        "equinox": (lambda p, x: jax.vmap(eqx.combine(p, static))(x), weights),
    }


@pytest.mark.slow
def test_every_framework_gives_the_same_table():
    x = jax.random.normal(jax.random.key(1), SHAPE)
    large = lambda p: np.abs(p) > np.median(np.abs(p))
    tables, outputs = {}, {}
    for name, (apply, params) in frameworks().items():
        # Not equinox's bias of a convolution, which has three axes.
        mask = jax.tree.map(
            lambda p: large(p) if p.size not in (4, 6, 8) else None, params
        )
        batches = [x[:2], x[1:]]
        measured = report.activations(apply, params, batches, mask)
        counts = report.count(apply, params, mask, x, activations=measured)
        assert counts.examples == 4
        assert [row.path[0] for row in counts.layers] == ["a", "b", "c"]
        rows = [row._replace(path="", shape=()) for row in counts.layers]
        tables[name] = (rows, counts.total, counts[2:])
        outputs[name] = apply(jaxprune.apply_mask(params, mask), x)
    for name, table in tables.items():
        np.testing.assert_allclose(outputs[name], outputs["plain"], atol=1e-5)
        assert table == tables["plain"], name
    rows, total, (others, kept, unweighted, _) = tables["plain"]
    # By hand: 3 x 3 x 1 x 8 at 8 x 8 places; 128 x 6; 6 x 4; half of each is dead.
    assert [row.weights for row in rows] == [72, 768, 24]
    assert [row.flop for row in rows] == [2 * 72 * 64, 2 * 768, 2 * 24]
    assert [row.flop_kept for row in rows] == [72 * 64, 768, 24]
    assert [row.units for row in rows] == [128, 6, 4]
    assert [row.inputs for row in rows] == [200, 128, 6]
    assert [row.outputs for row in rows] == [512, 6, 4]
    assert (others, kept, unweighted) == (14, 14, 0)
    # NumPy's count of the non-zeros, by the definition.
    apply, params = frameworks()["linen"]
    pruned = jax.tree.map(lambda p: np.where(large(p) | (p.ndim < 2), p, 0), params)
    _, state = Linen().apply({"params": pruned}, x, capture_intermediates=True)
    seen = state["intermediates"]
    batch = [np.asarray(seen[name]["__call__"][0]) for name in "ab"]
    a = np.maximum(batch[0], 0).reshape(3, 4, 2, 4, 2, 8).max((2, 4))
    share = [
        (np.count_nonzero(v[:2]) + np.count_nonzero(v[1:])) / (v[:2].size * 2)
        for v in (a, np.maximum(batch[1], 0))
    ]
    assert [row.activations for row in rows] == [*map(pytest.approx, share), 1.0]
    needed = [72 * 64, round(768 * share[0]), round(24 * share[1])]
    assert [row.flop_needed for row in rows] == needed
    assert total.flop_needed == sum(needed)
    neurons = (128 * share[0] + 6 * share[1] + 4) / 138
    assert total.activations == pytest.approx(neurons)


def test_nothing_to_divide_by():
    apply = lambda p, x: x @ p["w"]
    params = {"w": jnp.ones((4, 3))}
    with pytest.raises(ValueError, match="x holds 0 examples, expected 1 or more"):
        report.count(apply, params, None, jnp.ones((0, 4)))
    empty = report.count(apply, {"w": jnp.ones((4, 0))}, None, jnp.ones((2, 4)))
    assert [(row.weights, row.flop) for row in empty.layers] == [(0, 0)]
