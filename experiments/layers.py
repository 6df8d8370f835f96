"""A network layer by layer beside the paper's table, with activations as measured.

    python -m experiments.layers --network LeNet-300-100
    python -m experiments.layers --network LeNet-5
    python -m experiments.layers --network SqueezeNet \
        --weights compressed_SqueezeNet.net --data-dir DIR
    python -m experiments.layers --network AlexNet
    python -m experiments.layers --network VGG-16

The paper's tables 2 to 5: weights, FLOP, Weights%, Act% and FLOP% of every layer. The
LeNets are trained and pruned first, by their own commands, on digits that need no
download (about half a minute, and two), in runs/layers-NETWORK; or --weights is the
folder of a finished run. Act% is the share of non-zeros in a layer's output as the next
layer reads it, on the digits or photographs that the network is judged on. AlexNet and
VGG-16 without --weights are counted with the paper's own Weights% and Act%, whose
FLOP% then comes out; with published weights they are measured on photographs.
"""

import sys

from experiments.start import start


if __name__ == "__main__":  # before the imports, which take seconds
    sys.exit(start("experiments.layers"))

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

import jaxprune
import jaxprune.report
from experiments import data, lenet5_prune, lenet300_prune, page
from experiments.bench._common import write_csv
from experiments.config import Refused
from experiments.folders import command
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
from experiments.paper import NUMBER, TABLES


NETWORKS = {n.name: n for n in (LENET300, LENET5, ALEXNET, VGG16_CAFFE, SQUEEZENET)}
_PROGRAMS = {"LeNet-300-100": lenet300_prune, "LeNet-5": lenet5_prune}


@dataclasses.dataclass(frozen=True)
class Options:
    """Flags."""

    #: Which network.
    network: Literal["LeNet-300-100", "LeNet-5", "AlexNet", "VGG-16", "SqueezeNet"]
    #: LeNets: folder of a finished run of one seed; None: train and prune here first.
    #: The others: a file of weights, dead ones 0; None: the paper's percentages.
    weights: Path | None = None
    #: Digits to train on here.
    dataset: Literal["mnist5k", "mnist"] = "mnist5k"
    #: Folder of TFDS, or of class folders. None: TFDS_DATA_DIR, else
    #: ~/tensorflow_datasets.
    data_dir: Path | None = None
    #: Examples to measure on, the first ones. None: all that there are.
    examples: int | None = None
    #: A CSV to write.
    out: Path | None = None


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


def run(options: Options) -> list[dict[str, Any]]:
    """Measures, counts, prints; gives the rows, the total last.

    Raises:
      Refused: if a flag is wrong, or weights or data are not to be had.
    """
    if options.examples is not None and options.examples < 1:
        raise Refused(f"--examples is {options.examples}, expected 1 or more.")
    if options.network in _PROGRAMS:
        subject = _digits(options)
    elif options.weights is not None:
        subject = _photographs(options)
    else:
        subject = _printed(options)
    rows = table(subject)
    console = Console()
    console.print(show(rows))
    if options.out is not None:
        write_csv(options.out, rows)
        console.print(f"Wrote {options.out}", soft_wrap=True, highlight=False)
    return rows


def table(subject: Subject) -> list[dict[str, Any]]:
    """Counts; percentages of the paper are beside those found, `None` if it has none.

    Raises:
      ValueError: as `jaxprune.report.count`.
    """
    network = subject.network
    image = jax.ShapeDtypeStruct((1, *network.input), jnp.float32)
    counts = jaxprune.report.count(
        _apply(network),
        subject.params,
        subject.mask,
        image,
        activations=subject.activations,
    )
    paper = TABLES.get(network.name, {})
    rows = []
    for found in jaxprune.report.table(counts):
        printed = paper.get(found["layer"])
        pick = lambda name, row=printed: None if row is None else getattr(row, name)
        number = lambda name, row=found: round(row[name], 3)
        rows.append(
            {
                "network": network.name,
                "source": subject.source,
                "layer": found["layer"],
                "weights": found["weights"],
                "paper_weights": pick("weights"),
                "flop": found["flop"],
                "paper_flop": pick("flop"),
                "kept": found["kept"],
                "kept_percent": number("kept_percent"),
                "paper_kept_percent": pick("kept"),
                "activations_percent": number("activations_percent"),
                "paper_activations_percent": pick("activations"),
                "flop_kept_percent": number("flop_kept_percent"),
                "flop_needed_percent": number("flop_needed_percent"),
                "paper_flop_percent": pick("needed"),
            }
        )
    return rows


def show(rows: Sequence[dict[str, Any]]) -> Table:
    """Makes the table for the terminal."""
    name = rows[0]["network"]
    title = f"{name}. Weights% and Act%: {rows[0]['source']}"
    if name in NUMBER:
        title += f"; the paper's: table {NUMBER[name]}"
    out = Table(title=title, title_justify="left", box=box.SIMPLE, pad_edge=False)
    out.add_column("layer")
    pairs = [
        ("Weights%", "kept_percent", "paper_kept_percent"),
        ("Act%", "activations_percent", "paper_activations_percent"),
        ("FLOP%", "flop_needed_percent", "paper_flop_percent"),
    ]
    beside = ("paper",) if name in NUMBER else ()
    heads = ["weights", "FLOP", *(h for p in pairs for h in (p[0], *beside))]
    for head in heads:
        out.add_column(head, justify="right")
    for row in rows:
        if row["layer"] == "total":
            out.add_section()
        cells = [_short(row["weights"]), _short(row["flop"])]
        for _, own, printed in pairs:
            cells.append(f"{row[own]:.1f}")
            if beside:
                cells.append(f"{row[printed]:g}")
        out.add_row(row["layer"].removesuffix("/kernel"), *cells)
    return out


def _short(number: int) -> str:
    """Writes three digits and the unit of the paper.

    >>> [_short(n) for n in (500, 235_200, 999_950, 1_448_813_632)]
    ['500', '235K', '1M', '1.45B']
    """
    for unit, scale in (("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if number >= 0.9995 * scale:
            return f"{number / scale:.3g}{unit}"
    return str(number)


def _apply(network: Network) -> Callable[[Any, jax.Array], Any]:
    return lambda params, x: network.module.apply({"params": params}, x)


def _digits(options: Options) -> Subject:
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


def _photographs(options: Options) -> Subject:
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
    return jaxprune.report.activations(_apply(network), params, inputs, mask)


def _printed(options: Options) -> Subject:
    """Takes the paper's own percentages: as many live weights, in any place."""
    network = NETWORKS[options.network]
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


def main(args: Sequence[str] | None = None) -> int:
    """Runs the command line; gives the exit code."""
    return command(Options, run, "python -m experiments.layers", __doc__, args)
