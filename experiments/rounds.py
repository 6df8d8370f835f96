"""What is kept and shown after each round of pruning on photographs."""

import csv
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.table import Table

import jaxprune
import jaxprune.report
from experiments import files
from experiments.models import Network


COLUMNS = (
    "round",
    "error",
    "top5_error",
    "alive_weights",
    "compression_weights",
    "compression_params",
    "flop_kept_percent",
)


def make_round_done(
    network: Network, folder: Path, console: Console | None = None
) -> Callable[[str, Any, Any, dict[str, float]], None]:
    """Makes the function that `train.fit` calls after each round.

    It prints the layers beside the paper's, and writes them to NAME.csv, the weights
    to NAME.safetensors, from which a run can start (`--weights`), and its row to
    rounds.csv.
    """
    console = console or Console()

    def round_done(name: str, params: Any, mask: Any, errors: dict[str, float]) -> None:
        def apply(params: Any, x: jax.Array) -> Any:
            return network.module.apply({"params": params}, x)

        x = jax.ShapeDtypeStruct((1, *network.input), jnp.float32)
        counts = jaxprune.report.count(apply, params, mask, x)
        total = counts.total
        params_all = total.weights + counts.others
        alive_all = total.kept + counts.others_kept
        row = {
            "round": name,
            "error": errors["error"],
            "top5_error": errors.get("top5_error"),
            "alive_weights": total.kept,
            "compression_weights": total.weights / total.kept,
            "compression_params": params_all / alive_all,
            "flop_kept_percent": 100 * total.flop_kept / total.flop,
        }
        about = {
            "network": network.name,
            "round": name,
            "error_percent": str(errors["error"]),
            "mask": "a weight of the pruned leaves is dead where it is 0",
        }
        slug = name.replace(" ", "-")
        files.save_weights(folder / f"{slug}.safetensors", params, about)
        rows = jaxprune.report.table(counts)
        files.write_text(folder / f"{slug}.csv", jaxprune.report.to_csv(rows))
        _add_row(folder / "rounds.csv", row)
        console.print(layers(network, counts, name))
        top5 = "" if row["top5_error"] is None else f", top-5 {row['top5_error']:.2f}%"
        if "broken" in errors:
            top5 += f", {errors['broken']} broken images left out"
        console.print(
            f"{name}: error {row['error']:.2f}%{top5}; "
            f"{row['compression_weights']:.1f}x fewer weights, "
            f"{row['compression_params']:.1f}x fewer parameters, "
            f"{row['flop_kept_percent']:.1f}% of the FLOP",
            highlight=False,
            soft_wrap=True,
        )

    return round_done


def layers(network: Network, counts: jaxprune.report.Counts, title: str) -> Table:
    """Makes the table of layers beside the paper's."""
    table = Table(title=f"{network.name}, {title}", title_justify="left")
    table.add_column("layer", no_wrap=True)
    for name in ("weights", "FLOP", "alive", "kept", "paper", "FLOP kept"):
        table.add_column(name, justify="right")
    paper_kept = 0.0
    for row in (*counts.layers, counts.total):
        paper = network.kept.get(row.path)
        paper_kept += (paper or 0) * row.weights
        if row is counts.total:
            table.add_section()
            paper = round(paper_kept / row.weights, 1) if network.kept else None
        table.add_row(
            "weights" if row is counts.total else row.path.removesuffix("/kernel"),
            f"{row.weights:,}",
            f"{row.flop / 1e6:,.1f}M",
            f"{row.kept:,}",
            f"{100 * row.kept / row.weights:.1f}%",
            "" if paper is None else f"{paper:g}%",
            f"{100 * row.flop_kept / row.flop:.1f}%",
        )
    return table


def _add_row(path: Path, row: dict[str, Any]) -> None:
    """Adds a row, in place of one of the same round that a resumed run repeats."""
    rows: list[Any] = []
    if path.exists():
        with path.open(newline="") as file:
            rows = [r for r in csv.DictReader(file) if r["round"] != row["round"]]
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    rows.append(row)
    writer.writerows(rows)
    files.write_text(path, text.getvalue())
