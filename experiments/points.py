"""Points of a comparison: networks that are trained in the loop from a given mask."""

import csv
import dataclasses
import io
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax

import jaxprune
from experiments import (
    alexnet_prune,
    data,
    files,
    imagenet,
    lenet5_prune,
    lenet300_prune,
    recipes,
    runs,
    vgg16_prune,
)
from experiments.config import Data, Refused, Settings
from experiments.models import LENET5, LENET300, Network
from experiments.tasks import Task
from experiments.trained import trained as trained_once


LENETS = {
    "LeNet-300-100": (lenet300_prune, LENET300),
    "LeNet-5": (lenet5_prune, LENET5),
}
CIFAR10 = {"VGG-16-CIFAR10": vgg16_prune, "AlexNet-CIFAR10": alexnet_prune}
Name = Literal["LeNet-300-100", "LeNet-5", "VGG-16-CIFAR10", "AlexNet-CIFAR10"]


class Subject(NamedTuple):
    """What is trained, with the settings of its own experiment.

    Attributes:
      config: these settings.
      network: the network.
      task: makes what it is trained on; the data lies ready.
      digits: the data of the LeNets.
    """

    config: Settings
    network: Network
    task: Callable[[Any, Network], Task]
    digits: data.Digits | None = None


class Start(NamedTuple):
    """A network that was pruned.

    Attributes:
      params: weights, dead ones 0; `None`: the weights are drawn.
      mask: which of them live.
    """

    params: Any
    mask: Any


def check(options: Any) -> None:
    """Checks the ranges of the flags of a program that makes points.

    Raises:
      Refused: naming the flag, its value and what was expected.
    """
    ratios = options.compressions
    rising = list(ratios) == sorted(set(ratios))
    good = bool(ratios) and rising and all(1 < c < math.inf for c in ratios)
    if not good:
        raise Refused(
            f"--compressions is {ratios}, expected rising ratios above 1, such as 2 4."
        )
    numbers = ("seeds", "batch", "dense_epochs", "retrain_epochs", "retrain_lr")
    for name in (*numbers, "l1", "l2"):
        value = getattr(options, name, None)
        if value is not None and not 0 < value < math.inf:
            flag = name.replace("_", "-")
            raise Refused(f"--{flag} is {value}, expected a number above 0.")


def subject(
    name: str,
    dataset: Literal["mnist5k", "mnist"],
    data_dir: Path | None,
    eval_split: str = "test",
) -> Subject:
    """Loads the data of a network; `eval_split`, of CIFAR-10, is what is judged on.

    Raises:
      Refused: if it is not there, or digits are to be judged on another split.
    """
    if name in LENETS:
        if eval_split != "test":
            raise Refused(f"--eval-split is {eval_split}, expected test for {name}.")
        module, network = LENETS[name]
        config = dataclasses.replace(module.CONFIG, data=Data(dataset, data_dir))
        digits = data.load(config.data)
        return Subject(config, network, lambda c, n: runs.task_of(c, n, digits), digits)
    preset = CIFAR10[name].PRESETS["cifar10"]
    given = {"data_dir": data_dir, "eval_split": eval_split}
    images = dataclasses.replace(preset.config.data, **given)
    config = dataclasses.replace(preset.config, data=images)
    loaded = imagenet.load(config, preset.network)
    return Subject(config, loaded.network, lambda c, _: loaded.task(c))


def settings(config: Any, seed: int, **training: Any) -> Any:
    """Gives the settings of a point: no pruning in the run, and these for training."""
    return dataclasses.replace(
        config,
        training=dataclasses.replace(config.training, **training),
        pruning=dataclasses.replace(config.pruning, recipe="dense"),
        run=dataclasses.replace(config.run, seed=seed),
    )


def trained(
    config: Any, subject: Subject, folder: Path, start: Start | None = None
) -> Any:
    """Trains in the loop, or reads what an earlier call trained; gives the params.

    Without a `start` all weights are drawn and live.

    A call that was interrupted goes on from its checkpoint.

    Raises:
      Refused: if the folder holds a run of other settings.
    """
    start = start or Start(None, None)
    network = subject.network
    return trained_once(
        config, network, lambda: subject.task(config, network), folder, *start
    )


def pruned(params: Any, compression: float) -> Start:
    """Prunes by one threshold for all layers; compression is counted on weights."""
    schedule = jaxprune.to_sparsity(
        jaxprune.magnitude,
        1 - 1 / compression,
        scope="global",
        min_keep=recipes.MIN_KEEP,
    )
    return Start(*jax.device_get(jaxprune.prune_now(params, schedule)))


def compressions(params: Any, mask: Any, of: Any = None) -> dict[str, str]:
    """Counts, on prunable weights and on all parameters, what `of` has per live one."""
    rows = jaxprune.summarize(params, mask)
    whole = rows
    if of is not None:
        whole = jaxprune.summarize(of, jaxprune.dense_mask(of))
    ratios = {}
    for name, counted in (
        ("compression_weights", lambda row: row.prunable),
        ("compression_params", lambda row: True),
    ):
        alive = sum(row.alive for row in rows if counted(row))
        size = sum(row.size for row in whole if counted(row))
        ratios[name] = f"{size / alive:.3f}"
    return ratios


def read(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """Reads a table of points; empty if there is none.

    Raises:
      Refused: if it has other columns.
    """
    if not path.exists():
        return []
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) == tuple(columns):
            return list(reader)
    raise Refused(f"{path} is not a table of this program; choose another --out.")


def add(path: Path, columns: Sequence[str], row: Mapping[str, Any]) -> None:
    """Adds a point to a table, which is written whole."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows([*read(path, columns), row])
    files.write_text(path, text.getvalue())
