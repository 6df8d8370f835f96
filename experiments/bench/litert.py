"""The `.tflite` files of finished runs: bytes, and how long LiteRT takes for a digit.

    python -m experiments.bench.litert runs/lenet300 runs/lenet5

reads the pruned weights of every run folder and writes them as `.tflite` twice: dense,
every weight stored, and as `jaxprune.interop.write_litert` does it, dense layers sparse
where that should pay. Both are run on one thread, in turn with XLA's dense forward
pass, and their answers on the digits that the run was judged on are compared with it.
"""

import sys

from experiments.start import start


if __name__ == "__main__":  # before the imports, which take seconds
    sys.exit(start("experiments.bench.litert"))

import os
import statistics
import tempfile
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from experiments import data, page
from experiments.bench._common import hardware, interleave, write_csv
from experiments.bench._sparse_files import filled, litert_call
from experiments.config import Refused
from jaxprune import interop


XLA = "XLA dense"


@dataclass(frozen=True)
class Settings:
    """Flags of the command."""

    folders: tyro.conf.Positional[tuple[Path, ...]]
    """Folders of one seed each, with pruned.safetensors and result.json."""
    data_dir: Path | None = None
    """Folder of TFDS that holds the runs' data set, if it has moved."""
    calls: int = 1001
    """Timed calls of each side, of one digit."""
    out: Annotated[Path, tyro.conf.arg(metavar="FILE")] = Path(
        "experiments/results/bench_litert.csv"
    )
    """The CSV to write."""


def files_of(run: page.Finished) -> dict[str, bytes]:
    """Writes the two files of a run; gives their bytes."""
    stored = lambda leaf: filled(leaf) if leaf.ndim > 1 else leaf
    apply = lambda params, x: run.network.module.apply({"params": params}, x)
    ways = {
        "LiteRT dense": (jax.tree.map(stored, run.params), 0.0),
        "LiteRT sparse": (run.params, 0.1),
    }
    made = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.tflite"
        for name, (params, densest) in ways.items():
            shape = run.network.input
            interop.write_litert(path, apply, params, shape, densest=densest)
            made[name] = path.read_bytes()
    return made


def measure(settings: Settings, folder: Path) -> list[dict[str, Any]]:
    """Gives a row for each side of one run.

    Raises:
      Refused: if the folder holds no finished run, or its digits are not there.
    """
    load = round(os.getloadavg()[0], 2)
    run = page.read(folder, settings.data_dir)
    digits = data.load(run.data).judge
    x = digits.images.astype(np.float32) / np.float32(255)
    made = files_of(run)
    params = jax.device_put(run.params)
    forward = jax.jit(lambda p, x: run.network.module.apply({"params": p}, x))
    one = jax.device_put(x[:1])
    calls: dict[str, Any] = {XLA: lambda: jax.block_until_ready(forward(params, one))}
    dense = np.concatenate(
        [forward(params, x[i : i + 500]) for i in range(0, len(x), 500)]
    )
    outputs, sizes = {XLA: dense}, {XLA: sum(p.nbytes for p in jax.tree.leaves(params))}
    for name, file in made.items():
        calls[name], sizes[name] = litert_call(file, x[:1], 1), len(file)
        outputs[name] = np.array(litert_call(file, x, 1)())
    seconds = interleave(calls, settings.calls)
    about = {
        "network": run.network.name,
        "compression_weights": round(run.result["compression_weights"], 2),
    }
    versions = hardware() | {"ai-edge-litert": metadata.version("ai-edge-litert")}
    return [
        about
        | {
            "side": name,
            "threads": 1,
            "bytes": sizes[name],
            "error": round(100 * np.mean(y.argmax(-1) != digits.labels), 3),
            "other_class": int(np.sum(y.argmax(-1) != dense.argmax(-1))),
            "difference": f"{np.abs(y - dense).max() / np.abs(dense).max():.1e}",
            "median_us": round(1e6 * statistics.median(seconds[name]), 2),
            "fastest_us": round(1e6 * min(seconds[name]), 2),
            "calls": settings.calls,
            "load_before": load,
        }
        | versions
        for name, y in outputs.items()
    ]


def show(rows: list[dict[str, Any]]) -> Table:
    """Makes the table that is printed."""
    table = Table(title="One digit, one thread", caption=f"{rows[0]['cpu']}")
    keys = ("network", "compression_weights", "side", "bytes", "error", "other_class",
            "median_us", "fastest_us")  # fmt: skip
    for key in keys:
        text = key in ("network", "side")
        table.add_column(key.replace("_", " "), justify="left" if text else "right")
    for row in rows:
        table.add_row(*(str(row[key]) for key in keys))
    return table


def main(args: list[str] | None = None) -> int:
    """Runs the benchmark from the command line; gives the exit code."""
    settings = tyro.cli(
        Settings,
        prog="python -m experiments.bench.litert",
        description=__doc__,
        args=args,
    )
    try:
        if settings.calls < 1:
            raise Refused(f"--calls is {settings.calls}, expected 1 or more.")
        if not settings.folders:
            raise Refused("no folder of a finished run is given, expected one or more.")
        if hasattr(os, "sched_setaffinity"):  # XLA on one thread as well
            os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])
        rows = [row for folder in settings.folders for row in measure(settings, folder)]
    except (Refused, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    Console().print(show(rows))
    write_csv(settings.out, rows)
    Console().print(f"Written to {settings.out}")
    return 0
