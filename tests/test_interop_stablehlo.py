"""One file of program and weights: a process that has only jax computes the same."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_interop_load import IMAGES, Net

import jaxprune
from jaxprune import interop
from jaxprune.interop._packed import _shared, pack, unpack


ALONE = """
import sys
for name in ("jaxprune", "flax", "optax"):
    sys.modules[name] = None  # importing it fails
import jax, numpy as np
with open("net.stablehlo", "rb") as file:
    model = jax.export.deserialize(bytearray(file.read()))
np.save("logits.npy", jax.jit(model.call)(np.load("images.npy")))
"""


def pruned(p, threshold=0.2):
    return jnp.where(jnp.abs(p) > threshold, p, 0)


def test_a_process_with_jax_alone_computes_the_same(tmp_path):
    params = Net().init(jax.random.key(1), IMAGES)["params"]
    params = jax.tree.map(lambda p: pruned(p) if p.ndim > 1 else p + 0.1, params)
    mask = jaxprune.mask_from_zeros(params)
    (batch,) = jax.export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, *IMAGES.shape[1:]), jnp.float32)
    apply = lambda params, x: Net().apply({"params": params}, x)
    interop.write_stablehlo(tmp_path / "net.stablehlo", apply, params, mask, images)
    assert [p.name for p in tmp_path.iterdir()] == ["net.stablehlo"]
    np.save(tmp_path / "images.npy", IMAGES)
    subprocess.run([sys.executable, "-I", "-c", ALONE], cwd=tmp_path, check=True)
    expected = apply(params, IMAGES)
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(
        np.load(tmp_path / "logits.npy"), expected, rtol=1e-5, atol=1e-6
    )
    again = interop.read_stablehlo(tmp_path / "net.stablehlo")
    assert set(again.platforms) == {"cpu", "cuda", "tpu"}
    np.testing.assert_allclose(
        again.call(IMAGES[:1]), expected[:1], rtol=1e-5, atol=1e-6
    )


def matrix(density, kinds=None):
    rng = np.random.default_rng(0)
    values = rng.normal(size=(784, 300)).astype(np.float32)
    if kinds:
        values = rng.choice(values.ravel()[:kinds], values.shape)
    alive = rng.random(values.shape) < density
    return np.where(alive, values, 0), alive


@pytest.mark.parametrize(("kinds", "each"), [(None, 5), (32, 2)])
def test_the_file_has_a_gap_and_a_value_for_each_live_weight(kinds, each, tmp_path):
    w, alive = matrix(0.08, kinds)
    x = np.random.default_rng(1).normal(size=(2, 784)).astype(np.float32)
    path = tmp_path / "net.stablehlo"
    product = lambda params, x: x @ params["w"]
    interop.write_stablehlo(path, product, {"w": w}, {"w": alive}, x)
    assert path.stat().st_size < each * alive.sum() + 8192  # the program: about 5 KB
    read = interop.read_stablehlo(path)
    np.testing.assert_allclose(read.call(x), x @ w, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16, np.int8])
@pytest.mark.parametrize("density", [0.0, 1e-5, 0.001, 0.08, 1.0])
def test_unpacking_is_the_inverse(density, dtype):
    w, alive = matrix(density)
    w = (10 * w).astype(dtype)
    for dense, live in ((w, alive), (w[::-1], alive[::-1])):
        leaf = pack("w", dense, live)
        assert sum(a.nbytes for a in leaf.arrays) <= w.nbytes
        made = jax.jit(lambda arrays, leaf=leaf: unpack(leaf._replace(arrays=arrays)))
        np.testing.assert_array_equal(made(leaf.arrays), dense)


@pytest.mark.parametrize(
    ("kinds", "dtype"), [(256, "u1"), (257, "u2"), (65_536, "u2"), (65_537, "u4")]
)
def test_codes_are_as_narrow_as_they_can_be(kinds, dtype):
    values = np.arange(kinds, dtype=np.float32)[::-1]
    codes, codebook = _shared(values)
    assert codes.dtype == dtype
    np.testing.assert_array_equal(codebook[codes], values)


def test_params_of_another_form_and_no_mask(tmp_path):
    # Whatever runs: here coordinates, with the function that multiplies by them.
    w, alive = matrix(0.01)
    rows, columns = np.nonzero(alive)
    params = {"rows": rows.astype(np.uint16), "columns": columns, "values": w[alive]}

    def product(params, x):
        terms = x[:, params["rows"]] * params["values"]
        return jnp.zeros((x.shape[0], 300)).at[:, params["columns"]].add(terms)

    x = np.random.default_rng(1).normal(size=(2, 784)).astype(np.float32)
    interop.write_stablehlo(tmp_path / "x", product, params, None, x, platforms=["cpu"])
    read = interop.read_stablehlo(tmp_path / "x")
    np.testing.assert_allclose(read.call(x), x @ w, rtol=1e-4, atol=1e-4)


def test_bad_files_and_bad_params(tmp_path):
    path = tmp_path / "net.stablehlo"
    w, alive = matrix(0.01)
    x = np.ones((1, 784), np.float32)
    product = lambda params, x: x @ params["w"]
    with pytest.raises(ValueError, match="dead weights of w are not zero"):
        interop.write_stablehlo(path, product, {"w": w + 1}, {"w": alive}, x)
    assert not list(tmp_path.iterdir())
    interop.write_stablehlo(path, product, {"w": w}, {"w": alive}, x)
    data = path.read_bytes()
    for damaged in (b"", data[:40], data[: len(data) // 2], b"no such file" * 9):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"net\.stablehlo is not a whole file"):
            interop.read_stablehlo(path)


def test_any_changed_byte_is_noticed(tmp_path):
    path, plain = tmp_path / "net.stablehlo", tmp_path / "plain"
    w, alive = matrix(0.001)
    x = np.ones((1, 784), np.float32)
    product = lambda params, x: x @ params["w"]
    interop.write_stablehlo(path, product, {"w": w}, {"w": alive}, x)
    data = path.read_bytes()
    for i in [*range(4), *range(16, len(data), 97), len(data) - 1]:
        path.write_bytes(data[:i] + bytes([data[i] ^ 1]) + data[i + 1 :])
        with pytest.raises(ValueError, match=r"net\.stablehlo .*its checksum is wrong"):
            interop.read_stablehlo(path)
    for n in range(20, len(data), 101):
        path.write_bytes(data[:n])
        with pytest.raises(ValueError, match="its checksum is wrong"):
            interop.read_stablehlo(path)
    # As jax wrote it, without mark and checksum, it is read as well.
    root = int.from_bytes(data[:4], "little") - 16
    plain.write_bytes(root.to_bytes(4, "little") + data[20:])
    expected = jax.export.deserialize(bytearray(plain.read_bytes())).call(x)
    np.testing.assert_array_equal(interop.read_stablehlo(plain).call(x), expected)
    np.testing.assert_allclose(expected, x @ w, rtol=1e-4, atol=1e-4)
