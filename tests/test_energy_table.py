"""The energy table: the paper's printed numbers."""

import csv

from experiments import energy


def test_the_figure_and_its_example(tmp_path, capsys):
    """Relative costs as the paper prints them, in its order, and 12.8 W."""
    out = tmp_path / "energy.csv"
    assert energy.main(["--out", str(out)]) == 0
    text = capsys.readouterr().out
    assert "12.8 W" in text
    assert "6,400" in text
    with out.open(newline="") as file:
        found = [(row["picojoules"], row["relative"]) for row in csv.DictReader(file)]
    printed = [(0.1, 1), (0.9, 9), (1, 10), (3.1, 31), (3.7, 37), (5, 50), (640, 6400)]
    assert [(float(cost), int(relative)) for cost, relative in found] == printed


def test_wrong_flags(capsys):
    assert energy.main(["--hertz", "0"]) == 1
    assert "--hertz is 0.0, expected above 0" in capsys.readouterr().err
