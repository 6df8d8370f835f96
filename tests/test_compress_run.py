"""The command that compresses a LeNet, on folders written here; SqueezeNet's file."""

import csv
import dataclasses
import json
import os
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments import compress as command
from experiments import files, lenet300_prune
from experiments.config import Data, Refused, as_dict
from experiments.models import LENET300, SQUEEZENET, weights
from jaxprune import compress, mask_from_zeros


KERNELS = ["fc1/kernel", "fc2/kernel", "fc3/kernel"]


def write_run(folder, seed):
    """A run of LeNet-300-100 on the small sample, 95% of each kernel dead."""
    rng = np.random.default_rng(seed)
    params = jax.eval_shape(
        LENET300.module.init, jax.random.key(0), np.zeros((1, 28, 28, 1), np.float32)
    )["params"]

    def make(p):
        drawn = rng.normal(size=p.shape).astype(np.float32) / 10
        return drawn * (rng.random(p.shape) < 0.05) if p.ndim > 1 else drawn

    params = jax.tree.map(make, params)
    config = dataclasses.replace(lenet300_prune.CONFIG, data=Data("mnist5k"))
    about = {
        "network": LENET300.name,
        "pruned_leaves": " ".join(KERNELS),
        "settings": json.dumps(as_dict(config)),
    }
    folder.mkdir()
    files.save_weights(folder / "pruned.safetensors", params, about)
    result = {"error": 1.5, "seed": seed, "judged_on": "1,000 test digits"}
    (folder / "result.json").write_text(json.dumps(result))
    return params


def read(path):
    return list(csv.DictReader(path.read_text().splitlines()))


@pytest.mark.slow
def test_two_seeds_are_compressed(tmp_path, capsys):
    params = [write_run(tmp_path / f"seed{seed}", seed) for seed in (0, 1)]
    given = ["--run", str(tmp_path), "--epochs", "0.1", "--bits", "fc1/*=3,**=2"]
    assert command.main([*given, "--out", str(tmp_path / "out")]) == 0
    rows = read(tmp_path / "out" / "compressed.csv")
    assert [row["seed"] for row in rows] == ["0", "1"]
    assert {row["judged_on"] for row in rows} == {"1,000 test digits"}
    for row, before in zip(rows, params, strict=True):
        folder = tmp_path / "out" / f"seed{row['seed']}"
        path = folder / "net.safetensors"
        found, mask = compress.load(path, before)
        for name, clusters in zip(("fc1", "fc2", "fc3"), (8, 4, 4), strict=True):
            was, now = before[name]["kernel"], found[name]["kernel"]
            np.testing.assert_array_equal(mask[name]["kernel"], was != 0)
            assert mask[name]["bias"] is None
            # Trained a little: shared, and near what they were.
            assert np.unique(now[was != 0]).size == clusters
            assert 0 < np.abs(now - was).max() < 0.3
            assert 0 < np.abs(found[name]["bias"] - before[name]["bias"]).max() < 0.1
        assert int(row["file_bytes"]) == path.stat().st_size
        layers = {line["path"]: line for line in read(folder / "layers.csv")}
        assert list(layers)[-3:] == ["total", "header and table", "file"]
        taken = [int(layers[name]["bytes"]) for name in layers]
        assert sum(taken[:-3]) + taken[-2] == taken[-1] == path.stat().st_size
        assert layers["fc1/kernel"]["paper_percent"] == "2.32"
    printed = capsys.readouterr().out
    for part in ("LeNet-300-100, seed 1", "2.32%", "mean", "1.58% in 27 KB"):
        assert part in printed


def test_one_folder_without_training(tmp_path):
    before = write_run(tmp_path / "run", 7)
    given = ["--run", str(tmp_path / "run"), "--epochs", "0"]
    assert command.main([*given, "--coder", "huffman"]) == 0
    found, _ = compress.load(tmp_path / "run" / "net.safetensors", before)
    for name in ("fc1", "fc2", "fc3"):
        live = before[name]["kernel"][before[name]["kernel"] != 0]
        expected = compress.share_weights(live, 3)
        now = found[name]["kernel"]
        np.testing.assert_array_equal(
            now[now != 0], expected.centroids[expected.indices]
        )
        np.testing.assert_array_equal(found[name]["bias"], before[name]["bias"])


def test_biases_share_values_too(tmp_path):
    before = write_run(tmp_path / "run", 7)
    given = ["--run", str(tmp_path / "run"), "--epochs", "0"]
    sizes = []
    for flags in ([], ["--bias-bits", "2"]):
        out = tmp_path / f"out{len(sizes)}"
        assert command.main([*given, *flags, "--out", str(out)]) == 0
        (row,) = read(out / "compressed.csv")
        assert row["bias_bits"] == "".join(flags[1:])
        sizes.append(int(row["file_bytes"]))
    found, mask = compress.load(out / "net.safetensors", before)
    for name in ("fc1", "fc2", "fc3"):
        bias = before[name]["bias"]
        expected = compress.share_weights(bias, 2)
        np.testing.assert_array_equal(
            found[name]["bias"], expected.centroids[expected.indices]
        )
        assert mask[name]["bias"].all()
    # 410 biases of four bytes are 410 codes of at most 2 bits, and 12 values.
    assert sizes[1] < sizes[0] - 1640 + 410 * 2 / 8 + 12 * 4 + 150


@pytest.mark.slow
def test_biases_stay_shared_while_they_are_trained(tmp_path):
    before = write_run(tmp_path / "run", 7)
    given = ["--run", str(tmp_path / "run"), "--epochs", "0.1", "--bias-bits", "2"]
    assert command.main(given) == 0
    found, _ = compress.load(tmp_path / "run" / "net.safetensors", before)
    for name in ("fc1", "fc2", "fc3"):
        bias = before[name]["bias"]
        shared = compress.share_weights(bias, 2)
        now = found[name]["bias"]
        for cluster in range(4):
            assert np.unique(now[shared.indices == cluster]).size == 1
        assert 0 < np.abs(np.unique(now) - np.unique(shared.centroids)).max() < 0.1


def test_a_stage_of_a_run(tmp_path):
    folder = tmp_path / "run"
    params = write_run(folder, 7)
    even = lambda p: np.arange(p.size).reshape(p.shape) % 2 == 0
    stage = jax.tree.map(lambda p: np.where(even(p), p, np.float32(0)), params)
    about = {"network": LENET300.name, "error_percent": "2.5"}
    files.save_weights(folder / "round-1.safetensors", stage, about)
    given = ["--run", str(folder), "--epochs", "0", "--stage"]
    assert command.main([*given, "round-1"]) == 0
    (row,) = read(folder / "round-1-compressed" / "compressed.csv")
    assert row["pruned_error"] == "2.5"
    path = folder / "round-1-compressed" / "net.safetensors"
    _, mask = compress.load(path, params)
    for name in ("fc1", "fc2", "fc3"):
        np.testing.assert_array_equal(mask[name]["kernel"], stage[name]["kernel"] != 0)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--stage", "9x"], "9x.safetensors does not hold the weights of a stage"),
        (["--bits", "0"], "--bits is '0', expected a number from 1 to 16"),
        (["--bits", "fc1=x"], "--bits is 'fc1=x'"),
        (["--bits", "conv9/*=3"], "matches no prunable leaf"),
        (["--bias-bits", "0"], "--bias-bits is 0, expected 1 to 16"),
        (["--epochs", "-1"], "--epochs is -1.0, expected 0 or more"),
        (["--lr", "nan"], "--lr is nan, expected a positive number"),
        (["--batch", "0"], "--batch is 0, expected 1 or more"),
        (["--network", "lenet5"], "is a run of LeNet-300-100, and --network is lenet5"),
        (["--run", "nowhere"], "nowhere holds no finished run"),
    ],
)
def test_wrong_flags_are_told(tmp_path, capsys, flags, message):
    write_run(tmp_path / "run", 0)
    given = ["--run", str(tmp_path / "run"), "--out", str(tmp_path / "out")]
    assert command.main([*given, *flags]) == 1
    assert message in capsys.readouterr().err.replace("\n", " ")
    assert not (tmp_path / "out").exists()


def test_a_stage_needs_a_run(capsys):
    assert command.main(["--stage", "9x"]) == 1
    assert "--stage is 9x, expected --run beside it" in capsys.readouterr().err


def test_bits_are_read():
    assert command.read_bits("conv*/*=6, fc*/*=4") == {"conv*/*": 6, "fc*/*": 4}
    with pytest.raises(Refused, match="--bits"):
        command.read_bits("17")


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.skipif("JAXPRUNE_DATA" not in os.environ, reason="JAXPRUNE_DATA not set")
def test_the_published_squeezenet_takes_less_than_545_000_bytes(tmp_path):
    path = Path(os.environ["JAXPRUNE_DATA"]) / "squeezenet/compressed_SqueezeNet.net"
    images = np.zeros((1, 227, 227, 3), np.float32)
    like = jax.eval_shape(SQUEEZENET.module.init, jax.random.key(0), images)["params"]
    params = weights.load_weights(path, like, SQUEEZENET)
    mask = mask_from_zeros(params)
    compress.save(tmp_path / "net", params, mask)
    found, found_mask = compress.load(tmp_path / "net", params)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(params), strict=True):
        np.testing.assert_array_equal(
            np.asarray(a).view(np.uint32), np.asarray(b).view(np.uint32)
        )
    for a, b in zip(jax.tree.leaves(found_mask), jax.tree.leaves(mask), strict=True):
        np.testing.assert_array_equal(a, b)
    sizes = compress.sizes(tmp_path / "net")
    assert sizes.file_bytes == sizes.header_bytes + sizes.total.bytes
    # The file as published has 675,763; xz makes 559,656 of it.
    assert sizes.file_bytes <= 530_000


@pytest.mark.slow
def test_without_a_run_it_prunes_first(tmp_path, monkeypatch, capsys):
    config = lenet300_prune.CONFIG
    pruning = dataclasses.replace(config.pruning, epochs=0.2, period=1)
    monkeypatch.setattr(
        lenet300_prune, "CONFIG", dataclasses.replace(config, pruning=pruning)
    )
    given = ["--out", str(tmp_path), "--epochs", "0.1", "--target", "20"]
    assert command.main(given) == 0
    (row,) = read(tmp_path / "compressed.csv")
    assert int(row["alive"]) == 266_610 // 20
    _, mask = compress.load(tmp_path / "net.safetensors")
    dead = sum(int((~m).sum()) for m in jax.tree.leaves(mask))
    assert dead == 266_610 - 266_610 // 20
    # What is pruned already is not pruned again.
    before = (tmp_path / "pruned" / "pruned.safetensors").stat().st_mtime_ns
    assert command.main([*given, "--bits", "2"]) == 0
    assert (tmp_path / "pruned" / "pruned.safetensors").stat().st_mtime_ns == before
    (again,) = read(tmp_path / "compressed.csv")
    assert int(again["file_bytes"]) < int(row["file_bytes"])
    assert "LeNet-300-100, seed 0" in capsys.readouterr().out
