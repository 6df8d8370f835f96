"""The controls: what each begins with, what is counted, and going on."""

import csv

import jax
import numpy as np
import pytest
import toy
from quick import quick

import jaxprune
from experiments import control_nets, controls, points, train
from experiments.data.digits import Digits, Split
from experiments.models import LENET5, LENET300


def drawn(network, seed=0):
    images = np.zeros((1, *network.input), np.float32)
    return jax.device_get(toy.drawn(network.module, images, seed=seed))


DENSE = drawn(LENET300)
CUT = points.pruned(DENSE, 8)
LAYERS = ("fc1", "fc2", "fc3")


@pytest.mark.parametrize("control", quick(controls.CONTROLS[:-1], "shuffled"))
def test_controls_keep_the_ratios_of_the_layers(control):
    start = control_nets.begin(control, LENET300, DENSE, CUT, 3)
    same = 0
    for name in LAYERS:
        kernel, mask = start.params[name]["kernel"], start.mask[name]["kernel"]
        cut = CUT.mask[name]["kernel"]
        assert mask.sum() == cut.sum()
        assert not np.any(kernel[~mask])
        same += np.sum(mask & cut)
        pruned = CUT.params[name]["kernel"]
        if control == "shuffled":
            np.testing.assert_array_equal(np.sort(kernel, None), np.sort(pruned, None))
        elif control == "random mask":
            np.testing.assert_array_equal(kernel[mask], DENSE[name]["kernel"][mask])
        elif control == "pruned":
            np.testing.assert_array_equal(kernel, pruned)
        else:  # other weights at the same places
            assert not np.any(kernel[mask] == pruned[cut])
        np.testing.assert_array_equal(start.params[name]["bias"], DENSE[name]["bias"])
    alive = 266_200 // 8
    if control in ("shuffled", "random mask"):  # by chance an eighth and a bit
        assert same < 0.5 * alive
    else:
        assert same == sum(CUT.mask[n]["kernel"].sum() for n in LAYERS)
    again = control_nets.begin(control, LENET300, DENSE, CUT, 3)
    jax.tree.map(np.testing.assert_array_equal, start, again)


@pytest.mark.slow
def test_a_small_dense_net_is_the_widest_that_fits():
    """Counted by hand: 784 a + a b + 10 b weights of units a and b."""
    for weights in (266_200, 133_100, 8_318):
        net = control_nets.narrower(LENET300, weights)
        a, b = net.module.widths["fc1"], net.module.widths["fc2"]
        assert 784 * a + a * b + 10 * b <= weights
        a, b = a + 1, b + 1
        assert 784 * a + a * b + 10 * b > weights
    small = control_nets.narrower(LENET5, 430_500 // 4)
    sizes = [p.size for p in jax.tree.leaves(drawn(small)) if p.ndim > 1]
    assert 0.95 < sum(sizes) / (430_500 // 4) <= 1
    with pytest.raises(controls.Refused, match="leaves 100 weights, too few"):
        control_nets.narrower(LENET300, 100)


def test_changes_by_hand():
    """Ten digits of each class; class 3 loses two of them, class 7 gains one."""
    labels = np.repeat(np.arange(10, dtype=np.int32), 10)
    split = Split(np.zeros((100, 28, 28, 1), np.uint8), labels)
    subject = points.Subject(None, LENET300, None, Digits(split, split, "100"))
    before = np.ones(100, bool)
    before[75] = False
    after = np.ones(100, bool)
    after[[31, 36]] = False
    found = controls.changes(subject, before, after)
    assert (found["dense_error"], found["error"]) == ("1", "2")
    assert (found["worst_class"], found["worst_change"]) == (3, "-20.00")
    assert (found["best_class"], found["best_change"]) == (7, "10.00")
    assert found["change_0"] == "0.00"


@pytest.mark.slow
def test_the_command_and_going_on(tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    flags = "--seeds 2 --compressions 8 --dense-epochs 0.3 --retrain-epochs 0.1"
    flags = [*flags.split(), "--out", str(out)]
    assert controls.main(flags) == 0
    with (out / "controls.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    found = sorted((row["seed"], row["control"]) for row in rows)
    assert found == sorted((s, c) for s in "01" for c in controls.CONTROLS)
    for row in rows:
        long = row["control"] in ("scratch", "small dense")
        assert row["epochs"] == ("0.4" if long else "0.1")
        compression = float(row["compression_weights"])
        if row["control"] == "small dense":
            assert 8 <= compression < 8.5
        else:
            assert compression == 8
        # A hundred test digits of each class: the changes add up to the error's.
        change = sum(float(row[name]) for name in controls.CHANGES) / 10
        error = float(row["dense_error"]) - float(row["error"])
        assert change == pytest.approx(error, abs=0.01)
    assert "small dense" in capsys.readouterr().out

    def never(*args, **kwargs):
        raise AssertionError("trained anew")

    monkeypatch.setattr(train, "fit", never)
    assert controls.main([*flags, "--resume"]) == 0
    assert controls.main([*flags, "--resume", "--dense-epochs", "2"]) == 1
    assert "was begun with --dense-epochs 0.3" in capsys.readouterr().err


def test_one_seed_has_no_deviation(tmp_path, capsys):
    assert controls.main(["--seeds", "1", "--out", str(tmp_path / "out")]) == 1
    assert "--seeds is 1, expected 2 or more" in capsys.readouterr().err


def test_compressions_of_a_smaller_net():
    small = {"fc": {"kernel": np.ones((4, 5)), "bias": np.ones(5)}}
    whole = {"fc": {"kernel": np.ones((4, 10)), "bias": np.ones(10)}}
    mask = jaxprune.dense_mask(small)
    assert points.compressions(small, mask, of=whole) == {
        "compression_weights": "2.000",
        "compression_params": "2.000",
    }
