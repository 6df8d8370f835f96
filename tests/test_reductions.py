"""Table 6: the paper's rows, low rank by NumPy, and the points of a short run."""

import csv

import numpy as np
import pytest

from experiments import paper, reductions
from experiments.config import Refused


def test_the_rates_of_the_paper():
    whole = paper.REDUCTIONS[0].millions
    for row in paper.REDUCTIONS:
        assert whole / row.millions == pytest.approx(row.rate, abs=0.15)


def drawn():
    rng = np.random.default_rng(0)
    make = lambda *shape: rng.normal(size=shape).astype(np.float32)
    return {
        "a": {"kernel": make(3, 3, 4, 12), "bias": make(12)},
        "b": {"kernel": make(40, 20), "bias": make(20)},
        "c": {"kernel": make(20, 5), "bias": make(5)},
    }


@pytest.mark.parametrize("most", [1000, 700, 400])
def test_low_rank_is_the_nearest(most):
    """Eckart and Young: what is lost are the smaller singular values."""
    params = drawn()
    found, stored = reductions.low_rank(params, most)
    assert stored <= most
    counted = 100  # the last layer is left as it is
    for name in ("a", "b"):
        before = params[name]["kernel"].reshape(-1, params[name]["kernel"].shape[-1])
        after = found[name]["kernel"].reshape(before.shape)
        assert found[name]["kernel"].shape == params[name]["kernel"].shape
        rank = np.linalg.matrix_rank(after, tol=1e-4)
        values = np.linalg.svd(before, compute_uv=False)
        lost = np.linalg.norm(before - after) ** 2
        assert lost == pytest.approx(np.sum(values[rank:] ** 2), rel=1e-3)
        counted += rank * sum(before.shape)
    assert counted == stored
    for name in params:
        np.testing.assert_array_equal(found[name]["bias"], params[name]["bias"])
    np.testing.assert_array_equal(found["c"]["kernel"], params["c"]["kernel"])
    one_more = (36 + 12) + (40 + 20)
    assert stored > most - 2 * one_more


def test_too_few_weights_are_refused():
    with pytest.raises(Refused, match="leaves 150 weights, too few for rank 1"):
        reductions.low_rank(drawn(), 150)


@pytest.mark.slow
def test_a_short_run(tmp_path, capsys):
    out = tmp_path / "out"
    flags = "--seeds 1 --compressions 5 --dense-epochs 1 --retrain-epochs 0.05"
    assert reductions.main([*flags.split(), "--out", str(out)]) == 0
    with (out / "reductions.csv").open(newline="") as file:
        rows = {row["method"]: row for row in csv.DictReader(file)}
    assert tuple(rows) == reductions.METHODS
    for row in rows.values():
        assert 0.8 * 266_200 / 5 < int(row["weights"]) <= 266_200 / 5
        assert row["dense_error"] == rows["svd"]["dense_error"]
    text = capsys.readouterr().out
    assert "44.02%" in text  # the paper's
    assert f"{float(rows['svd']['error']):.2f}" in text


def test_wrong_flags(tmp_path, capsys):
    out = tmp_path / "out"
    assert reductions.main(["--compressions", "1", "--out", str(out)]) == 1
    assert "--compressions is (1.0,)" in capsys.readouterr().err
    assert not out.exists()
