"""Networks judged together: the mean over networks first, then pairs over examples."""

import csv

import numpy as np
import pytest

from experiments.sensitivity import command, pool
from jaxprune import Curve, Scan


def folder(path, seed, judged_on="5 digits"):
    draw = np.random.default_rng(seed)
    path.mkdir()
    losses = {}
    lines = ["network,judged_on,way,compression"]
    for compression, way in (("", "before"), ("2x", "solved"), ("2x", "global")):
        losses[way] = draw.random(5)
        wrong = draw.random(5) < 0.5
        np.savez(
            path / f"judged-{compression}-{way}.npz", losses=losses[way], wrong=wrong
        )
        lines.append(f"LeNet-5,{judged_on},{way},{compression}")
    (path / "judged.csv").write_text("\n".join(lines) + "\n")
    return losses


def test_against_numpy(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    first, second = folder(a, 0), folder(b, 1)
    out = tmp_path / "out.csv"
    assert pool.main([str(a), str(b), "--out", str(out)]) == 0
    rows = {row["way"]: row for row in csv.DictReader(out.read_text().splitlines())}
    for way, row in rows.items():
        mean = (first[way].mean() + second[way].mean()) / 2
        assert float(row["cross_entropy"]) == pytest.approx(mean, abs=1e-6)
    gain = (first["global"] + second["global"] - first["solved"] - second["solved"]) / 2
    row = rows["global"]
    assert float(row["above_solved"]) == pytest.approx(gain.mean(), abs=1e-6)
    error = np.sqrt(((gain - gain.mean()) ** 2).sum() / 4 / 5)
    assert float(row["standard_error"]) == pytest.approx(error, abs=1e-6)
    assert rows["solved"]["ratio"] == ""


def test_folders_judged_on_other_digits_are_refused(tmp_path, capsys):
    a, b, out = tmp_path / "a", tmp_path / "b", tmp_path / "out.csv"
    folder(a, 0)
    folder(b, 1, "6 digits")
    assert pool.main([str(a), str(b), "--out", str(out)]) == 1
    assert "expected one of these" in capsys.readouterr().err
    assert pool.main([str(a), str(tmp_path / "c"), "--out", str(out)]) == 1
    assert "judged.csv cannot be read" in capsys.readouterr().err
    assert not out.exists()


def test_powers_are_of_what_a_layer_adds():
    curve = Curve(np.array([0.0, 0.5, 0.9]), np.array([2.0, 1.5, 5.0]))
    scan = Scan(2.0, {"a": 0.0}, {"a": curve}, {"a": 10})
    found = command._raised(scan, 2.0)
    assert found.curves["a"].values.tolist() == [2.0, 1.75, 11.0]
    assert found.value == 2.0
