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


def seeds(rows: Rows, *point: str) -> str:
    """Tells of how many seeds the rows are; `point`: columns that name a point.

    >>> rows = [{"seed": s, "x": x} for s, x in ("02", "12", "04")]
    >>> seeds(rows), seeds(rows, "x")
    ('2 seeds', '1 to 2 seeds')
    """
    found: dict[tuple[str, ...], set[str]] = {}
    for row in rows:
        found.setdefault(tuple(row[name] for name in point), set()).add(row["seed"])
    least, most = (f([len(of) for of in found.values()]) for f in (min, max))
    text = f"{most} seed{'s' if most != 1 else ''}"
    return text if least == most else f"{least} to {text}"
