"""What is trained on: CIFAR-10 in the device's memory, or photographs as they come."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from experiments import data, judge
from experiments.config import Mixing, Refused
from experiments.data.sources import Source
from experiments.image_settings import ImageConfig
from experiments.layout import Layout
from experiments.losses import cross_entropy, distilled
from experiments.models import Network
from experiments.tasks import Resident, Streamed, Task


#: The network for this data, what makes the task of a seed, and the images of an epoch.
Opened = tuple[Network, Callable[[ImageConfig], Task], int]


def cifar10(config: ImageConfig, network: Network, layout: Layout) -> Opened:
    """Opens CIFAR-10.

    Raises:
      Refused: if it is not there, or a setting of `Mixing` is out of range.
    """
    images, mixing = config.data, config.mixing
    train = data.load_cifar10(images.data_dir, images.train_split)
    test = data.load_cifar10(images.data_dir, images.eval_split)
    network = _network(network, 10, network.input, config)
    kind = network.preprocessing
    mix = _mix(mixing, network)

    def task(config: ImageConfig) -> Task:
        key = jax.random.key(config.run.seed)
        feed = Resident(
            train,
            config.training.batch,
            key,
            kind=kind,
            per_call=config.run.steps_per_call,
            augment=data.augment,
            mix=mix,
            layout=layout,
        )
        return Task(
            feed=feed,
            judge=judge.resident(network, test, where=layout.everywhere),
            judged_on=f"{len(test.labels):,} {images.eval_split} images",
            dataset="cifar10",
            trained_on=f"{len(train.labels):,} {images.train_split} images",
            rounds=True,
            loss=distilled(1.0, 1.0) if mix else cross_entropy,
        )

    return network, task, len(train.labels)


def _mix(mixing: Mixing, network: Network) -> Any:
    """Makes what mixes a batch of small images and its labels; `None` if nothing does.

    Raises:
      Refused: naming the flag, its value and what was expected.
    """
    side = network.input[0]
    rules = (
        ("cutout", mixing.cutout, 0 <= mixing.cutout <= side, f"0 to {side}, pixels"),
        ("cutmix", mixing.cutmix, 0 <= mixing.cutmix <= 1, "a share in [0, 1]"),
        ("smoothing", mixing.smoothing, 0 <= mixing.smoothing < 1, "a share in [0, 1)"),
    )
    for flag, value, good, expected in rules:
        if not good:
            raise Refused(f"--{flag} is {value}, expected {expected}.")
    if mixing == Mixing():
        return None

    def mix(key: jax.Array, inputs: jax.Array, labels: jax.Array) -> Any:
        targets = jax.nn.one_hot(labels, network.classes)
        targets = optax.smooth_labels(targets, mixing.smoothing)
        if mixing.cutout:
            inputs = data.cutout(jax.random.fold_in(key, 0), inputs, mixing.cutout)
        if mixing.cutmix:
            key = jax.random.fold_in(key, 1)
            inputs, targets = data.cutmix(key, inputs, targets, mixing.cutmix)
        return inputs, jnp.log(targets)

    return mix


def photographs(config: ImageConfig, network: Network, layout: Layout) -> Opened:
    """Opens photographs, and reads the first and the last of each split.

    Raises:
      Refused: if they are not there or cannot be read, the splits differ in classes, or
        a setting is for CIFAR-10 only.
    """
    images = config.data
    side = network.input[0] if images.crop is None else images.crop
    images = dataclasses.replace(images, crop=side)
    if config.mixing != Mixing():
        raise Refused(
            "--cutout, --cutmix and --smoothing are for --dataset cifar10, expected 0."
        )
    train = data.open_source(images, images.train_split)
    judged = data.open_source(images, images.eval_split)
    if train.classes != judged.classes:
        raise Refused(
            f"--train-split {images.train_split} has {len(train.classes)} classes and "
            f"--eval-split {images.eval_split} {len(judged.classes)}, expected the "
            "same."
        )
    network = _network(network, len(train.classes), (side, side, 3), config)
    batch, shard = config.training.batch, shard_of(layout, config.training.batch)

    def batches(source: Source, seed: int | None) -> data.OnDevice:
        made = data.make_batches(source, images, batch=batch, seed=seed, shard=shard)
        return data.OnDevice(made, layout.batch, depth=images.prefetch)

    def task(config: ImageConfig) -> Task:
        return Task(
            feed=Streamed(batches(train, config.run.seed), network.preprocessing),
            judge=judge.streamed(network, lambda: batches(judged, None), len(judged)),
            judged_on=f"{len(judged):,} images of {images.eval_split}",
            dataset=images.dataset,
            trained_on=f"{len(train):,} images of {images.train_split}",
            rounds=True,
        )

    data.check_images(images)
    for source, split in ((train, images.train_split), (judged, images.eval_split)):
        data.check_readable(source, split)
    return network, task, len(train)


def _network(
    network: Network, classes: int, side: tuple[int, int, int], config: ImageConfig
) -> Network:
    module: Any = network.module
    module = module.clone(classes=classes, dtype=jnp.dtype(config.devices.dtype))
    return network._replace(module=module, classes=classes, input=side)


def shard_of(layout: Layout, batch: int) -> data.Shard:
    """Says which part of each batch this process reads: that of its devices."""
    places = layout.batch.addressable_devices_indices_map((batch,)).values()
    rows = [place[0].indices(batch) for place in places if place is not None]
    begin, end = min(r[0] for r in rows), max(r[1] for r in rows)
    return data.Shard(begin // (end - begin), batch // (end - begin))
