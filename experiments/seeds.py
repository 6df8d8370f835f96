"""The table of seeds: a row for each that is finished, mean and deviation of all."""

import csv
import io
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from experiments import files
from experiments.config import Refused
from experiments.models import Network


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
