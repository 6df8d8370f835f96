"""LiteRT runs the files: its outputs are those of NumPy."""

import numpy as np
import pytest

import jaxprune
from jaxprune import interop


interpreter = pytest.importorskip(
    "ai_edge_litert.interpreter", reason="LiteRT is the reference here"
)
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
    return params, jaxprune.mask_from_zeros(params)


def outputs(params, x):
    for name in LAYERS:
        x = x @ params[name]["kernel"] + params[name]["bias"]
        x = np.maximum(x, 0) if name != LAYERS[-1] else x
    return x


def run(path, x):
    model = interpreter.Interpreter(model_path=str(path), num_threads=1)
    (given,), (made,) = model.get_input_details(), model.get_output_details()
    model.resize_tensor_input(given["index"], x.shape)
    model.allocate_tensors()
    model.set_tensor(given["index"], x)
    model.invoke()
    return model.get_tensor(made["index"])


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("densest", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("density", [0.05, 0.5])
def test_litert_computes_the_same(batch, densest, density, tmp_path):
    params, mask = lenet300(density)
    path = tmp_path / "net.tflite"
    interop.write_litert(path, params, mask, LAYERS, densest=densest)
    x = np.random.default_rng(1).random((batch, 784), np.float32)
    made = run(path, x)
    assert np.abs(made).max() > 0.1
    np.testing.assert_allclose(made, outputs(params, x), rtol=1e-4, atol=1e-5)


def test_the_sparse_file_is_small(tmp_path):
    params, mask = lenet300(0.05)
    path = tmp_path / "net.tflite"
    interop.write_litert(path, params, mask, LAYERS)
    alive = sum(int(mask[name]["kernel"].sum()) for name in LAYERS)
    assert path.stat().st_size < 6 * alive + 8192  # a float32 and a uint16 each
    interop.write_litert(path, params, None, LAYERS)
    assert path.stat().st_size > 4 * 266_610


def test_what_is_refused(tmp_path):
    params, mask = lenet300(0.05)
    path = tmp_path / "net.tflite"
    with pytest.raises(ValueError, match=r"fc2 is \(300, 100\) .* expected \(100, out"):
        interop.write_litert(path, params, mask, ("fc1", "fc2", "fc2"))
    with pytest.raises(ValueError, match="conv1/kernel is not there"):
        interop.write_litert(path, params, mask, ("conv1", "fc1"))
    with pytest.raises(ValueError, match="`layers` is empty"):
        interop.write_litert(path, params, mask, ())
    conv = {"c": {"kernel": np.ones((3, 3, 1, 2), np.float32), "bias": np.ones(2)}}
    with pytest.raises(ValueError, match=r"c/kernel is float32 \(3, 3, 1, 2\), expect"):
        interop.write_litert(path, conv, None, ("c",))
    assert not list(tmp_path.iterdir())
