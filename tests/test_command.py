"""`python -m jaxprune` on files of each kind: what it writes, prints and exits with."""

import json
import subprocess
import sys
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse
from safetensors.numpy import load_file, save_file

import jaxprune
from jaxprune.__main__ import main
from jaxprune.compress import read_graph


PARAMS = {
    "fc1": {
        "kernel": np.array([[0, 1.5], [0, 0], [-2, 3]], np.float32),
        "bias": np.array([0, 1], np.float32),
    }
}
FLAT = {f"fc1/{name}": leaf for name, leaf in PARAMS["fc1"].items()}


def product(params, x):
    return x @ params["fc1"]["kernel"] + params["fc1"]["bias"]


def sines(params, x):
    return jnp.sin(product(params, x))


@pytest.fixture(params=["ours", "safetensors", "run"])
def given(request, tmp_path):
    path = tmp_path / "given"
    if request.param == "ours":
        jaxprune.save(path, PARAMS, jaxprune.mask_from_zeros(PARAMS))
    elif request.param == "safetensors":
        save_file(FLAT, path)
    else:
        path.mkdir()
        save_file(FLAT, path / "pruned.safetensors")
    return path


def test_inspect(given, capsys):
    assert main(["inspect", str(given), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["weights"], told["alive"]) == (8, 5)
    kernel = next(row for row in told["layers"] if row["name"] == "fc1/kernel")
    assert (kernel["shape"], kernel["alive"], kernel["dtype"]) == ([3, 2], 3, "float32")
    assert main(["inspect", str(given)]) == 0
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("fc1/kernel", "3 x 2", "50.00", "62.50"))


def test_inspect_shows_long_names_whole(tmp_path, capsys):
    name = "encoder/[red]/" + "/".join(["attention"] * 20)
    save_file({name: np.eye(2)}, tmp_path / "given")
    assert main(["inspect", str(tmp_path / "given")]) == 0
    assert name in capsys.readouterr().out


def test_compress_and_expand(given, tmp_path, capsys):
    small, dense = tmp_path / "small", tmp_path / "dense"
    assert main(["compress", str(given), "--out", str(small)]) == 0
    params, mask = jaxprune.load(small)
    chex.assert_trees_all_equal(params, PARAMS)
    assert mask["fc1"]["kernel"].sum() == 3
    assert mask["fc1"]["bias"] is None
    capsys.readouterr()
    assert main(["expand", str(small), "--out", str(dense), "--json"]) == 0
    chex.assert_trees_all_equal(load_file(dense), FLAT)
    assert json.loads(capsys.readouterr().out)["out_bytes"] == dense.stat().st_size


def test_names_that_no_nested_dicts_hold(tmp_path, capsys):
    given, small = tmp_path / "given", tmp_path / "small"
    flat = {"": np.ones(2), "a": np.eye(2), "a/b": np.eye(3, dtype=np.int8)}
    save_file(flat, given)
    assert main(["compress", str(given), "--out", str(small)]) == 0
    assert main(["inspect", str(small)]) == 0
    assert main(["expand", str(small), "--out", str(given)]) == 0
    chex.assert_trees_all_equal(load_file(given), flat)
    flags = ["--model", f"{__name__}:product", "--input-shape", "3"]
    assert main(["compress", str(given), "--out", str(small), *flags]) == 1
    assert "a/b lies below the leaf a, so that" in capsys.readouterr().err


def test_export(given, tmp_path):
    out = tmp_path / "out"
    command = ["export", str(given), "--out", str(out), "--to"]
    assert main([*command, "npz"]) == 0
    matrix = scipy.sparse.load_npz(out / "fc1.kernel.npz")
    np.testing.assert_array_equal(matrix.toarray(), FLAT["fc1/kernel"])
    assert main([*command, "npz"]) == 1  # the folder exists
    command[3] = str(tmp_path / "net.stablehlo")
    model = ["--model", f"{__name__}:product", "--input-shape", "3"]
    assert main([*command, "stablehlo", *model]) == 0
    data = bytearray((tmp_path / "net.stablehlo").read_bytes())
    x = np.array([[1, 2, 3]], np.float32)
    np.testing.assert_allclose(jax.export.deserialize(data).call(x), [[-6, 11.5]])


def test_export_to_litert(given, tmp_path, capsys):
    interpreter = pytest.importorskip(
        "ai_edge_litert.interpreter", reason="LiteRT is the reference here"
    )
    out = tmp_path / "net.tflite"
    command = ["export", str(given), "--to", "litert", "--out", str(out)]
    shape = ["--input-shape", "3", "--model"]
    assert main([*command, *shape, f"{__name__}:sines"]) == 1
    assert "cannot be written for LiteRT: it has sin" in capsys.readouterr().err
    assert not out.exists()
    assert main([*command, *shape, f"{__name__}:product"]) == 0
    model = interpreter.Interpreter(model_path=str(out))
    model.allocate_tensors()
    x = np.array([[1, 2, 3]], np.float32)
    model.set_tensor(model.get_input_details()[0]["index"], x)
    model.invoke()
    made = model.get_tensor(model.get_output_details()[0]["index"])
    np.testing.assert_allclose(made, [[-6, 11.5]])


def test_a_file_that_carries_its_program(given, tmp_path, capsys):
    small, out = tmp_path / "small", tmp_path / "net.stablehlo"
    flags = ["--model", f"{__name__}:product", "--input-shape", "3"]
    assert main(["compress", str(given), "--out", str(small), *flags]) == 0
    chex.assert_trees_all_equal(jaxprune.load(small)[0], PARAMS)
    graph = read_graph(small)
    assert main(["compress", str(small), "--out", str(small)]) == 0
    assert read_graph(small) == graph
    command = ["export", str(small), "--to", "stablehlo", "--out", str(out)]
    assert main(command) == 0
    read = jax.export.deserialize(bytearray(out.read_bytes()))
    x = np.array([[1, 2, 3], [0, 1, 0]], np.float32)
    np.testing.assert_allclose(read.call(x), [[-6, 11.5], [0, 1]])
    capsys.readouterr()
    assert main(["bench", str(small), "--repeats", "2", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [row["way"] for row in told["rows"]] == ["dense"]
    assert "give --model" in told["missing"][0]["reason"]
    for shaped in (command, ["bench", str(small)]):
        with pytest.raises(SystemExit):
            main([*shaped, "--input-shape", "3"])
        assert "carries its program: leave --input-shape" in capsys.readouterr().err
    command[3] = "litert"
    with pytest.raises(SystemExit):
        main(command)
    assert "that the file carries is no help" in capsys.readouterr().err


def test_what_exits_with_1_and_2(tmp_path, capsys):
    bad, out = tmp_path / "bad", str(tmp_path / "out")
    bad.write_bytes(b"no weights at all")
    assert main(["inspect", str(bad)]) == 1
    told = capsys.readouterr().err
    assert f"error: {bad} is not a safetensors file" in told
    assert "Orbax or a run's folder" in told
    assert "read_torch(file) for .pth" in told
    assert main(["inspect", str(tmp_path)]) == 1
    assert "a folder without pruned.safetensors" in capsys.readouterr().err
    assert main(["expand", str(tmp_path / "none"), "--out", out]) == 1
    assert "No such file" in capsys.readouterr().err
    jaxprune.save(bad, PARAMS)
    bad.write_bytes(bad.read_bytes()[:-1])
    assert main(["expand", str(bad), "--out", out]) == 1
    assert f"error: {bad}: it ends at" in capsys.readouterr().err
    jaxprune.save(bad, PARAMS)
    export = ["export", str(bad), "--out", out, "--to", "stablehlo"]
    model = ["--input-shape", "3", "--model", "nowhere:net"]
    assert main([*export, *model]) == 1
    assert "--model is 'nowhere:net'" in capsys.readouterr().err
    model = ["--input-shape", "4", "--model", f"{__name__}:product"]
    assert main([*export, *model]) == 1
    assert "test_command:product cannot be exported with" in capsys.readouterr().err
    for to in ("npz", "safetensors"):
        assert main([*export[:-1], to, "--input-shape", "3"]) == 1
        assert f"--to {to} writes weights without a" in capsys.readouterr().err
        assert main([*export[:-1], to, "--model", f"{__name__}:product"]) == 1
    for usage in (export, ["export", str(bad)], ["inspect"], ["turn", str(bad)]):
        with pytest.raises(SystemExit) as caught:
            main(usage)
        assert caught.value.code == 2
    assert not (tmp_path / "out").exists()


def test_ctrl_c(given, monkeypatch, capsys):
    def interrupted(file):
        raise KeyboardInterrupt

    monkeypatch.setattr("jaxprune._commands.read_given", interrupted)
    assert main(["inspect", str(given)]) == 130
    assert capsys.readouterr().err == "\nInterrupted.\n"


def test_a_reader_that_has_read_enough(given):
    command = f"{sys.executable} -m jaxprune inspect {given} --json"
    run = partial(subprocess.run, shell=True, capture_output=True, text=True)
    assert not run(f"{command} | true").stderr
    assert not run(f"{command} >&-").stderr  # no output at all


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("class Net:\n    def __init__(self, width): pass", "made with arguments"),
        ("def Net(:", "expected module:name"),
    ],
)
def test_models_that_cannot_be_made(
    text, message, given, tmp_path, monkeypatch, capsys
):
    (tmp_path / "its_models.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "its_models", raising=False)
    out = tmp_path / "net.hlo"
    usage = ["export", str(given), "--to", "stablehlo", "--out", str(out)]
    usage += ["--model", "its_models:Net", "--input-shape", "784"]
    assert main(usage) == 1
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_without_tyro_it_says_what_to_install():
    code = (
        "import sys; sys.modules['tyro'] = None; from jaxprune.__main__ import main; "
        "sys.exit(main(['inspect', 'x']))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.returncode == 1
    assert "pip install 'jaxprune[cli]'" in ran.stderr
