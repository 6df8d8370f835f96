"""`python -m jaxprune bench`: what it times, says and refuses."""

import json
import sys

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune
from jaxprune.__main__ import main


WIDTH = 900


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(4, name="fc2")(nn.relu(nn.Dense(WIDTH, name="fc1")(x)))


def two(params, x):
    return x, x


def sine(params, x):
    return jnp.sin(x @ params["fc1"]["kernel"]) @ params["fc2"]["kernel"]


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    rng = np.random.default_rng(0)
    params = {}
    for name, shape in {"fc1": (WIDTH, WIDTH), "fc2": (WIDTH, 4)}.items():
        kernel = rng.normal(size=shape) * (rng.random(shape) < 0.02)
        bias = np.ones(shape[1], np.float32)
        params[name] = {"kernel": kernel.astype(np.float32), "bias": bias}
    path = tmp_path_factory.mktemp("bench") / "net.safetensors"
    jaxprune.save(path, params, jaxprune.mask_from_zeros(params))
    return path


def command(given, model="Net", *flags):
    named = ["--model", f"{__name__}:{model}", "--input-shape", str(WIDTH)]
    return ["bench", str(given), *named, "--repeats", "3", *flags]


@pytest.mark.slow
def test_it_times_each_way_at_each_batch(given, capsys):
    pytest.importorskip("ai_edge_litert.interpreter", reason="LiteRT is timed here")
    assert main(command(given, "Net", "--batch", "1", "2", "--json")) == 0
    told = json.loads(capsys.readouterr().out)
    rows = {(row["batch"], row["way"]): row for row in told["rows"]}
    assert rows.keys() >= {(1, "dense"), (1, "sparse"), (1, "litert"), (2, "litert")}
    for row in rows.values():
        assert 0 < row["fastest_ms"] <= row["median_ms"]
        assert row["difference"] < 1e-5
        dense = rows[row["batch"], "dense"]["median_ms"]
        assert row["times_as_fast"] == pytest.approx(dense / row["median_ms"])
    assert told["repeats"] == 3
    assert told["machine"]["cores"] >= 1


@pytest.mark.slow
def test_it_says_what_it_cannot_time(given, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", None)
    monkeypatch.setenv("COLUMNS", "200")  # no heading is broken over two lines
    assert main(command(given, "Net", "--batch", "1")) == 0
    out = " ".join(capsys.readouterr().out.split())  # the caption is
    assert all(word in out for word in ("dense", "sparse", "median of 3", "times as"))
    assert "batch 1: no litert: ai_edge_litert.interpreter needs" in out


def test_nets_that_litert_lacks_and_layers_that_do_not_gain(given, tmp_path, capsys):
    pytest.importorskip("ai_edge_litert.interpreter", reason="LiteRT refuses here")
    params, _ = jaxprune.load(given)
    full = tmp_path / "full"
    jaxprune.save(full, {k: {"kernel": v["kernel"] + 1} for k, v in params.items()})
    assert main(command(full, "sine")) == 0
    out = capsys.readouterr().out
    assert "no litert: the net cannot be written for LiteRT: it has sin of" in out
    assert "no sparse: at batch 1 no layer is expected to gain by it" in out


def test_what_exits_with_1_and_2(given, capsys):
    for flags, message in [
        (["--batch", "0"], "--batch is (0,), expected sizes of 1 or more"),
        (["--repeats", "0"], "--repeats is 0, expected 1 or more"),
        (["--threads", "0"], "--threads is 0, expected 1 or more"),
        (["--input-shape", "-3"], "--input-shape is (-3,), expected sizes of 1 or mo"),
        (["--input-shape", "5"], "test_command_bench:Net cannot be timed with the wei"),
    ]:
        assert main([*command(given), *flags]) == 1
        assert capsys.readouterr().err.startswith(f"error: {message}")
    assert main(command(given, "two")) == 1
    assert "several outputs, expected one array" in capsys.readouterr().err
    with pytest.raises(SystemExit) as caught:
        main(["bench", str(given)])
    assert caught.value.code == 2
    assert "bench needs --model and --input-shape" in capsys.readouterr().err
