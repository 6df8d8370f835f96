"""Grouped convolution, LRN and Caffe's pooling: PyTorch as the reference."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from experiments.models import conv, layers


BACKENDS = ("cpu", "gpu", "tpu")  # which formulation is taken; either runs anywhere


@pytest.fixture(params=BACKENDS)
def formulation(request, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: request.param)


@pytest.fixture
def torch():
    return pytest.importorskip("torch", reason="PyTorch is the reference here")


def normal(seed, *shape):
    draw = np.random.default_rng(seed)
    return draw.standard_normal(shape, dtype=np.float32)


def value_and_grads(f, cotangent, *args):
    """Output, then the gradient of its product with `cotangent`, in NumPy."""
    y, pullback = jax.jit(lambda *a: jax.vjp(f, *a))(*args)
    return [np.asarray(a) for a in (y, *pullback(jnp.asarray(cotangent)))]


def nchw(x):
    return np.ascontiguousarray(x.transpose(0, 3, 1, 2))


def nhwc(x):
    return x.detach().numpy().transpose(0, 2, 3, 1)


def close(a, b):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * float(abs(b).max()))


# Pooling.


@pytest.mark.usefixtures("formulation")
@pytest.mark.parametrize("height", [3, 6, 7, 8])
@pytest.mark.parametrize(("size", "stride"), [(3, 2), (2, 2)])
def test_pooling_is_torchs_in_ceil_mode(torch, height, size, stride):
    """Integers, so that there are ties; a border reached past, and one not."""
    x = np.random.default_rng(height).integers(-3, 3, (2, height, 7, 3))
    x = x.astype(np.float32)
    t = torch.tensor(nchw(x), requires_grad=True)
    expected = torch.nn.functional.max_pool2d(t, size, stride, ceil_mode=True)
    cotangent = normal(0, *nhwc(expected).shape)
    expected.backward(torch.from_numpy(nchw(cotangent)))

    got, grad = value_and_grads(
        lambda x: conv.max_pool(x, size, stride), cotangent, jnp.asarray(x)
    )
    np.testing.assert_array_equal(got, nhwc(expected))
    close(grad, nhwc(t.grad))


def test_an_image_smaller_than_the_window():
    x = normal(1, 1, 1, 2, 3)
    np.testing.assert_array_equal(conv.max_pool(x, 3, 2), x.max((1, 2), keepdims=True))


def test_pooling_keeps_dtype_and_nan():
    x = jnp.ones((1, 6, 6, 2), jnp.bfloat16).at[0, 2, 2, 0].set(jnp.nan)
    y = conv.max_pool(x, 3, 2)
    assert y.dtype == jnp.bfloat16
    assert jnp.isnan(y).sum() == 4  # four windows meet there


# Local response normalisation.


@pytest.mark.parametrize(
    "settings", [(5, 1e-4, 0.75, 1.0), (5, 0.5, 0.75, 1.0), (3, 2.0, 0.6, 2.0)]
)
@pytest.mark.parametrize("channels", [1, 4, 7])
def test_lrn_is_torchs(torch, settings, channels):
    x = 10 * normal(2, 2, 3, 4, channels)
    cotangent = normal(3, *x.shape)
    t = torch.tensor(nchw(x), requires_grad=True)
    expected = torch.nn.functional.local_response_norm(t, *settings)
    expected.backward(torch.from_numpy(nchw(cotangent)))

    got, grad = value_and_grads(
        lambda x: conv.lrn(x, *settings), cotangent, jnp.asarray(x)
    )
    close(got, nhwc(expected))
    close(grad, nhwc(t.grad))


def test_lrn_by_hand():
    """A 100 is seen by itself and two neighbours: 1 + 2e-5 * 10,000 = 1.2."""
    x = jnp.array([100.0, 0.0, 1e-3, 1e-3, 0.0, 1.0])
    expected = x / jnp.array([1.2, 1.2, 1.2, 1.00002, 1.00002, 1.00002]) ** 0.75
    np.testing.assert_allclose(conv.lrn(x), expected, rtol=1e-6)


def test_lrn_in_bfloat16_sums_in_float32():
    x = jnp.asarray(100 * normal(4, 3, 64), jnp.bfloat16)
    y = conv.lrn(x)
    assert y.dtype == jnp.bfloat16
    expected = conv.lrn(x.astype(jnp.float32)).astype(jnp.bfloat16)
    np.testing.assert_array_equal(y.astype(jnp.float32), expected.astype(jnp.float32))


def test_lrn_of_an_even_window_is_refused():
    with pytest.raises(ValueError, match="size is 4, expected an odd number"):
        conv.lrn(jnp.ones((2, 6)), size=4)


# Grouped convolution.


@pytest.mark.usefixtures("formulation")
@pytest.mark.parametrize("groups", [1, 2, 3])
def test_grouped_convolution_is_torchs(torch, groups):
    x, kernel = normal(5, 2, 7, 6, 6), normal(6, 3, 3, 6 // groups, 12)
    t = torch.tensor(nchw(x), requires_grad=True)
    weight = torch.tensor(kernel.transpose(3, 2, 0, 1).copy(), requires_grad=True)
    expected = torch.nn.functional.conv2d(t, weight, stride=2, padding=1, groups=groups)
    cotangent = normal(7, *nhwc(expected).shape)
    expected.backward(torch.from_numpy(nchw(cotangent)))

    def f(x, kernel):
        return conv.grouped_conv(
            x,
            kernel,
            (2, 2),
            [(1, 1), (1, 1)],
            dimension_numbers=lax.ConvDimensionNumbers(
                (0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2)
            ),
            feature_group_count=groups,
        )

    args = jnp.asarray(x), jnp.asarray(kernel)
    got, grad, kernel_grad = value_and_grads(f, cotangent, *args)
    close(got, nhwc(expected))
    close(grad, nhwc(t.grad))
    close(kernel_grad, weight.grad.numpy().transpose(2, 3, 1, 0))


@pytest.mark.usefixtures("formulation")
@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 3), (4, 4), (5, 4)])
@pytest.mark.parametrize("inputs", [4, 16])
def test_convolution_with_stride_1_is_torchs(torch, height, width, inputs):
    if inputs == 16:  # a large image, of enough channels
        height, width = 27 + height, 27 + width
    x, w = normal(0, 2, height, width, inputs), normal(1, 3, 3, inputs, 6)
    module = nn.Conv(6, (3, 3), conv_general_dilated=conv.same_conv)
    y = normal(2, 2, height, width, 6)

    def ours(x, w):
        return module.apply({"params": {"kernel": w, "bias": jnp.zeros(6)}}, x)

    tx = torch.tensor(nchw(x), requires_grad=True)
    tw = torch.tensor(w.transpose(3, 2, 0, 1).copy(), requires_grad=True)
    expected = torch.nn.functional.conv2d(tx, tw, padding=1)
    expected.backward(torch.tensor(nchw(y)))
    got = value_and_grads(ours, y, x, w)
    close(got[0], nhwc(expected))
    close(got[1], nhwc(tx.grad))
    close(got[2], tw.grad.numpy().transpose(2, 3, 1, 0))


def test_relu_is_torchs(torch):
    x = np.array([-2.0, -0.0, 0.0, 1e-30, 3.0, -np.inf, np.inf], np.float32)
    t = torch.tensor(x, requires_grad=True)
    cotangent = np.arange(1, 8, dtype=np.float32)
    torch.relu(t).backward(torch.from_numpy(cotangent))
    y, back = jax.vjp(layers.relu, jnp.asarray(x))
    np.testing.assert_array_equal(y, np.maximum(x, 0))
    np.testing.assert_array_equal(*back(jnp.asarray(cotangent)), t.grad)
    # What comes in is read once, for the maximum.
    jaxpr = jax.make_jaxpr(lambda x, g: jax.vjp(layers.relu, x)[1](g))(x, x).jaxpr
    readers = [e.primitive.name for e in jaxpr.eqns if jaxpr.invars[0] in e.invars]
    assert readers == ["custom_jvp_call"]
