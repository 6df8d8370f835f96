"""The page of the experiments: its estimates follow from the committed measurements."""

import csv
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
        assert float(cores) == float(f"{round(rate / per_core):.2g}")
