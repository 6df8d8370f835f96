"""The benchmark of sparse forward passes, on small networks, and its other sides."""

import csv
import logging
import re
import types

import numpy as np
import pytest
from quick import quick

from experiments.bench import _sparse_measure
from experiments.bench import sparse as program
from experiments.bench._sparse_measure import BEFORE, OTHERS, SIDES, measure, timed
from experiments.bench._sparse_nets import make_net
from experiments.bench._sparse_sides import (
    CHOSEN,
    CONVOLUTIONS,
    DENSE,
    Forms,
    Side,
    jax_side,
)
from experiments.models import ALEXNET, LENET5, LENET300, VGG16_CAFFE


for package in ("torch", "onnx", "onnxruntime", "ai_edge_litert.interpreter"):
    pytest.importorskip(package, reason="the extra bench is what it is timed beside")
SMALL = {f"conv{i}": 4 * i for i in range(1, 6)} | {"fc6": 24, "fc7": 16}


def small(name):
    """A network of little width on small images, with all its layers."""
    if name == "AlexNet":
        module = ALEXNET.module.clone(widths=SMALL, classes=7)
        flatten = {"fc6/kernel": (20, 1, 1)}
        network = ALEXNET._replace(module=module, input=(67, 67, 3), flatten=flatten)
    elif name == "VGG-16":
        widths = {p.partition("/")[0]: 16 for p in VGG16_CAFFE.groups["conv"]}
        module = VGG16_CAFFE.module.clone(units=200, classes=7, widths=widths)
        flatten = {"fc6/kernel": (16, 2, 2)}
        network = VGG16_CAFFE._replace(
            module=module, input=(64, 64, 3), flatten=flatten
        )
    else:
        network = {"LeNet-5": LENET5, "LeNet-300-100": LENET300}[name]
    return make_net(name, network, dense_only=False), network


def within(net, batch=2):
    (whole,) = (case for case in net.cases if case.layer == "whole")
    return whole, np.random.default_rng(1).random((batch, *whole.shape), np.float32)


@pytest.mark.parametrize("name", quick(["LeNet-5", "AlexNet", "VGG-16"], "LeNet-5"))
def test_others_compute_what_the_module_does(name):
    """Layer lists, orders of axes and rows: a wrong one shows in the outputs."""
    net, network = small(name)
    whole, x = within(net)
    want = np.asarray(network.module.apply({"params": net.params}, x))
    assert np.ptp(want, axis=0).max() > 1e-2 * abs(want).max()  # images differ
    for side in ("torch dense", "torch CSR", "ONNX dense"):
        got = OTHERS[side](net, whole, 1)(x).output()
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * abs(want).max())


def test_a_network_is_as_dense_as_in_the_paper():
    net = make_net("LeNet-5", LENET5, dense_only=False)
    density = {case.layer: net.density(case) for case in net.cases}
    # Table 3, of 500, 25,000, 400,000 and 5,000 weights; 8% of all.
    assert density["conv1"] == pytest.approx(0.66, abs=0.07)
    assert density["conv2"] == pytest.approx(0.12, abs=0.01)
    assert density["fc1"] == pytest.approx(0.08, abs=0.002)
    assert density["fc2"] == pytest.approx(0.19, abs=0.02)
    assert density["whole"] == pytest.approx(0.0842, abs=0.002)
    shapes = {case.layer: case.shape for case in net.cases}
    assert shapes["conv2"] == (12, 12, 20)
    assert shapes["fc1"] == (800,)


@pytest.mark.slow
def test_rows_of_every_side():
    net = make_net("LeNet-300-100", LENET300, dense_only=True)
    rows, missing = measure(net, [1, 3], 1, pairs=2, seconds=0)
    assert not missing
    found = {(r["layer"], r["batch"], r["side"]): r for r in rows}
    layers = ("fc1", "fc2", "fc3", "whole")
    assert set(found) == {(c, b, s) for c in layers for b in (1, 3) for s in SIDES}
    for (*_, side), row in found.items():
        far = float(row["difference"])
        assert far < 0.05 if side.endswith("int8") else far <= 1e-5
    assert float(found["whole", 3, "sparse int8"]["difference"]) > 1e-4
    # 4 bytes a weight, a bias, a value, an index; an end of each row and one more.
    alive = np.count_nonzero(net.params["fc1"]["kernel"])
    at = lambda side: found["fc1", 1, side]
    assert at(DENSE)["weight_bytes"] == 4 * (784 * 300 + 300)
    assert at("SciPy CSR")["weight_bytes"] == 8 * alive + 4 * 301 + 4 * 300
    assert at("torch CSR")["weight_bytes"] == 8 * alive + 4 * 301 + 4 * 300
    slots = at("sparse f32")["weight_bytes"] - at("sparse int8")["weight_bytes"]
    assert 3 * alive <= slots + 4 * 300 <= 4.5 * alive  # 3 bytes less, padding too
    file = at("LiteRT dense")["weight_bytes"] - at(DENSE)["weight_bytes"]
    assert 0 < file < 4096
    assert at("LiteRT sparse")["weight_bytes"] < at("LiteRT dense")["weight_bytes"] / 4
    assert all(bool(r["keeps_up"]) == (r["side"] == CHOSEN) for r in rows)
    assert at(DENSE)["times_as_fast"] == 1


@pytest.mark.slow
def test_a_convolution_has_what_it_can_have():
    net, _ = small("LeNet-5")
    conv = net._replace(cases=net.cases[1:2])
    rows, missing = measure(conv, [2], 1, pairs=1, seconds=0)
    assert {row["layer"] for row in rows} == {"conv2"}
    sides = {row["side"]: row for row in rows}
    left = {
        "sparse f32",
        "sparse int8",
        "fast f32",
        "fast int8",
        "SciPy CSR",
        "torch CSR",
    }
    assert set(sides) == set(SIDES) - left
    assert {name.rpartition(", ")[2] for name in missing} == left
    assert sides[CHOSEN]["form"] == "dense"
    assert sides[CONVOLUTIONS]["form"] == "conv2"
    assert all(float(row["difference"]) <= 1e-5 for row in rows)


@pytest.mark.slow
def test_folded_convolutions_are_run_by_their_live_weights(caplog):
    pytest.importorskip("numba", reason="numba, of the extra fast, is missing")
    net, _ = small("LeNet-5")
    whole, x = within(net)
    with caplog.at_level(logging.WARNING, "jaxprune.sparse"):
        side = jax_side(CONVOLUTIONS, Forms(net), whole)(x)
        got = side.output()
    assert "conv2" in side.form.split()
    assert not caplog.text  # nothing was written out dense
    want = jax_side(DENSE, Forms(net), whole)(x).output()
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * abs(want).max())


@pytest.fixture
def takes(monkeypatch):
    """A clock of its own that the benchmark reads, and calls that take as told."""
    now = 0.0

    def takes(seconds):
        def call():
            nonlocal now
            now += seconds

        return call

    clock = types.SimpleNamespace(perf_counter=lambda: now)
    monkeypatch.setattr(_sparse_measure, "time", clock)
    return takes


def test_times_are_compared_in_pairs(takes):
    def side(seconds, value):
        return Side(takes(seconds), lambda: np.float32([[4.0, value]]), 100)

    sides = {DENSE: side(0.02, -8.0), CHOSEN: side(0.04, -7.0)}
    first, second = timed(sides, 3, 0.0)
    assert first["times_as_fast"] == 1
    assert second["times_as_fast"] == 0.5
    assert second["median_ms"] == second["fastest_ms"] == 40
    assert float(second["difference"]) == pytest.approx(1 / 8, rel=0.05)
    assert (first["keeps_up"], second["keeps_up"]) == ("", "false")
    assert first["pairs"] == 3


def test_what_takes_no_time_is_called_more_often(takes):
    side = Side(takes(1 / 1024), lambda: np.ones(1), 1)
    (row,) = timed({DENSE: side}, 2, 0.125)
    assert row["pairs"] == 128 // (1 + BEFORE)  # those to warm up count, too


@pytest.mark.slow
def test_the_command_writes_adds_and_tells(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "")  # one device, as outside of these tests
    out = tmp_path / "sparse.csv"
    flags = ["--networks", "lenet300", "--pairs", "1", "--seconds", "0"]
    flags += ["--sides", "SciPy CSR", CHOSEN, "--out", str(out), "--add"]
    assert program.main([*flags, "--threads", "1", "--batches", "1"]) == 0
    with out.open(newline="") as file:
        first = list(csv.DictReader(file))
    assert len(first) == 4 * 3
    assert {row["cores"] for row in first} == {"1"}  # of the process that measured
    assert all(row["cpu"] and row["jax"] and row["scipy"] for row in first)
    assert "4 layers" not in capsys.readouterr().out

    # A row of other threads stays, one of the same is replaced.
    first[0]["threads"], first[1]["median_ms"] = "7", "never"
    program.write_csv(out, first)
    assert program.main([*flags, "--threads", "1", "--batches", "1"]) == 0
    with out.open(newline="") as file:
        second = list(csv.DictReader(file))
    assert len(second) == 13
    assert sum(row["threads"] == "7" for row in second) == 1
    assert not any(row["median_ms"] == "never" for row in second)
    said = capsys.readouterr().out
    counted = re.search(r"of (\d+) layers that are run sparse.* (\d+) stay dense", said)
    assert counted
    assert sum(map(int, counted.groups())) == 3


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--pairs", "0"], "--pairs is 0"),
        (["--seconds", "-1"], "--seconds is -1"),
        (["--batches", "4", "0"], "--batches is (4, 0)"),
        (["--threads", "0"], "--threads is (0,)"),
        (["--threads", "1000"], "--threads is (1000,)"),
        (["--threads", "1", "--sides", "cuSPARSE"], "'cuSPARSE'"),
    ],
)
def test_wrong_flags_are_named(flags, message, tmp_path, capsys):
    out = tmp_path / "out.csv"
    assert program.main([*flags, "--out", str(out)]) == 1
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_a_file_of_something_else_is_left_alone(tmp_path, capsys):
    out = tmp_path / "out.csv"
    out.write_text("a,b\n1,2\n")
    assert program.main(["--threads", "1", "--add", "--out", str(out)]) == 1
    assert "no file of this program" in capsys.readouterr().err
    assert out.read_text() == "a,b\n1,2\n"


def test_layers_that_fall_behind_are_listed():
    row = {
        "network": "N",
        "layer": "fc1",
        "batch": "1",
        "threads": "2",
        "side": CHOSEN,
        "form": "fc1",
        "times_as_fast": "0.8",
        "keeps_up": "false",
    }
    good = row | {"layer": "fc2", "keeps_up": "true"}
    others = [row | {"layer": "whole"}, row | {"side": DENSE}, row | {"form": "dense"}]
    said = program.verdict([row, good, *others])
    counted = "1 of 2 layers that are run sparse have 0.95 of the dense speed or more; "
    assert said.splitlines() == [
        f"{counted}1 stay dense.",
        "N fc1 (fc1) at batch 1, threads: 2: 0.8",
    ]
