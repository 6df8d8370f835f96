"""The benchmark of `.tflite` files, on a run folder written here."""

import csv
import dataclasses
import json
import os

import numpy as np
import pytest
from test_page import folder  # noqa: F401

from experiments import files, lenet300_prune
from experiments.bench import litert
from experiments.config import Data, as_dict
from experiments.data import load
from experiments.models import LENET300


pytest.importorskip("ai_edge_litert.interpreter", reason="LiteRT runs the files")


@pytest.mark.slow
def test_bytes_errors_and_times(folder, tmp_path, capsys, monkeypatch):  # noqa: F811
    path, params = folder
    monkeypatch.setattr(os, "sched_setaffinity", lambda *_: None, raising=False)
    config = dataclasses.replace(lenet300_prune.CONFIG, data=Data("mnist5k"))
    about = {
        "network": LENET300.name,
        "pruned_leaves": "fc1/kernel fc2/kernel fc3/kernel",
        "settings": json.dumps(as_dict(config)),
    }
    draw = np.random.default_rng(0)
    for layer in params.values():
        layer["kernel"] *= draw.random(layer["kernel"].shape) < 0.3
    files.save_weights(path / "pruned.safetensors", params, about)
    out = tmp_path / "litert.csv"
    assert litert.main([str(path), "--calls", "3", "--out", str(out)]) == 0
    xla, dense, lean = csv.DictReader(out.read_text().splitlines())
    assert [row["side"] for row in (xla, dense, lean)] == [
        "XLA dense",
        "LiteRT dense",
        "LiteRT sparse",
    ]
    # 266,610 parameters; 3% of them, of 4 bytes and an index of 2 or 1.
    assert int(xla["bytes"]) == 4 * 266_610
    assert 0 < int(dense["bytes"]) - 4 * 266_610 < 8192
    alive = sum(int((layer["kernel"] != 0).sum()) for layer in params.values())
    assert 5 * alive < int(lean["bytes"]) < 7 * alive + 20_000

    digits = load(Data("mnist5k")).judge
    x = digits.images.reshape(len(digits.images), -1) / 255
    for name in ("fc1", "fc2", "fc3"):
        x = x @ params[name]["kernel"].astype(np.float64) + params[name]["bias"]
        x = np.maximum(x, 0) if name != "fc3" else x
    error = 100 * np.mean(x.argmax(1) != digits.labels)
    for row in (xla, dense, lean):
        assert float(row["error"]) == pytest.approx(error, abs=0.11)  # one digit
        assert float(row["difference"]) < 1e-5
        assert row["other_class"] == "0"
        assert 0 < float(row["fastest_us"]) <= float(row["median_us"])
        assert row["threads"] == "1"
        assert row["ai-edge-litert"]
    assert "One digit, one thread" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["none"], "none holds no finished run"),
        (["none", "--calls", "0"], "--calls is 0"),
    ],
)
def test_wrong_flags_are_named(flags, message, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(os, "sched_setaffinity", lambda *_: None, raising=False)
    monkeypatch.chdir(tmp_path)
    assert litert.main([*flags, "--out", "out.csv"]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out.csv").exists()
