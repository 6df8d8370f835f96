"""A network layer by layer beside the paper's table, with activations as measured.

    python -m experiments.layers --network LeNet-300-100
    python -m experiments.layers --network LeNet-5
    python -m experiments.layers --network SqueezeNet \
        --weights compressed_SqueezeNet.net --data-dir DIR
    python -m experiments.layers --network AlexNet
    python -m experiments.layers --network VGG-16

The paper's tables 2 to 5: weights, FLOP, Weights%, Act% and FLOP% of every layer. The
LeNets are trained and pruned first, by their own commands, on digits that need no
download (half a minute, and one), in runs/layers-NETWORK-DATASET; or --weights is the
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
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
from rich import box
from rich.console import Console
from rich.table import Table

import jaxprune.report
from experiments import layer_sources
from experiments.bench._common import write_csv
from experiments.config import Refused
from experiments.folders import command
from experiments.paper import NUMBER, TABLES


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


def run(options: Options) -> list[dict[str, Any]]:
    """Measures, counts, prints; gives the rows, the total last.

    Raises:
      Refused: if a flag is wrong, or weights or data are not to be had.
    """
    if options.examples is not None and options.examples < 1:
        raise Refused(f"--examples is {options.examples}, expected 1 or more.")
    rows = table(layer_sources.load(options))
    console = Console()
    console.print(show(rows))
    if options.out is not None:
        write_csv(options.out, rows)
        console.print(f"Wrote {options.out}", soft_wrap=True, highlight=False)
    return rows


def table(subject: layer_sources.Subject) -> list[dict[str, Any]]:
    """Counts; percentages of the paper are beside those found, `None` if it has none.

    Raises:
      ValueError: as `jaxprune.report.count`.
    """
    network = subject.network
    image = jax.ShapeDtypeStruct((1, *network.input), jnp.float32)
    counts = jaxprune.report.count(
        layer_sources.apply_of(network),
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


def main(args: Sequence[str] | None = None) -> int:
    """Runs the command line; gives the exit code."""
    return command(Options, run, "python -m experiments.layers", __doc__, args)
