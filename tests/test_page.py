"""The page of a run folder, made from a folder written here; activations by NumPy."""

import csv
import dataclasses
import json

import jax
import numpy as np
import pytest
from PIL import Image

from experiments import data, files, lenet300_prune, page
from experiments.config import Data, as_dict
from experiments.models import LENET300


@pytest.fixture
def folder(tmp_path):
    """A run of LeNet-300-100 on the small sample, 90% of each kernel dead."""
    rng = np.random.default_rng(0)
    params = jax.eval_shape(
        LENET300.module.init, jax.random.key(0), np.zeros((1, 28, 28, 1), np.float32)
    )["params"]

    def make(p):
        drawn = rng.normal(size=p.shape).astype(np.float32) / 10
        return drawn * (rng.random(p.shape) < 0.1) if p.ndim > 1 else drawn

    params = jax.tree.map(make, params)
    config = dataclasses.replace(lenet300_prune.CONFIG, data=Data("mnist5k"))
    about = {
        "network": LENET300.name,
        "pruned_leaves": "fc1/kernel fc2/kernel fc3/kernel",
        "settings": json.dumps(as_dict(config)),
    }
    files.save_weights(tmp_path / "pruned.safetensors", params, about)
    result = {
        "error": 1.5, "dense_error": None, "judged_on": "1,000 test digits", "seed": 7,
        "compression_weights": 10.0, "compression_params": 9.9, "recipe": "gradual",
        "dataset": "mnist5k",
    }  # fmt: skip
    (tmp_path / "result.json").write_text(json.dumps(result))
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(tmp_path / "fc1_mask.png")
    return tmp_path, params


def test_the_page_of_a_run(folder, capsys):
    path, params = folder
    assert page.main([str(path)]) == 0
    images = data.load(Data("mnist5k")).judge.images
    x = images.reshape(len(images), -1) / np.float32(255)
    shares = []
    for name in ("fc1", "fc2"):
        x = np.maximum(x @ params[name]["kernel"] + params[name]["bias"], 0)
        shares.append(100 * np.count_nonzero(x) / x.size)
    *rows, total = csv.DictReader((path / "layers.csv").read_text().splitlines())
    found = [float(row["activations_percent"]) for row in rows]
    # A sum may fall on the other side of 0 where it is added up in another order.
    assert found == pytest.approx([*shares, 100], abs=0.01)
    kept = [np.count_nonzero(p["kernel"]) for p in params.values()]
    assert [int(row["kept"]) for row in rows] == kept
    assert (total["weights"], total["flop"]) == ("266200", "532400")
    text = (path / "report.html").read_text()
    for part in ("LeNet-300-100 on mnist5k", "1.50%", "fc1 mask", "data:image/png"):
        assert part in text
    assert "error, dense" not in text
    assert "measured on 1,000 test digits" in text
    assert (path / "layers.md").read_text().count("\n") == 6
    printed = capsys.readouterr().out
    assert "FLOP%" in printed
    assert f"{path}" in printed.replace("\n", "")


def test_a_folder_without_a_run_is_refused(tmp_path, folder, capsys):
    path, _ = folder
    (path / "result.json").unlink()
    assert page.main([str(path)]) == 1
    assert "holds no finished run with pruned weights" in capsys.readouterr().err
    assert not (path / "report.html").exists()
