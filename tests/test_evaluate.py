"""Published weights on real photographs, and the counting of hits."""

import os
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import evaluate as program
from experiments.data.digits import Split
from experiments.data.loader import Batch
from experiments.judge import make_accuracy, resident, streamed
from experiments.models import SQUEEZENET
from experiments.models.preprocess import KINDS


class Scores(nn.Module):
    """Gives the first pixel's channels as logits."""

    @nn.compact
    def __call__(self, images):
        return images[:, 0, 0]


def test_hits_are_counted_among_the_first_one_and_five():
    draw = np.random.default_rng(0)
    pixels = draw.permuted(
        np.tile(np.arange(0, 240, 20, dtype=np.uint8), (40, 1)), axis=1
    )
    labels = draw.integers(0, 12, 40).astype(np.int32)
    valid = draw.random(40) < 0.7
    batches: Any = [
        Batch(pixels[i : i + 10, None, None], labels[i : i + 10], valid[i : i + 10])
        for i in range(0, 40, 10)
    ]
    network = SQUEEZENET._replace(module=Scores(), preprocessing="unit")
    found = make_accuracy(network)({}, batches)
    rank = np.array(
        [
            np.flatnonzero(np.argsort(-row.astype(int)) == label)[0]
            for row, label in zip(pixels, labels, strict=True)
        ]
    )
    assert found == (
        np.sum(valid & (rank < 1)),
        np.sum(valid & (rank < 5)),
        np.sum(valid),
    )
    assert jnp.asarray(found).min() > 0
    errors = streamed(network, lambda: batches, 40)({})
    wrong, wrong5 = (100 * np.mean(rank[valid] >= first) for first in (1, 5))
    assert errors == pytest.approx(
        {"error": wrong, "top5_error": wrong5, "broken": np.sum(~valid)}
    )


class Far(nn.Module):
    """Gives how far the first pixel's channels are from 0.4 as logits."""

    @nn.compact
    def __call__(self, images):
        return abs(images[:, 0, 0] - 0.4)


@pytest.mark.parametrize("kind", ["unit", "cifar10"])
def test_each_resident_image_is_judged_once(kind):
    draw = np.random.default_rng(0)
    images = draw.integers(0, 256, (25, 2, 2, 3), np.uint8)
    labels = draw.integers(0, 3, 25).astype(np.int32)
    network = SQUEEZENET._replace(module=Far(), preprocessing=kind)
    mean, deviation, _ = KINDS[kind]
    inputs = (images[:, 0, 0] - np.array(mean)) / np.array(deviation)
    wrong = np.argmax(abs(inputs - 0.4), -1) != labels
    judge = resident(network, Split(images, labels), batch=10)
    for _ in range(2):
        assert judge({}) == {"error": pytest.approx(100 * wrong.mean())}


def test_weights_that_are_not_there_are_told(tmp_path, capsys):
    path = tmp_path / "none.net"
    args = ["--network", "SqueezeNet", "--weights", str(path)]
    assert program.main(args) == 1
    assert str(path) in capsys.readouterr().err


def test_photographs_that_are_not_there_are_told(tmp_path, capsys):
    data = os.environ.get("JAXPRUNE_DATA")
    if not data:
        pytest.skip("JAXPRUNE_DATA is not set")
    weights = Path(data) / "squeezenet" / "compressed_SqueezeNet.net"
    args = ["--network", "SqueezeNet", "--weights", str(weights)]
    assert program.main([*args, "--data-dir", str(tmp_path)]) == 1
    assert "file_format='array_record'" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.data
@pytest.mark.parametrize(
    ("squash", "top1", "top5"), [("True", 64.7, 85.8), ("False", 62.4, 83.3)]
)
def test_the_published_squeezenet_sees_the_photographs(squash, top1, top5):
    data = os.environ.get("JAXPRUNE_DATA")
    if not data:
        pytest.skip("JAXPRUNE_DATA is not set")
    found = program.run(
        program.Options(
            weights=Path(data) / "squeezenet" / "compressed_SqueezeNet.net",
            network="SqueezeNet",
            data_dir=Path(data) / "tfds",
            squash=squash == "True",
        )
    )
    assert (found["weights"], found["images"]) == (1_244_448, 1000)
    assert round(found["kept_percent"], 2) == 33.42
    assert abs(found["top1_percent"] - top1) <= 0.5
    assert abs(found["top5_percent"] - top5) <= 0.5
