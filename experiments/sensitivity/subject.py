"""What is scanned: a trained network, examples to choose on, others to judge on."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxprune
from experiments import data, files, lenet5_prune, lenet300_prune, recipes, runs, train
from experiments.config import Config, Data, Refused
from experiments.models import (
    LENET5,
    LENET300,
    SQUEEZENET,
    Network,
    preprocess,
    weights,
)
from experiments.sensitivity import stages
from experiments.sensitivity.options import Options


Batches = Sequence[tuple[np.ndarray, np.ndarray]]  # uint8 images, labels


class Subject(NamedTuple):
    """A network with its weights and its examples.

    Attributes:
      network: which.
      params: trained weights, on the device.
      mask: what is alive of them.
      choose: batches to choose on, which it was not trained on.
      choose_name: what these are.
      judge: batches to judge on, which nothing was chosen on.
      judge_name: what these are.
      logits: from params to the logits of all of `choose`, float32; made for params
        that differ from `params` in one layer.
      train: digits to train on again, or `None`.
    """

    network: Network
    params: Any
    mask: Any
    choose: Batches
    choose_name: str
    judge: Batches
    judge_name: str
    logits: Callable[[Any], np.ndarray]
    train: data.Split | None


def load(options: Options, folder: Path) -> Subject:
    """Loads what the flags say, and trains a LeNet without weights in `folder`.

    Raises:
      Refused: if weights or data are not to be had, or if a network has seen all the
        digits that could be chosen on.
    """
    if options.network == "SqueezeNet":
        return _photographs(options)
    return _digits(options, folder)


def all_logits(network: Network, params: Any, batches: Batches) -> np.ndarray:
    """Gives the logits of all batches, by the whole network."""

    @jax.jit
    def run(params: Any, images: jax.Array) -> Any:
        pixels = preprocess(images, network.preprocessing)
        return network.module.apply({"params": params}, pixels)

    return np.concatenate([np.asarray(run(params, images)) for images, _ in batches])


def shapes_of(network: Network) -> Any:
    """Gives the shapes of a network's params."""
    image = jnp.zeros((1, *network.input), jnp.float32)
    return jax.eval_shape(network.module.init, jax.random.key(0), image)["params"]


def _digits(options: Options, folder: Path) -> Subject:
    program, network = {
        "LeNet-300-100": (lenet300_prune, LENET300),
        "LeNet-5": (lenet5_prune, LENET5),
    }[options.network]
    shapes = shapes_of(network)
    if options.weights is None:
        of_data = Data(options.dataset, options.data_dir, options.holdout or 0)
        digits = data.load(of_data)
        params = _trained(program.CONFIG, network, options, digits, folder / "dense")
    else:
        of_data = _settings_of(options.weights, network, options.data_dir)
        digits = data.load(of_data)
        params = files.load_weights(options.weights, shapes)
    params = jax.device_put(params)
    test = data.load(dataclasses.replace(of_data, holdout=0))
    count = min(options.examples or 0, len(digits.judge.labels))
    choose = _batches(data.Split(*(x[:count] for x in digits.judge)), 1000)
    judge, judge_name = test.judge, test.judge_name
    if options.judge_holdout:
        left = data.Split(*(x[count:] for x in digits.judge))
        judge = data.Split(*map(np.concatenate, zip(judge, left, strict=True)))
        judge_name += f" and {len(left.labels):,} held-out training digits"

    @jax.jit
    def run(params: Any, images: jax.Array) -> Any:
        pixels = preprocess(images, network.preprocessing)
        return network.module.apply({"params": params}, pixels)

    on_device = [jax.device_put(images) for images, _ in choose]
    return Subject(
        network=network,
        params=params,
        mask=jaxprune.dense_mask(params),
        choose=choose,
        choose_name=f"{count:,} held-out training digits of {of_data.dataset}",
        judge=_batches(judge, 1000),
        judge_name=f"{judge_name} of {of_data.dataset}",
        logits=lambda params: np.concatenate([run(params, x) for x in on_device]),
        train=digits.train,
    )


def _batches(split: data.Split, size: int) -> Batches:
    starts = range(0, len(split.labels), size)
    return [(split.images[i : i + size], split.labels[i : i + size]) for i in starts]


def _trained(
    config: Config,
    network: Network,
    options: Options,
    digits: data.Digits,
    folder: Path,
) -> Any:
    """Trains without pruning, as the recipe dense does, or goes on with that."""
    config = dataclasses.replace(
        config,
        data=Data(options.dataset, options.data_dir, options.holdout or 0),
        pruning=dataclasses.replace(config.pruning, recipe="dense"),
        run=dataclasses.replace(config.run, seed=options.seed, resume=folder.exists()),
    )
    path = folder / "dense.safetensors"
    files.make_run(folder, config)
    if path.exists():
        return files.load_weights(path, shapes_of(network))
    task = runs.task_of(config, network, digits)
    plan = recipes.plan(config, network, task.feed.steps_per_epoch)
    params = train.fit(config, network, plan, task, folder).params
    files.save_weights(path, params)
    return params


def _settings_of(path: Path, network: Network, data_dir: Path | None) -> Data:
    """Reads which digits the weights of a run were not trained on."""
    about = path.parent / "config.json"
    try:
        settings = json.loads(about.read_text())
        name, found = settings["network"], settings["data"]
        dataset, holdout = found["dataset"], found["holdout"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Refused(
            f"{about} does not tell which digits {path.name} was trained on "
            f"({error!r}), expected the folder of a run."
        ) from error
    if name != network.name:
        raise Refused(f"{path} is of {name}, expected {network.name}; see --network.")
    if not holdout:
        raise Refused(
            f"{path} was trained on all training digits, so there are none to choose "
            "on; expected weights of a run with --holdout."
        )
    if data_dir is None and found["data_dir"] is not None:
        data_dir = Path(found["data_dir"])
    return Data(dataset, data_dir, holdout)


def _photographs(options: Options) -> Subject:
    network = SQUEEZENET
    assert options.weights is not None
    try:
        params = weights.load_weights(options.weights, shapes_of(network), network)
    except (OSError, ValueError, ImportError) as error:
        raise Refused(str(error)) from error
    params = jax.device_put(params)
    images = data.Images(
        data_dir=options.data_dir, convention="caffe", crop=network.input[0]
    )
    half = len(data.open_source(images, images.eval_split)) // 2
    count = min(options.examples or 0, half)
    choose, judge = (
        _read(images, f"{images.eval_split}[{part}]", network)
        for part in (f":{count}", f"{half}:")
    )
    outputs = stages.from_first_change(
        stages.squeezenet(), params, [batch[0] for batch in choose]
    )
    return Subject(
        network=network,
        params=params,
        mask=jaxprune.mask_from_zeros(params),
        choose=choose,
        choose_name=f"{_count(choose)} photographs of the first half",
        judge=judge,
        judge_name=f"{_count(judge)} photographs of the second half",
        logits=lambda params: np.concatenate(outputs(params)),
        train=None,
    )


def _read(images: data.Images, split: str, network: Network) -> Batches:
    source = data.open_source(images, split)
    if len(source.classes) != network.classes:
        raise Refused(
            f"the photographs are of {len(source.classes)} classes, expected the "
            f"{network.classes} of {network.name}."
        )
    batches = data.make_batches(source, images, batch=50, seed=None)
    found = [(np.array(b.image[b.valid]), b.label[b.valid]) for b in batches]
    return [batch for batch in found if len(batch[1])]


def _count(batches: Batches) -> int:
    return sum(len(labels) for _, labels in batches)
