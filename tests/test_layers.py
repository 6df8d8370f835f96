"""The paper's tables of layers: printed columns, and activations found by NumPy."""

import csv
import json
import os
from pathlib import Path

import jax
import numpy as np
import paper_nets
import pytest

from experiments import data, files, layer_sources, layers, lenet300_prune, paper
from experiments.config import Data, as_dict
from experiments.models import LENET300, SQUEEZENET, weights


def test_the_printed_tables_are_those_of_the_paper():
    for name, rows in paper.TABLES.items():
        printed = [line[1:] for line in paper_nets.table(name)]
        assert [[*row[:2], *(f"{p:g}" for p in row[2:])] for row in rows.values()] == (
            printed
        )


@pytest.mark.parametrize(
    ("name", "size", "flop"),
    [("AlexNet", 60_954_656, 1_448_813_632), ("VGG-16", 138_344_128, 30_940_528_640)],
)
def test_tables_of_the_large_networks(name, size, flop, tmp_path, capsys):
    """FLOP% comes out of the paper's own percentages, to within a point."""
    out = tmp_path / "table.csv"
    assert layers.main(["--network", name, "--out", str(out)]) == 0
    rows = list(csv.DictReader(out.read_text().splitlines()))
    assert len(rows) == len(paper_nets.table(name))
    assert rows[-1]["layer"] == "total"
    assert (int(rows[-1]["weights"]), int(rows[-1]["flop"])) == (size, flop)
    for row in rows:
        found, printed = row["flop_needed_percent"], row["paper_flop_percent"]
        assert float(found) == pytest.approx(float(printed), abs=1)
    assert "not measured" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["LeNet-300-100", "LeNet-5", "AlexNet", "VGG-16"])
def test_the_total_of_activations(name):
    """What the paper prints is the mean over units, counted after pooling."""
    subject = layer_sources.printed(layer_sources.NETWORKS[name])
    total = layers.table(subject)[-1]
    found, printed = total["activations_percent"], total["paper_activations_percent"]
    assert found == pytest.approx(printed, abs=0.5)


@pytest.mark.slow
def test_a_run_beside_its_table(tmp_path, capsys):
    """Act% of a network written here, by NumPy, on the first 100 test digits."""
    rng = np.random.default_rng(0)
    image = np.zeros((1, 28, 28, 1), np.float32)
    shapes = jax.eval_shape(LENET300.module.init, jax.random.key(0), image)["params"]

    def make(p):
        drawn = rng.normal(size=p.shape).astype(np.float32) / 10
        return drawn * (rng.random(p.shape) < 0.1) if p.ndim > 1 else drawn

    params = jax.tree.map(make, shapes)
    about = {
        "network": LENET300.name,
        "pruned_leaves": "fc1/kernel fc2/kernel fc3/kernel",
        "settings": json.dumps(as_dict(lenet300_prune.CONFIG)),
    }
    files.save_weights(tmp_path / "pruned.safetensors", params, about)
    (tmp_path / "result.json").write_text("{}")
    flags = ["--network", "LeNet-300-100", "--weights", str(tmp_path)]
    out = tmp_path / "table.csv"
    assert layers.main([*flags, "--examples", "100", "--out", str(out)]) == 0
    *rows, _ = csv.DictReader(out.read_text().splitlines())
    x = data.load(Data("mnist5k")).judge.images[:100].reshape(100, -1) / np.float32(255)
    for row, name, printed in zip(rows, params, ("38.0", "65.0", "100.0"), strict=True):
        kernel, bias = params[name]["kernel"], params[name]["bias"]
        x = np.maximum(x @ kernel + bias, 0)
        share = 100.0 if name == "fc3" else 100 * np.count_nonzero(x) / x.size
        # A sum may fall on the other side of 0 where it is added up in another order.
        assert float(row["activations_percent"]) == pytest.approx(share, abs=0.01)
        assert row["paper_activations_percent"] == printed
        assert int(row["kept"]) == np.count_nonzero(kernel)
    assert rows[0]["source"] == "a run on mnist5k, 100 test digits"
    assert layers.main(["--network", "LeNet-5", *flags[2:]]) == 1
    assert "is of LeNet-300-100, expected LeNet-5" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--network SqueezeNet", "--weights is not given"),
        ("--network AlexNet --examples 0", "--examples is 0, expected 1 or more"),
        ("--network VGG-16 --weights none.pth", "none.pth"),
        ("--network LeNet-5 --weights none", "none holds no finished run"),
    ],
)
def test_wrong_flags(flags, message, capsys):
    assert layers.main(flags.split()) == 1
    assert message in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.data
def test_the_published_squeezenet(tmp_path):
    """Act% of conv1 on four photographs, by NumPy from patches."""
    root = os.environ.get("JAXPRUNE_DATA")
    if not root:
        pytest.skip("JAXPRUNE_DATA is not set")
    path = Path(root) / "squeezenet" / "compressed_SqueezeNet.net"
    flags = ["--network", "SqueezeNet", "--weights", str(path), "--examples", "4"]
    out = tmp_path / "table.csv"
    more = ["--data-dir", str(Path(root) / "tfds"), "--out", str(out)]
    assert layers.main([*flags, *more]) == 0
    rows = list(csv.DictReader(out.read_text().splitlines()))
    assert rows[-1]["kept_percent"] == "33.422"
    assert rows[0]["layer"] == "conv1/kernel"
    images = data.Images(Path(root) / "tfds", convention="caffe", crop=227)
    source = data.open_source(images, "validation[:4]")
    (batch,) = data.make_batches(source, images, batch=4, seed=None)
    x = np.asarray(batch.image)[..., ::-1] - np.array([104, 117, 123], np.float32)
    like = layer_sources.shapes(SQUEEZENET)
    params = weights.load_weights(path, like, SQUEEZENET)
    kernel = np.asarray(params["conv1"]["kernel"]).reshape(-1, 96)
    windows = np.lib.stride_tricks.sliding_window_view(x, (7, 7), (1, 2))[:, ::2, ::2]
    patches = windows.transpose(0, 1, 2, 4, 5, 3).reshape(4, 111, 111, -1)
    y = patches @ kernel + np.asarray(params["conv1"]["bias"])
    pooled = np.stack(
        [y[:, i : i + 109 : 2, j : j + 109 : 2] for i in range(3) for j in range(3)]
    )
    share = 100 * np.mean(pooled.max(0) > 0)
    found = float(rows[0]["activations_percent"])
    assert found == pytest.approx(share, abs=0.05)
