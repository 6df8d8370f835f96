"""Tensors of PyTorch into params: layouts, complaints, files."""

import json
import subprocess
import sys

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from jaxprune import interop


LAYERS = {
    "conv1": "features.0",
    "conv2": "features.2",
    "fc3": "head.1",
    "fc4": "head.3",
}
MAPS = {"fc3": (6, 2, 3)}  # channels, rows, columns of conv2's output


class Net(nn.Module):
    """Two convolutions, the second in two groups, and two dense layers."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(4, (3, 3), padding="VALID", name="conv1")(x))
        x = nn.Conv(6, (2, 2), padding="VALID", feature_group_count=2, name="conv2")(x)
        x = nn.relu(x).reshape(x.shape[0], -1)
        x = nn.relu(nn.Dense(7, name="fc3")(x))
        return nn.Dense(5, name="fc4")(x)


IMAGES = np.random.default_rng(3).normal(size=(2, 5, 6, 3)).astype(np.float32)


def like(dtype=jnp.float32):
    shapes = jax.eval_shape(Net().init, jax.random.key(0), IMAGES)["params"]
    return jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, dtype), shapes)


@pytest.fixture
def torch():
    return pytest.importorskip("torch", reason="PyTorch is the reference here")


def torch_net(torch):
    torch.manual_seed(0)
    layer = torch.nn
    features = layer.Sequential(
        layer.Conv2d(3, 4, 3), layer.ReLU(), layer.Conv2d(4, 6, 2, groups=2),
        layer.ReLU(),
    )  # fmt: skip
    head = layer.Sequential(
        layer.Flatten(), layer.Linear(36, 7), layer.ReLU(), layer.Linear(7, 5)
    )
    return layer.ModuleDict({"features": features, "head": head})


def torch_outputs(torch, net):
    with torch.no_grad():
        x = torch.from_numpy(IMAGES).permute(0, 3, 1, 2)
        return net["head"](net["features"](x)).numpy()


def tensors():
    """What a file of `Net`'s PyTorch twin would hold, without PyTorch."""
    rng = np.random.default_rng(0)
    shapes = {
        "features.0.weight": (4, 3, 3, 3),
        "features.0.bias": (4,),
        "features.2.weight": (6, 2, 2, 2),
        "features.2.bias": (6,),
        "head.1.weight": (7, 36),
        "head.1.bias": (7,),
        "head.3.weight": (5, 7),
        "head.3.bias": (5,),
    }
    return {k: rng.normal(size=s).astype(np.float32) for k, s in shapes.items()}


def sources():
    return interop.sources_of(like(), LAYERS, maps=MAPS)


def test_a_pth_file_gives_torchs_outputs(torch, tmp_path):
    net = torch_net(torch)
    torch.save(net.state_dict(), tmp_path / "net.pth")
    params = interop.load_into(
        like(), interop.read_torch(tmp_path / "net.pth"), sources()
    )
    logits = Net().apply({"params": params}, IMAGES)
    chex.assert_trees_all_close(logits, torch_outputs(torch, net), rtol=1e-5, atol=1e-6)


def test_a_safetensors_file_of_torch_gives_torchs_outputs(torch, tmp_path):
    net = torch_net(torch)
    from safetensors.torch import save_file

    save_file(net.state_dict(), tmp_path / "net.safetensors")
    read = interop.read_safetensors(tmp_path / "net.safetensors")
    params = interop.load_into(like(), read, sources())
    logits = Net().apply({"params": params}, IMAGES)
    chex.assert_trees_all_close(logits, torch_outputs(torch, net), rtol=1e-5, atol=1e-6)


def test_written_back_torch_computes_the_same(torch):
    net = torch_net(torch)
    params = Net().init(jax.random.key(1), IMAGES)["params"]
    state = interop.tensors_of(params, sources())
    net.load_state_dict({name: torch.from_numpy(t) for name, t in state.items()})
    logits = Net().apply({"params": params}, IMAGES)
    chex.assert_trees_all_close(logits, torch_outputs(torch, net), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_there_and_back(dtype):
    params = interop.load_into(like(dtype), tensors(), sources())
    chex.assert_trees_all_equal_shapes_and_dtypes(params, like(dtype))
    back = interop.tensors_of(params, sources())
    expected = jax.tree.map(lambda t: t.astype(dtype), tensors())
    chex.assert_trees_all_equal(back, expected)
    assert all(t.flags["C_CONTIGUOUS"] for t in back.values())


def test_everything_that_is_wrong_is_told_at_once():
    given = tensors()
    del given["features.0.bias"], given["head.3.weight"]
    given["head.3.bias"] = given["head.3.bias"].astype(np.int64)
    given["features.2.weight"] = np.zeros((6, 4, 2, 2), np.float32)
    given["head.1.weight"] = np.zeros((7, 9), np.float32)
    given["features.0.weight"] = np.zeros((4, 27), np.float32)
    given["features.9.weight"] = np.zeros((1, 2), np.float32)
    with pytest.raises(ValueError, match=r"^net\.pth does not fit these") as caught:
        interop.load_into(like(), given, sources(), origin="net.pth")
    assert str(caught.value).splitlines()[1:] == [
        "  missing: features.0.bias, for conv1/bias (4,)",
        "  misshapen: features.0.weight (4, 27), expected (out, in, height, width),"
        " for conv1/kernel (3, 3, 3, 4)",
        "  misshapen: features.2.weight (6, 4, 2, 2), which as (out, in, height, width)"
        " gives (2, 2, 4, 6), expected (2, 2, 2, 6) for conv2/kernel",
        "  misshapen: head.1.weight (7, 9), expected (out, in = 6 x 2 x 3), for "
        "fc3/kernel (36, 7)",
        "  wrong dtype: head.3.bias int64, for fc4/bias float32",
        "  missing: head.3.weight, for fc4/kernel (7, 5)",
        "  extra: features.9.weight (1, 2)",
    ]


def test_sources_and_leaves_must_correspond():
    table = sources()
    table["fc5/bias"] = table.pop("fc4/bias")
    with pytest.raises(ValueError, match=r"no leaf: fc5/bias.*\n.*no source: fc4/bias"):
        interop.load_into(like(), tensors(), table)
    params = interop.load_into(like(), tensors(), sources())
    with pytest.raises(ValueError, match="no source for fc4/bias"):
        interop.tensors_of(params, table)


def test_a_value_that_overflows_is_not_made_infinite():
    given = tensors()
    given["head.3.bias"][2] = 1e6
    with pytest.raises(ValueError, match=r"overflow: head\.3\.bias .* float16"):
        interop.load_into(like(jnp.float16), given, sources())
    given["head.3.bias"][2] = np.inf  # is no overflow: it was there
    params = interop.load_into(like(jnp.float16), given, sources())
    assert np.isinf(params["fc4"]["bias"][2])


@pytest.mark.parametrize(
    ("value", "dtype"),
    [(np.float32(3.4e38), jnp.bfloat16), (np.int64(300), jnp.uint8)],
)
def test_overflow_that_numpy_is_silent_about(value, dtype):
    like = {"w": jax.ShapeDtypeStruct((1,), dtype)}
    with pytest.raises(ValueError, match="overflow: w has values beyond the range"):
        interop.load_into(like, {"w": value[None]}, interop.same_sources(like))
    small = {"w": np.ones(1, value.dtype)}
    loaded = interop.load_into(like, small, interop.same_sources(like))
    assert loaded["w"].dtype == dtype
    assert loaded["w"][0] == 1


def test_bfloat16_of_safetensors(tmp_path):
    values = np.array([1.5, -2.0], ml_dtypes.bfloat16)
    safetensors.numpy.save_file({"w": values}, tmp_path / "b.safetensors")
    read = interop.read_safetensors(tmp_path / "b.safetensors")["w"]
    assert read.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(read, values)


def test_float8_of_safetensors(tmp_path):
    path = tmp_path / "f.safetensors"
    tensor = {"dtype": "F8_E4M3", "shape": [2], "data_offsets": [0, 2]}
    header = json.dumps({"w": tensor}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"\x38\x40")
    with pytest.raises(ValueError, match=r"f\.safetensors has a dtype that NumPy"):
        interop.read_safetensors(path)


def test_params_do_not_follow_the_tensors():
    given = tensors()
    params = interop.load_into(like(), given, sources())
    before = jax.tree.map(np.array, params)
    for tensor in given.values():
        tensor += 1
    chex.assert_trees_all_equal(params, before)


def test_leaves_go_where_they_are_wanted():
    mesh = jax.make_mesh((2,), ("model",), axis_types=(jax.sharding.AxisType.Auto,))
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None))
    wanted = jax.tree.map(
        lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=split), like()
    )
    params = interop.load_into(wanted, tensors(), sources())
    assert {leaf.sharding for leaf in jax.tree.leaves(params)} == {split}
    again = interop.load_into(params, tensors(), sources())
    assert {leaf.sharding for leaf in jax.tree.leaves(again)} == {split}
    free = interop.load_into(jax.tree.map(jnp.zeros_like, like()), tensors(), sources())
    assert not any(leaf.committed for leaf in jax.tree.leaves(free))


@pytest.mark.slow
def test_a_file_of_our_own(tmp_path):
    params = Net().init(jax.random.key(0), IMAGES)["params"]
    table = interop.same_sources(params)
    arrays = interop.tensors_of(params, table)
    assert set(arrays) == {
        f"{layer}/{k}" for layer in LAYERS for k in ("kernel", "bias")
    }
    safetensors.numpy.save_file(arrays, tmp_path / "ours.safetensors")
    read = interop.read_safetensors(tmp_path / "ours.safetensors")
    chex.assert_trees_all_equal(interop.load_into(params, read, table), params)


def test_sources_need_a_name_for_every_layer():
    with pytest.raises(ValueError, match="no name for 'fc4', the layer of fc4/bias"):
        interop.sources_of(like(), {k: LAYERS[k] for k in ("conv1", "conv2", "fc3")})
    with pytest.raises(
        ValueError, match="name fc5, which the params lack; they have c"
    ):
        interop.sources_of(like(), {**LAYERS, "fc5": "head.5"})
    with pytest.raises(ValueError, match="name fc6, which the params lack"):
        interop.sources_of(like(), LAYERS, maps={"fc6": (1, 1, 1)})
    norm = {"n": {"bias": np.zeros(2), "scale": np.zeros(2)}}
    with pytest.raises(
        ValueError, match=r"n/bias and n/scale would both come from b\.b"
    ):
        interop.sources_of(norm, {"n": "b"})
    with pytest.raises(ValueError, match=r"n/w has shape \(1, 1, 1\), expected one"):
        interop.sources_of({"n": {"w": np.zeros((1, 1, 1))}}, {"n": "b"})


def test_a_leaf_that_cannot_be_written():
    table = {"w": interop.Source("w", interop.flattened(2, 2, 2))}
    with pytest.raises(ValueError, match=r"w has shape \(3, 2\), which cannot be wri"):
        interop.tensors_of({"w": np.zeros((3, 2))}, table)


def test_nnx_params_load_too():
    nnx = pytest.importorskip("flax.nnx")
    model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    state = nnx.state({"fc": model}, nnx.Param)
    table = interop.sources_of(state, {"fc": "fc"})
    given = {
        "fc.weight": np.ones((2, 3), np.float32),
        "fc.bias": np.ones(2, np.float32),
    }
    loaded = interop.load_into(state, given, table)
    assert jax.tree.structure(loaded) == jax.tree.structure(state)
    chex.assert_trees_all_equal(jax.tree.leaves(loaded)[1], np.ones((3, 2)))


def test_torch_dtypes(torch, tmp_path):
    values = torch.tensor([1.5, -2.0, 3.0])
    held = {"b": values.bfloat16(), "h": values.half(), "i": values.int()}
    torch.save(held, tmp_path / "x.pth")
    read = interop.read_torch(tmp_path / "x.pth")
    assert [t.dtype for t in read.values()] == [ml_dtypes.bfloat16, "float16", "int32"]
    for name, tensor in read.items():
        np.testing.assert_array_equal(tensor.astype(float), held[name].double().numpy())


def test_torch_files_that_hold_something_else(torch, tmp_path):
    path = tmp_path / "x.pth"
    inner = {"w": torch.ones(2)}
    torch.save({"epoch": 3, "state_dict": inner}, path)
    with pytest.raises(
        ValueError, match=r"x\.pth holds 'epoch' \(int\), .* give `key`"
    ):
        interop.read_torch(path)
    with pytest.raises(ValueError, match="expected a key 'model'"):
        interop.read_torch(path, "model")
    np.testing.assert_array_equal(interop.read_torch(path, "state_dict")["w"], [1, 1])
    torch.save(torch.ones(2), path)
    with pytest.raises(ValueError, match="holds one Tensor, expected tensors by name"):
        interop.read_torch(path)
    torch.save({"w": torch.ones(2).to_sparse()}, path)
    with pytest.raises(ValueError, match=r"x\.pth: w is torch\.float32, torch\.sparse"):
        interop.read_torch(path)
    torch.save(torch.nn.Linear(2, 2), path)
    with pytest.raises(
        ValueError, match=r"x\.pth is not a file of tensors .*weights_on"
    ):
        interop.read_torch(path)
    with pytest.raises(FileNotFoundError, match=r"none\.pth"):
        interop.read_torch(tmp_path / "none.pth")


def test_damaged_files_of_torch(torch, tmp_path):
    path = tmp_path / "x.pth"
    for zipped in (True, False):
        torch.save({"w": torch.ones(40)}, path, _use_new_zipfile_serialization=zipped)
        data = path.read_bytes()
        for length in range(0, len(data), 13):
            path.write_bytes(data[:length])
            with pytest.raises(ValueError, match=r"x\.pth is not a file of tensors"):
                interop.read_torch(path)


def test_damaged_files_of_safetensors(tmp_path):
    path = tmp_path / "x.safetensors"
    safetensors.numpy.save_file(tensors(), path)
    data = path.read_bytes()
    for length in [*range(0, 900, 7), len(data) - 1]:
        path.write_bytes(data[:length])
        with pytest.raises(ValueError, match=r"x\.safetensors is not a safetensors"):
            interop.read_safetensors(path)
    with pytest.raises(FileNotFoundError):
        interop.read_safetensors(tmp_path / "none.safetensors")


def test_optional_packages_are_imported_when_needed(tmp_path):
    code = """
import sys
from jaxprune import interop
optional = {"torch", "safetensors", "google.protobuf"}
assert not optional & set(sys.modules), optional & set(sys.modules)
for name in optional:
    sys.modules[name] = None  # as if it were not installed
for reader in (interop.read_torch, interop.read_safetensors, interop.read_caffemodel):
    try:
        reader("x")
    except ImportError as error:
        print(error)
"""
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    torch, *others = run.stdout.splitlines()
    assert "pip install 'jaxprune[torch]'" in torch
    assert len(others) == 2
    assert all("pip install 'jaxprune[interop]'" in line for line in others)
