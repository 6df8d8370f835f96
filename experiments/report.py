"""What a run leaves behind: tables, figures, weights, and the last words on screen."""

import csv
import io
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

import jaxprune
from experiments import data, figures, files, train
from experiments.config import Config, Refused, as_dict
from experiments.models import Network
from experiments.recipes import MIN_KEEP, Plan


def finish(
    config: Config,
    network: Network,
    plan: Plan,
    digits: data.Digits,
    fitted: train.Fitted,
    folder: Path,
) -> dict[str, Any]:
    """Measures the errors, once, and writes all files of the run folder.

    Returns:
      What is written to result.json: counts, errors in percent, times in seconds.
    """
    evaluate, judge = train.make_evaluate(network), data.put(digits.judge)
    error = evaluate(fitted.params, *judge)
    dense_error = None
    if config.pruning.recipe == "dense":
        dense_error = error
    elif plan.dense_is_trained and fitted.dense_params is not None:
        dense_error = evaluate(fitted.dense_params, *judge)

    rows = jaxprune.summarize(fitted.params, fitted.mask)
    layers = [
        {
            "layer": row.path,
            "weights": row.size,
            "alive": row.alive,
            "kept_percent": 100 * row.alive / row.size,
            "paper_percent": network.kept.get(row.path),
        }
        for row in rows
        if row.prunable
    ]
    weights = sum(row.size for row in rows if row.prunable)
    alive_weights = sum(row.alive for row in rows if row.prunable)
    params = sum(row.size for row in rows)
    alive_params = sum(row.alive for row in rows)
    result = {
        "network": network.name,
        "recipe": config.pruning.recipe,
        "dataset": config.data.dataset,
        "seed": config.run.seed,
        "judged_on": digits.judge_name,
        "dense_error": dense_error,
        "error": error,
        "layers": layers,
        "weights": weights,
        "alive_weights": alive_weights,
        "compression_weights": weights / alive_weights,
        "params": params,
        "alive_params": alive_params,
        "compression_params": params / alive_params,
        "sparsity": 1 - alive_weights / weights,
        "steps": fitted.steps,
        "train_seconds": round(fitted.seconds, 2),
    }
    files.write_text(folder / "table.csv", _table_csv(result))
    about = {
        "network": network.name,
        "mask": "a weight of these leaves is dead where it is 0",
        "pruned_leaves": " ".join(row["layer"] for row in layers),
        "error_percent": str(error),
        "judged_on": digits.judge_name,
        "settings": json.dumps(as_dict(config)),
    }
    name = "dense" if config.pruning.recipe == "dense" else "pruned"
    files.save_weights(folder / f"{name}.safetensors", fitted.params, about)
    draw(config, network, plan, fitted, folder, result)
    files.write_text(folder / "result.json", json.dumps(result, indent=2) + "\n")
    return result


def draw(
    config: Config,
    network: Network,
    plan: Plan,
    fitted: train.Fitted,
    folder: Path,
    result: dict[str, Any],
) -> None:
    """Writes the figures of the run."""
    title = (
        f"{network.name}, {config.data.dataset}, recipe {result['recipe']}, "
        f"seed {result['seed']}"
    )
    figures.curves(folder / "curves.png", folder / "metrics.jsonl", plan.phases, title)
    if plan.dense_step is None:
        return
    before = f"before pruning, step {plan.dense_step}: all weights"
    after = f"retrained, step {fitted.steps}: live weights"
    figures.histograms(
        folder / "weights.png",
        fitted.dense_params,
        fitted.params,
        fitted.mask,
        (before, after),
    )
    if not network.groups["conv"]:  # the first layer sees pixels, one a row
        first = network.groups["fc"][0]
        mask = np.asarray(train.at_path(fitted.mask, first))
        layer = first.split("/")[0]
        share = f"{mask.mean():.1%} of the weights live"
        figures.bands(
            folder / f"{layer}_mask.png",
            mask,
            f"{title}: live weights of {layer}, {share}",
        )
        figures.attention(
            folder / f"{layer}_attention.png",
            mask,
            f"{network.name}: where {layer} looks\n{share}",
        )


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
    for name in ("this run", "paper, all of MNIST"):
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
    flag = {"paper": "its --quality", "gradual": "--target"}.get(result["recipe"])
    return [
        f"Warning: {row['layer']} is at the floor of {MIN_KEEP} live weight, below "
        f"which no layer is pruned; lower {flag}."
        for row in result["layers"]
        if row["alive"] < row["weights"] and row["alive"] <= MIN_KEEP
    ]


COLUMNS: tuple[str, ...] = (
    "seed",
    "judged_on",
    "dense_error",
    "error",
    "compression_weights",
    "compression_params",
    "sparsity",
    "steps",
    "train_seconds",
)


def add_row(path: Path, result: dict[str, Any]) -> None:
    """Adds a finished seed to the table of seeds, in the order of the seeds."""
    rows = {**read_rows(path), int(result["seed"]): result}
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for seed in sorted(rows):
        writer.writerow(rows[seed])
    files.write_text(path, text.getvalue())


def read_rows(path: Path) -> dict[int, dict[str, Any]]:
    """Reads the table of seeds, by seed; empty if there is none.

    Raises:
      Refused: if another program wrote it.
    """
    if not path.exists():
        return {}
    try:
        with path.open(newline="") as file:
            reader = csv.DictReader(file)
            if tuple(reader.fieldnames or ()) == COLUMNS:
                return {int(row["seed"]): row for row in reader}
    except (OSError, ValueError):
        pass
    raise Refused(
        f"{path} is not a table of seeds of this program; choose another --out."
    )


def show_seeds(rows: Sequence[dict[str, Any]], network: Network, path: Path) -> None:
    """Prints the seeds, their mean and their sample standard deviation."""
    table = Table(title=f"{network.name}, {rows[0]['judged_on']}", title_justify="left")
    names = ("dense_error", "error", "compression_weights", "compression_params")
    for name in ("seed", "dense error", "error", "on weights", "on all parameters"):
        table.add_column(name, justify="right")
    for row in rows:
        cells = [_cell(name, _number(row[name])) for name in names]
        table.add_row(str(row["seed"]), *cells)
    table.add_section()
    for label, of in (("mean", statistics.mean), ("sd", statistics.stdev)):
        columns = {name: [_number(row[name]) for row in rows] for name in names}
        known = {name: [x for x in columns[name] if x is not None] for name in names}
        cells = [
            _cell(name, of(known[name]) if len(known[name]) == len(rows) else None)
            for name in names
        ]
        table.add_row(label, *cells)
    console = Console()
    console.print(table)
    console.print(f"Rows: {path}", soft_wrap=True, highlight=False)


def _number(value: Any) -> float | None:
    return None if value in (None, "") else float(value)


def _cell(name: str, value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}%" if "error" in name else f"{value:.2f}x"


def _table_csv(result: dict[str, Any]) -> str:
    text = io.StringIO()
    columns = ("layer", "weights", "alive", "kept_percent", "paper_percent")
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(result["layers"])
    for name, size, alive in (
        ("all weights", "weights", "alive_weights"),
        ("all parameters", "params", "alive_params"),
    ):
        kept = 100 * result[alive] / result[size]
        writer.writerow(
            {
                "layer": name,
                "weights": result[size],
                "alive": result[alive],
                "kept_percent": kept,
            }
        )
    return text.getvalue()
