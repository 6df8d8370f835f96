"""The trade-off: points of the loop, rows as they are done, and going on."""

import csv

import jax
import numpy as np
import pytest
from matplotlib.image import imread

import jaxprune
from experiments import points, tradeoff, train
from experiments.config import Refused
from experiments.models import LENET300
from experiments.pictures import tradeoff as picture


FLAGS = "--seeds 1 --compressions 4 30 --dense-epochs 1 --retrain-epochs 0.05".split()


def rows_of(folder):
    with (folder / "tradeoff.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tradeoff") / "out"
    assert tradeoff.main([*FLAGS, "--out", str(folder)]) == 0
    return folder


@pytest.mark.slow
def test_every_point_is_a_row(done):
    rows = rows_of(done)
    found = {(row["line"], float(row["target"])) for row in rows}
    assert found == {(line, c) for line in tradeoff.LINES for c in (4, 30)}
    assert len(rows) == 10
    for row in rows:
        kept = np.floor(266_200 / float(row["target"]))
        ratio = float(row["compression_weights"])
        assert abs(266_200 / ratio - kept) < 2  # of rounding
    by = {(row["line"], row["target"]): row for row in rows}
    # One dense net for each penalty, and the iterative line begins at the other.
    assert len({row["dense_error"] for row in rows if row["line"] == "l1"}) == 1
    assert by["l2 iterative", "4"]["error"] == by["l2 retrained", "4"]["error"]
    assert min(imread(done / "tradeoff.png").shape[:2]) > 800


@pytest.mark.slow
def test_points_have_the_masks_of_the_dense_net(done):
    """NumPy finds the same survivors, and retraining moves them but not the dead."""
    shapes = jax.eval_shape(
        LENET300.module.init, jax.random.key(0), np.zeros((1, *LENET300.input))
    )["params"]
    read = lambda name: points.files.load_weights(
        done / "seed0-l2" / name / "weights.safetensors", shapes
    )
    names = ("fc1", "fc2", "fc3")
    flat = lambda params: np.concatenate([params[n]["kernel"].ravel() for n in names])
    dense, at4, last = flat(read("dense")), flat(read("at4")), flat(read("iterative30"))
    alive = np.abs(dense) >= np.sort(np.abs(dense))[-(dense.size // 4)]
    assert np.mean((at4 != 0) == alive) > 0.9999
    assert np.mean(at4[alive] != dense[alive]) > 0.5  # some pixels are always 0
    # The iterative point was pruned from the one before it.
    assert not np.any((last != 0) & (at4 == 0))
    alive = np.abs(at4) >= np.sort(np.abs(at4))[-(dense.size // 30)]
    assert np.mean((last != 0) == alive) > 0.9999


@pytest.mark.slow
def test_going_on_makes_only_what_is_missing(done, monkeypatch, capsys):
    table = done / "tradeoff.csv"
    before = table.read_text()
    assert tradeoff.main([*FLAGS, "--out", str(done)]) == 1
    assert "give --resume to go on" in capsys.readouterr().err
    assert tradeoff.main([*FLAGS, "--out", str(done), "--l1", "1", "--resume"]) == 1
    assert "was begun with --l1 1e-05" in capsys.readouterr().err
    lines = before.splitlines(keepends=True)
    table.write_text("".join(lines[:-3]))  # as if it had been killed there

    def never(*args, **kwargs):
        raise AssertionError("trained anew")

    monkeypatch.setattr(train, "fit", never)
    assert tradeoff.main([*FLAGS, "--out", str(done), "--resume"]) == 0
    assert table.read_text() == before
    table.write_text("a,b\n1,2\n")
    assert tradeoff.main([*FLAGS, "--out", str(done), "--resume"]) == 1
    assert "is not a table of this program" in capsys.readouterr().err
    table.write_text(before)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--compressions 4 2", r"--compressions is (4.0, 2.0), expected rising ratios"),
        ("--compressions 1 2", "expected rising ratios above 1"),
        ("--seeds 0", "--seeds is 0, expected a number above 0"),
        ("--l2 0", "--l2 is 0.0, expected a number above 0"),
        ("--batch 0", "--batch is 0, expected a number above 0"),
        ("--lr 0", "--lr is 0.0, expected more than 0"),
        ("--warmup -1", "--warmup is -1.0, expected 0 or more"),
        ("--dropout 1", "--dropout is 1.0, expected a probability in [0, 1)"),
        (
            "--eval-split test[:9]",
            "--eval-split is test[:9], expected test for LeNet-300-100",
        ),
        ("--network AlexNet-CIFAR10 --data-dir {}", "CIFAR-10 is not in"),
    ],
)
def test_wrong_flags(flags, message, tmp_path, capsys):
    out = tmp_path / "out"
    flags = flags.format(tmp_path)
    assert tradeoff.main([*flags.split(), "--out", str(out)]) == 1
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_flags_change_the_settings_of_the_network(monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr(
        tradeoff, "one_seed", lambda _, subject, *__: seen.append(subject)
    )
    monkeypatch.setattr(tradeoff.picture, "draw", lambda *_: None)
    given = "--batch 32 --dense-epochs 2 --lr 0.5 --warmup 0 --dropout 0".split()
    more = "--retrain-epochs 3 --retrain-lr 0.25 --seeds 1".split()
    for name, flags in (("own", more[-2:]), ("given", given + more)):
        assert tradeoff.main([*flags, "--out", str(tmp_path / name)]) == 0
    own, changed = (subject.config for subject in seen)
    assert own.training == points.LENETS["LeNet-300-100"][0].CONFIG.training
    training, pruning = changed.training, changed.pruning
    assert (training.batch, training.dense_epochs, training.lr) == (32, 2, 0.5)
    assert (training.warmup, training.dropout) == (0, 0)
    assert (pruning.retrain_epochs, pruning.retrain_lr) == (3, 0.25)


def test_a_slice_of_the_images_is_judged_on(monkeypatch):
    asked = []

    def load(config, network):
        asked.append(config.data.eval_split)
        raise Refused("enough")

    monkeypatch.setattr(points.imagenet, "load", load)
    for more in ((), ("test[:9]",)):
        with pytest.raises(Refused, match="enough"):
            points.subject("VGG-16-CIFAR10", "mnist5k", None, *more)
    assert asked == ["test", "test[:9]"]


def test_compressions_by_hand():
    params = {"fc": {"kernel": np.ones((4, 5)), "bias": np.ones(5)}}
    mask = {"fc": {"kernel": np.arange(20).reshape(4, 5) % 4 == 0, "bias": None}}
    assert points.compressions(params, mask) == {
        "compression_weights": "4.000",
        "compression_params": "2.500",
    }


def test_a_pruned_start_keeps_its_dead_weights_dead():
    params = {"w": np.array([[4.0, -3.0, 2.0, 1.0]], np.float32)}
    first = points.pruned(params, 2)
    np.testing.assert_array_equal(first.params["w"], [[4, -3, 0, 0]])
    second = points.pruned(first.params, 4)
    np.testing.assert_array_equal(second.params["w"], [[4, 0, 0, 0]])
    assert jaxprune.sparsity(second.mask) == 0.75


def test_the_picture_needs_a_known_line(tmp_path):
    row = {"line": "l1", "target": "2", "error": "1", "dense_error": "1"}
    picture.draw(tmp_path / "a.png", [row], ["l1"], "one seed")
    with pytest.raises(KeyError):
        picture.draw(tmp_path / "b.png", [row], ["l3"], "")
    assert not (tmp_path / "b.png").exists()


def test_a_table_of_other_columns_is_refused(tmp_path):
    points.add(tmp_path / "a.csv", ("x", "y"), {"x": 1, "y": 2})
    points.add(tmp_path / "a.csv", ("x", "y"), {"x": 3, "y": 4})
    assert points.read(tmp_path / "a.csv", ("x", "y"))[1] == {"x": "3", "y": "4"}
    with pytest.raises(Refused, match="not a table of this program"):
        points.read(tmp_path / "a.csv", ("x",))
