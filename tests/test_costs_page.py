"""The page of the experiments: its estimates follow from the committed measurements."""

import csv
import math
import re
from pathlib import Path

import pytest


FOLDER = Path(__file__).parent.parent / "experiments"
EPOCH = 1_281_167
# Epochs of the rounds, and with dense training before them.
EPOCHS = {"vgg16": (50, 124), "alexnet": (100, 190)}
H200, V5E8 = 989e12, 8 * 197e12  # FLOP/s of the data sheets, bfloat16


def rows_of(page, network):
    """The numbers of a network's three rows of estimates, by column."""
    title = {"vgg16": "VGG-16", "alexnet": "AlexNet"}[network]
    lines = page.splitlines()
    at = next(i for i, t in enumerate(lines) if t.startswith(f"| {title}, images a s"))
    for line in lines[at : at + 3]:
        cells = line.split("|")[2:-1]
        yield [re.findall(r"[\d.]+", cell.replace(",", "")) for cell in cells]


@pytest.mark.parametrize("network", EPOCHS)
def test_estimates_follow_from_what_was_measured(network):
    with (FOLDER / "results" / "bench_train_step_h200.csv").open(newline="") as file:
        (row,) = (
            row
            for row in csv.DictReader(file)
            if (row["network"], row["side"]) == (network, "pruned")
        )
    with (FOLDER / "results" / "bench_input_enlarged.csv").open(newline="") as file:
        (per_core,) = (
            float(row["per_core"])
            for row in csv.DictReader(file)
            if (row["task"], row["name"]) == ("caffe train", "pipeline")
        )
    one = float(row["images_per_second"])
    rates = [one, 8 * 0.9 * one, V5E8 / H200 * one]
    told = rows_of((FOLDER / "README.md").read_text(), network)
    for rate, (images,), hours, (cores,) in zip(rates, *told, strict=True):
        assert float(images) == float(f"{rate:.2g}")
        epochs = EPOCHS[network]
        assert hours == [f"{n * EPOCH / rate / 3600:.1f}" for n in epochs]
        assert float(cores) == float(f"{math.ceil(rate / per_core):.2g}")


def test_what_was_compiled_is_told():
    with (FOLDER / "results" / "bench_compiled.csv").open(newline="") as file:
        rows = {(r["network"], r["program"]): r for r in csv.DictReader(file)}
    page = (FOLDER / "README.md").read_text()
    table = page.split("| | before | now |")[1].split("\n\n")[0]
    lines = [line.split("|") for line in table.splitlines()[2:]]
    told = [re.findall(r"[\d.]+|none", cells[3])[0] for cells in lines]
    kinds = {key: {k: float(r[k]) for k in list(r)[2:9]} for key, r in rows.items()}
    for network in EPOCHS:
        dense, pruned = (kinds[network, f"step {s}"] for s in ("dense", "pruned"))
        assert pruned["gb_moved"] == dense["gb_moved"]
    alexnet, vgg16 = (kinds[name, "step dense"] for name in ("alexnet", "vgg16"))
    leaf, together = (kinds["vgg16", f"select {s}"] for s in ("leaf", "global"))
    assert told[:2] == ["none", "none"]
    assert told[2:] == [
        f"{alexnet['gb_moved']:.1f}",
        f"{vgg16['gb_moved']:.1f}",
        f"{alexnet['temporary_mib'] / 1024:.1f}",
        f"{vgg16['temporary_mib'] / 1024:.1f}",
        f"{together['gb_a_pass']:.2f}",
        f"{together['decisions']:.0f}",
        f"{leaf['decisions']:.0f}",
        "1",
    ]
    assert max(leaf["temporary_mib"], together["temporary_mib"]) < 1
