"""Measures top-1 and top-5 of published or pruned weights on photographs.

The check that no mock can give, on weights that the paper's first author pruned
(SqueezeNet 1.0) and one photograph of each ImageNet class:

    python -m experiments.evaluate --network SqueezeNet \
        --weights compressed_SqueezeNet.net --data-dir DIR

There 33.42% of 1,244,448 weights live; with photographs squashed to 256 x 256, as Caffe
does, top-1 is 64.7% and top-5 85.8%. With `--squash False`, the shorter side at 256,
they are 62.4% and 83.3%; with the crop one pixel further right and down, where half of
an odd margin is rounded up, 61.5% and 82.6%. On the whole validation set its authors
report 57.5% and 80.3%.

`--sparse` also runs every layer as a product without dead weights, convolutions too,
and counts the photographs of which both say the same: all 1,000.
"""

import sys

from experiments.start import start


if __name__ == "__main__":  # before the imports, which take seconds
    sys.exit(start("experiments.evaluate"))

import dataclasses
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import tyro
from rich.console import Console
from rich.table import Table

import jaxprune
from experiments.agreement import Agreement, compare, watched
from experiments.config import Refused
from experiments.data.images import make_batches
from experiments.data.settings import Images
from experiments.data.sources import open_source
from experiments.judge import make_accuracy
from experiments.models import (
    ALEXNET,
    ALEXNET_TORCHVISION,
    SQUEEZENET,
    VGG16_CAFFE,
    VGG16_TORCHVISION,
    Network,
    weights,
)


NETWORKS: dict[str, Network] = {
    network.name: network
    for network in (
        ALEXNET,
        ALEXNET_TORCHVISION,
        VGG16_CAFFE,
        VGG16_TORCHVISION,
        SQUEEZENET,
    )
}


@dataclasses.dataclass(frozen=True)
class Options:
    """Flags."""

    #: File of weights: .pth, .safetensors, .caffemodel or .net.
    weights: Path
    #: Which network they are of.
    network: Literal[
        "AlexNet", "AlexNet-torchvision", "VGG-16", "VGG-16-torchvision", "SqueezeNet"
    ]
    #: Folder of TFDS that holds imagenet2012, or one of class folders in the order of
    #: the classes. None: TFDS_DATA_DIR, else ~/tensorflow_datasets.
    data_dir: Path | None = None
    #: Split, or a slice of it.
    split: str = "validation"
    #: Squash photographs to 256 x 256, as Caffe does, or resize the shorter side to
    #: 256. None: as the network's preprocessing goes.
    squash: bool | None = None
    #: Photographs in a batch.
    batch: int = 50
    #: Type of the computation.
    dtype: Literal["float32", "bfloat16"] = "float32"
    #: Run every layer without its dead weights, too, and compare.
    sparse: bool = False


def run(options: Options) -> dict[str, Any]:
    """Loads, measures, prints; gives what was printed.

    Raises:
      Refused: if the weights or the photographs are not to be had.
    """
    began = time.perf_counter()
    network = NETWORKS[options.network]
    module: Any = network.module
    network = network._replace(module=module.clone(dtype=jnp.dtype(options.dtype)))
    images = jnp.zeros((1, *network.input), jnp.float32)
    shapes = jax.eval_shape(network.module.init, jax.random.key(0), images)["params"]
    try:
        params = weights.load_weights(options.weights, shapes, network)
    except (OSError, ValueError, ImportError) as error:
        raise Refused(str(error)) from error
    params = jax.device_put(params)
    mask = jaxprune.mask_from_zeros(params)

    squash = options.squash
    if squash is None:
        squash = network.preprocessing == "caffe"
    settings = Images(
        data_dir=options.data_dir,
        eval_split=options.split,
        convention="caffe" if squash else "torchvision",
        crop=network.input[0],
    )
    source = open_source(settings, options.split)
    if len(source.classes) != network.classes:
        raise Refused(
            f"the photographs are of {len(source.classes)} classes, expected the "
            f"{network.classes} of {network.name}."
        )
    batches = make_batches(source, settings, batch=options.batch, seed=None)
    agreement = Agreement()
    seen = batches
    if options.sparse:
        seen = watched(compare(network, params, mask), batches, agreement)
    found = make_accuracy(network)(params, seen)
    if not found.images:
        raise Refused(f"no photograph of {options.split!r} could be read.")

    rows = [r for r in jaxprune.summarize(params, mask) if r.prunable]
    size, alive = sum(r.size for r in rows), sum(r.alive for r in rows)
    result = {
        "network": network.name,
        "weights": size,
        "alive_weights": alive,
        "kept_percent": 100 * alive / size,
        "images": found.images,
        "broken": len(batches.broken),
        "top1_percent": 100 * found.top1 / found.images,
        "top5_percent": 100 * found.top5 / found.images,
    }
    if options.sparse:
        result |= {
            "sparse_top1_percent": 100 * agreement.top1 / found.images,
            "same_class": agreement.same,
            "difference": agreement.difference,
        }
    table = Table(title=f"{network.name}, {options.weights.name}", title_justify="left")
    table.add_column("")
    table.add_column("", justify="right")
    table.add_row("weights", f"{size:,}")
    table.add_row("not zero", f"{alive:,} ({result['kept_percent']:.2f}%)")
    table.add_row("photographs", f"{found.images:,}")
    table.add_row("left out, broken", f"{result['broken']:,}")
    table.add_row("top-1", f"{result['top1_percent']:.2f}%")
    table.add_row("top-5", f"{result['top5_percent']:.2f}%")
    if options.sparse:
        table.add_row("top-1, sparse", f"{result['sparse_top1_percent']:.2f}%")
        table.add_row("same class", f"{agreement.same:,}")
        table.add_row("largest difference", f"{agreement.difference:.1e}")
    table.add_row("seconds", f"{time.perf_counter() - began:.0f}")
    Console().print(table)
    return result


def main(args: Sequence[str] | None = None) -> int:
    """Runs the command line; gives the exit code."""
    prog = "python -m experiments.evaluate"
    options = tyro.cli(Options, prog=prog, description=__doc__, args=args)
    try:
        run(options)
    except Refused as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0
