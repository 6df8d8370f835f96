"""Reading of the tables."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.config import Refused


Rows = Sequence[Mapping[str, str]]


class Points(NamedTuple):
    """Means of seeds and their sample standard deviation, 0 of a single seed."""

    x: np.ndarray
    mean: np.ndarray
    spread: np.ndarray


def table(path: Path) -> list[dict[str, str]]:
    """Reads a table.

    Raises:
      Refused: if it is not there, or empty.
    """
    try:
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
    except OSError as error:
        raise Refused(f"{path} cannot be read ({error}).") from error
    if not rows:
        raise Refused(f"{path} has no rows, expected a table of experiments/results.")
    return rows


def points(rows: Rows, x: str, y: str, above: str | None = None) -> Points:
    """Averages over the rows that have an x in common; `above`: a column less which."""
    found: dict[float, list[float]] = {}
    for row in rows:
        value = float(row[y]) - (float(row[above]) if above else 0.0)
        found.setdefault(float(row[x]), []).append(value)
    xs = sorted(found)
    return Points(
        np.array(xs),
        np.array([np.mean(found[v]) for v in xs]),
        np.array([np.std(found[v], ddof=1) if len(found[v]) > 1 else 0 for v in xs]),
    )


def seeds(rows: Rows) -> str:
    """Tells of how many seeds the rows are.

    >>> seeds([{"seed": "0"}, {"seed": "1"}, {"seed": "1"}])
    '2 seeds'
    """
    count = len({row["seed"] for row in rows})
    return f"{count} seed{'s' if count != 1 else ''}"
