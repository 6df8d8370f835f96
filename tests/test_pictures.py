"""The pictures of the results: what is drawn is what the tables say; small files."""

import csv
import statistics

import numpy as np
import pytest
from PIL import Image

from experiments.config import Refused
from experiments.pictures import (
    bands,
    command,
    controls,
    read,
    sensitivity,
    tradeoff,
    weights,
)


NAMES = {
    *("errors_lenets_mnist.png", "mask_lenet300_mnist5k.png", "sensitivity.png"),
    *(f"tradeoff_{n}_mnist5k.png" for n in ("lenet300", "lenet5")),
    *(f"tradeoff_{n}_cifar10.png" for n in ("alexnet", "vgg16")),
    *(f"controls_{n}_mnist5k.png" for n in ("lenet300", "lenet5")),
    "weights_lenet300_mnist5k.png",
    *(f"sensitivity_{n}_scan.png" for n in ("lenet300", "lenet5", "squeezenet")),
}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    out = tmp_path_factory.mktemp("pictures") / "new"
    assert command.main(["--out", str(out)]) == 0
    return out


def rows_of(name):
    with (command.RESULTS / name).open(newline="") as file:
        return list(csv.DictReader(file))


def line_of(axes, label):
    (line,) = [line for line in axes.lines if line.get_label() == label]
    return line.get_xdata(), line.get_ydata()


def test_one_command_draws_all(drawn):
    assert {path.name for path in drawn.iterdir()} == NAMES
    for path in drawn.iterdir():
        assert path.stat().st_size < 100_000
        with Image.open(path) as image:
            assert image.width >= 1100
            assert image.mode == "P"
            assert "transparency" not in image.info
            assert image.convert("RGB").getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("name", sorted(NAMES))
def test_the_committed_pictures_are_of_the_committed_tables(drawn, name):
    """Compared coarsely, for fonts differ a little between versions of Matplotlib."""

    def coarse(path):
        with Image.open(path) as image:
            grey = image.convert("L").resize((60, 40), Image.Resampling.BOX)
        return np.asarray(grey, float)

    new, old = coarse(drawn / name), coarse(command.RESULTS / name)
    assert np.abs(new - old).mean() < 1


def test_the_tradeoff_is_that_of_the_table(tmp_path):
    rows = rows_of("tradeoff_lenet300_mnist5k.csv")
    figure = tradeoff.draw(tmp_path / "a.png", rows, ["l2 iterative", "l1"], "")
    x, y = line_of(figure.axes[0], "L2 iterative")
    for target in (2, 48):
        mine = [
            float(r["error"]) - float(r["dense_error"])
            for r in rows
            if (r["line"], r["target"]) == ("l2 iterative", str(target))
        ]
        assert y[list(x).index(target)] == pytest.approx(statistics.mean(mine))


def test_controls_are_those_of_the_table(tmp_path):
    rows = rows_of("controls_lenet300_mnist5k.csv")
    figure = controls.draw(tmp_path / "a.png", rows, "")
    for container in figure.axes[0].containers:
        (control,) = [
            name
            for name, (label, _) in controls.LOOKS.items()
            if label == container.get_label()
        ]
        mine = [
            float(r["error"])
            for r in rows
            if (r["control"], r["target"]) == (control, "32")
        ]
        line = container.lines[0]
        assert line.get_ydata()[-1] == pytest.approx(statistics.mean(mine))


def test_points_by_hand():
    rows = [{"x": x, "y": y, "z": "1"} for x, y in (("4", "3"), ("2", "9"), ("4", "5"))]
    found = read.points(rows, "x", "y", above="z")
    assert found.x.tolist() == [2, 4]
    assert found.mean.tolist() == [8, 3]
    assert found.spread.tolist() == [0, pytest.approx(2**0.5)]


def test_a_scan_comes_back_from_its_table():
    rows = rows_of("sensitivity_squeezenet_scan.csv")
    scan = sensitivity.scan_of(rows)
    assert scan.value == pytest.approx(0, abs=1e-6)
    for row in rows:
        curve = scan.curves[row["layer"]]
        (at,) = np.flatnonzero(np.isclose(curve.sparsities, float(row["sparsity"])))
        assert curve.values[at] == float(row["value"])
    assert len(scan.curves) == 26


def test_a_mask_comes_back_from_its_table(tmp_path):
    mask = np.random.default_rng(0).random((784, 7)) < 0.1
    mask[:, 3] = False  # a dead unit
    bands.write(tmp_path / "mask.csv", mask)
    np.testing.assert_array_equal(
        bands.mask_of(read.table(tmp_path / "mask.csv")), mask
    )


def test_histograms_by_numpy(tmp_path):
    rng = np.random.default_rng(0)
    before, after = rng.normal(size=5000), rng.normal(size=400) * 2
    weights.write(tmp_path / "w.csv", {"fc": (before, after)})
    rows = read.table(tmp_path / "w.csv")
    for when, drawn in (("before", before), ("after", after)):
        mine = [row for row in rows if row["when"] == when]
        assert sum(int(row["weights"]) for row in mine) == len(drawn)
        for row in mine[1:-1]:
            inside = (drawn >= float(row["low"])) & (drawn < float(row["high"]))
            assert int(row["weights"]) == pytest.approx(inside.sum(), abs=1)
    figure = weights.draw(tmp_path / "w.png", rows, "")
    (patch,) = figure.axes[1].patches
    assert patch.get_data().values.sum() == 400


def test_missing_tables_and_runs_are_told(tmp_path, capsys):
    assert command.main(["--results", str(tmp_path)]) == 1
    assert "cannot be read" in capsys.readouterr().err
    assert command.main(["--results", str(tmp_path), "--run", str(tmp_path)]) == 1
    assert "holds no finished run" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
    (tmp_path / "a.csv").write_text("x,y\n")
    with pytest.raises(Refused, match="has no rows"):
        read.table(tmp_path / "a.csv")
