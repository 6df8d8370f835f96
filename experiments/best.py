"""Runs the recipe best on digits: a dense net, what it teaches, and the stages."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import data, recipes, report, rounds, runs, train
from experiments.config import Best, Config
from experiments.losses import distilled
from experiments.models import Network
from experiments.trained import trained


# Between the seeds of the teachers of a run, so that no two of --seeds share one.
SEED_STRIDE = 2**20


def run(
    config: Config, network: Network, digits: data.Digits, folder: Path
) -> dict[str, Any]:
    """Trains dense, in folders within `folder`, then prunes stage by stage, reports.

    For each stage, and for the dense net, `folder` holds the weights, a table of the
    layers and a row of rounds.csv; the error in it is that of this net, read once.
    """
    best = config.best
    teachers = [
        _dense(config, network, digits, folder, number)
        for number in range(best.teachers if best.distill else 1)
    ]
    soft = None
    if best.distill:
        soft = teacher(network, teachers)
        if not config.data.augment:  # the same images each time: once will do
            soft = logits(soft, digits.train.images)
    task = runs.task_of(config, network, digits, soft, phase=1)
    task = task._replace(rounds=True)
    if best.distill:
        task = task._replace(loss=distilled(best.distill, best.temperature))
    plan = recipes.plan(config, network, task.feed.steps_per_epoch)
    fitted = train.fit(
        config,
        network,
        plan,
        task,
        folder,
        params=teachers[0],
        round_done=rounds.make_round_done(network, folder),
    )
    return report.finish(config, network, plan, task, fitted, folder)


def _dense(
    config: Config, network: Network, digits: data.Digits, folder: Path, number: int
) -> Any:
    """Trains a dense net; the first is of the run's seed, and the one that is pruned.

    It does not depend on the stages' settings.
    """
    run = config.run
    config = dataclasses.replace(
        config,
        pruning=dataclasses.replace(config.pruning, recipe="dense"),
        run=dataclasses.replace(run, seed=(run.seed + number * SEED_STRIDE) % 2**32),
        best=Best(),
    )
    name = f"dense{number + 1}" if number else "dense"
    task_of = lambda: runs.task_of(config, network, digits)
    return trained(config, network, task_of, folder / name)


def teacher(network: Network, nets: list[Any]) -> Callable[[jax.Array], jax.Array]:
    """Makes the function from inputs to the mean logits of nets, without dropout."""

    def of(inputs: jax.Array) -> jax.Array:
        taught: list[Any] = [
            network.module.apply({"params": net}, inputs) for net in nets
        ]
        return jnp.mean(jnp.stack(taught), 0)

    return of


def logits(
    of: Callable[[jax.Array], jax.Array], images: np.ndarray, batch: int = 1000
) -> np.ndarray:
    """Gives the logits of digits, uint8, as float32, (n, classes)."""
    compiled = jax.jit(lambda x: of(x.astype(jnp.float32) / 255))
    parts = [compiled(images[i : i + batch]) for i in range(0, len(images), batch)]
    return np.concatenate(jax.device_get(parts))
