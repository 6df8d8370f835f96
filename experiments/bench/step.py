"""What pruning adds to a training step: time and memory, beside the dense step.

    python -m experiments.bench.step

Each pruned step is timed in turn with the dense one and the ratio of the pairs is
taken, in steady state: the schedule prunes every 100 steps, and the steps on which it
does are timed apart. Where its params happen to lie in memory makes a step faster or
slower by some percent, so both sides make their params and state anew several times,
and the ratio is the median over these of the median of the pairs. Memory is what the
compiled step says of itself, with params and state donated in both: temporary bytes a
weight more than the dense step.

On Linux, glibc gives the temporaries of a large step back to the system and maps them
anew in the next, page by page; what the faults cost varies by more than is measured.
With this before the command it keeps them, in huge pages:

    GLIBC_TUNABLES=glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=8589934592:\
glibc.malloc.trim_threshold=17179869184:glibc.malloc.arena_max=1
"""

import sys

from experiments.start import start


if __name__ == "__main__":  # before the imports, which take seconds
    sys.exit(start("experiments.bench.step"))

import dataclasses
import itertools
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
import tyro
from rich.console import Console
from rich.table import Table

import jaxprune
from experiments.bench._common import hardware, write_csv


PERIOD = 100
MAKES = 10  # times that the params and the state are made anew
WARM = 2  # pairs left out each time, at the start
FEWEST = MAKES * (WARM + 3)  # pairs that leave two: the first is of a pruning step

# Units of each layer, the input first, and digits or images a step. Caffe trains
# AlexNet on 256 at a time.
STACKS = {
    "LeNet-300-100": ((784, 300, 100, 10), (64,)),
    "AlexNet fc": ((9216, 4096, 4096, 1000), (64, 256)),
}


@dataclasses.dataclass(frozen=True)
class Options:
    """Flags."""

    #: Stacks to run: names, or parts of them.
    stacks: tuple[str, ...] = ("LeNet", "AlexNet")
    #: Pairs of steps timed; a large stack gets a tenth of them.
    pairs: int = 2000
    #: Where the CSV goes.
    out: Path = Path("experiments/results/bench_step.csv")


def schedules() -> dict[str, jaxprune.MaskSchedule]:
    """Gives the schedules compared, each run every `PERIOD` steps."""
    sparsity = optax.polynomial_schedule(0.0, 0.9, 3, 10 * PERIOD)
    to = jaxprune.to_sparsity
    cuts = {
        "magnitude, leaf": to(jaxprune.magnitude, sparsity),
        "magnitude, global": to(jaxprune.magnitude, sparsity, scope="global"),
        "saliency, leaf": to(jaxprune.saliency, sparsity),
        "by_std": jaxprune.by_std(0.5),
    }
    return {name: jaxprune.every(PERIOD, cut) for name, cut in cuts.items()}


def make_step(tx: optax.GradientTransformation, layers: int) -> Any:
    """Makes the jitted step of a stack of dense layers, params and state donated."""

    def loss(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        for i in range(layers):
            x = x @ params[f"fc{i}"]["kernel"] + params[f"fc{i}"]["bias"]
            x = jax.nn.relu(x) if i < layers - 1 else x
        return optax.softmax_cross_entropy_with_integer_labels(x, y).mean()

    def step(params: Any, state: Any, x: jax.Array, y: jax.Array) -> Any:
        grads = jax.grad(loss)(params, x, y)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return jax.jit(step, donate_argnums=(0, 1))


class Run:
    """A compiled step with its params and state."""

    def __init__(self, tx: optax.GradientTransformation, units: tuple[int, ...], x, y):
        """Compiles the step."""
        self.tx = tx
        self.units = units
        self.batch = (x, y)
        self.make()
        self.weights = sum(p.size for p in jax.tree.leaves(self.params))
        step = make_step(tx, len(units) - 1)
        self.step = step.lower(self.params, self.state, *self.batch).compile()
        self.temporary = self.step.memory_analysis().temp_size_in_bytes

    def make(self) -> None:
        """Makes the params and the state anew."""
        key = jax.random.key(0)
        self.params = {
            f"fc{i}": {
                "kernel": jax.random.normal(jax.random.fold_in(key, i), (m, n))
                / jnp.sqrt(m),
                "bias": jnp.zeros(n),
            }
            for i, (m, n) in enumerate(itertools.pairwise(self.units))
        }
        self.state = self.tx.init(self.params)

    def time(self) -> float:
        """Runs a step and gives its seconds."""
        start = time.perf_counter()
        self.params, self.state = self.step(self.params, self.state, *self.batch)
        jax.block_until_ready(self.params)
        return time.perf_counter() - start


class Times(NamedTuple):
    """Seconds.

    Attributes:
      steady: dense and pruned, of each pair in steady state.
      pruning: of the steps that pruned.
    """

    steady: list[tuple[float, float]]
    pruning: list[float]


def timed(dense: Run, pruned: Run, pairs: int) -> Times:
    """Times pairs of steps from params and a state made anew, the order in turn."""
    dense.make()
    pruned.make()
    times = Times([], [])
    for i in range(pairs):
        seconds = {run: run.time() for run in ((dense, pruned), (pruned, dense))[i % 2]}
        if i % PERIOD:
            times.steady.append((seconds[dense], seconds[pruned]))
        elif i or pairs <= PERIOD:  # the first of several also touches new memory
            times.pruning.append(seconds[pruned])
    return Times(times.steady[WARM:], times.pruning)


def measure(name: str, size: int, optimizer: str, pairs: int) -> list[dict[str, Any]]:
    """Times one stack, batch and optimizer, dense and with every schedule."""
    units, _ = STACKS[name]
    inner = {"sgd": optax.sgd(1e-3, momentum=0.9), "adam": optax.adam(1e-4)}[optimizer]
    x = jax.random.normal(jax.random.key(1), (size, units[0]))
    y = jax.random.randint(jax.random.key(2), (size,), 0, units[-1])
    rows = []
    for schedule_name, schedule in schedules().items():
        dense = Run(inner, units, x, y)
        pruned = Run(jaxprune.prune(inner, schedule), units, x, y)
        made = [timed(dense, pruned, pairs // MAKES) for _ in range(MAKES)]
        steady = [pair for one in made for pair in one.steady]
        ratios = [statistics.median(p / d for d, p in one.steady) for one in made]
        extra = (pruned.temporary - dense.temporary) / dense.weights
        rows.append(
            {
                "stack": name,
                "batch": size,
                "optimizer": optimizer,
                "schedule": schedule_name,
                "weights": dense.weights,
                "makes": MAKES,
                "pairs": len(steady),
                "dense_ms": 1e3 * statistics.median(d for d, _ in steady),
                "pruned_ms": 1e3 * statistics.median(p for _, p in steady),
                "ratio": statistics.median(ratios),
                "ratio_lowest": min(ratios),
                "ratio_highest": max(ratios),
                "pruning_step_ms": 1e3
                * statistics.median(p for one in made for p in one.pruning),
                "temp_bytes_per_weight_dense": dense.temporary / dense.weights,
                "temp_bytes_per_weight_more": extra,
                "glibc_tunables": os.environ.get("GLIBC_TUNABLES", ""),
            }
        )
    return rows


def check(options: Options) -> None:
    """Checks the flags.

    Raises:
      ValueError: naming the flag, its value and what was expected.
    """
    if not any(part in name for part in options.stacks for name in STACKS):
        names = ", ".join(map(repr, STACKS))
        raise ValueError(
            f"--stacks is {' '.join(options.stacks)!r}, expected parts of {names}."
        )
    if options.pairs < FEWEST:
        raise ValueError(f"--pairs is {options.pairs}, expected {FEWEST} or more.")


def run(options: Options) -> None:
    """Measures, prints a table, writes the CSV."""
    rows = []
    for name, (units, sizes) in STACKS.items():
        if any(part in name for part in options.stacks):
            large = sum(m * n for m, n in itertools.pairwise(units)) > 10**7
            pairs = max(options.pairs // 10, FEWEST) if large else options.pairs
            for size in sizes:
                for optimizer in ("sgd", "adam"):
                    rows += measure(name, size, optimizer, pairs)
    table = Table(title="A training step with pruning beside the dense one")
    for column in ("stack", "batch", "optimizer", "schedule"):
        table.add_column(column)
    for column in ("dense ms", "pruned ms", "ratio", "of makes", "pruning step ms"):
        table.add_column(column, justify="right")
    table.add_column("temporary bytes\na weight more", justify="right")
    for row in rows:
        table.add_row(
            row["stack"],
            str(row["batch"]),
            row["optimizer"],
            row["schedule"],
            f"{row['dense_ms']:.3f}",
            f"{row['pruned_ms']:.3f}",
            f"{row['ratio']:.3f}",
            f"{row['ratio_lowest']:.3f}-{row['ratio_highest']:.3f}",
            f"{row['pruning_step_ms']:.2f}",
            f"{row['temp_bytes_per_weight_more']:.2f}",
        )
    Console().print(table)
    write_csv(options.out, [row | hardware() for row in rows])


def main(args: list[str] | None = None) -> int:
    """Runs the benchmark from the command line; gives the exit code."""
    options = tyro.cli(
        Options,
        prog="python -m experiments.bench.step",
        description=__doc__,
        args=args,
    )
    try:
        check(options)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    run(options)
    return 0
