"""Times LeNet-5's dense training step beside the same step in PyTorch.

    python -m experiments.bench.lenet5_step

Both frameworks run in one process, in turn, on the same random images: forward,
backward, SGD with momentum, float32. The JAX step is compiled whole, with params and
optimizer state donated; PyTorch runs eagerly, in both memory layouts, and the faster
one counts. Images are on the device beforehand, in the layout the network takes.
Run it on a machine that does nothing else: both spread a step over all the threads, so
one busy core shows in either.

PyTorch is no dependency of this project. Without it the JAX step alone is timed.
"""

import sys

from experiments.start import start


if __name__ == "__main__":  # before the imports, which take seconds
    sys.exit(start("experiments.bench.lenet5_step"))

import importlib
import os
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from rich.console import Console
from rich.table import Table

from experiments.bench._common import hardware, interleave, usable_cores, write_csv
from experiments.models import LENET5


STEPS = 5  # in one timed call, so that reading the clock costs nothing
RATE, MOMENTUM = 0.01, 0.9


@dataclass(frozen=True)
class Settings:
    """Flags of the benchmark."""

    batch: int = 100
    """Images in a step."""
    pairs: int = 31
    """Timed calls of each side, five steps each."""
    threads: int = 2
    """CPU threads of either framework; at most the cores this process may use."""
    out: Annotated[Path, tyro.conf.arg(metavar="FILE")] = Path(
        "experiments/results/bench_lenet5_step.csv"
    )
    """The CSV to write."""


def jax_steps(images: np.ndarray, labels: np.ndarray) -> Callable[[], float]:
    """Makes the function that trains five steps in JAX and returns the loss."""
    tx = optax.sgd(RATE, MOMENTUM)
    x, y = jnp.asarray(images), jnp.asarray(labels, jnp.int32)
    params = LENET5.module.init(jax.random.key(0), x)["params"]
    state = [params, tx.init(params)]

    def loss_of(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        logits: Any = LENET5.module.apply({"params": params}, x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    def step(params: Any, opt_state: Any, x: jax.Array, y: jax.Array) -> Any:
        loss, grads = jax.value_and_grad(loss_of)(params, x, y)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    compiled = jax.jit(step, donate_argnums=(0, 1))

    def run() -> float:
        loss = jnp.nan
        for _ in range(STEPS):
            state[0], state[1], loss = compiled(*state, x, y)
        jax.block_until_ready(state)
        return float(loss)

    return run


def torch_steps(
    images: np.ndarray, labels: np.ndarray, layout: str
) -> Callable[[], float]:
    """Makes the function that trains five steps in PyTorch and returns the loss."""
    torch: Any = importlib.import_module("torch")  # no dependency, so not typed
    nn = torch.nn
    channels_last = layout == "channels_last"
    memory = torch.channels_last if channels_last else torch.contiguous_format
    model = nn.Sequential(
        nn.Conv2d(1, 20, 5), nn.MaxPool2d(2), nn.Conv2d(20, 50, 5), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(800, 500), nn.ReLU(), nn.Linear(500, 10),
    ).to(memory_format=memory)  # fmt: skip
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=MOMENTUM)
    x = torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).to(memory_format=memory)
    y = torch.from_numpy(labels)

    def run() -> float:
        loss: Any = None
        for _ in range(STEPS):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
        return loss.item()

    return run


def measure(settings: Settings) -> list[dict[str, Any]]:
    """Times every side and returns one row for each, the fastest PyTorch as 1.

    Raises:
      ValueError: if there are fewer cores than `threads`, or a count is not positive.
    """
    for name in ("batch", "pairs", "threads"):
        if getattr(settings, name) < 1:
            raise ValueError(
                f"--{name} is {getattr(settings, name)}, expected 1 or more."
            )
    if settings.threads > usable_cores():
        raise ValueError(
            f"--threads is {settings.threads}, but this process may use "
            f"{usable_cores()} cores: give at most as many."
        )
    if hasattr(os, "sched_setaffinity"):
        # XLA makes one thread for every core it finds, when it is first used.
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: settings.threads])
    draw = np.random.default_rng(0)
    images = draw.random((settings.batch, 28, 28, 1), dtype=np.float32)
    labels = draw.integers(0, 10, settings.batch)

    sides = {"jax": jax_steps(images, labels)}
    versions = hardware() | {"torch": ""}
    try:
        torch: Any = importlib.import_module("torch")
    except ImportError:
        Console(stderr=True).print(
            "PyTorch is not installed, so only JAX is timed: pip install torch."
        )
    else:
        torch.set_num_threads(settings.threads)
        versions["torch"] = torch.__version__
        for layout in ("contiguous", "channels_last"):
            sides[f"torch {layout}"] = torch_steps(images, labels, layout)

    times = interleave(sides, settings.pairs)
    medians = {n: 1e3 * statistics.median(t) / STEPS for n, t in times.items()}
    base = min((m for n, m in medians.items() if n != "jax"), default=None)
    return [
        {
            "side": name,
            "batch": settings.batch,
            "threads": settings.threads,
            "calls": settings.pairs,
            "median_ms": round(medians[name], 3),
            "fastest_ms": round(1e3 * min(times[name]) / STEPS, 3),
            "over_torch": round(medians[name] / base, 3) if base else "",
            **versions,
        }
        for name in sides
    ]


def show(rows: list[dict[str, Any]]) -> Table:
    """Makes the table that is printed."""
    first = rows[0]
    table = Table(
        title=f"LeNet-5, one training step, batch {first['batch']}",
        caption=f"{first['cpu']}, {first['threads']} threads; jax {first['jax']}, "
        f"torch {first['torch'] or 'not installed'}",
    )
    table.add_column("side")
    for column in ("median ms", "fastest ms", "over torch"):
        table.add_column(column, justify="right")
    for row in rows:
        keys = ("side", "median_ms", "fastest_ms", "over_torch")
        table.add_row(*(str(row[key]) for key in keys))
    return table


def main(args: list[str] | None = None) -> int:
    """Runs the benchmark from the command line."""
    settings = tyro.cli(
        Settings,
        prog="python -m experiments.bench.lenet5_step",
        description=__doc__,
        args=args,
    )
    try:
        rows = measure(settings)
    except ValueError as error:
        Console(stderr=True).print(str(error))
        return 2
    Console().print(show(rows))
    write_csv(settings.out, rows)
    Console().print(f"Written to {settings.out}")
    return 0
