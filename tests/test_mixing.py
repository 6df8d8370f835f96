"""Squares hidden or mixed into small images, against loops in NumPy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax

from experiments import data, image_tasks, vgg16_prune
from experiments.config import Mixing
from experiments.data.mixing import squares
from experiments.layout import make_layout
from experiments.models import VGG16_CIFAR10, preprocess


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


def test_smoothed_labels_are_the_targets_of_the_loss(monkeypatch):
    draw = np.random.default_rng(0)
    pixels = draw.integers(0, 256, (64, 32, 32, 3), np.uint8)
    split = data.Split(pixels, draw.integers(0, 10, 64).astype(np.int32))
    monkeypatch.setattr(data, "load_cifar10", lambda *_: split)
    config = vgg16_prune.PRESETS["cifar10"].config
    training = dataclasses.replace(config.training, batch=64)
    config = dataclasses.replace(
        config, mixing=Mixing(smoothing=0.2, cutout=6), training=training
    )
    _, task, size = image_tasks.cifar10(config, VGG16_CIFAR10, make_layout("data=1"))
    assert size == 64
    made, other = (
        task(
            dataclasses.replace(config, run=dataclasses.replace(config.run, seed=seed))
        )
        for seed in (0, 1)
    )
    arrays = made.feed.arrays(0)
    assert not np.array_equal(arrays[-1], other.feed.arrays(0)[-1])
    batch = jax.jit(made.feed.batch)(arrays, 0)
    targets = 0.8 * np.eye(10)[batch.labels] + 0.02
    np.testing.assert_allclose(np.exp(batch.soft), targets, rtol=1e-5)
    logits = draw.normal(size=(64, 10)).astype(np.float32)
    loss = made.loss(logits, batch.labels, batch.soft)
    expected = -np.sum(targets * log_softmax(logits, -1), -1)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    # Of its own crop or reflection, and with a square of zeros, each is a new image.
    inputs = np.asarray(batch.inputs)
    hidden = (inputs == 0).all(-1).sum((1, 2))
    assert ((hidden > 0) & (hidden <= 36)).all()
    known = np.asarray(preprocess(jnp.asarray(pixels), "cifar10"))
    same = [(one == known).all(-1).mean((1, 2)).max() for one in inputs]
    assert np.mean(np.array(same) < 0.5) > 0.8


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
