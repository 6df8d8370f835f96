"""Experiments on photographs: from the command line to a run."""

import dataclasses
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import tyro

from experiments import recipes, report, rounds, runs, train
from experiments.config import Refused
from experiments.dry_run import show_dry_run
from experiments.flags import parse
from experiments.image_settings import ImageConfig
from experiments.image_tasks import cifar10, photographs
from experiments.layout import Layout, make_layout
from experiments.models import Network, weights
from experiments.processes import start_processes
from experiments.step import check_step
from experiments.tasks import Task, whole_batches


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
        network, task, size = cifar10(config, network, layout)
    else:
        network, task, size = photographs(config, network, layout)
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
