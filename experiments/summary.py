"""The last words of a run on the screen: tables beside the paper's, and warnings."""

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from experiments.models import Network
from experiments.recipes import MIN_KEEP


def show(
    result: dict[str, Any], network: Network, folder: Path, seconds: float
) -> None:
    """Prints the table beside the paper's, errors, compression, time and folder."""
    console = Console()
    table = Table(title=f"{network.name} on {result['dataset']}", title_justify="left")
    table.add_column("layer")
    for name in ("weights", "alive", "kept", "paper keeps"):
        table.add_column(name, justify="right")
    for row in result["layers"]:
        paper = row["paper_percent"]
        table.add_row(
            row["layer"],
            f"{row['weights']:,}",
            f"{row['alive']:,}",
            f"{row['kept_percent']:.1f}%",
            "" if paper is None else f"{paper:g}%",
        )
    table.add_section()
    paper_kept = sum(
        network.kept.get(r["layer"], 0) * r["weights"] for r in result["layers"]
    )
    for name, size, alive, paper in (
        (
            "weights",
            "weights",
            "alive_weights",
            f"{paper_kept / result['weights']:.1f}%" if network.kept else "",
        ),
        ("with biases", "params", "alive_params", ""),
    ):
        kept = 100 * result[alive] / result[size]
        table.add_row(
            name, f"{result[size]:,}", f"{result[alive]:,}", f"{kept:.1f}%", paper
        )
    console.print(table)

    errors = Table(title=f"On {result['judged_on']}", title_justify="left")
    errors.add_column("")
    whole = "MNIST" if network.preprocessing == "unit" else "ImageNet"
    for name in ("this run", f"paper, all of {whole}"):
        errors.add_column(name, justify="right")
    dense = result["dense_error"]
    errors.add_row(
        "error, dense",
        "not measured" if dense is None else f"{dense:.2f}%",
        _known(network.dense_error, ".2f", "%"),
    )
    if result["recipe"] != "dense":
        errors.add_row(
            "error, pruned",
            f"{result['error']:.2f}%",
            _known(network.pruned_error, ".2f", "%"),
        )
        errors.add_row(
            "compression, weights", f"{result['compression_weights']:.1f}x", ""
        )
        errors.add_row(
            "compression, all parameters",
            f"{result['compression_params']:.1f}x",
            _known(network.compression, "g", "x"),
        )
    if result.get("top5_error") is not None:
        errors.add_section()
        dense = result["dense_top5_error"]
        errors.add_row(
            "top-5 error, dense",
            "not measured" if dense is None else f"{dense:.2f}%",
            _known(network.dense_top5, ".2f", "%"),
        )
        errors.add_row(
            "top-5 error, pruned",
            f"{result['top5_error']:.2f}%",
            _known(network.pruned_top5, ".2f", "%"),
        )
    console.print(errors)
    for note in notes(result):
        console.print(note, soft_wrap=True, highlight=False)
    console.print(
        f"{result['steps']} steps in {result['train_seconds']:.0f} s with compilation; "
        f"this call took {seconds:.0f} s. Run folder: {folder}",
        soft_wrap=True,
        highlight=False,
    )


def _known(value: float | None, form: str, unit: str) -> str:
    """Formats a number of the paper; empty where it has none."""
    return "" if value is None else f"{value:{form}}{unit}"


def notes(result: dict[str, Any]) -> list[str]:
    """Says what must be known to read the tables rightly."""
    found = warnings(result)
    if "held-out" in result["judged_on"]:
        found.append(
            "Held-out digits, to choose settings on. The test split was not read."
        )
    elif result["dataset"] == "mnist5k":
        found.append(
            "A small sample, 4,000 digits to train on, and one test digit is 0.1 "
            "point: not the paper's errors. For those: --dataset mnist."
        )
    if result["dense_error"] is None:
        found.append(
            "Pruning began while the network was being trained, so this run has no "
            "dense error. For it: --recipe dense, with --dense-epochs as many as "
            "--epochs here."
        )
    return found


def warnings(result: dict[str, Any]) -> list[str]:
    """Names the layers that were pruned down to the floor."""
    flags = {"paper": "its --quality", "best": "--targets"}
    flag = flags.get(result["recipe"], "--target")
    return [
        f"Warning: {row['layer']} is at the floor of {MIN_KEEP} live weight, below "
        f"which no layer is pruned; lower {flag}."
        for row in result["layers"]
        if row["alive"] < row["weights"] and row["alive"] <= MIN_KEEP
    ]
