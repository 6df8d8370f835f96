"""Draws the pictures of experiments/results from the tables that lie there.

    python -m experiments.pictures

    errors_lenets_mnist.png          error over compression, all recipes, of the LeNets
    tradeoff_NETWORK_DATASET.png     figure 5: five ways to prune, four networks
    mask_lenet300_mnist5k.png        figure 4: the mask of fc1 in bands, and its sum
    weights_lenet300_mnist5k.png     figure 7: weights before and after
    sensitivity.png                  figure 6: what each layer bears, three networks
    sensitivity_NETWORK_scan.png     the same, each network apart
    controls_NETWORK_mnist5k.png     a pruned net beside controls

Nothing is trained. Mask and weights are those of a run, taken over as tables by

    python -m experiments.lenet300_prune --out FOLDER
    python -m experiments.pictures --run FOLDER
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from experiments import files, page
from experiments.config import Refused
from experiments.folders import command
from experiments.pictures import (
    bands,
    controls,
    errors,
    read,
    sensitivity,
    tradeoff,
    weights,
)
from experiments.sensitivity import figure as one_scan


RESULTS = Path(__file__).parent.parent / "results"
MASK, WEIGHTS = "lenet300_mask_mnist5k.csv", "lenet300_weights_mnist5k.csv"
SCANS = {
    "lenet300": "LeNet-300-100, 5,000 digits",
    "lenet5": "LeNet-5, MNIST",
    "squeezenet": "SqueezeNet",
}
DIGITS = {
    "lenet300_mnist5k": "LeNet-300-100, 5,000 digits",
    "lenet5_mnist5k": "LeNet-5, 5,000 digits",
}
TRADEOFFS = DIGITS | {
    "alexnet_cifar10": "AlexNet of CIFAR-10's size, 0.4 epochs",
    "vgg16_cifar10": "VGG-16 of CIFAR-10's size, 0.3 epochs",
}
LABELS = {
    "LeNet-300-100": {
        "Han et al. at 12x": (-8.0, 8.0, "left"),
        "sparse momentum at 20x": (2.0, -14.0, "left"),
        "dynamic surgery at 56x": (-8.0, 0.0, "right"),
        "sparse VD at 68x": (-8.0, -5.0, "right"),
        "sparse momentum at 100x": (6.0, -15.0, "right"),
    },
    "LeNet-5": {
        "Han et al. at 12x": (-8.0, 8.0, "left"),
        "sparse momentum at 20x": (4.0, -13.0, "left"),
        "sparse momentum at 100x": (-8.0, 0.0, "right"),
        "dynamic surgery at 108x": (-8.0, 2.0, "right"),
        "sparse VD at 280x": (4.0, -15.0, "right"),
    },
}


@dataclasses.dataclass(frozen=True)
class Options:
    """Flags."""

    #: Folder of the tables. None: experiments/results.
    results: Path | None = None
    #: Folder for the pictures. None: that of the tables.
    out: Path | None = None
    #: Folder of a finished run of LeNet-300-100, whose tables are taken over.
    run: Path | None = None


def run(options: Options) -> list[Path]:
    """Draws all pictures; gives their paths.

    Raises:
      Refused: if a table is missing, or the run is of another network.
    """
    results = options.results or RESULTS
    out = options.out or results
    if options.run is not None:
        take_over(options.run, results)
    out.mkdir(parents=True, exist_ok=True)
    get = lambda name: read.table(results / f"{name}.csv")
    drawn = [
        _errors(out, get),
        *(_tradeoff(out, get, name, title) for name, title in TRADEOFFS.items()),
        _mask(out, results),
        _weights(out, results),
        *_sensitivity(out, get),
        *(_controls(out, get, name, title) for name, title in DIGITS.items()),
    ]
    console = Console()
    for path in drawn:
        size = f"{path.stat().st_size / 1000:.0f} KB"
        console.print(f"{path}, {size}", soft_wrap=True, highlight=False)
    return drawn


def take_over(folder: Path, results: Path) -> None:
    """Writes the mask of fc1 of a run, and histograms of all weights, as tables.

    Raises:
      Refused: if the folder holds no run of LeNet-300-100, or no dense weights.
    """
    found = page.read(folder)
    if found.network.name != "LeNet-300-100":
        raise Refused(
            f"{folder} is of {found.network.name}, expected a run of LeNet-300-100."
        )
    dense = files.load_weights(folder / "dense.safetensors", found.params)
    layers = {
        name: (
            np.ravel(dense[name]["kernel"]),
            np.asarray(found.params[name]["kernel"])[np.asarray(mask["kernel"])],
        )
        for name, mask in found.mask.items()
    }
    bands.write(results / MASK, np.asarray(found.mask["fc1"]["kernel"]))
    weights.write(results / WEIGHTS, layers)


def _errors(out: Path, get: Any) -> Path:
    path = out / "errors_lenets_mnist.png"
    networks = {
        name: {recipe: get(f"{short}_{recipe}_mnist") for recipe in errors.LOOKS}
        for name, short in (("LeNet-300-100", "lenet300"), ("LeNet-5", "lenet5"))
    }
    errors.draw(path, networks, get("published_lenets"), LABELS)
    return path


def _tradeoff(out: Path, get: Any, name: str, title: str) -> Path:
    path = out / f"tradeoff_{name}.png"
    rows = get(path.stem)
    title = f"{title}, {read.seeds(rows)}: mean, one sd shaded"
    tradeoff.draw(path, rows, tuple(tradeoff.LOOKS), title)
    return path


def _mask(out: Path, results: Path) -> Path:
    path = out / "mask_lenet300_mnist5k.png"
    mask = bands.mask_of(read.table(results / MASK))
    title = f"LeNet-300-100, fc1: {mask.mean():.1%} of {mask.size:,} weights live"
    bands.draw(path, mask, title)
    return path


def _weights(out: Path, results: Path) -> Path:
    path = out / "weights_lenet300_mnist5k.png"
    title = "LeNet-300-100, 5,000 digits"
    weights.draw(path, read.table(results / WEIGHTS), title)
    return path


def _sensitivity(out: Path, get: Any) -> list[Path]:
    scans = {title: get(f"sensitivity_{name}_scan") for name, title in SCANS.items()}
    *lines, grid = scans
    drawn = [out / "sensitivity.png"]
    sensitivity.draw(drawn[0], {t: scans[t] for t in lines}, scans[grid])
    for name, (title, rows) in zip(SCANS, scans.items(), strict=True):
        path, metric = out / f"sensitivity_{name}_scan.png", rows[0]["metric"]
        one_scan.draw(path, sensitivity.scan_of(rows), f"{title}: {metric}", metric)
        drawn.append(path)
    return drawn


def _controls(out: Path, get: Any, name: str, title: str) -> Path:
    path = out / f"controls_{name}.png"
    rows = get(path.stem)
    title = f"{title}, {read.seeds(rows, 'control', 'target')}: mean, one sd"
    controls.draw(path, rows, title)
    return path


def main(args: Sequence[str] | None = None) -> int:
    """Runs the command line; gives the exit code."""
    return command(Options, run, "python -m experiments.pictures", __doc__, args)
