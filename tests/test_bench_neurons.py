"""The benchmark of dead units, on run folders written here."""

import csv
import dataclasses
import json

import numpy as np
import pytest
from safetensors.numpy import load_file
from test_page import folder  # noqa: F401

from experiments import files, lenet300_prune
from experiments.bench import neurons
from experiments.config import Data, as_dict
from experiments.data import load
from experiments.models import LENET300


@pytest.fixture
def run(folder):  # noqa: F811
    """A folder, its params with three dead units of fc1: unread, 0 and constant."""
    path, params = folder
    params["fc2"]["kernel"][4] = 0
    params["fc1"]["kernel"][:, 5:7] = 0
    params["fc1"]["bias"][5:7] = -1, 1
    config = dataclasses.replace(lenet300_prune.CONFIG, data=Data("mnist5k"))
    about = {
        "network": LENET300.name,
        "pruned_leaves": "fc1/kernel fc2/kernel fc3/kernel",
        "settings": json.dumps(as_dict(config)),
    }
    files.save_weights(path / "pruned.safetensors", params, about)
    return path, params


def numpys(params, x):
    for i in (1, 2, 3):
        x = x @ params[f"fc{i}/kernel"].astype(np.float64) + params[f"fc{i}/bias"]
        x = np.maximum(x, 0) if i < 3 else x
    return x


@pytest.mark.slow
def test_sizes_and_the_smaller_weights(run, tmp_path, capsys):
    path, params = run
    out = tmp_path / "neurons.csv"
    flags = ["--calls", "2", "--batches", "1", "3", "--out", str(out)]
    assert neurons.main([str(path), *flags]) == 0
    before, after, eights = csv.DictReader(out.read_text().splitlines())
    alive = {n: p["kernel"] != 0 for n, p in params.items()}
    fed = [alive["fc1"].any(0), None]
    fed[1] = (fed[0][:, None] & alive["fc2"]).any(0)
    read = alive["fc3"].any(1)
    left = [(fed[0] & (alive["fc2"] & read).any(1)).sum(), (fed[1] & read).sum()]
    assert before["widths"] == "300-100-10"
    assert after["widths"] == f"{left[0]}-{left[1]}-10"
    assert left[0] <= 297
    a, b = left
    assert int(after["params"]) == 784 * a + a + a * b + b + b * 10 + 10
    assert int(after["flop"]) == 2 * (784 * a + a * b + b * 10)
    assert eights["side"] == "after, multiples of 8"
    # Up to the next multiple, or as wide as it was: 100 is none.
    up = [min(-(-n // 8) * 8, size) for n, size in zip(left, (300, 100), strict=True)]
    assert eights["widths"] == f"{up[0]}-{up[1]}-10"
    assert float(after["forward_3_fastest_us"]) <= float(after["forward_3_us"])
    assert float(after["step_3_us"]) > 0
    assert "step_1_us" not in after

    digits = load(Data("mnist5k")).judge
    x = digits.images.reshape(len(digits.images), -1) / 255
    dense = {f"{n}/{k}": v for n, p in params.items() for k, v in p.items()}
    small = load_file(path / "smaller.safetensors")
    outs = numpys(dense, x), numpys(small, x)
    np.testing.assert_allclose(*outs, rtol=1e-5, atol=1e-5)
    error = 100 * np.mean(outs[0].argmax(1) != digits.labels)
    assert float(after["error"]) == pytest.approx(error, abs=0.11)  # one digit
    printed = capsys.readouterr().out
    assert "units of each layer" in printed
    assert "logits of the digits" in printed
