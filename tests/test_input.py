"""Photographs: decoding, transforms, sources, and the order of batches."""

import io
import logging
import math
import os
import random
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

from experiments.config import Refused
from experiments.data import cifar, decode, transforms
from experiments.data.device import OnDevice
from experiments.data.images import make_batches
from experiments.data.loader import Shard
from experiments.data.settings import Images, check_images
from experiments.data.sources import open_source


def smooth(height, width, seed=0):
    """A picture that survives a JPEG's losses: a few waves in each channel."""
    draw = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width] / 40
    waves = [
        np.sin(rows * a + columns * b + c) for a, b, c in draw.uniform(0, 2, (3, 3))
    ]
    return np.uint8(np.stack(waves, -1) * 100 + 120)


def encoded(pixels, kind="JPEG", mode="RGB", **options):
    out = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(out, kind, **options)
    return out.getvalue()


def opened(data):
    return Image.open(io.BytesIO(data)).convert("RGB")


def transformed(data, convention, *, train=False, crop=48, resize=64, seed=0):
    out = np.zeros((crop, crop, 3), np.uint8)
    make = transforms.make_transform
    make(convention, train=train, crop=crop, resize=resize)(
        data, random.Random(seed), out
    )
    return out


SHAPES = [(100, 150), (151, 90), (64, 64), (64, 71), (40, 300), (500, 333)]


@pytest.mark.parametrize(("height", "width"), SHAPES)
def test_a_photograph_is_judged_on_as_pillow_resizes_it(height, width):
    data = encoded(smooth(height, width), quality=95)
    image = opened(data)
    square = np.asarray(image.resize((64, 64), Image.Resampling.BILINEAR))
    close(transformed(data, "caffe"), square[8:56, 8:56])

    shorter = min(height, width)
    shape = (64 * height // shorter, 64 * width // shorter)
    resized = np.asarray(image.resize(shape[::-1], Image.Resampling.BILINEAR))
    top, left = (round((side - 48) / 2) for side in shape)
    expected = resized[top : top + 48, left : left + 48]
    close(transformed(data, "torchvision"), expected)


def close(found, expected):
    off = np.abs(found.astype(int) - expected)
    assert off.max() <= 1
    assert off.mean() < 0.05


def test_boxes_have_the_areas_and_aspects_of_the_paper():
    draw = random.Random(0)
    boxes = [transforms.random_box(draw, 450, 450) for _ in range(4000)]
    areas = np.array([b.height * b.width / 450**2 for b in boxes])
    aspects = np.array([b.width / b.height for b in boxes])
    assert all(0 <= b.top <= 450 - b.height for b in boxes)
    assert all(0 <= b.left <= 450 - b.width for b in boxes)
    assert 0.078 < areas.min() < 0.1
    assert areas.max() <= 1.0
    assert 0.74 < aspects.min() < 0.78
    assert 1.3 < aspects.max() < 1.35
    # In a square the logarithm of the aspect is even about 0: five standard errors.
    assert abs(np.log(aspects).mean()) < 5 * math.log(4 / 3) / math.sqrt(3 * 4000)


def test_a_box_that_never_fits_is_the_middle():
    box = transforms.random_box(random.Random(0), 10, 1000)
    assert (box.height, box.width) == (10, 13)
    assert box.left == (1000 - 13) // 2


@pytest.mark.parametrize("convention", ["caffe", "torchvision"])
def test_training_shows_parts_of_the_photograph(convention):
    """Every second one reflected; few differences, since the picture is smooth."""
    rows, columns = np.mgrid[:120, :160]
    ramp = np.uint8(np.stack([rows * 2, columns * 1.5, rows * 0], -1))
    data = encoded(ramp, quality=98, subsampling=0)
    reflected, out = 0, np.empty(0)
    for seed in range(40):
        out = transformed(data, convention, train=True, seed=seed).astype(int)
        assert (np.diff(out[..., 0].mean(1)) >= -0.5).all()  # never upside down
        slopes = np.diff(out[..., 1].mean(0))
        assert (slopes >= -0.5).all() or (slopes <= 0.5).all()
        reflected += slopes.sum() < 0
    assert 8 <= reflected <= 32  # 20 +- 4 standard deviations
    again = transformed(data, convention, train=True, seed=39)
    np.testing.assert_array_equal(again, out)


def test_odd_files_are_decoded():
    pixels = smooth(60, 80)
    grey = encoded(pixels, mode="L")
    cmyk = encoded(pixels, mode="CMYK", quality=95)
    for data in (grey, cmyk, encoded(pixels, "PNG"), encoded(pixels, progressive=True)):
        found = decode.decode(data)
        assert decode.size(data) == (60, 80)
        np.testing.assert_array_equal(found, np.asarray(opened(data)))
    assert (decode.decode(grey)[..., 0] == decode.decode(grey)[..., 2]).all()


@pytest.mark.parametrize("rows", [1, 17, 59])
def test_the_first_rows_are_those_of_the_whole(rows):
    data = encoded(smooth(60, 80))
    np.testing.assert_array_equal(
        decode.decode_rows(data, rows)[:rows], decode.decode(data)[:rows]
    )


def test_a_box_is_a_part_of_the_whole_or_of_a_reduced_one():
    pixels = smooth(160, 240)
    data = encoded(pixels, quality=95)
    box = decode.Box(32, 48, 96, 128)
    whole = decode.decode(data)[32:128, 48:176]
    np.testing.assert_array_equal(decode.decode_box(data, box, 96), whole)
    half = decode.decode_box(data, box, 48)
    assert half.shape == (48, 64, 3)
    means = whole.reshape(48, 2, 64, 2, 3).mean((1, 3))
    assert np.abs(half - means).max() < 8


def test_broken_files_say_so():
    data = encoded(smooth(60, 80))
    for bad in (b"", b"text", data[:200], data[: len(data) // 2]):
        with pytest.raises(decode.Broken):
            decode.decode(bad)


@pytest.fixture
def folder(tmp_path):
    """Two classes in two splits, ten photographs to train on and five to judge on."""
    for split, count in (("train", 5), ("val", 3)):
        for label, name in enumerate(("cat", "dog")):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(count - (label and split == "val")):
                path = tmp_path / split / name / f"{i}.jpg"
                path.write_bytes(encoded(smooth(40, 50, seed=10 * label + i)))
    return tmp_path


def settings(folder: Path, **changes: Any) -> Images:
    return Images(data_dir=folder, resize=32, crop=24, **changes)


def taken(batches, count=None):
    batches = iter(batches)
    if count is None:
        return [jax.tree.map(np.array, b) for b in batches]
    return [jax.tree.map(np.array, next(batches)) for _ in range(count)]


def same(found, expected):
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        for x, y in zip(a, b, strict=True):
            np.testing.assert_array_equal(x, y)


def keys(batches):
    """Names photographs by their pixels."""
    return [
        (image.tobytes(), int(label))
        for batch in batches
        for image, label, valid in zip(*batch, strict=True)
        if valid
    ]


def test_class_folders_are_read(folder):
    source = open_source(settings(folder), "train")
    assert source.classes == ("cat", "dog")
    assert len(source) == 10
    by_name = {source.name(i): source.read(i) for i in range(10)}
    for path in folder.glob("train/*/*.jpg"):
        label = ("cat", "dog").index(path.parent.name)
        assert by_name[str(path)] == (path.read_bytes(), label)
    assert len(open_source(settings(folder), "train[:80%]")) == 8
    with pytest.raises(Refused, match=r"'other' is not to be had.*'train'"):
        open_source(settings(folder), "other")


def test_without_photographs_the_commands_are_given(tmp_path):
    with pytest.raises(Refused, match="file_format='array_record'") as told:
        open_source(settings(tmp_path), "train")
    assert str(tmp_path) in str(told.value)
    assert "ILSVRC2012_img_val.tar" in str(told.value)


def test_an_evaluation_has_every_photograph_once(folder):
    source = open_source(settings(folder), "validation")
    batches = make_batches(source, settings(folder), batch=2, seed=None)
    found = taken(batches)
    assert len(found) == batches.steps_per_epoch == 3
    assert [b.valid.tolist() for b in found] == [[True] * 2, [True] * 2, [True, False]]
    assert not found[-1].image[1].any()
    assert len(set(keys(found))) == 5
    # Split over processes: as many batches for each, together the same photographs.
    parts = [
        taken(make_batches(source, settings(folder), batch=4, seed=None, shard=s))
        for s in (Shard(0, 2), Shard(1, 2))
    ]
    assert [len(part) for part in parts] == [2, 2]
    assert sorted(keys(parts[0]) + keys(parts[1])) == sorted(keys(found))


def test_the_order_is_a_function_of_seed_and_epoch(folder):
    source, images = open_source(settings(folder), "train"), settings(folder)
    make = lambda **changes: make_batches(source, images, **{"batch": 4, **changes})
    found = taken(make(seed=1), 6)  # three epochs of two batches
    same(taken(make(seed=1), 6), found)
    labels = [b.label.tolist() for b in found]
    other = [b.label.tolist() for b in taken(make(seed=2), 6)]
    assert labels != other
    assert keys(found[:2]) != keys(found[2:4])
    # The processes' parts make up the batch of one.
    parts = [taken(make(seed=1, shard=Shard(p, 2)), 6) for p in range(2)]
    joined = [
        jax.tree.map(lambda a, b: np.concatenate([a, b]), *p)
        for p in zip(*parts, strict=True)
    ]
    same(joined, found)


def test_an_iterator_goes_on_where_another_was(folder):
    source, images = open_source(settings(folder), "train"), settings(folder)
    expected = taken(make_batches(source, images, batch=3, seed=0), 7)
    first = make_batches(source, images, batch=3, seed=0)
    taken(first, 4)
    second = make_batches(source, images, batch=3, seed=0)
    second.set_state(first.get_state())
    same(taken(second, 3), expected[4:])
    # On the device: the position is that of what was given, not of what was sent ahead.
    ahead = OnDevice(make_batches(source, images, batch=3, seed=0), depth=3)
    same(taken(ahead, 2), expected[:2])
    second.set_state(ahead.get_state())
    same(taken(second, 2), expected[2:4])
    ahead.close()


def test_worker_processes_give_the_same_batches(folder):
    source, images = open_source(settings(folder), "train"), settings(folder)
    expected = taken(make_batches(source, images, batch=3, seed=0), 5)
    workers = make_batches(source, settings(folder, workers=2), batch=3, seed=0)
    workers.set_state({"step": 1})
    same(taken(workers, 4), expected[1:])
    workers.close()


def test_broken_photographs_are_named_and_counted(folder, caplog):
    for name in ("cat", "dog"):
        path = folder / "val" / name / "0.jpg"
        path.write_bytes(path.read_bytes()[:300])
    images = settings(folder, max_broken=2)
    source = open_source(images, "val")
    batches = make_batches(source, images, batch=5, seed=None)
    with caplog.at_level(logging.WARNING):
        (found,) = taken(batches)
    assert found.valid.sum() == 3
    assert not found.image[~found.valid].any()
    assert set(batches.broken) == {
        str(folder / "val" / name / "0.jpg") for name in ("cat", "dog")
    }
    assert all(name in caplog.text for name in batches.broken)
    strict = make_batches(source, settings(folder, max_broken=1), batch=5, seed=None)
    with pytest.raises(Refused, match=r"2 images are broken, more than --max-broken 1"):
        taken(strict)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"crop": 40}, "--crop is 40"),
        ({"workers": -1}, "--workers is -1"),
        ({"threads": 0}, "--threads is 0"),
        ({"prefetch": 0}, "--prefetch is 0"),
        ({"max_broken": -1}, "--max-broken is -1"),
    ],
)
def test_settings_out_of_range(changes, message):
    with pytest.raises(Refused, match=message):
        check_images(Images(**{"resize": 32, "crop": 24, **changes}))


def test_batches_that_cannot_be(folder):
    source, images = open_source(settings(folder), "train"), settings(folder)
    with pytest.raises(Refused, match=r"--batch is 3.*2 processes"):
        make_batches(source, images, batch=3, seed=0, shard=Shard(0, 2))
    with pytest.raises(Refused, match="--batch is 11, expected at most the 10"):
        make_batches(source, images, batch=11, seed=0)


def test_augmentation_shifts_and_reflects():
    images = np.arange(1, 1 + 200 * 36, dtype=np.int32).reshape(200, 6, 6, 1)
    found = np.asarray(cifar.augment(jax.random.key(0), images, 2))
    places = set()
    for image, out in zip(images, found, strict=True):
        padded = np.pad(image, ((2, 2), (2, 2), (0, 0)))
        options = {
            (top, left, flip): padded[top : top + 6, left : left + 6][
                :, :: 1 - 2 * flip
            ]
            for top in range(5)
            for left in range(5)
            for flip in (0, 1)
        }
        (place,) = [p for p, o in options.items() if np.array_equal(o, out)]
        places.add(place)
    assert len(places) > 40  # of 50 that are equally likely, 200 draws


@pytest.fixture
def tfds():
    data = os.environ.get("JAXPRUNE_DATA")
    if not data:
        pytest.skip("JAXPRUNE_DATA is not set")
    return Path(data) / "tfds"


@pytest.mark.data
def test_imagenet_is_read_without_tensorflow(tfds):
    images = Images(data_dir=tfds)
    source = open_source(images, "validation[:20]")
    assert (len(source), len(source.classes)) == (20, 1000)
    assert source.classes[0] == "n01440764"
    data, label = source.read(3)
    assert opened(data).size[::-1] == decode.size(data)
    assert source.name(3).startswith(source.classes[label])
    (found,) = taken(make_batches(source, images, batch=20, seed=None))
    assert found.image.shape == (20, 227, 227, 3)
    assert found.label[3] == label
    square = opened(data).resize((256, 256), Image.Resampling.BILINEAR)
    close(found.image[3], np.asarray(square)[14:241, 14:241])


@pytest.mark.data
def test_cifar10_is_read(tfds):
    split = cifar.load_cifar10(tfds, "test[:500]")
    assert split.images.shape == (500, 32, 32, 3)
    assert (np.bincount(split.labels, minlength=10) > 20).all()
    with pytest.raises(Refused, match="file_format='array_record'"):
        cifar.load_cifar10(tfds / "none", "test")
