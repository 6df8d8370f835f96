"""Times the choice of a mask, 90% by magnitude, beside sorting and partitioning.

    python -m experiments.bench.select

Trees of normal weights with the layer shapes of LeNet-5, AlexNet and VGG-16; biases
are not pruned and left out. One run, all methods in turn. The floor is a jitted
function that reads each weight once and writes one byte: nothing that makes a mask
can be faster. jaxprune and the floor are whole jitted calls, dispatch included; NumPy
and PyTorch work on host arrays that are there beforehand. The masks are compared
beforehand, which warms each method up (the full sort of the larger trees is called
once in all): they must agree with np.partition's, or the run stops.

Memory is bytes a weight, mask included, beyond the weights and the mask there was.
Of compiled functions it is XLA's own account, temporaries and output; of the others
the rise of the process's peak resident memory during one call (Linux; else blank).
"""

import sys

from experiments.start import start


if __name__ == "__main__":  # before the imports, which take seconds
    sys.exit(start("experiments.bench.select"))

import importlib
import importlib.util
import math
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

import jaxprune
from experiments.bench._common import hardware, write_csv
from experiments.bench._cuts import (
    SPARSITY,
    floor,
    full_sort,
    np_partition,
    torch_kthvalue,
)
from experiments.bench._memory import compiled_bytes, peak_rise


SHAPES: dict[str, list[tuple[int, ...]]] = {
    "lenet5": [(5, 5, 1, 20), (5, 5, 20, 50), (800, 500), (500, 10)],
    "alexnet": [
        (11, 11, 3, 96), (5, 5, 48, 256), (3, 3, 256, 384), (3, 3, 192, 384),
        (3, 3, 192, 256), (9216, 4096), (4096, 4096), (4096, 1000),
    ],
    "vgg16": [
        (3, 3, 3, 64), (3, 3, 64, 64), (3, 3, 64, 128), (3, 3, 128, 128),
        (3, 3, 128, 256), (3, 3, 256, 256), (3, 3, 256, 256), (3, 3, 256, 512),
        *[(3, 3, 512, 512)] * 5, (25088, 4096), (4096, 4096), (4096, 1000),
    ],
}  # fmt: skip
Size = Literal["lenet5", "alexnet", "vgg16"]
SCOPES: tuple[Literal["leaf"], Literal["global"]] = ("leaf", "global")


@dataclass(frozen=True)
class Settings:
    """Flags of the benchmark."""

    sizes: tuple[Size, ...] = ("lenet5", "alexnet", "vgg16")
    """Trees to time."""
    repeats: int = 7
    """Timed calls of each method; twenty times as many for lenet5, one for a full sort
    of the larger trees, and at most two for NumPy and PyTorch there."""
    sort: bool = True
    """Time the full sort too: minutes at the larger sizes."""
    out: Annotated[Path, tyro.conf.arg(metavar="FILE")] = Path(
        "experiments/results/bench_select.csv"
    )
    """The CSV to write."""


@dataclass
class Method:
    """One row: what is called, how often, and what it costs."""

    scope: str
    name: str
    call: Callable[[], Any]
    repeats: int
    memory: float | None
    seconds: list[float]


def methods(size: str, settings: Settings, console: Console) -> list[Method]:
    """Makes what is timed on one tree, compiled, warm, and checked for agreement."""
    rng = np.random.default_rng(0)
    host = [
        rng.standard_normal(shape, dtype=np.float32)
        * np.float32(math.sqrt(2 / math.prod(shape[:-1])))
        for shape in SHAPES[size]
    ]
    params = [jnp.asarray(w) for w in host]
    mask, step = jaxprune.dense_mask(params), jnp.int32(0)
    small = size == "lenet5"
    often = settings.repeats * (20 if small else 1)
    fewer = often if small else min(2, often)
    each, together = [[i] for i in range(len(host))], [list(range(len(host)))]
    made: list[Method] = []

    def add_jitted(scope: str, name: str, jitted: Any, *args: Any) -> Any:
        need = compiled_bytes(jitted.lower(*args).compile())
        call = lambda: jax.block_until_ready(jitted(*args))
        made.append(Method(scope, name, call, often, need, []))
        return call()

    def add_host(scope: str, name: str, call: Callable[[], Any]) -> Any:
        result, need = peak_rise(call)
        # In small calls the allocator reuses what it has.
        made.append(Method(scope, name, call, fewer, None if small else need, []))
        return result

    console.print(f"{size}: compiling, and comparing the masks")
    add_jitted("-", "floor", jax.jit(floor), params)
    torch = None
    if importlib.util.find_spec("torch"):
        # Else its threads spin after a call, on the cores that the next method needs.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        torch = importlib.import_module("torch")
    for scope, groups in zip(SCOPES, (each, together), strict=True):
        call = lambda groups=groups: np_partition(host, groups)
        expected = add_host(scope, "np.partition", call)
        schedule = jaxprune.to_sparsity(jaxprune.magnitude, SPARSITY, scope=scope)
        got = add_jitted(scope, "jaxprune", jax.jit(schedule), params, mask, step)
        _agree(got, expected, f"jaxprune, {size}, {scope}")
        if torch is not None:
            tensors = [torch.from_numpy(w) for w in host]
            call = lambda g=groups, t=tensors: torch_kthvalue(torch, t, g)
            got = add_host(scope, "torch.kthvalue", call)
            _agree(got, expected, f"torch.kthvalue, {size}, {scope}")
        if settings.sort:
            sort = lambda weights, groups=groups: full_sort(weights, groups)
            run = jax.jit(sort).lower(params).compile()
            call = lambda run=run: jax.block_until_ready(run(params))
            repeats = often if small else 1
            method = Method(scope, "full sort", call, repeats, compiled_bytes(run), [])
            made.append(method)
            if small:
                _agree(call(), expected, f"full sort, {size}, {scope}")
    return made


def _agree(got: Any, expected: list, what: str) -> None:
    for a, b in zip(got, expected, strict=True):
        if not np.array_equal(np.asarray(a), b):
            raise RuntimeError(f"{what}: the mask is not that of np.partition.")


def run(made: list[Method], *, warm: bool) -> None:
    """Calls the methods in turn, every second round in reverse order.

    With `warm`, an untimed call of the same method comes before each timed one, so
    that a small tree is in the cache whoever went before.
    """
    for turn in range(max(m.repeats for m in made)):
        for method in made[:: 1 if turn % 2 == 0 else -1]:
            if turn < method.repeats:
                if warm:
                    method.call()
                start = time.perf_counter()
                method.call()
                method.seconds.append(time.perf_counter() - start)


def rows_of(size: str, made: list[Method]) -> list[dict[str, Any]]:
    """Gives a row for each method: medians, ratios to the floor, memory."""
    weights = sum(math.prod(shape) for shape in SHAPES[size])
    base = statistics.median(made[0].seconds)
    return [
        {
            "tree": size,
            "weights": weights,
            "scope": m.scope,
            "method": m.name,
            "median_ms": f"{statistics.median(m.seconds) * 1e3:.3f}",
            "min_ms": f"{min(m.seconds) * 1e3:.3f}",
            "times_floor": f"{statistics.median(m.seconds) / base:.2f}",
            "bytes_per_weight": "" if m.memory is None else f"{m.memory / weights:.2f}",
            "calls": len(m.seconds),
        }
        for m in made
    ]


def check(settings: Settings) -> None:
    """Checks the flags.

    Raises:
      ValueError: naming the flag, its value and what was expected.
    """
    if not settings.sizes:
        raise ValueError(
            f"--sizes names no tree, expected some of {', '.join(SHAPES)}."
        )
    if settings.repeats < 1:
        raise ValueError(f"--repeats is {settings.repeats}, expected 1 or more.")


def measure(settings: Settings, console: Console) -> None:
    """Runs the benchmark, prints the table and writes the CSV."""
    machine = hardware()
    rows = []
    for size in settings.sizes:
        made = methods(size, settings, console)
        run(made, warm=size == "lenet5")
        rows += rows_of(size, made)
        write_csv(settings.out, [row | machine for row in rows])
    title = f"Mask to {SPARSITY:.0%} sparsity by magnitude"
    caption = ", ".join(f"{k} {v}" for k, v in machine.items())
    table = Table(title=title, caption=caption)
    names = {
        "tree": "tree", "scope": "scope", "method": "method", "median_ms": "ms",
        "times_floor": "x floor", "bytes_per_weight": "bytes/weight", "calls": "calls",
    }  # fmt: skip
    for key, name in names.items():
        text = key in ("tree", "scope", "method")
        table.add_column(name, justify="left" if text else "right", no_wrap=True)
    for row in rows:
        table.add_row(*[str(row[key]) for key in names])
    console.print(table)
    console.print(f"Written to {settings.out}")


def main(args: list[str] | None = None) -> int:
    """Runs the benchmark from the command line; gives the exit code."""
    settings = tyro.cli(
        Settings,
        prog="python -m experiments.bench.select",
        description=__doc__,
        args=args,
    )
    try:
        check(settings)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    measure(settings, Console())
    return 0
