"""Several networks judged together: differences are averaged for each example first.

    python -m experiments.sensitivity.pool FOLDER FOLDER ... --out pooled.csv

reads the losses that `python -m experiments.sensitivity` kept in its folders, of
networks that were trained apart and judged on the same examples. The standard error is
then one over examples, which the networks have in common.
"""

import sys

from experiments.start import start


if __name__ == "__main__":  # before the imports, which take seconds
    sys.exit(start("experiments.sensitivity.pool"))

import csv
import sys
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from experiments.config import Refused
from experiments.sensitivity import tables
from experiments.sensitivity.measure import paired


def pool(folders: tyro.conf.Positional[list[Path]], out: Path) -> None:
    """Averages over networks, and writes a row for each way at each compression.

    Args:
      folders: of finished runs of one network, judged on the same examples.
      out: CSV to write.
    """
    if not folders:
        raise Refused("no folder is given, expected those of finished runs.")
    heads = [_rows(folder) for folder in folders]
    common = [key for key in heads[0] if all(key in head for head in heads)]
    subjects = {(r["network"], r["judged_on"]) for head in heads for r in head.values()}
    if len(subjects) != 1:
        raise Refused(f"the folders are of {sorted(subjects)}, expected one of these.")
    ((network, judged_on),) = subjects
    rows = []
    for compression, way in common:
        losses = _mean(folders, f"{compression}-{way}", "losses")
        row: dict[str, Any] = {
            "network": network,
            "judged_on": judged_on,
            "networks": len(folders),
            "way": way,
            "compression": compression,
            "cross_entropy": f"{losses.mean():.6f}",
            "error_percent": (
                f"{100 * _mean(folders, f'{compression}-{way}', 'wrong').mean():.3f}"
            ),
            "above_solved": "",
            "standard_error": "",
            "ratio": "",
        }
        if way not in ("before", "solved"):
            gain = paired(losses, _mean(folders, f"{compression}-solved", "losses"))
            row |= tables.of_difference(gain)
        rows.append(row)
    tables.write(out, rows)
    for row in rows:
        print(*row.values(), sep="  ")


def _rows(folder: Path) -> dict[tuple[str, str], dict[str, str]]:
    path = folder / "judged.csv"
    try:
        with path.open(newline="") as file:
            return {(r["compression"], r["way"]): r for r in csv.DictReader(file)}
    except (OSError, KeyError) as error:
        raise Refused(f"{path} cannot be read ({error!r}).") from error


def _mean(folders: list[Path], name: str, what: str) -> np.ndarray:
    """Gives the mean over networks for each example."""
    kept = []
    for folder in folders:
        with np.load(folder / f"judged-{name}.npz") as arrays:
            kept.append(arrays[what].astype(np.float64))
    return np.mean(kept, axis=0)


def main(args: list[str] | None = None) -> int:
    """Runs the command line; gives the exit code."""
    prog = "python -m experiments.sensitivity.pool"
    try:
        tyro.cli(pool, prog=prog, description=__doc__, args=args)
    except Refused as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0
