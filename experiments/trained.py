"""A network that other programs start from: trained once, then read from its file."""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from experiments import files, recipes, train
from experiments.models import Network
from experiments.tasks import Task


def trained(
    config: Any,
    network: Network,
    task_of: Callable[[], Task],
    folder: Path,
    params: Any = None,
    mask: Any = None,
) -> Any:
    """Trains without pruning, or reads what an earlier call trained; gives the params.

    A call that was interrupted goes on from its checkpoint.

    Args:
      config: settings, of recipe dense.
      network: what is trained.
      task_of: makes what it is trained on, when it is needed.
      folder: of its own.
      params: the weights to start from; drawn if `None`.
      mask: which weights live; all if `None`.

    Raises:
      Refused: if the folder holds a run of other settings.
    """
    weights = folder / "weights.safetensors"
    begun = (folder / "config.json").exists()
    run = dataclasses.replace(config.run, resume=begun, overwrite=False)
    files.make_run(folder, dataclasses.replace(config, run=run))
    if weights.exists():
        shapes = jax.eval_shape(
            network.module.init, jax.random.key(0), jnp.zeros((1, *network.input))
        )["params"]
        return files.load_weights(weights, shapes)
    task = task_of()
    plan = recipes.dense(config, network, task.feed.steps_per_epoch, mask=mask)
    params = None if params is None else jax.device_get(params)
    fitted = train.fit(config, network, plan, task, folder, params=params)
    files.save_weights(weights, fitted.params)
    shutil.rmtree(folder / "checkpoints")
    return fitted.params
