"""LiteRT runs the files: its outputs are those of NumPy, and of flax or JAX."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from experiments import models
from experiments.config import Data
from experiments.data.digits import load
from experiments.models import layers, preprocess
from experiments.models.alexnet import CAFFE
from jaxprune import interop
from jaxprune.interop._litert import litert_bytes, run_litert
from jaxprune.interop._litert_file import _Writer


interpreter = pytest.importorskip(
    "ai_edge_litert.interpreter", reason="LiteRT is the reference here"
)
schema = pytest.importorskip("ai_edge_litert.schema_py_generated")
KEY, EYE = jax.random.key(0), np.eye(72, dtype=np.float32)
SIZES = (784, 300, 100, 10)
LAYERS = ("fc1", "fc2", "fc3")


def lenet300(density):
    rng = np.random.default_rng(0)
    params = {}
    for name, fan_in, fan_out in zip(LAYERS, SIZES, SIZES[1:], strict=False):
        kernel = rng.normal(size=(fan_in, fan_out)).astype(np.float32)
        kernel *= rng.random(kernel.shape) < density
        bias = rng.normal(size=fan_out).astype(np.float32)
        params[name] = {"kernel": kernel / np.float32(fan_in**0.5), "bias": bias}
    return params


def outputs(params, x, np=np):
    for name in LAYERS:
        x = x @ params[name]["kernel"] + params[name]["bias"]
        x = np.maximum(x, 0) if name != LAYERS[-1] else x
    return x


def stack(params, x):
    return outputs(params, x, jnp)


def pruned(module, shape, density=0.3):
    """Gives a module's function and params whose outputs depend on every layer."""
    rng = np.random.default_rng(0)
    params = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, *shape)))

    def leaf(p):
        if len(p.shape) < 2:
            return rng.normal(size=p.shape).astype(np.float32) / 10
        alive = rng.random(p.shape) < density
        w = rng.normal(size=p.shape) * alive
        return (w * (2 / density / np.prod(p.shape[:-1])) ** 0.5).astype(np.float32)

    params = jax.tree.map(leaf, params["params"])
    return lambda params, x: module.apply({"params": params}, x), params


def check(apply, params, shape, rtol=1e-5):
    """Compares what LiteRT computes, and gives the names of its operators."""
    data = litert_bytes(apply, params, shape)
    x = np.random.default_rng(1).normal(size=(3, *shape)).astype(np.float32)
    expected, made = np.asarray(apply(params, x)), run_litert(data, x)
    assert np.ptp(expected, axis=0).max() > 0.1  # examples differ
    np.testing.assert_allclose(made, expected, rtol=0, atol=rtol * np.ptp(expected))
    model = interpreter.Interpreter(model_content=data)
    return [operator["op_name"] for operator in model._get_ops_details()]


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("densest", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("density", [0.05, 0.5])
def test_litert_computes_the_same_as_numpy(batch, densest, density, tmp_path):
    params = lenet300(density)
    path = tmp_path / "net.tflite"
    interop.write_litert(path, stack, params, (784,), densest=densest)
    x = np.random.default_rng(1).random((batch, 784), np.float32)
    made = run_litert(path.read_bytes(), x)
    assert np.abs(made).max() > 0.1
    np.testing.assert_allclose(made, outputs(params, x), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_lenet5_on_digits(monkeypatch):
    """On digits, whichever way the network writes its convolutions."""
    shape = (28, 28, 1)
    apply, params = pruned(models.LeNet5(), shape, density=0.08)
    x = np.asarray(preprocess(load(Data("mnist5k")).judge.images[:100], "unit"))
    expected = np.asarray(apply(params, x))
    assert len(set(expected.argmax(1))) > 2
    data = litert_bytes(apply, params, shape)
    far = 1e-5 * np.abs(expected).max()
    np.testing.assert_allclose(run_litert(data, x), expected, rtol=0, atol=far)
    way = layers.conv_max_pool_xla
    monkeypatch.setattr(layers, "conv_pool", lambda x, k, bias: way(x, k) + bias)
    assert litert_bytes(apply, params, shape) == data


@pytest.mark.parametrize("padding", ["SAME", "VALID", ((2, 1), (0, 3))])
@pytest.mark.parametrize("strides", [(1, 1), (2, 3)])
def test_convolutions_and_pooling_of_flax(padding, strides):
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.relu(nn.Conv(4, (3, 2), strides, padding)(x))
            x = nn.Conv(5, (2, 2), kernel_dilation=2, use_bias=False)(x)
            x = nn.max_pool(x, (4, 4), strides, padding)
            return nn.Dense(3)(x.reshape(x.shape[0], -1))

    ops = check(*pruned(Net(), (23, 21, 2)), (23, 21, 2))
    layers = ["CONV_2D", "CONV_2D", "MAX_POOL_2D", "RESHAPE", "FULLY_CONNECTED"]
    operators = [op for op in ops if op not in ("PADV2", "DENSIFY", "DELEGATE")]
    assert operators == layers
    assert ("PADV2" in ops) == (padding not in ("SAME", "VALID"))


def windows_by_slices(params, x):
    """A convolution with strides 2 and 1 by one product; pooling by a reshape."""
    seen = [x[:, i : i + 9 : 2, j : j + 8] for i in range(4) for j in range(3)]
    x = jnp.concatenate(seen, -1) @ params["kernel"].reshape(-1, 6) + params["bias"]
    x = jax.nn.relu(x)[:, :4]
    x = x.reshape(-1, 2, 2, 4, 2, 6).max((2, 4))
    return jnp.einsum("bhwc,hwco->bo", x, params["last"])


def channels_first(params, x):
    """NCHW layers, with the flatten that goes with them, on an NHWC image."""
    x = x.transpose(0, 3, 1, 2)
    x = lax.conv_general_dilated(x, params["kernel"], (2, 1), "VALID")
    x = x + params["bias"][:, None, None]
    x = jax.nn.relu(x).reshape(x.shape[0], -1)
    return jnp.tanh(x @ params["last"]) * 2 - params["bias"][:4]


def residual(params, x):
    y = jax.nn.relu(jnp.pad(x, ((0, 0), (1, 0), (0, 2))) + params["bias"])
    z = jax.nn.sigmoid(y @ params["kernel"])
    return jnp.concatenate([jnp.minimum(z, y)[:, 1:] / 2, z - y], 1).sum(1)


@pytest.mark.parametrize(
    ("apply", "shapes", "shape", "ops"),
    [
        (
            windows_by_slices,
            {"kernel": (4, 3, 2, 6), "bias": (6,), "last": (2, 4, 6, 4)},
            (12, 10, 2),
            ["CONV_2D", "MAX_POOL_2D", "FULLY_CONNECTED"],
        ),
        (
            channels_first,
            {"kernel": (6, 2, 4, 3), "bias": (6,), "last": (6 * 5 * 8, 4)},
            (12, 10, 2),
            ["CONV_2D", "FULLY_CONNECTED", "TANH", "MUL"],
        ),
        (
            residual,
            {"kernel": (5, 5), "bias": (5,)},
            (4, 3),
            ["PADV2", "ADD", "FULLY_CONNECTED", "LOGISTIC", "STRIDED_SLICE", "SUM"],
        ),
    ],
)
def test_layers_written_otherwise(apply, shapes, shape, ops):
    rng = np.random.default_rng(0)
    params = {k: rng.normal(size=s).astype(np.float32) for k, s in shapes.items()}
    assert set(ops) <= set(check(apply, params, shape))


SMALL = {"fc6": 16, "fc7": 16} | {f"conv{i}": 6 + 2 * i for i in range(1, 6)}
BLOCKS = {f"conv{b}_{i}": 4 + b for b in range(1, 6) for i in (1, 2, 3)}


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        pytest.param(
            models.AlexNet(classes=7, widths=SMALL),
            (67, 67, 3),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            models.ALEXNET_CIFAR10.module.clone(widths=SMALL),
            (32, 32, 3),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            models.ALEXNET_TORCHVISION.module.clone(widths=SMALL),
            (67, 67, 3),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            models.VGG16(units=16, classes=7, widths=BLOCKS),
            (64, 64, 3),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_networks_of_narrow_layers(module, shape):
    ops = check(*pruned(module, shape, density=0.6), shape)
    expected = {"CONV_2D", "MAX_POOL_2D", "RESHAPE", "FULLY_CONNECTED"}
    lrn = {"MUL", "ADD", "RSQRT", "SQRT"}
    groups = {"STRIDED_SLICE", "CONCATENATION"}
    if isinstance(module, models.AlexNet) and module.convs == CAFFE:
        expected |= lrn | groups
    assert set(ops) - {"PADV2", "DENSIFY", "DELEGATE"} == expected


def test_the_sparse_file_is_small(tmp_path):
    path = tmp_path / "net.tflite"
    interop.write_litert(path, stack, params := lenet300(0.05), (784,))
    alive = sum(np.count_nonzero(params[name]["kernel"]) for name in LAYERS)
    assert path.stat().st_size < 6 * alive + 8192  # a float32 and a uint16 each
    interop.write_litert(path, stack, lenet300(1.0), (784,))
    assert path.stat().st_size > 4 * 266_610
    apply, params = pruned(models.LeNet5(), (28, 28, 1), density=0.1)
    interop.write_litert(path, apply, params, (28, 28, 1))
    assert path.stat().st_size < 6 * 43_108 + 8192  # conv2 too, and smaller places


@pytest.mark.parametrize(
    ("apply", "message"),
    [
        (lambda p, x: jnp.sin(x), r"it has sin of \[\(1, 6, 5, 4\)\], expected only"),
        (lambda p, x: nn.avg_pool(x[..., None], (1, 1, 2)), r"windows \(1, 1, 1, 2, 1"),
        (lambda p, x: lax.integer_pow(x, 0) + x, "to the power 0"),
        (
            lambda p, x: lax.conv_transpose(x, p["w"][:3, :3, :, None], (2, 2), "SAME"),
            r"input dilation \(2, 2\)",
        ),
        (lambda p, x: (x, x), "it has 2 outputs, expected one"),
        (lambda p, x: x.mean(0), r"shape \(6, 5, 4\) for a batch of 1"),
        (lambda p, x: jnp.einsum("bhwc,dhwc->bd", x, x), "of different examples"),
        (lambda p, x: jnp.einsum("bhwc,hwc->bhw", x, p["w"]), "by its own matrix"),
        (lambda p, x: x[:, ::-1], r"shape \(1, 6, 5, 4\) are moved"),
        (
            lambda p, x: lax.dynamic_slice_in_dim(x, jnp.int32(x[0, 0, 0, 0]), 2, 1),
            "computes in int32",
        ),
        (lambda p, x: x.astype(jnp.float16), "computes in float16, expected float32"),
        (lambda p, x: jnp.where(x.sum() > 1, x, p["w"]), "whole arrays by one test"),
        (lambda p, x: (x > 1).reshape(-1) * 1.0, "a comparison of shape"),
        (lambda p, x: x > 1, "a comparison of shape"),
        (
            lambda p, x: lax.select_n((x > 1) + (x > 2) * 1, x, x + 1, x + 2),
            "computes in int32, expected float32",
        ),
        (lambda p, x: jnp.ones(3), r"a constant of shape \(3,\) is where"),
        (lambda p, x: x * x.shape[0], "LiteRT computes something else"),
        (
            lambda p, x: jax.random.normal(KEY, x.shape) * x,
            "makes or takes random keys",
        ),
        (lambda p, x: x * jax.random.bernoulli(jax.random.PRNGKey(0)), "random keys"),
    ],
)
def test_what_is_refused(apply, message, tmp_path):
    params = {"w": np.ones((6, 5, 4), np.float32)}
    shape = (6, 5, 4)
    with pytest.raises(ValueError, match=message):
        interop.write_litert(tmp_path / "net.tflite", apply, params, shape)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("shape", [16, (None, 16)])
def test_what_is_no_shape_is_named(shape):
    unchecked = vars(litert_bytes)["__wrapped__"]  # by jaxtyping
    with pytest.raises(ValueError, match=r"input_shape is .*, expected the whole num"):
        unchecked(lambda p, x: x, {}, shape)


@pytest.mark.parametrize("groups", [2, 6])
@pytest.mark.parametrize("padding", ["SAME", "VALID", ((2, 1), (0, 3))])
def test_grouped_convolutions(groups, padding):
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            of = {"feature_group_count": groups}
            x = nn.relu(nn.Conv(12, (3, 2), (2, 2), padding, **of)(x))
            x = nn.Conv(6, (1, 1))(x)
            return nn.Conv(6, (2, 2), kernel_dilation=2, **of)(x)

    ops = check(*pruned(Net(), (9, 8, 6), density=0.6), (9, 8, 6))
    assert ops.count("CONV_2D") == (5 if groups == 2 else 1)
    assert ops.count("DEPTHWISE_CONV_2D") == (0 if groups == 2 else 2)
    assert ops.count("CONCATENATION") == (2 if groups == 2 else 0)


@pytest.mark.parametrize("padding", ["SAME", "VALID", ((2, 1), (0, 3))])
def test_average_pooling(padding):
    pooled = lambda p, x: jax.nn.relu(nn.avg_pool(x, (3, 2), (2, 1), padding))
    assert "AVERAGE_POOL_2D" in check(pooled, {}, (9, 8, 6))


def test_windows_over_channels_are_products():
    def summed(params, x):
        window = {"window_dimensions": (1, 1, 1, 3), "window_strides": (1, 1, 1, 1)}
        return lax.reduce_window(
            x, 0.0, lax.add, padding=((0, 0),) * 3 + ((1, 3),), **window
        ) @ np.eye(8, dtype=np.float32)

    assert "FULLY_CONNECTED" in check(summed, {}, (5, 4, 6))


def test_functions_of_each_number():
    def function(params, x):
        y = jnp.sqrt(jnp.exp(-jnp.abs(x))) + lax.rsqrt(x * x + 1)
        return y**3 + (x * x + 1) ** -2 - jnp.log(jnp.square(x) + 2)

    made = {"ABS", "DIV", "EXP", "LOG", "MUL", "NEG", "RSQRT", "SQRT"}
    assert made <= set(check(function, {}, (5, 4, 6)))


@pytest.mark.parametrize(
    "function",
    [
        lambda x: jax.nn.softmax(x @ EYE[:6, :7]),
        lambda x: jax.nn.softmax(x, (1, 2)),
        lambda x: jax.nn.log_softmax(x.transpose(0, 3, 1, 2), 1),
        lambda x: lax.stop_gradient(x.max((1, 2))) * 2,
        lambda x: (x.max(-1, keepdims=True) - x).reshape(len(x), -1) @ EYE[:, :5],
    ],
)
def test_softmax_and_maxima_over_axes(function):
    assert "REDUCE_MAX" in check(lambda params, x: function(x), {}, (3, 4, 6))


@pytest.mark.parametrize(
    "function",
    [
        *(nn.leaky_relu, nn.elu, nn.selu, nn.celu, nn.hard_tanh),
        *(nn.softplus, nn.log_sigmoid, lambda x: x * jnp.tanh(nn.softplus(x))),
    ],
)
def test_activations_that_compare(function):
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(5)(function(nn.Conv(8, (3, 3))(x)))

    ops = check(*pruned(Net(), (6, 5, 4), density=0.6), (6, 5, 4))
    assert ops.count("CONV_2D") == 2
    assert not {"TRANSPOSE", "RESHAPE", "STRIDED_SLICE"} & set(ops)


ROOT = 2**0.5


@pytest.mark.parametrize(
    ("function", "more"),
    [
        (lambda x: nn.gelu(x, approximate=False), 0),
        (lambda x: 0.5 * x * (1 + lax.erf(x / ROOT)), 0),
        (lambda x: x * (0.5 + lax.erf(x / ROOT) * 0.5), 0),
        (lambda x: x * lax.erfc(-x / ROOT), 1),
        (lambda x: nn.gelu(1.7 * x, approximate=False), 1),
        (lambda x: nn.gelu(-x, approximate=False) / 3, 2),
        (lambda x: nn.gelu(nn.relu(x), approximate=False), 0),
    ],
)
@pytest.mark.parametrize("bias", [True, False])
def test_exact_gelu(function, more, bias):
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = function(nn.Conv(8, (3, 3), use_bias=bias)(x))
            x = function(nn.Dense(7, use_bias=bias)(x.reshape(x.shape[0], -1)))
            return nn.Dense(5)(x)

    ops = check(*pruned(Net(), (6, 5, 4), density=0.6), (6, 5, 4))
    assert ops.count("GELU") == 2
    assert sum(op in ("MUL", "DIV", "NEG") for op in ops) == 2 * more
    # What a GELU reads twice is computed once.
    assert [ops.count(op) for op in ("CONV_2D", "FULLY_CONNECTED")] == [1, 2]


@pytest.mark.parametrize(
    "function",
    [
        lax.erf,
        lambda x: x * lax.erf(x),
        lambda x: x * (1 + lax.erf(nn.relu(x) / ROOT)),
        lambda x: x * (1.1 + lax.erf(x / ROOT)),
        lambda x: x * nn.relu(1 + lax.erf(x / ROOT)),
    ],
)
def test_erf_is_refused_without_gelu(function):
    with pytest.raises(ValueError, match=r"has erf of \(1, 6\), which only a GELU may"):
        litert_bytes(lambda params, x: function(x), {}, (6,))


class Attention(nn.Module):
    """A vision transformer of one block, with two heads."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(8, (4, 4), (4, 4))(x).reshape(x.shape[0], -1, 8)
        x += self.param("place", nn.initializers.normal(1.0), (1, x.shape[1], 8))
        y = nn.LayerNorm()(x)
        x += nn.MultiHeadDotProductAttention(num_heads=2, qkv_features=12)(y, y)
        y = nn.Dense(16)(nn.LayerNorm()(x))
        x += nn.Dense(8)(nn.gelu(y, approximate=False))
        return nn.Dense(5)(x.mean(1))


def test_vision_transformer():
    ops = check(*pruned(Attention(), (12, 8, 3)), (12, 8, 3))
    assert ops.count("CONV_2D") == 1
    assert ops.count("BATCH_MATMUL") == 2
    assert ops.count("FULLY_CONNECTED") == 4 + 2 + 1
    assert ops.count("GELU") == 1


def by_heads_first(x):
    """The axis of the batch is the second of those that both sides share."""
    return lax.dot_general(x, jnp.tanh(x), (((3,), (3,)), ((2, 0), (2, 0))))


@pytest.mark.parametrize(
    "function",
    [
        *(
            lambda x, way=way: jnp.einsum(way, x, jnp.tanh(x))
            for way in (
                "bqhd,bkhd->bhqk",
                "bqhd,bhkd->bqk",
                "bhkd,bhkd->b",
                "bqhd,bkld->bqhkl",
                "bhij,bhij->bij",
            )
        ),
        lambda x: jnp.einsum("bqd,bk->bqdk", x[:, :, 0], x[:, 0, 0]),
        lambda x: by_heads_first(x).transpose(1, 0, 3, 2),
        lambda x: jnp.matmul(x @ EYE[:4, :3], x[:, :, 1:4]),
    ],
)
def test_products_of_activations(function):
    apply = lambda params, x: function(x)
    assert check(apply, {}, (5, 5, 4)).count("BATCH_MATMUL") == 1


def test_dense_layers_of_several_axes():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.DenseGeneral((2, 3))(x)  # (batch, 6, 5, 2, 3)
            x = nn.DenseGeneral(4, axis=(-2, -1))(jnp.tanh(x).transpose(0, 2, 1, 3, 4))
            return nn.DenseGeneral(7, axis=(1, 3))(x)

    ops = check(*pruned(Net(), (6, 5, 4)), (6, 5, 4))
    assert ops.count("FULLY_CONNECTED") == 3


def turned(shape, axes):
    return lambda x: x.reshape(x.shape[0], *shape).transpose(axes)


@pytest.mark.parametrize(
    ("move", "operators"),
    [
        (turned((2, 15, 4), (0, 3, 1, 2)), {"RESHAPE", "TRANSPOSE"}),
        (turned((2, 3, 5, 4), (0, 2, 4, 1, 3)), {"RESHAPE", "TRANSPOSE"}),
        (turned((2, 3, 20), (0, 3, 2, 1)), {"RESHAPE", "TRANSPOSE"}),
        (lambda x: x[:, 3], {"RESHAPE", "STRIDED_SLICE"}),
        (lambda x: x[:, jnp.array([1, 3, 5])], {"STRIDED_SLICE"}),
        (lambda x: x[:, :, 2, 1:], {"RESHAPE", "STRIDED_SLICE"}),
        # Queries, keys and values from one dense layer.
        (
            lambda x: turned((15, 2, 2, 2), (0, 2, 3, 1, 4))(x)[:, 1],
            {"RESHAPE", "STRIDED_SLICE", "TRANSPOSE"},
        ),
        (
            lambda x: turned((3, 7), (0, 2, 1))(x.reshape(-1, 120)[:, 13:34]),
            {"RESHAPE", "STRIDED_SLICE", "TRANSPOSE"},
        ),
        # The last row is cut short.
        (lambda x: x.reshape(-1, 120)[:, 61:].reshape(-1, 59)[:, 3:], None),
        (lambda x: turned((9, 13), (0, 2, 1))(x.reshape(-1, 120)[:, 2:-1]), None),
        (lambda x: x.reshape(-1, 24, 5)[:, 1::2, 1:3].transpose(0, 2, 1), None),
        (lambda x: x.reshape(-1, 10, 12)[:, 7:, 5].reshape(-1, 3, 1), None),
        (lambda x: x.reshape(-1, 8, 15)[:, 2:5, 4:9].transpose(0, 2, 1)[:, 1:], None),
    ],
)
def test_numbers_that_are_moved(move, operators):
    ops = check(lambda params, x: jnp.tanh(move(jnp.tanh(x))), {}, (6, 5, 4))
    assert operators is None or set(ops) - {"TANH", "DELEGATE"} == operators


@pytest.mark.slow
def test_numbers_moved_at_random():
    """What is written computes the same; most can be."""
    rng, written, asked = np.random.default_rng(0), 0, 150
    for _ in range(asked):
        moves = []
        shape = [6, 5, 4]
        for _ in range(rng.integers(1, 4)):
            kind = rng.integers(3)
            if kind == 0:  # an axis in two
                axis = int(rng.integers(len(shape)))
                parts = [k for k in range(2, shape[axis]) if shape[axis] % k == 0]
                if parts:
                    k = int(rng.choice(parts))
                    shape[axis : axis + 1] = [k, shape[axis] // k]
                moves.append(("reshape", tuple(shape)))
            elif kind == 1:
                axes = rng.permutation(len(shape))
                shape = [shape[i] for i in axes]
                moves.append(("transpose", (0, *(int(i) + 1 for i in axes))))
            else:
                begin = [int(rng.integers(n)) for n in shape]
                end = [
                    int(rng.integers(b, n)) + 1
                    for b, n in zip(begin, shape, strict=True)
                ]
                shape = [e - b for b, e in zip(begin, end, strict=True)]
                moves.append(("slice", list(map(slice, begin, end))))

        def apply(params, x, moves=moves):
            x = jnp.tanh(x)
            for kind, how in moves:
                if kind == "slice":
                    x = x[(slice(None), *how)]
                else:
                    how = (x.shape[0], *how) if kind == "reshape" else how
                    x = getattr(x, kind)(how)
            return x * 2

        x = rng.normal(size=(3, 6, 5, 4)).astype(np.float32)
        try:
            data = litert_bytes(apply, {}, (6, 5, 4))
        except ValueError as error:
            if "are moved" not in str(error):
                raise
            continue
        written += 1
        np.testing.assert_allclose(run_litert(data, x), apply({}, x), rtol=1e-5)
    assert written > 0.9 * asked


@pytest.mark.parametrize(
    "order", [(0, 1), (1, 0), (0, 1, 1, 0), (1, 0, 0, 1), (1, 0, 1, 1, 0, 0)]
)
def test_activations_joined_with_constants(order):
    w = np.random.default_rng(0).normal(size=(1, 3, 4)).astype(np.float32)

    def apply(params, x):
        w = jnp.broadcast_to(params["w"], (x.shape[0], 3, 4))
        parts = [(w * i, jnp.tanh(x) + i)[kind] for i, kind in enumerate(order, 1)]
        return jnp.concatenate(parts, 1)

    check(apply, {"w": w}, (5, 4))


def test_float64_params_are_what_jax_takes_them_for():
    w = np.random.default_rng(0).normal(size=(6, 5))
    check(lambda params, x: x @ params["w"] + params["w"][0], {"w": w}, (6,))


def test_constants_wider_than_an_activation():
    row = np.arange(5, dtype=np.float32)
    ops = check(lambda params, x: (x[:, :1] * row - x[:, 1:2]) + row / 2, {}, (6,))
    assert "MUL" in ops
    ops = check(lambda params, x: row + x[:, :1], {}, (6,))
    assert "ADD" in ops


def larger(a, b, also=None):
    return jnp.where(a > b if also is None else (a > b) | also, a, b)


@pytest.mark.parametrize(
    ("function", "made"),
    [
        (lambda x, w: jnp.where(x > 1, x, w), "GREATER"),
        (lambda x, w: jnp.where(w > 0, x, -x), "SELECT_V2"),
        (lambda x, w: jnp.where((w > 0) & (x < 1), x, 0), "LOGICAL_AND"),
        (lambda x, w: jnp.where((x > 1) | (w < x), x, -x), "LOGICAL_OR"),
        (lambda x, w: jnp.where(~(x <= w), x, x * x), "LOGICAL_NOT"),
        (lambda x, w: jnp.where(jnp.round(w) == x, 1, x), "EQUAL"),
        (lambda x, w: (x != w) * x + (x >= 1) * w, "NOT_EQUAL"),
        (lambda x, w: larger(x, x * w), "MAXIMUM"),
        (lambda x, w: larger(x, x * w, jnp.isnan(x)), "MAXIMUM"),
        (lambda x, w: larger(x, x * w, jnp.isnan(x * w)), "SELECT_V2"),
        (lambda x, w: jnp.where((x > 1) | jnp.isnan(x), x, 2), "SELECT_V2"),
    ],
)
def test_comparisons(function, made):
    w = np.random.default_rng(0).normal(size=(6, 5, 4)).astype(np.float32)
    assert made in check(lambda params, x: function(x, params["w"]), {"w": w}, w.shape)


def test_what_is_added_after_a_relu_stays_after_it():
    rng = np.random.default_rng(0)
    params = {
        "w": rng.normal(size=(6, 5)).astype(np.float32),
        "b": np.float32(range(5)),
    }
    apply = lambda params, x: jax.nn.relu(x @ params["w"]) + params["b"] - 2
    assert "ADD" in check(apply, params, (6,))


@pytest.mark.parametrize(
    ("largest", "dtype"), [(255, "u1"), (256, "u2"), (65_535, "u2"), (65_536, "i4")]
)
def test_places_are_as_narrow_as_they_can_be(largest, dtype):
    writer = _Writer(schema, 1.0)
    _, vector = writer.vector(np.array([3, largest]))
    assert vector.values.dtype == dtype
    assert vector.values.tolist() == [3, largest]
