"""The table of the recipe best: a row for each seed and target of finished runs.

    python -m experiments.lenet300_prune --recipe best --dataset mnist --seeds 5
    python -m experiments.records runs/lenet300100-best-mnist-seeds --out best.csv

Prints mean and sample standard deviation of the error at each target. Seconds are from
the first step of the dense net on: a net of a later stage includes those before it.
"""

import sys

from experiments.start import start


if __name__ == "__main__":  # before the imports, which take seconds
    sys.exit(start("experiments.records"))

import csv
import dataclasses
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.table import Table

from experiments.bench._common import write_csv
from experiments.config import Refused
from experiments.folders import command


COLUMNS = ("alive_weights", "compression_weights", "compression_params")


@dataclasses.dataclass(frozen=True)
class Options:
    """Flags."""

    #: Run folders of recipe best, or folders of seeds.
    folders: Annotated[tuple[Path, ...], tyro.conf.Positional]
    #: CSV to write the rows to.
    out: Path | None = None


def run(options: Options, console: Console | None = None) -> list[dict[str, Any]]:
    """Gives the rows of all runs, prints what they come to, writes them.

    Raises:
      Refused: if a folder holds no finished run of recipe best.
    """
    if not options.folders:
        raise Refused("no folder is named; expected one or more.")
    rows: list[dict[str, Any]] = []
    for folder in options.folders:
        seeds = sorted(folder.glob("seed*/"), key=lambda f: (len(f.name), f.name))
        for home in seeds or [folder]:
            rows += rows_of(home)
    (console or Console()).print(table(rows))
    if options.out is not None:
        write_csv(options.out, rows)
    return rows


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """Reads the rows of one run.

    Raises:
      Refused: if the folder holds no finished run of recipe best.
    """
    try:
        result = json.loads((folder / "result.json").read_text())
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        ends = {x["round"]: x for x in map(json.loads, lines) if "round" in x}
        dense = (folder / "dense" / "metrics.jsonl").read_text().splitlines()
        last = json.loads(dense[-1])
        with (folder / "rounds.csv").open(newline="") as file:
            rounds = list(csv.DictReader(file))
    except (OSError, ValueError) as error:
        raise Refused(
            f"{folder} holds no finished run of --recipe best ({error})."
        ) from error
    return [
        {
            **{name: result[name] for name in ("network", "dataset", "judged_on")},
            "seed": result["seed"],
            "target": row["round"],
            "error": row["error"],
            **{name: row[name] for name in COLUMNS},
            "steps": last["step"] + ends[row["round"]]["step"],
            "seconds": round(last["seconds"] + ends[row["round"]]["seconds"], 1),
        }
        for row in rounds
    ]


def table(rows: Sequence[dict[str, Any]]) -> Table:
    """Makes the table of means and deviations."""
    made = Table(title="Recipe best", title_justify="left")
    for name in ("network", "judged on", "target", "on all parameters"):
        made.add_column(name)
    for name in ("seeds", "mean", "sd", "seconds"):
        made.add_column(name, justify="right")
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in rows:
        key = row["network"], f"{row['dataset']}, {row['judged_on']}", row["target"]
        groups.setdefault(key, []).append(row)
    for key, group in groups.items():
        errors = [float(row["error"]) for row in group]
        params = statistics.mean(float(row["compression_params"]) for row in group)
        made.add_row(
            *key,
            f"{params:.1f}x",
            str(len(group)),
            f"{statistics.mean(errors):.3f}%",
            f"{statistics.stdev(errors):.3f}" if len(errors) > 1 else "-",
            f"{statistics.mean(row['seconds'] for row in group):.0f}",
        )
    return made


def main(args: Sequence[str] | None = None) -> int:
    """Runs the command line; gives the exit code."""
    return command(Options, run, "python -m experiments.records", __doc__, args)
