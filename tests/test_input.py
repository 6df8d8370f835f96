"""Photographs: transforms beside Pillow, odd files, shards, positions, messages."""

import contextlib
import csv
import io
import itertools
import logging
import multiprocessing
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from quick import quick
from scipy import stats

from experiments import data as d
from experiments.bench import input as bench
from experiments.config import Refused
from experiments.data import decode as dec
from experiments.data import transforms as tr
from experiments.data.loader import Plan
from experiments.data.memory import Memory


DATA = os.environ.get("JAXPRUNE_DATA")
needs_data = [
    pytest.mark.data,
    pytest.mark.skipif(not DATA, reason="JAXPRUNE_DATA is not set"),
]


def picture(height, width, seed=0):
    """A smooth picture of large contrast, with some noise."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)
    smooth = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    noise = rng.integers(-8, 9, (height, width, 3))
    return Image.fromarray(np.clip(np.asarray(smooth) + noise, 0, 255).astype(np.uint8))


def encoded(image, kind="JPEG", **options):
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def rgb(data):
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def run(transform, data, side, seed=0):
    out = np.empty((side, side, 3), np.uint8)
    transform(data, random.Random(seed), out)
    return out


def distance(a, b):
    return np.abs(np.asarray(a, np.int32) - np.asarray(b, np.int32))


SHAPES = [(400, 470), (256, 256), (256, 343), (500, 300), (60, 90), (1200, 1700)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_caffe_eval(shape, kind):
    data = encoded(picture(*shape), kind)
    whole = Image.open(io.BytesIO(data)).resize((256, 256), Image.Resampling.BILINEAR)
    expected = whole.crop((14, 14, 241, 241))
    ours = run(tr.make_transform("caffe", train=False, crop=227), data, 227)
    assert distance(ours, expected).max() <= 2


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_torchvision_eval(shape, kind):
    data = encoded(picture(*shape), kind)
    height, width = shape
    if height < width:
        new = (256, int(256 * width / height))
    else:
        new = (int(256 * height / width), 256)
    image = Image.open(io.BytesIO(data)).resize(new[::-1], Image.Resampling.BILINEAR)
    top, left = round((new[0] - 224) / 2.0), round((new[1] - 224) / 2.0)
    expected = image.crop((left, top, left + 224, top + 224))
    ours = run(tr.make_transform("torchvision", train=False, crop=224), data, 224)
    assert distance(ours, expected).max() <= 2


@pytest.mark.parametrize("shape", [(400, 470), (256, 256), (300, 200), (700, 500)])
def test_caffe_train_is_a_crop_of_the_square(shape):
    data = encoded(picture(*shape), "PNG")
    height, width = shape
    # Pillow's affine transform takes four neighbours, as a resize without antialiasing.
    square = np.asarray(
        Image.open(io.BytesIO(data)).transform(
            (256, 256),
            Image.Transform.EXTENT,
            (0, 0, width, height),
            Image.Resampling.BILINEAR,
        )
    )
    flips = set()
    for seed in range(8):
        ours = run(tr.make_transform("caffe", train=True, crop=227), data, 227, seed)
        draw = random.Random(seed)
        top, left = draw.randrange(30), draw.randrange(30)
        part = square[top : top + 227, left : left + 227]
        flip = draw.random() < 0.5
        flips.add(flip)
        part = part[:, ::-1] if flip else part
        # Pillow leaves a border black, where a neighbour is outside.
        assert distance(ours, part)[4:-4, 4:-4].max() <= 2
    assert flips == {True, False}


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("shape", [(400, 470), (1100, 1500)])
def test_torchvision_train_is_the_box(shape, kind):
    data = encoded(picture(*shape), kind, **({"quality": 95} if kind == "JPEG" else {}))
    image = Image.open(io.BytesIO(data)).convert("RGB")
    for seed in range(6):
        ours = run(tr.torchvision_train, data, 224, seed)
        draw = random.Random(seed)
        box = tr.random_box(draw, *shape)
        part = image.crop(
            (box.left, box.top, box.left + box.width, box.top + box.height)
        ).resize((224, 224), Image.Resampling.BILINEAR)
        part = np.asarray(part)[:, ::-1] if draw.random() < 0.5 else part
        # Of noise of +-8, an average and four neighbours keep different parts.
        assert distance(ours, part).mean() < 4
        shifted = np.roll(np.asarray(part), 12, 1)
        assert distance(ours, part).mean() < distance(ours, shifted).mean()


def test_rows_that_only_the_filter_reaches_are_decoded():
    # The crop ends in row 480, with a block of 16; its filter reaches 48 further.
    pixels = np.zeros((576, 600, 3), np.uint8)
    pixels[481:] = 255
    data = encoded(Image.fromarray(pixels), quality=100, subsampling=0)
    whole = Image.open(io.BytesIO(data)).resize((6, 6), Image.Resampling.BILINEAR)
    expected = np.asarray(whole.crop((1, 1, 5, 5)))
    assert expected[-1].min() > 20
    ours = run(tr.make_transform("caffe", train=False, crop=4, resize=6), data, 4)
    assert distance(ours, expected).max() <= 2


@pytest.mark.parametrize(
    ("mode", "options"),
    [
        ("RGB", {}),
        ("RGB", {"progressive": True}),
        ("RGB", {"exif": b"Exif\0\0" + bytes(3000), "comment": b"x" * 300}),
        ("RGB", {"subsampling": 0}),
        ("L", {}),
    ],
)
def test_usual_jpegs_need_no_pillow(mode, options, monkeypatch):
    data = encoded(picture(70, 90).convert(mode), **options)
    expected = rgb(data)
    monkeypatch.setattr(dec, "_open", lambda data: pytest.fail("Pillow was asked"))
    assert dec.size(data) == (70, 90)
    assert distance(dec.decode(data), expected).max() <= 2
    # Whose shorter side stays at 16 or more: a quarter of the size.
    assert dec.decode_box(data, dec.Box(0, 0, 70, 90), 16).shape == (18, 23, 3)


def test_every_place_of_a_crop_is_drawn():
    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    data = encoded(Image.fromarray(pixels), "PNG")
    found = set()
    transform = tr.make_transform("caffe", train=True, crop=3, resize=4)
    for seed in range(60):
        ours = run(transform, data, 3, seed)
        for flipped, part in enumerate((ours, ours[:, ::-1])):
            for top, left in itertools.product(range(2), range(2)):
                if np.array_equal(part, pixels[top : top + 3, left : left + 3]):
                    found.add((flipped, top, left))
    assert len(found) == 8
    whole = tr.make_transform("caffe", train=False, crop=4, resize=4)
    np.testing.assert_array_equal(run(whole, data, 4), pixels)


def test_random_box_is_that_of_szegedy():
    height, width = 300, 400
    draw = random.Random(0)
    boxes = np.array([tr.random_box(draw, height, width) for _ in range(4000)])
    top, left, rows, columns = boxes.T
    assert (top >= 0).all()
    assert (top + rows <= height).all()
    assert (left >= 0).all()
    assert (left + columns <= width).all()
    rng = np.random.default_rng(1)
    area = rng.uniform(0.08, 1, 12000) * height * width
    aspect = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3), 12000))
    w, h = np.sqrt(area * aspect), np.sqrt(area / aspect)
    fits = (w <= width) & (h <= height)
    for ours, expected in ((rows, h[fits]), (columns, w[fits])):
        assert stats.ks_2samp(ours, expected).pvalue > 1e-3
    corner = top[rows < height] / (height - rows)[rows < height]
    assert abs(corner.mean() - 0.5) < 0.02


def test_random_box_of_a_strip():
    assert tr.random_box(random.Random(0), 10, 1000) == (0, 493, 10, 13)
    assert tr.random_box(random.Random(0), 1000, 10) == (493, 0, 13, 10)
    assert tr.random_box(random.Random(0), 1, 1) == (0, 0, 1, 1)


JPEGS = {
    "4:2:0": {"subsampling": 2},
    "4:4:4": {"subsampling": 0},
    "4:2:2": {"subsampling": 1},
    "progressive": {"progressive": True},
    "restart": {"restart_marker_blocks": 3},
}


@pytest.mark.parametrize("options", JPEGS.values(), ids=JPEGS)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_rows_are_those_of_the_whole(options, mode):
    if mode == "L":
        options = {k: v for k, v in options.items() if k != "subsampling"}
    data = encoded(picture(203, 310).convert(mode), **options)
    whole = dec.decode(data)
    assert dec.size(data) == (203, 310) == whole.shape[:2]
    assert distance(whole, rgb(data)).max() <= 2
    for rows in (1, 16, 17, 100, 190, 203):
        part = dec.decode_rows(data, rows)
        assert len(part) < 203 or rows > 170
        np.testing.assert_array_equal(part[:rows], whole[:rows])


@pytest.mark.parametrize("options", JPEGS.values(), ids=JPEGS)
@pytest.mark.parametrize(("least", "factor"), [(200, 1), (100, 2), (50, 4), (25, 8)])
def test_a_box_is_reduced_to_means(options, least, factor):
    data = encoded(picture(403, 610), quality=95, **options)
    box = dec.Box(96, 160, 200, 240)
    part = dec.decode_box(data, box, least)
    assert part.shape == (200 // factor, 240 // factor, 3)
    whole = rgb(data)[96:296, 160:400].astype(float)
    means = whole.reshape(200 // factor, factor, 240 // factor, factor, 3).mean((1, 3))
    assert distance(part, means).mean() < 2.5


ODD = {
    "CMYK JPEG": lambda: encoded(picture(90, 120).convert("CMYK"), quality=95),
    "greyscale JPEG": lambda: encoded(picture(90, 120).convert("L")),
    "greyscale PNG": lambda: encoded(picture(90, 120).convert("L"), "PNG"),
    "palette": lambda: encoded(picture(90, 120).quantize(16), "PNG", transparency=3),
    "RGBA": lambda: encoded(picture(90, 120).convert("RGBA"), "PNG"),
    "bytes after the end": lambda: encoded(picture(90, 120)) + b"\0\0",
    "a pixel": lambda: encoded(picture(1, 1)),
    "WebP": lambda: encoded(picture(90, 120), "WEBP"),
}


@pytest.mark.parametrize("make", ODD.values(), ids=ODD)
@pytest.mark.filterwarnings("ignore:Palette images with Transparency")
def test_odd_files_are_read(make):
    data = make()
    expected = rgb(data)
    assert distance(dec.decode(data), expected).max() <= 2
    assert dec.size(data) == expected.shape[:2]
    for convention in ("caffe", "torchvision"):
        for train in (True, False):
            out = run(
                tr.make_transform(convention, train=train, crop=48, resize=64), data, 48
            )
            assert abs(out.mean() - expected.mean()) < 40


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.99])
def test_what_is_cut_off_is_broken(kind, share):
    data = encoded(picture(90, 120), kind)
    with pytest.raises(dec.Broken, match=r"(?i)truncated|no known image format"):
        dec.decode(data[: int(share * len(data))])


def test_text_is_broken():
    with pytest.raises(dec.Broken, match="13 bytes of no known image format"):
        dec.decode(b"404 not found")


# Folders, batches, positions


def write_folder(root, count=23, split="train", classes=("ant", "bee", "cat")):
    for i in range(count):
        path = root / split / classes[i % len(classes)] / f"{i:03d}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(picture(40 + i, 50, seed=i)))
    return root


def settings(root, **options):
    options = {"crop": 16, "resize": 20, "threads": 2} | options
    return d.Images(data_dir=root, **options)


def batches(root, *, seed=0, split="train", batch=4, shard=d.Shard(), **options):  # noqa: B008
    images = settings(root, **options)
    source = d.open_source(images, split)
    return d.make_batches(source, images, batch=batch, seed=seed, shard=shard)


def take(iterator, count):
    return [next(iterator) for _ in range(count)]


def same(left, right):
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        for x, y in zip(a, b, strict=True):
            np.testing.assert_array_equal(x, y)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("photographs"))


def test_a_folder_of_class_folders(folder, tmp_path):
    source = d.open_source(settings(folder), "train")
    assert source.classes == ("ant", "bee", "cat")
    assert len(source) == 23
    for index in range(23):
        path = Path(source.name(index))
        data, label = source.read(index)
        assert data == path.read_bytes()
        assert source.classes[label] == path.parent.name
    halves = [d.open_source(settings(folder), f"train[{s}]") for s in (":50%", "50%:")]
    names = [{s.name(i) for i in range(len(s))} for s in halves]
    assert not names[0] & names[1]
    assert len(names[0] | names[1]) == 23
    assert {Path(n).parent.name for n in names[0]} == {"ant", "bee", "cat"}
    # The same without train/, under a name of its own, and val/ by both of its names.
    assert len(d.open_source(settings(folder / "train"), "all")) == 23
    assert len(d.open_source(settings(folder / "train"), "all[:10]")) == 10
    shutil.copytree(folder / "train", tmp_path / "val")
    for split in ("val", "validation"):
        assert len(d.open_source(settings(tmp_path), split)) == 23


def test_each_photograph_once_and_the_last_batch_filled_up(folder):
    source = d.open_source(settings(folder), "train")
    parts = list(batches(folder, seed=None, batch=4))
    assert len(parts) == 6
    assert [int(p.valid.sum()) for p in parts] == [4, 4, 4, 4, 4, 3]
    assert not parts[-1].image[3].any()
    assert parts[-1].label[3] == 0
    images = np.concatenate([p.image[p.valid] for p in parts])
    labels = np.concatenate([p.label[p.valid] for p in parts])
    for index in range(23):
        data, label = source.read(index)
        whole = Image.fromarray(rgb(data)).resize((20, 20), Image.Resampling.BILINEAR)
        assert distance(images[index], whole.crop((2, 2, 18, 18))).max() <= 2
        assert labels[index] == label


@pytest.mark.parametrize("seed", [None, 3])
def test_shards_are_disjoint_and_complete(folder, seed):
    source = d.open_source(settings(folder), "train")
    transform = tr.make_transform("caffe", train=False, crop=16, resize=20)
    plans = [Plan(source, transform, 16, 4, d.Shard(p, 2), seed) for p in (0, 1)]
    steps = plans[0].steps()
    assert steps == plans[1].steps() == (6 if seed is None else 5)
    for epoch in range(2 if seed else 1):
        seen = [
            index
            for step in range(epoch * steps, (epoch + 1) * steps)
            for plan in plans
            for index in plan.indices(step)[1].tolist()
        ]
        real = [index for index in seen if index >= 0]
        assert len(real) == len(set(real)) == (23 if seed is None else 20)
        assert len(seen) == steps * 4
    # And what they give is what one process gives.
    options = {"seed": seed, "batch": 4}
    whole = take(batches(folder, **options), 5)
    parts = [take(batches(folder, shard=d.Shard(p, 2), **options), 5) for p in (0, 1)]
    joined = [
        d.Batch(*(np.concatenate(xs) for xs in zip(*pair, strict=True)))
        for pair in zip(*parts, strict=True)
    ]
    same(joined, whole)
    if seed is None:
        ends = [list(batches(folder, shard=d.Shard(p, 2), **options)) for p in (0, 1)]
        assert [len(end) for end in ends] == [6, 6]
        assert [end[-1].valid.tolist() for end in ends] == [[True] * 2, [True, False]]


@pytest.mark.slow
def test_a_signal_to_all_does_not_end_the_workers(folder):
    made = batches(folder, seed=5, workers=1, threads=1)
    first = take(made, 1)
    (worker,) = multiprocessing.active_children()
    os.kill(worker.pid, signal.SIGTERM)
    same(first + take(made, 9), take(batches(folder, seed=5), 10))
    made.close()
    assert not worker.is_alive()


@pytest.mark.slow
def test_no_worker_outlives_the_process_that_trains(folder):
    code = """
import multiprocessing, sys
from pathlib import Path
import test_input
if __name__ == "__main__":
    made = test_input.batches(Path(sys.argv[1]), seed=5, workers=1, threads=1)
    next(made)
    print(*[worker.pid for worker in multiprocessing.active_children()], flush=True)
    sys.stdin.read()
"""
    script = folder.parent / "trains.py"
    script.write_text(code)
    paths = os.pathsep.join([str(Path(__file__).parent), str(Path.cwd())])
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    command = [sys.executable, str(script), str(folder)]
    env = {**os.environ, "PYTHONPATH": paths}
    with subprocess.Popen(command, env=env, **pipes) as trains:
        assert trains.stdout is not None
        worker = int(trains.stdout.readline())
        os.kill(worker, 0)  # it lives
        trains.kill()
    deadline = time.monotonic() + 30
    state = Path(f"/proc/{worker}/stat")
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        # Z: ended, and nobody has asked.
        while state.read_text().rpartition(")")[2].split()[0] != "Z":
            assert time.monotonic() < deadline
            time.sleep(0.1)


@pytest.mark.parametrize("workers", quick([0, 2], 0))
def test_a_restored_iterator_goes_on_alike(folder, workers):
    first = batches(folder, seed=5)
    take(first, 3)
    state = pickle.loads(pickle.dumps(first.get_state()))
    expected = take(first, 7)  # over the end of the epoch of five
    second = batches(folder, seed=5, workers=workers, threads=1)
    second.set_state(state)
    same(take(second, 7), expected)
    assert second.get_state() == first.get_state()
    second.set_state(state)
    same(take(second, 2), expected[:2])
    second.close()
    judge = batches(folder, seed=None)
    take(judge, 4)
    again = batches(folder, seed=None)
    again.set_state(judge.get_state())
    same(list(again), list(judge))


def test_what_is_drawn_is_a_function_of_seed_epoch_and_photograph(folder):
    def drawn(seed, epoch, batch):
        """The pixels of each photograph, by its number, in an epoch."""
        source = d.open_source(settings(folder), "train")
        transform = tr.make_transform("torchvision", train=True, crop=16, resize=20)
        plan = Plan(source, transform, 16, batch, d.Shard(), seed)
        pixels = {}
        for step in range(epoch * plan.steps(), (epoch + 1) * plan.steps()):
            numbers = plan.indices(step)[1].tolist()
            pixels |= dict(zip(numbers, plan(step)["image"], strict=True))
        return pixels

    one, other = drawn(1, 0, 1), drawn(1, 0, 23)
    assert list(one) == list(other)
    assert sorted(one) == list(range(23))
    for index in one:
        np.testing.assert_array_equal(one[index], other[index])
    for different in (drawn(1, 1, 23), drawn(2, 0, 23)):
        assert list(different) != list(one)
        changed = [np.any(different[index] != one[index]) for index in one]
        assert sum(changed) >= 20


def test_broken_files_are_counted_and_named(tmp_path, caplog):
    root = write_folder(tmp_path, 8)
    victim = root / "train" / "ant" / "003.JPEG"
    victim.write_bytes(victim.read_bytes()[:300])
    (root / "train" / "bee" / "004.JPEG").write_bytes(b"<html>")
    iterator = batches(root, seed=None, batch=4, max_broken=2)
    with caplog.at_level(logging.WARNING):
        parts = list(iterator)
        iterator.set_state({"step": 0})  # a second time they are known
        same(list(iterator), parts)
    valid = np.concatenate([p.valid for p in parts])
    assert valid.sum() == 6
    images = np.concatenate([p.image for p in parts])
    assert not images[~valid].any()
    assert images[valid].any((1, 2, 3)).all()
    assert len(iterator.broken) == 2 == len(caplog.records)
    assert "truncated" in iterator.broken[str(victim)].lower()
    assert str(victim) in caplog.text
    assert "004.JPEG: 6 bytes of no known" in caplog.text
    with pytest.raises(Refused, match=r"2 images are broken, more than --max-broken 1"):
        list(batches(root, seed=None, batch=4, max_broken=1))


def test_a_photograph_that_breaks_halfway_is_black(folder):
    def half(data, draw, out):
        out[:8] = 255
        raise d.Broken("halfway")

    source = d.open_source(settings(folder), "train")
    made = Plan(source, half, 16, 4, d.Shard(), None)(0)
    assert not made["image"].any()
    assert not made["valid"].any()
    assert made["broken"].count("halfway") == 4


def test_a_split_is_tried_before_a_run(folder, tmp_path):
    for split in ("train", "val"):
        shutil.copytree(folder / "train", tmp_path / split)
    images = settings(tmp_path)
    source = d.open_source(images, "val")
    d.check_readable(source, "val")
    for index in (0, len(source) - 1):
        d.check_readable(source, "val")  # one of both will do
        Path(source.name(index)).write_bytes(b"an error page")
    with pytest.raises(Refused, match="of split val neither the first nor the last"):
        d.check_readable(source, "val")


def test_a_file_that_went_away_is_broken(tmp_path):
    root = write_folder(tmp_path, 4)
    iterator = batches(root, seed=None, max_broken=1)
    gone = root / "train" / "ant" / "000.JPEG"
    gone.unlink()
    (part,) = iterator
    assert part.valid.sum() == 3
    assert iterator.broken == {str(gone): "No such file or directory"}


def test_on_devices(folder):
    mesh = jax.make_mesh((4,), ("data",), devices=jax.devices()[:4])
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    expected = take(batches(folder, seed=2), 6)
    iterator = d.OnDevice(batches(folder, seed=2), sharding, depth=3)
    got = take(iterator, 2)
    assert iterator.get_state() == {"step": 2}  # not those sent ahead
    state = iterator.get_state()
    got += take(iterator, 2)
    same(got, expected[:4])
    assert got[0].image.dtype == np.uint8
    assert got[0].image.sharding == sharding
    iterator.set_state(state)
    same(take(iterator, 4), expected[2:6])
    plain = d.OnDevice(batches(folder, seed=None))
    assert len(list(plain)) == plain.steps_per_epoch == 6


def test_memory_comes_back_when_nothing_refers_to_it():
    memory = Memory((3, 5))
    first = memory.take()
    assert first.shape == (3, 5)
    assert first.dtype == np.uint8
    place = first.ctypes.data
    assert place % 64 == 0
    first[:] = 7
    row = first[1:].view(np.int8)[0]
    del first
    second = memory.take()
    second[:] = 9
    assert second.ctypes.data != place
    assert (row == 7).all()
    del row
    others = [np.empty(n, np.uint8) for n in range(15, 128)]  # would get freed memory
    assert memory.take().ctypes.data == place
    del others


def test_batches_that_are_kept_do_not_change(folder):
    # Each further epoch writes into memory that those before have left.
    kept = list(d.OnDevice(batches(folder, seed=None)))
    copies = [np.array(batch.image) for batch in kept]
    for _ in range(3):
        for batch, copy in zip(batches(folder, seed=None), copies, strict=True):
            np.testing.assert_array_equal(batch.image, copy)
            batch.image[:] = 255
            del batch
    for batch, copy in zip(kept, copies, strict=True):
        np.testing.assert_array_equal(batch.image, copy)
    assert not copies[-1][3].any()


# Messages


def test_missing_data_tells_the_commands(tmp_path, monkeypatch):
    with pytest.raises(Refused) as caught:
        d.open_source(d.Images(data_dir=tmp_path), "train")
    text = str(caught.value)
    assert f"tfds.builder('imagenet2012', data_dir='{tmp_path}', " in text
    assert "file_format='array_record').download_and_prepare(" in text
    assert "ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar, both" in text
    assert f"manual_dir='{tmp_path}/downloads/manual'" in text
    assert "importlib-resources" in text
    assert "class folders" in text
    command = next(line for line in text.splitlines() if "python -c" in line)
    compile(command.split('"')[1], "command", "exec")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "elsewhere"))
    with pytest.raises(Refused, match=r"elsewhere.* is not there"):
        d.open_source(d.Images(), "train")


def test_wrong_splits_are_refused(folder, tmp_path):
    with pytest.raises(Refused, match=r"'validation'.*has 'train', or slices"):
        d.open_source(settings(folder), "validation")
    with pytest.raises(Refused, match="not to be had"):
        d.open_source(settings(folder), "train[nonsense]")
    with pytest.raises(Refused, match="not to be had"):
        d.open_source(settings(folder), "train[:50%]+val")
    with pytest.raises(Refused, match="is empty"):
        d.open_source(settings(folder), "train[:0]")
    write_folder(tmp_path, 3)
    (tmp_path / "val").mkdir()  # the 50,000 files not put into classes yet
    (tmp_path / "val" / "x.jpg").write_bytes(encoded(picture(9, 9)))
    with pytest.raises(Refused, match="no images in class folders"):
        d.open_source(settings(tmp_path), "val")


@pytest.mark.parametrize(
    ("options", "flag"),
    [
        ({"crop": 21}, "--crop is 21, expected 1 to 20"),
        ({"workers": -1}, "--workers is -1"),
        ({"threads": 0}, "--threads is 0"),
        ({"prefetch": 0}, "--prefetch is 0"),
        ({"max_broken": -1}, "--max-broken is -1"),
        ({"batch": 24}, "--batch is 24, expected at most the 23"),
        ({"batch": 3, "shard": d.Shard(0, 2)}, "--batch is 3, expected a positive mul"),
        ({"shard": d.Shard(2, 2)}, "process 2 of 2"),
    ],
)
def test_settings_out_of_range_are_refused(folder, options, flag):
    with pytest.raises(Refused, match=flag):
        batches(folder, **options)


def test_a_crop_larger_than_the_square_is_an_error():
    with pytest.raises(ValueError, match="crop is 227 and resize is 224"):
        tr.make_transform("caffe", train=True, crop=227, resize=224)


# Real data


@pytest.fixture
def tfds_root():
    assert DATA
    return Path(DATA) / "tfds"


class TestReal:
    pytestmark = needs_data

    def test_a_folder_gives_what_tfds_gives(self, tfds_root, tmp_path):
        images = d.Images(data_dir=tfds_root, threads=1)
        source = d.open_source(images, "validation[:24]")
        assert len(source) == 24
        assert len(source.classes) == 1000
        for index in range(24):
            data, label = source.read(index)
            path = tmp_path / "val" / source.classes[label] / f"{index}.JPEG"
            path.parent.mkdir(parents=True)
            path.write_bytes(data)
        for name in source.classes:  # the empty ones count as well
            (tmp_path / "val" / name).mkdir(exist_ok=True)
        other = d.Images(data_dir=tmp_path, threads=1)
        copies = d.open_source(other, "validation")
        assert copies.classes == tuple(sorted(source.classes))
        left, right = (
            list(d.make_batches(s, i, batch=8, seed=None))
            for s, i in ((source, images), (copies, other))
        )
        place = {Path(copies.name(i)).stem: i for i in range(24)}
        order = [place[str(i)] for i in range(24)]
        for part in ("image", "label"):
            a = np.concatenate([getattr(b, part) for b in left])
            b = np.concatenate([getattr(b, part) for b in right])[order]
            np.testing.assert_array_equal(a, b)

    def test_photographs_beside_pillow(self, tfds_root):
        source = d.open_source(d.Images(data_dir=tfds_root), "validation[:40]")
        for index in range(40):
            data, _ = source.read(index)
            assert distance(dec.decode(data), rgb(data)).max() <= 2
            whole = Image.fromarray(rgb(data)).resize((256, 256), 2)
            ours = run(tr.make_transform("caffe", train=False, crop=227), data, 227)
            assert distance(ours, whole.crop((14, 14, 241, 241))).max() <= 2

    def test_workers_read_records(self, tfds_root):
        images = d.Images(data_dir=tfds_root, workers=2, threads=1, crop=32, resize=40)
        source = d.open_source(images, "validation[:12]")
        got = take(d.make_batches(source, images, batch=4, seed=1), 4)
        here = d.Images(data_dir=tfds_root, threads=1, crop=32, resize=40)
        same(got, take(d.make_batches(source, here, batch=4, seed=1), 4))

    def test_names_and_splits(self, tfds_root):
        images = d.Images(data_dir=tfds_root)
        source = d.open_source(images, "validation")
        assert len(source) == 1000
        assert sorted(source.read(i)[1] for i in range(1000)) == list(range(1000))
        assert source.name(3).endswith("imagenet2012/5.1.0)")
        with pytest.raises(Refused, match=r"'train'.*has validation \(1,000\)"):
            d.open_source(images, "train")

    def test_a_format_for_tensorflow_is_refused(self, tfds_root, tmp_path):
        folder = tmp_path / "imagenet2012" / "5.1.0"
        folder.mkdir(parents=True)
        for path in (tfds_root / "imagenet2012" / "5.1.0").glob("*.*"):
            if path.suffix in (".json", ".txt"):
                text = path.read_text()
                text = text.replace("array_record", "tfrecord")
                (folder / path.name).write_text(text)
        with pytest.raises(Refused) as caught:
            d.open_source(d.Images(data_dir=tmp_path), "validation")
        assert f"{folder} is in the format tfrecord" in str(caught.value)
        assert f"tfds convert_format --dataset_version_dir={folder} " in str(
            caught.value
        )

    def test_cifar10(self, tfds_root):
        split = d.load_cifar10(tfds_root, "test[:200]")
        assert split.images.shape == (200, 32, 32, 3)
        assert set(split.labels) == set(range(10))
        with pytest.raises(Refused, match=r"its shape is \(28, 28, 3\), expected"):
            d.load_cifar10(tfds_root / "mnist", "test")


def test_missing_cifar10_tells_the_commands(tmp_path):
    with pytest.raises(Refused, match="CIFAR-10 is not in") as caught:
        d.load_cifar10(tmp_path, "test")
    assert "tfds.builder('cifar10', " in str(caught.value)
    assert "file_format='array_record'" in str(caught.value)


def test_augmented_images_are_crops_of_the_padded():
    images = np.random.default_rng(0).integers(1, 256, (64, 6, 7, 3), dtype=np.uint8)
    out = np.asarray(jax.jit(d.augment, static_argnums=2)(jax.random.key(0), images, 2))
    assert out.shape == images.shape
    assert out.dtype == np.uint8
    drawn = set()
    for image, result in zip(images, out, strict=True):
        padded = np.pad(image, ((2, 2), (2, 2), (0, 0)))
        found = {
            (top, left, flip)
            for top in range(5)
            for left in range(5)
            for flip in (1, -1)
            if np.array_equal(padded[top : top + 6, left : left + 7][:, ::flip], result)
        }
        assert len(found) == 1
        drawn |= found
    for axis, count in ((0, 5), (1, 5), (2, 2)):
        assert len({f[axis] for f in drawn}) == count


# The benchmark


def test_bench(folder, tmp_path, capsys):
    out = tmp_path / "bench.csv"
    arguments = f"--data-dir {folder} --split train --block 5 --blocks 2 --batch 4"
    arguments += f" --rates 700 --enlarge 60 --threads 1 --out {out}"
    assert bench.main(arguments.split()) == 0
    rows = list(csv.DictReader(out.open()))
    assert len(rows) == 4 + 4 * 6
    assert {row["task"] for row in rows} == {"decode", *bench.TASKS}
    for row in rows:
        assert float(row["per_core"]) > 0
        assert row["failed"] == "0"
        assert row["cpu"]
        assert row["photographs"] == "10"
        if row["name"] == bench.OURS:
            assert float(row["ratio"]) == 1
    assert "700 images/s: " in capsys.readouterr().out


def test_bench_compares_the_pipeline_with_as_many_threads():
    turns = {bench.OURS: 0.002, bench.BARE: 0.004, bench.PIPELINE: 0.005, "PIL": 0.008}
    times = {("caffe eval", name): [(0.1, cpu)] * 3 for name, cpu in turns.items()}
    rows = bench.make_rows(times, bench.Options(threads=3))
    found = {
        row["name"]: (row["per_core"], row["ratio"], row["threads"]) for row in rows
    }
    assert found == {
        bench.OURS: (500, 1, 1),
        bench.BARE: (250, 0.5, 3),
        bench.PIPELINE: (200, 0.8, 3),
        "PIL": (125, 0.25, 1),
    }


def test_bench_counts_cores():
    assert bench.cores_for(900, 450) == 2
    assert bench.cores_for(901, 450) == 3


@pytest.mark.parametrize("task", ["caffe eval", "torchvision eval"])
@pytest.mark.parametrize("decoder", ["simplejpeg", "OpenCV", "PIL"])
def test_bench_compares_like_with_like(task, decoder):
    convention, train = bench.TASKS[task]
    data = encoded(picture(300, 410))
    side = tr.crop_of(convention)
    plain = bench.plain_transform(decoder, convention, train=train, resize=256)
    ours = tr.make_transform(convention, train=train, crop=side)
    assert distance(run(plain, data, side), run(ours, data, side)).max() <= 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--threads 0", "--threads is 0, expected 1 or more"),
        ("--block 24", "--block is 24, expected at most the 23 images of train"),
        ("--split test", "has 'train', or slices"),
    ],
)
def test_bench_refuses(folder, tmp_path, capsys, arguments, message):
    out = tmp_path / "bench.csv"
    common = f"--data-dir {folder} --split train --block 2 --out {out} "
    assert bench.main((common + arguments).split()) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()
