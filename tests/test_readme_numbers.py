"""The README's figures follow from the committed rows."""

import csv
import re
import statistics
from pathlib import Path

import numpy as np
import pytest

from jaxprune import sparse


ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
LENETS = {"LeNet-300-100": "lenet300", "LeNet-5": "lenet5"}


def rows_of(name):
    with (ROOT / "experiments" / "results" / name).open(newline="") as file:
        return list(csv.DictReader(file))


def cells(first):
    """The cells of a table's row after its first, which names it."""
    (line,) = [t for t in README.splitlines() if t.startswith(f"| {first} |")]
    return [cell.strip() for cell in line.split("|")[2:-1]]


def numbers(text):
    return re.findall(r"\d+(?:\.\d+)?", text.replace(",", ""))


def check(told, value):
    """A number is another, rounded to the digits that it shows."""
    unit = 10.0 ** -len(told.partition(".")[2])
    assert abs(float(told) - float(value)) <= 0.5001 * unit, (told, value)


def check_spread(cell, values):
    mean, deviation = numbers(cell)
    check(mean, statistics.mean(values))
    check(deviation, statistics.stdev(values))


@pytest.mark.parametrize("network", LENETS)
@pytest.mark.parametrize("recipe", ["paper", "gradual"])
def test_recipes(network, recipe):
    rows = rows_of(f"{LENETS[network]}_{recipe}_mnist.csv")
    dense, pruned, times = cells(f"{network}, `--recipe {recipe}`")
    if recipe == "paper":
        check_spread(dense, [float(row["dense_error"]) for row in rows])
    check_spread(pruned, [float(row["error"]) for row in rows])
    check(
        numbers(times)[0],
        statistics.mean(float(row["compression_params"]) for row in rows),
    )


@pytest.mark.parametrize("network", LENETS)
@pytest.mark.parametrize(
    ("how", "name"), [("`--recipe best`", "best"), ("with `--augment`", "augmented")]
)
def test_targets(network, how, name):
    rows = rows_of(f"{LENETS[network]}_{name}_mnist.csv")
    targets = ("12x", "40x", "68x", "100x", "280x")
    for target, cell in zip(targets, cells(f"{network}, {how}"), strict=True):
        errors = [float(row["error"]) for row in rows if row["target"] == target]
        assert bool(cell) == bool(errors)
        if errors:
            check_spread(cell, errors)


def sparse_row(network, layer, side, threads, batch=1):
    (row,) = (
        row
        for row in rows_of("bench_sparse.csv")
        if (row["network"], row["layer"], row["side"]) == (network, layer, side)
        and (int(row["threads"]), int(row["batch"])) == (threads, batch)
    )
    return row


@pytest.mark.parametrize(
    ("first", "network", "layer"),
    [
        ("VGG-16 fc6", "VGG-16 fc", "fc6"),
        ("VGG-16 fc7", "VGG-16 fc", "fc7"),
        ("VGG-16, dense layers", "VGG-16 fc", "whole"),
        ("AlexNet, dense layers", "AlexNet fc", "whole"),
        ("LeNet-300-100", "LeNet-300-100", "whole"),
        *(
            (f"{network}, whole, convolutions too", network, "whole")
            for network in ("LeNet-5", "VGG-16", "AlexNet")
        ),
    ],
)
def test_times_without_dead_weights(first, network, layer):
    chosen = "as chosen" if "whole" not in first else "chosen, with convolutions"
    told = cells(first)
    check(numbers(told[0])[0], sparse_row(network, layer, "dense XLA", 1)["median_ms"])
    for threads in (1, 2):
        row = sparse_row(network, layer, chosen, threads)
        check(told[threads].rstrip("x"), row["times_as_fast"])
        if told[2 + threads]:
            row = sparse_row(network, layer, "sparse f32", threads)
            check(told[2 + threads].rstrip("x"), row["times_as_fast"])
    smaller, *int8 = (n for n in numbers(told[5]) if n != "8")
    check(smaller, sparse_row(network, layer, chosen, 1)["times_smaller"])
    if int8:
        row = sparse_row(network, layer, "fast int8", 1)
        check(int8[0], row["times_smaller"])


def test_times_of_many_images():
    told = README.split("Many images: ")[1].split(". ")[:-1]
    told = re.findall(r"([\d.]+)x", "Many images: " + ". ".join(told))[:8]
    cases = [(f"{n} fc", b) for b in (16, 64) for n in ("VGG-16", "AlexNet")]
    rows = [
        sparse_row(network, "whole", "as chosen", threads, batch)
        for network, batch in cases
        for threads in (1, 2)
    ]
    for number, row in zip(told, rows, strict=True):
        check(number, row["times_as_fast"])


@pytest.mark.parametrize(
    ("images", "pays", "not_so"), [(1, 0.45, 0.6), (64, 0.24, 0.3)]
)
def test_what_stays_dense(images, pays, not_so):
    """About half, with 64 images about a quarter: by the costs that are built in."""
    draw = np.random.default_rng(0).random((4096, 4096), np.float32)
    costs = sparse.Costs()
    assert sparse.choose(draw < pays, images, costs, fast=True) == "fast"
    assert sparse.choose(draw < not_so, images, costs, fast=True) == "dense"


@pytest.mark.parametrize("network", LENETS)
def test_files(network):
    rows = rows_of(f"{LENETS[network]}_compressed_mnist.csv")
    size, error, _ = cells(f"{network}, shared weights, five seeds")
    check_spread(size, [int(row["file_bytes"]) for row in rows])
    check_spread(error, [float(row["error"]) for row in rows])


def test_the_smaller_file():
    (first,) = re.findall(r"\| (LeNet-5 from .*?) \|", README)
    size, error, _ = cells(first)
    wanted = ("LeNet-5", "100x", "false", "conv*/*=5,fc*/*=4", "")
    names = ("network", "stage", "augment", "bits", "bits_of_biases")
    rows = rows_of("lenet_best_compressed.csv")
    rows = [row for row in rows if tuple(row[name] for name in names) == wanted]
    check(*numbers(size), statistics.mean(int(row["file_bytes"]) for row in rows))
    check_spread(error, [float(row["error"]) for row in rows])


@pytest.mark.parametrize("network", LENETS)
def test_litert(network):
    rows = {
        row["side"]: row
        for row in rows_of("bench_litert.csv")
        if row["network"] == network
    }
    told = cells(f"{network}, `.tflite`")
    for cell, side in zip(told, ("LiteRT dense", "LiteRT sparse"), strict=True):
        size, time = numbers(cell)
        check(size, rows[side]["bytes"])
        check(time, rows[side]["median_us"])


def check_range(text, values):
    for told, value in zip(numbers(text), (min(values), max(values)), strict=True):
        check(told, value)


def test_costs_of_pruning():
    rows = [row for row in rows_of("bench_select.csv") if row["scope"] != "-"]
    section = README.split("Choosing a mask of 90%")[1].split("Whole MNIST")[0]
    for tree, method, column, pattern, unit in [
        ("alexnet", "jaxprune", "median_ms", r"take (\d+ to\s\d+) ms", 1),
        ("alexnet", "jaxprune", "times_floor", r"([\d.]+ to [\d.]+) times what", 1),
        ("alexnet", "np.partition", "median_ms", r"takes ([\d,]+ to [\d,]+) ms", 1),
        ("alexnet", "full sort", "median_ms", r"sort\s+([\d.]+ to [\d.]+) s", 1000),
        ("vgg16", "jaxprune", "times_floor", r"is ([\d.]+ to [\d.]+) times", 1),
    ]:
        mine = [r for r in rows if (r["tree"], r["method"]) == (tree, method)]
        (text,) = re.findall(pattern, section)
        check_range(text, [float(row[column]) / unit for row in mine])
    steps = rows_of("bench_step.csv")
    for stack, batch, pattern in [
        ("AlexNet fc", "256", r"([\d.]+ to [\d.]+)\s+times as long with 256"),
        ("AlexNet fc", "64", r"([\d.]+ to [\d.]+) times with 64"),
        ("LeNet-300-100", "64", r"takes ([\d.]+ to [\d.]+) times as\s+long, on"),
    ]:
        mine = [r for r in steps if (r["stack"], r["batch"]) == (stack, batch)]
        (text,) = re.findall(pattern, section)
        check_range(text, [float(row["ratio"]) for row in mine])
    (most,) = re.findall(r"at most ([\d.]+) temporary", section)
    check(most, max(float(row["temp_bytes_per_weight_more"]) for row in steps))
