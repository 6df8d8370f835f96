"""Params out: PyTorch and SciPy compute the same from the files."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import scipy.sparse
from test_interop_load import (
    IMAGES,
    LAYERS,
    Net,
    sources,
    torch_net,
    torch_outputs,
)

import jaxprune
from jaxprune import interop


def pruned(seed=1):
    params = Net().init(jax.random.key(seed), IMAGES)["params"]
    params = jax.tree.map(
        lambda p: jnp.where(jnp.abs(p) > 0.2, p, 0) if p.ndim > 1 else p + 0.1, params
    )
    return params, jaxprune.mask_from_zeros(params)


@pytest.mark.parametrize("form", ["pth", "safetensors"])
def test_torch_loads_the_file_and_computes_the_same(form, tmp_path):
    torch = pytest.importorskip("torch", reason="PyTorch is the reference here")
    params, _ = pruned()
    net, path = torch_net(torch), tmp_path / f"net.{form}"
    if form == "pth":
        interop.write_torch(path, params, sources())
        net.load_state_dict(torch.load(path, weights_only=True))
        read = interop.read_torch(path)
    else:
        from safetensors.torch import load_file

        interop.write_safetensors(path, params, sources())
        net.load_state_dict(load_file(path))
        read = interop.read_safetensors(path)
    logits = Net().apply({"params": params}, IMAGES)
    chex.assert_trees_all_close(logits, torch_outputs(torch, net), rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_equal(interop.load_into(params, read, sources()), params)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_bfloat16_in_torchs_file(tmp_path):
    torch = pytest.importorskip("torch", reason="PyTorch is the reference here")
    values = {"w": np.array([1.5, -2.0], ml_dtypes.bfloat16)}
    table = interop.same_sources(values)
    interop.write_torch(tmp_path / "b.pth", values, table)
    held = torch.load(tmp_path / "b.pth", weights_only=True)["w"]
    assert held.dtype == torch.bfloat16
    assert held.tolist() == [1.5, -2.0]
    lacking = {"w": np.zeros(2, ml_dtypes.float8_e4m3fn)}
    with pytest.raises(ValueError, match="w is float8_e4m3fn, which PyTorch does"):
        interop.write_torch(tmp_path / "b.pth", lacking, table)
    assert torch.load(tmp_path / "b.pth", weights_only=True)["w"].tolist() == [1.5, -2]


def test_safetensors_under_our_names(tmp_path):
    params, _ = pruned()
    path = tmp_path / "net.safetensors"
    interop.write_safetensors(path, params)
    read = interop.read_safetensors(path)
    assert set(read) == {f"{a}/{b}" for a in LAYERS for b in ("kernel", "bias")}
    np.testing.assert_array_equal(read["fc3/kernel"], params["fc3"]["kernel"])


def test_two_leaves_of_one_name(tmp_path):
    table = {name: interop.Source("w", interop.AS_IS) for name in ("a", "b")}
    with pytest.raises(ValueError, match="a and b would both be written as w"):
        interop.write_safetensors(
            tmp_path / "x", {"a": np.ones(1), "b": np.ones(1)}, table
        )
    assert not list(tmp_path.iterdir())


def test_scipy_computes_the_same_from_its_matrices(tmp_path):
    params, mask = pruned()
    interop.write_csr(tmp_path / "net", params, mask)
    x = np.random.default_rng(0).normal(size=(3, 36)).astype(np.float32)

    def dense(x, layer):
        kernel = scipy.sparse.load_npz(tmp_path / "net" / f"{layer}.kernel.npz")
        assert kernel.nnz == np.count_nonzero(params[layer]["kernel"])
        return x @ kernel + np.load(tmp_path / "net" / f"{layer}.bias.npy")

    ours = x
    for layer in ("fc3", "fc4"):
        module = nn.Dense(params[layer]["bias"].size)
        ours = np.maximum(module.apply({"params": params[layer]}, ours), 0)
    theirs = np.maximum(dense(np.maximum(dense(x, "fc3"), 0), "fc4"), 0)
    np.testing.assert_allclose(theirs, ours, rtol=1e-5, atol=1e-6)
    # A convolution of 1 x 1 places is that matrix too, and one of more its patches.
    conv = scipy.sparse.load_npz(tmp_path / "net" / "conv1.kernel.npz").toarray()
    np.testing.assert_array_equal(conv, params["conv1"]["kernel"].reshape(27, 4))


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_there_and_back_in_csr(dtype, tmp_path):
    params, mask = pruned()
    params = jax.tree.map(lambda p: p.astype(dtype), params)
    params["fc4"]["kernel"] = params["fc4"]["kernel"].at[0, 0].set(0)
    mask["fc4"]["kernel"] = mask["fc4"]["kernel"].at[0, 0].set(True)  # a living zero
    (tmp_path / ".net.part").mkdir()  # of a process that was killed
    (tmp_path / ".net.part" / "fc9.kernel.npz").touch()
    interop.write_csr(tmp_path / "net", params, mask)
    assert len(list((tmp_path / "net").iterdir())) == len(jax.tree.leaves(params))
    read, read_mask = interop.read_csr(tmp_path / "net", params)
    chex.assert_trees_all_equal_dtypes(read, params)
    chex.assert_trees_all_equal(read, params)
    chex.assert_trees_all_equal(read_mask, mask)
    assert [p.name for p in tmp_path.iterdir()] == ["net"]


def test_bad_folders(tmp_path):
    params, mask = pruned()
    interop.write_csr(tmp_path / "net", params)  # the mask is what is not zero
    with pytest.raises(FileExistsError, match="net exists"):
        interop.write_csr(tmp_path / "net", params, mask)
    other = {**params, "fc4": {**params["fc4"], "kernel": np.zeros((6, 5))}}
    with pytest.raises(
        ValueError, match=r"fc4\.kernel\.npz has shape \(7, 5\), expected \(6, 5\)"
    ):
        interop.read_csr(tmp_path / "net", other)
    file = tmp_path / "net" / "fc3.kernel.npz"
    data = file.read_bytes()
    for length in range(0, len(data), 17):
        file.write_bytes(data[:length])
        with pytest.raises(ValueError, match=r"fc3\.kernel\.npz is damaged"):
            interop.read_csr(tmp_path / "net", params)
    kernel = scipy.sparse.csr_matrix(([1.0], [0], [0, 1]), (1, 7))
    kernel.indices[0] = 7
    scipy.sparse.save_npz(file, kernel)
    with pytest.raises(ValueError, match=r"fc3\.kernel\.npz is damaged: .*indices"):
        interop.read_csr(tmp_path / "net", params)
    file.unlink()
    with pytest.raises(FileNotFoundError, match=r"fc3\.kernel"):
        interop.read_csr(tmp_path / "net", params)


def test_what_csr_refuses(tmp_path):
    params, mask = pruned()
    alive = {**mask, "fc3": {**mask["fc3"], "kernel": jnp.zeros((36, 7), bool)}}
    with pytest.raises(ValueError, match="dead weights of fc3/kernel are not zero"):
        interop.write_csr(tmp_path / "net", params, alive)
    twice = {"a": {"b": np.ones((2, 2))}, "a.b": np.ones((2, 2))}
    with pytest.raises(ValueError, match=r"would both be a\.b\.npz"):
        interop.write_csr(tmp_path / "net", twice)
    assert not list(tmp_path.iterdir())
