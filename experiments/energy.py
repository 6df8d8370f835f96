"""The energy table of the paper's figure 1, from the model that reports reckon with.

    python -m experiments.energy
    python -m experiments.energy --connections 138344128 --hertz 30

Picojoules of an operation on 32 bits in a 45 nm process, and how many integer additions
that is. Then the paper's worked example: the power that only fetching the weights from
DRAM takes, 12.8 W for a billion connections 20 times a second. What a finished run
takes, by the same model, is in the table of `python -m experiments.page FOLDER`.
"""

import sys

from experiments.start import start


if __name__ == "__main__":  # before the imports, which take seconds
    sys.exit(start("experiments.energy"))

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console
from rich.table import Table

from experiments.bench._common import write_csv
from jaxprune.report import ENERGY_45NM


def rows() -> list[dict[str, Any]]:
    """Gives the rows of the figure: operation, picojoules, additions."""
    unit = ENERGY_45NM["int add"]
    return [
        {"operation": name, "picojoules": cost, "relative": round(cost / unit)}
        for name, cost in ENERGY_45NM.items()
    ]


def watts(connections: float, hertz: float) -> float:
    """Gives the power of fetching every weight from DRAM so often.

    >>> round(watts(1e9, 20), 6)
    12.8
    """
    return connections * hertz * ENERGY_45NM["DRAM"] * 1e-12


def show(connections: float = 1e9, hertz: float = 20.0, out: Path | None = None) -> int:
    """Prints the table and the example; gives the exit code.

    Args:
      connections: weights, of 32 bits each.
      hertz: how often they are fetched in a second.
      out: a CSV to write the table to.
    """
    for flag, value in (("connections", connections), ("hertz", hertz)):
        if not 0 < value < math.inf:
            print(f"error: --{flag} is {value}, expected above 0.", file=sys.stderr)
            return 1
    table = Table(title="Energy of 32-bit operations, 45 nm", title_justify="left")
    table.add_column("operation")
    for name in ("pJ", "relative"):
        table.add_column(name, justify="right")
    for row in rows():
        cells = (f"{row['picojoules']:g}", f"{row['relative']:,}")
        table.add_row(row["operation"], *cells)
    console = Console()
    console.print(table)
    console.print(
        f"{connections:,.0f} connections from DRAM {hertz:g} times a second: "
        f"{watts(connections, hertz):.3g} W",
        highlight=False,
    )
    if out is not None:
        write_csv(out, rows())
    return 0


def main(args: Sequence[str] | None = None) -> int:
    """Runs the command line; gives the exit code."""
    prog = "python -m experiments.energy"
    return tyro.cli(show, prog=prog, description=__doc__, args=args)
