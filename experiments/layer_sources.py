"""What `experiments.layers` counts: networks, their masks, and activations."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxprune
import jaxprune.report
from experiments import data, lenet5_prune, lenet300_prune, page
from experiments.config import Refused
from experiments.models import (
    ALEXNET,
    LENET5,
    LENET300,
    SQUEEZENET,
    VGG16_CAFFE,
    Network,
    preprocess,
    weights,
)
from experiments.paper import TABLES


NETWORKS = {n.name: n for n in (LENET300, LENET5, ALEXNET, VGG16_CAFFE, SQUEEZENET)}
_PROGRAMS = {"LeNet-300-100": lenet300_prune, "LeNet-5": lenet5_prune}


class Subject(NamedTuple):
    """What is counted.

    Attributes:
      network: which.
      params: weights, or their shapes.
      mask: which of them live.
      activations: what was measured, or the share in [0, 1] of each layer by path.
      source: where Weights% and Act% come from.
    """

    network: Network
    params: Any
    mask: Any
    activations: Any
    source: str


def load(options: Any) -> Subject:
    """Loads or makes what the flags of `experiments.layers` say.

    Raises:
      Refused: if weights or data are not to be had.
    """
    if options.network in _PROGRAMS:
        return _digits(options)
    if options.weights is not None:
        return _photographs(options)
    return printed(NETWORKS[options.network])


def apply_of(network: Network) -> Callable[[Any, jax.Array], Any]:
    """Gives the network as a function of params and input, without dropout."""
    return lambda params, x: network.module.apply({"params": params}, x)


def _digits(options: Any) -> Subject:
    """Reads the run of a LeNet, or makes it, and measures on its digits."""
    network, folder = NETWORKS[options.network], options.weights
    if folder is None:
        name = options.network.lower().replace("-", "")
        folder = Path("runs") / f"layers-{name}-{options.dataset}"
        flags = ["--dataset", options.dataset, "--out", str(folder)]
        if options.data_dir is not None:
            flags += ["--data-dir", str(options.data_dir)]
        flags += ["--resume"] if folder.exists() else []
        _PROGRAMS[options.network].main(flags)
    found = page.read(folder, options.data_dir)
    if found.network.name != network.name:
        raise Refused(
            f"{folder} is of {found.network.name}, expected {network.name}; see "
            "--network."
        )
    digits = data.load(found.data)
    images = digits.judge.images[: options.examples]
    parts = (images[i : i + 500] for i in range(0, len(images), 500))
    active = _measured(network, found.params, found.mask, parts)
    which = digits.judge_name.partition(" ")[2]
    source = f"a run on {found.data.dataset}, {active.examples:,} {which}"
    return Subject(network, found.params, found.mask, active, source)


def _photographs(options: Any) -> Subject:
    """Reads published weights, and measures on photographs."""
    network = NETWORKS[options.network]
    assert options.weights is not None
    try:
        params = weights.load_weights(options.weights, shapes(network), network)
    except (OSError, ValueError, ImportError) as error:
        raise Refused(str(error)) from error
    params = jax.device_put(params)
    mask = jaxprune.mask_from_zeros(params)
    images = data.Images(
        data_dir=options.data_dir, convention="caffe", crop=network.input[0]
    )
    split = images.eval_split
    if options.examples is not None:
        split = f"{split}[:{options.examples}]"
    batches = data.make_batches(
        data.open_source(images, split), images, batch=50, seed=None
    )
    parts = (np.asarray(b.image)[np.asarray(b.valid)] for b in batches)
    active = _measured(network, params, mask, parts)
    source = f"{options.weights.name}, {active.examples:,} photographs"
    return Subject(network, params, mask, active, source)


def _measured(
    network: Network, params: Any, mask: Any, parts: Iterator[np.ndarray]
) -> jaxprune.report.Activations:
    inputs = (
        preprocess(jnp.asarray(x), network.preprocessing) for x in parts if len(x)
    )
    return jaxprune.report.activations(apply_of(network), params, inputs, mask)


def printed(network: Network) -> Subject:
    """Takes the paper's own percentages: as many live weights, in any place.

    Raises:
      Refused: if the paper has no table of the network.
    """
    paper = TABLES.get(network.name)
    if paper is None:
        raise Refused(
            f"--weights is not given, and the paper has no table of {network.name}; "
            "expected a file of its weights."
        )
    like = shapes(network)

    def live(path: Any, leaf: jax.ShapeDtypeStruct) -> np.ndarray | None:
        row = paper.get(jax.tree_util.keystr(path, simple=True, separator="/"))
        if row is None:
            return None
        size = int(np.prod(leaf.shape))
        return (np.arange(size) < round(size * row.kept / 100)).reshape(leaf.shape)

    mask = jax.tree_util.tree_map_with_path(live, like)
    shares = {p: row.activations / 100 for p, row in paper.items() if p != "total"}
    return Subject(network, like, mask, shares, "the paper's own, not measured")


def shapes(network: Network) -> Any:
    """Gives the shapes of a network's params."""
    image = jnp.zeros((1, *network.input), jnp.float32)
    return jax.eval_shape(network.module.init, jax.random.key(0), image)["params"]
