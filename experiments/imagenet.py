"""Experiments on photographs: settings, what is trained on, and the way to a run."""

import dataclasses
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
import tyro

from experiments import data, judge, recipes, report, rounds, runs, train
from experiments.config import Devices, Mixing, Refused, Settings
from experiments.data.settings import Images
from experiments.data.sources import Source
from experiments.dry_run import show_dry_run
from experiments.flags import parse
from experiments.layout import Layout, make_layout
from experiments.losses import cross_entropy, distilled
from experiments.models import Network, weights
from experiments.processes import start_processes
from experiments.step import check_step
from experiments.tasks import Resident, Streamed, Task, whole_batches


@dataclasses.dataclass(frozen=True)
class Start:
    """What is there before the first step."""

    #: Trained weights to start from, of this network: .pth, .safetensors, .caffemodel
    #: or .net. None: train from scratch.
    weights: Path | None = None
    #: Print the network, what will be pruned, memory, steps and time, after a look at
    #: the data and a few timed steps; write nothing.
    dry_run: bool = False


@dataclasses.dataclass(frozen=True)
class ImageConfig(Settings):
    """All settings for photographs; a run folder's config.json is `as_dict` of this."""

    data: Images = dataclasses.field(default_factory=Images)
    mixing: Mixing = dataclasses.field(default_factory=Mixing)
    start: Start = dataclasses.field(default_factory=Start)
    devices: Devices = dataclasses.field(default_factory=Devices)


class Preset(NamedTuple):
    """A network, and the settings that are its defaults.

    Attributes:
      network: what is trained.
      config: the defaults of the flags.
      scratch: whether it trains from scratch on inputs so prepared.
    """

    network: Network
    config: ImageConfig
    scratch: bool = True


class Loaded(NamedTuple):
    """What a run is given.

    Attributes:
      network: with as many classes as the data has, in the dtype that is asked for.
      layout: the devices.
      task: makes what is trained on, for a seed.
      params: the weights to start from, or `None`.
    """

    network: Network
    layout: Layout
    task: Callable[[ImageConfig], Task]
    params: Any


def spread_quality(kept: Mapping[str, float]) -> str:
    """Gives the quality parameters that keep given percentages of each kernel.

    If weights w spread as a Laplace distribution, of deviation s, then the share of
    those with |w| >= q s is exp(-sqrt(2) q).

    >>> spread_quality({"fc6/kernel": 9})
    'fc6/kernel=1.703'
    """
    qualities = {
        path: -math.log(percent / 100) / math.sqrt(2) for path, percent in kept.items()
    }
    return ",".join(f"{path}={q:.3f}" for path, q in qualities.items())


def main(
    run: runs.Run,
    presets: Mapping[str, Preset],
    description: str,
    args: Sequence[str] | None = None,
) -> int:
    """Reads the command line, runs, prints.

    Args:
      run: trains and reports one seed in a folder, given a `Loaded`.
      presets: network and defaults by `--dataset` and, where that makes a difference,
        `--convention`: "cifar10", "caffe", "torchvision"; the first is the default.
      description: what `--help` begins with.
      args: flags; `None` reads those of the process.

    Returns:
      Exit code, as `runs.main`.
    """
    given = list(sys.argv[1:] if args is None else args)
    preset = presets[_chosen(presets, given)]
    prog = f"python -m {run.__module__}"
    config = parse(preset.config, prog, description, given)
    try:
        if not preset.scratch and config.start.weights is None:
            raise Refused(
                f"{preset.network.name} does not train from scratch on inputs of "
                "--convention caffe, which are not of unit deviation: give --weights, "
                "or --convention torchvision."
            )
        start_processes(config.devices)
        if config.start.dry_run:
            loaded = load(config, preset.network)
            task = loaded.task(config)
            show_dry_run(
                config,
                loaded.network,
                plan_of(config, loaded, task),
                task,
                loaded.layout,
                accumulate=config.devices.accumulate,
                params=loaded.params,
            )
            return 0
    except Refused as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return runs.go(run, config, preset.network, given, load)


def load(config: ImageConfig, network: Network) -> Loaded:
    """Opens the data and the weights, and tries the settings on them.

    Raises:
      Refused: if they are not to be had, or a setting does not fit.
    """
    devices, training = config.devices, config.training
    if jax.process_count() > 1 and config.run.seeds > 1:
        raise Refused("--seeds is for one process; start each --seed of its own.")
    layout = make_layout(devices.mesh, devices.fsdp)
    parts = layout.mesh.shape["data"] * devices.accumulate
    if devices.accumulate < 1 or training.batch % parts:
        raise Refused(
            f"--batch is {training.batch}, expected a multiple of {parts}: of the "
            f"devices along data, {layout.mesh.shape['data']}, times --accumulate, "
            f"{devices.accumulate}."
        )
    if config.data.dataset == "cifar10":
        network, task, size = _cifar10(config, network, layout)
    else:
        network, task, size = _photographs(config, network, layout)
    epoch = whole_batches(size, training.batch)
    given = config.start.weights is not None
    plan = recipes.plan(config, network, epoch, given)
    inputs = jax.ShapeDtypeStruct((training.batch, *network.input), jnp.float32)
    check_step(config, network, plan, inputs, devices.accumulate)
    params = None
    if config.start.weights is not None:
        shapes = jax.eval_shape(
            network.module.init, jax.random.key(0), jnp.zeros((1, *network.input))
        )["params"]
        try:
            params = weights.load_weights(config.start.weights, shapes, network)
        except (OSError, ValueError, ImportError) as error:
            raise Refused(str(error)) from error
    return Loaded(network, layout, task, params)


def train_and_report(
    config: ImageConfig, loaded: Loaded, folder: Path
) -> dict[str, Any]:
    """Builds the optimizer with pruning inside, trains by it, reports."""
    task = loaded.task(config)
    plan = plan_of(config, loaded, task)
    fitted = train.fit(
        config,
        loaded.network,
        plan,
        task,
        folder,
        layout=loaded.layout,
        accumulate=config.devices.accumulate,
        params=loaded.params,
        round_done=rounds.make_round_done(loaded.network, folder),
    )
    return report.finish(config, loaded.network, plan, task, fitted, folder)


def plan_of(config: ImageConfig, loaded: Loaded, task: Task) -> recipes.Plan:
    """Makes the plan of a run."""
    given = loaded.params is not None
    return recipes.plan(config, loaded.network, task.feed.steps_per_epoch, given)


def _cifar10(config: ImageConfig, network: Network, layout: Layout) -> Any:
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


def _photographs(config: ImageConfig, network: Network, layout: Layout) -> Any:
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


def _chosen(presets: Mapping[str, Preset], given: list[str]) -> str:
    """Finds the preset among the flags, before they are read with its defaults."""

    @dataclasses.dataclass(frozen=True)
    class First:
        dataset: str = "imagenet2012"
        convention: str = next(iter(presets))

    config = (tyro.conf.OmitArgPrefixes,)
    options = [flag for flag in given if flag not in ("-h", "--help")]
    try:
        first, _ = tyro.cli(
            First, args=options, return_unknown_args=True, config=config
        )
    except SystemExit:  # told better with all flags
        return next(iter(presets))
    name = first.dataset if first.dataset in presets else first.convention
    return name if name in presets else next(iter(presets))
