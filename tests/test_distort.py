"""Distorted digits beside SciPy, and that what is taught goes with them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from experiments import data, runs
from experiments.config import Config, Data, Training, decisive, difference
from experiments.data import affine
from experiments.models import LENET300
from experiments.tasks import Resident


KEY = jax.random.key(5)


@pytest.fixture(scope="module")
def digits():
    train = data.load(Data()).train
    rows = np.random.default_rng(0).integers(0, 4000, 8)
    return data.Split(train.images[rows], train.labels[rows])


def test_an_image_is_turned_slanted_scaled_and_shifted_as_by_scipy(digits):
    out = np.asarray(jax.jit(data.distort)(KEY, digits.images))
    assert out.shape == digits.images.shape
    drawn = np.asarray(jax.random.uniform(KEY, (8, 6), minval=-1.0, maxval=1.0))
    assert np.all(np.ptp(drawn, 0) > 0.5)  # each image has amounts of its own
    for image, result, amounts in zip(digits.images, out, drawn, strict=True):
        turn, slant = 0.15 * amounts[:2]
        turned = [[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]
        scaled = np.diag(1 + 0.1 * amounts[2:4])
        matrix = np.array(turned) @ [[1, 0], [slant, 1]] @ scaled
        offset = 13.5 - matrix @ [13.5, 13.5] + 1.5 * amounts[4:]
        expected = ndimage.affine_transform(
            image[..., 0].astype(float), matrix, offset, order=1, mode="grid-constant"
        )
        np.testing.assert_allclose(result[..., 0], expected, atol=0.05)


def test_nothing_drawn_changes_nothing(digits, monkeypatch):
    for name in ("TURN", "SCALE", "SLANT", "SHIFT"):
        monkeypatch.setattr(affine, name, 0.0)
    out = np.asarray(data.distort(KEY, digits.images))
    np.testing.assert_allclose(out, digits.images, atol=1e-3)


def test_a_batch_is_distorted_anew_and_its_teacher_sees_it_so(digits):
    teacher = lambda x: jnp.sum(x, (1, 2))
    feed = Resident(digits, 8, KEY, augment=data.distort, soft=teacher)
    of = jax.jit(feed.batch)
    first, again, next_epoch = (of(feed.arrays(0), jnp.int32(i)) for i in (0, 0, 1))
    np.testing.assert_array_equal(first.inputs, again.inputs)
    order = np.argsort(first.labels, stable=True)
    assert sorted(next_epoch.labels) == list(np.asarray(first.labels)[order])
    assert not np.allclose(np.sort(first.soft, 0), np.sort(next_epoch.soft, 0))
    for batch in (first, next_epoch):
        assert batch.inputs.max() <= 1 + 1e-6
        np.testing.assert_allclose(batch.soft, teacher(batch.inputs), rtol=1e-6)


def test_the_flag_distorts_and_no_phase_sees_what_another_saw(digits):
    config = Config(network=LENET300.name, training=Training(batch=8))
    of = data.Digits(digits, digits, "8 digits")

    def inputs(phase=0, **flags):
        flagged = dataclasses.replace(config, data=Data(**flags))
        feed = runs.task_of(flagged, LENET300, of, phase=phase).feed
        return np.asarray(feed.batch(feed.arrays(0), jnp.int32(0)).inputs)

    plain, first = inputs(), inputs(augment=True)
    assert sorted(plain.sum((1, 2, 3))) == pytest.approx(
        sorted(digits.images.sum((1, 2, 3)) / 255)
    )
    assert np.abs(first - plain).max() > 0.1
    np.testing.assert_array_equal(first, inputs(augment=True))
    assert np.abs(inputs(phase=1, augment=True) - first).max() > 0.1


def test_runs_from_before_the_flag_go_on_without_it():
    settings = decisive(Config(network="toy"))
    older = {name: value for name, value in settings.items() if name != "--augment"}
    assert difference(older, settings) is None
    distorted = decisive(Config(network="toy", data=Data(augment=True)))
    assert difference(older, distorted) == "--augment was False and is now True"
