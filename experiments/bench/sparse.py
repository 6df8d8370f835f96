"""Forward passes without dead weights, beside dense ones and beside other libraries.

    python -m experiments.bench.sparse
    python -m experiments.bench.sparse --networks vgg16-fc --batches 1 --add
    python -m experiments.bench.sparse --networks alexnet vgg16 --batches 1 --add

Each layer and the whole of the paper's networks, pruned at random to its densities
(tables 2 to 5), are run dense by XLA, sparse by `jaxprune.sparse` in float32 and int8,
as `sparsify` chooses, and by SciPy, PyTorch, ONNX Runtime and LiteRT where they are
installed. All sides of a case are timed in turn in one process, short calls after five
of the same untimed, and the ratio to dense XLA is the median over the pairs. Threads
are settings of a process, so every network and every number of threads has a process of
its own.

Bytes are those of weights and biases as they are kept to be run, for LiteRT those of
its file; int8 rounds, and its error stands in the column of the difference. A layer
that is chosen to be sparse has to keep 0.95 of the dense speed at least, which the last
lines tell.
"""

import sys

from experiments.start import start


if __name__ == "__main__":  # before the imports, which take seconds
    sys.exit(start("experiments.bench.sparse"))

import csv
import json
import os
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich import box
from rich.console import Console
from rich.table import Table

from experiments.bench._common import usable_cores, write_csv
from experiments.bench._sparse_measure import CHOSEN, DENSE, SIDES
from experiments.bench._sparse_nets import NETWORKS
from experiments.config import Refused


Key = Literal["lenet300", "lenet5", "alexnet-fc", "vgg16-fc", "alexnet", "vgg16"]
KEYS = ("network", "batch", "threads")  # of rows that are measured together


@dataclass(frozen=True)
class Settings:
    """Flags of the benchmark."""

    networks: tuple[Key, ...] = ("lenet300", "lenet5", "alexnet-fc", "vgg16-fc")
    """Networks, "fc" for the dense layers alone."""
    batches: tuple[int, ...] = (1, 16, 64)
    """Images at a time."""
    threads: tuple[int, ...] = (1, 2)
    """Threads that every library may use; at most the cores of this process."""
    sides: tuple[str, ...] = SIDES
    """What is timed; dense XLA always is."""
    pairs: int = 21
    """Timed calls of each side, at the least."""
    seconds: float = 0.5
    """What a layer with one batch may take where more calls fit into it."""
    add: bool = False
    """Keep the rows of the CSV that are not measured anew."""
    out: Annotated[Path, tyro.conf.arg(metavar="FILE")] = Path(
        "experiments/results/bench_sparse.csv"
    )
    """The CSV to write; after every process."""


def check(settings: Settings) -> None:
    """Checks the flags.

    Raises:
      Refused: naming the flag, its value and what was expected.
    """
    if settings.pairs < 1:
        raise Refused(f"--pairs is {settings.pairs}, expected 1 or more.")
    if not settings.seconds >= 0:
        raise Refused(f"--seconds is {settings.seconds}, expected 0 or more.")
    for flag in ("networks", "batches", "threads"):
        if not getattr(settings, flag):
            raise Refused(f"--{flag} is empty, expected one or more.")
    if min(settings.batches) < 1:
        raise Refused(f"--batches is {settings.batches}, expected 1 or more.")
    cores = usable_cores()
    if not 1 <= min(settings.threads) <= max(settings.threads) <= cores:
        raise Refused(
            f"--threads is {settings.threads}, expected numbers from 1 to {cores}, the "
            "cores that this process may use."
        )
    if unknown := [side for side in settings.sides if side not in SIDES]:
        names = ", ".join(map(repr, SIDES))
        raise Refused(f"--sides has {unknown[0]!r}, expected some of {names}.")


def kept(settings: Settings) -> list[dict[str, Any]]:
    """Reads the rows that stay: of other networks, batches or threads.

    Raises:
      Refused: if the file cannot be read.
    """
    if not settings.add or not settings.out.exists():
        return []
    try:
        with settings.out.open(newline="") as file:
            rows = list(csv.DictReader(file))
        anew = {
            (NETWORKS[n][0], str(b), str(t))
            for n in settings.networks
            for b in settings.batches
            for t in settings.threads
        }
        return [row for row in rows if tuple(row[key] for key in KEYS) not in anew]
    except (OSError, ValueError, KeyError) as error:
        raise Refused(f"{settings.out} is no file of this program: {error!r}") from None


def process(
    settings: Settings, network: str, threads: int
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Measures one network with one number of threads, in a process of its own.

    Raises:
      Refused: if that process fails; it has told why.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if threads == 1:
        flags += " --xla_cpu_multi_thread_eigen=false"
    told = {
        "network": network,
        "batches": settings.batches,
        "threads": threads,
        "pairs": settings.pairs,
        "seconds": settings.seconds,
        "sides": [side for side in SIDES if side in (DENSE, *settings.sides)],
    }
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "rows.csv"
        module = "experiments.bench._sparse_measure"
        done = subprocess.run(
            [sys.executable, "-m", module, json.dumps(told), str(out)],
            env=os.environ | {"XLA_FLAGS": flags, "OMP_NUM_THREADS": str(threads)},
            stdout=subprocess.PIPE,
            text=True,
        )
        if done.returncode:
            raise Refused(
                f"measuring {network} with --threads {threads} ended with exit code "
                f"{done.returncode}; what was measured before is in {settings.out}."
            )
        with out.open(newline="") as file:
            rows = list(csv.DictReader(file))
    return rows, json.loads(done.stdout.splitlines()[-1])


def tables(rows: list[dict[str, Any]]) -> list[Table]:
    """Makes the tables that are printed, for each network and number of threads."""
    groups: dict[tuple[str, str], dict[tuple[str, str], dict[str, Any]]] = {}
    for row in rows:
        cases = groups.setdefault((row["network"], row["threads"]), {})
        cases.setdefault((row["layer"], row["batch"]), {})[row["side"]] = row
    made = []
    for (network, threads), cases in groups.items():
        names = [n for n in SIDES if any(n in case for case in cases.values())]
        table = Table(
            title=f"{network}, threads: {threads}; times as fast as dense XLA",
            caption=f"{rows[0]['cpu']}, jax {rows[0]['jax']}",
            box=box.SIMPLE_HEAD,
            padding=(0, 1, 0, 0),
            show_edge=False,
        )
        table.add_column("layer")
        for column in ("batch", f"{DENSE}, ms", *names[1:]):
            table.add_column(column.replace(" ", "\n"), justify="right")
        for key, case in cases.items():
            told = [f"{float(case[n]['times_as_fast']):.2f}" if n in case else ""
                    for n in names[1:]]  # fmt: skip
            table.add_row(*key, f"{float(case[DENSE]['median_ms']):.3g}", *told)
        made.append(table)
    return made


def verdict(rows: list[dict[str, Any]]) -> str:
    """Tells whether every layer that `sparsify` chooses keeps up.

    One that stays dense is the dense program itself, timed beside itself.
    """
    chosen = [r for r in rows if r["side"] == CHOSEN and r["layer"] != "whole"]
    layers = [r for r in chosen if r["form"] != "dense"]
    behind = [
        f"{r['network']} {r['layer']} ({r['form']}) at batch {r['batch']}, threads: "
        f"{r['threads']}: {r['times_as_fast']}"
        for r in layers
        if r["keeps_up"] != "true"
    ]
    said = f"{len(layers) - len(behind)} of {len(layers)} layers that are run sparse "
    said += "have 0.95 of the dense speed or more; "
    said += f"{len(chosen) - len(layers)} stay dense."
    return "\n".join([said, *behind])


def run(settings: Settings, console: Console) -> None:
    """Measures, writes after every process, prints.

    Raises:
      Refused: as `check`, `kept` and `process`.
    """
    check(settings)
    rows, missing = kept(settings), {}
    for network in settings.networks:
        for threads in settings.threads:
            console.print(f"{NETWORKS[network][0]}, threads: {threads}")
            more, without = process(settings, network, threads)
            if rows and list(rows[0]) != list(more[0]):
                raise Refused(
                    f"{settings.out} has other columns; leave --add out, or give "
                    "another --out."
                )
            rows, missing = rows + more, missing | without
            write_csv(settings.out, rows)
    for table in tables(rows):
        console.print(table)
    reasons: dict[str, list[str]] = {}
    for name, reason in missing.items():
        reasons.setdefault(reason, []).append(name)
    for reason, names in reasons.items():
        console.print(f"Left out: {'; '.join(names)}: {reason}", highlight=False)
    console.print(verdict(rows), highlight=False)
    console.print(f"Written to {settings.out}")


def main(args: list[str] | None = None) -> int:
    """Runs the benchmark from the command line; gives the exit code."""
    settings = tyro.cli(
        Settings,
        prog="python -m experiments.bench.sparse",
        description=__doc__,
        args=args,
    )
    try:
        # Tables are 86 columns wide; a file takes them whole.
        run(settings, Console(width=None if sys.stdout.isatty() else 100))
    except Refused as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0
