"""Squares hidden or mixed into small images, against loops in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import data, vgg16_prune
from experiments.data.mixing import squares


KEY = jax.random.key(0)
IMAGES = np.random.default_rng(0).normal(1, 0.1, (64, 12, 10, 3)).astype(np.float32)


@pytest.mark.parametrize("side", [1, 4, 5])
def test_cutout_hides_one_square(side):
    made = np.asarray(data.cutout(KEY, IMAGES, side))
    whole, corners = 0, set()
    for image, cut in zip(IMAGES, made, strict=True):
        hidden = (cut == 0).all(-1)
        np.testing.assert_array_equal(cut[~hidden], image[~hidden])
        rows, columns = np.flatnonzero(hidden.any(1)), np.flatnonzero(hidden.any(0))
        assert 1 <= len(rows) <= side
        assert 1 <= len(columns) <= side
        assert hidden.sum() == len(rows) * len(columns)
        assert hidden[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
        whole += hidden.sum() == side * side
        corners.add((rows[0], columns[0]))
    assert whole > 20
    assert len(corners) > 20


def test_squares_stand_anywhere():
    found = squares(KEY, (4000, 6, 5), jnp.ones(4000))
    np.testing.assert_allclose(np.mean(found, 0), 1 / 30, atol=0.012)


def test_cutmix_mixes_labels_by_area():
    labels = np.eye(10, dtype=np.float32)[np.arange(64) % 10]
    inputs, targets = data.cutmix(KEY, IMAGES, labels, 0.5)
    inputs, targets = np.asarray(inputs), np.asarray(targets)
    parts = []
    for i in range(64):
        own = (inputs[i] == IMAGES[i]).all(-1)
        other = (inputs[i] == IMAGES[63 - i]).all(-1)
        assert (own ^ other).all()
        part = other.mean()
        expected = (1 - part) * labels[i] + part * labels[63 - i]
        np.testing.assert_allclose(targets[i], expected, atol=1e-6)
        parts.append(part)
    parts = np.array(parts)
    assert 16 <= (parts == 0).sum() <= 48
    assert parts.max() > 0.5
    assert 0.2 < parts[parts > 0].mean() < 0.6


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("--dataset cifar10 --cutout 33", "--cutout is 33, expected 0 to 32, pixels"),
        ("--dataset cifar10 --cutmix 1.5", "--cutmix is 1.5, expected a share in"),
        ("--dataset cifar10 --smoothing 1", "--smoothing is 1.0, expected a share in"),
        ("--convention torchvision --cutout 8", "are for --dataset cifar10"),
    ],
)
def test_flags_out_of_range(flags, expected, capsys, monkeypatch, tmp_path):
    few = data.Split(np.zeros((128, 32, 32, 3), np.uint8), np.zeros(128, np.int32))
    monkeypatch.setattr(data, "load_cifar10", lambda *_: few)
    out = ["--out", str(tmp_path / "run")]
    assert vgg16_prune.main([*flags.split(), *out]) != 0
    assert expected in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
