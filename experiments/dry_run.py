"""What a run would be, without running it: data, memory, steps, time."""

import shutil
import statistics
import time
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.table import Table

import jaxprune
import jaxprune.report
from experiments.config import Refused, Settings
from experiments.layout import Layout
from experiments.models import Network
from experiments.program import make_program
from experiments.recipes import Plan
from experiments.rounds import layers
from experiments.tasks import Feed, Task


STEPS = 5  # timed, after one that is not
SKIPPED, BATCHES = 4, 8  # batches not timed, and timed, at the least


def show_dry_run(
    config: Settings,
    network: Network,
    plan: Plan,
    task: Task,
    layout: Layout,
    *,
    accumulate: int = 1,
    params: Any = None,
    console: Console | None = None,
) -> dict[str, float]:
    """Prints what a run would be; writes no file.

    Returns:
      What was measured: `device_bytes`, the most that the step needs on a device,
      `disk_bytes`, the most that the run folder needs, `step_seconds`, `batch_seconds`
      for the data, `seconds` for the whole run.

    Raises:
      Refused: if the data cannot be read.
    """
    console = console or Console()
    feed = task.feed
    program = make_program(config, network, plan, feed, layout, accumulate, params)
    state = program.begin(params)
    mask = jaxprune.get_mask(state.opt_state)
    shapes = jax.tree.map(
        lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype), state.params
    )
    x = jax.ShapeDtypeStruct((1, *network.input), "float32")
    apply = lambda params, x: network.module.apply({"params": params}, x)
    counts = jaxprune.report.count(apply, shapes, None, x)
    console.print(layers(network, counts, "before pruning"))
    console.print(jaxprune.describe(state.params, mask), soft_wrap=True)

    batch, batch_seconds = time_batches(feed)
    step = program.one.lower(state, batch).compile()
    memory = step.memory_analysis()
    times = []
    feed.close()
    for _ in range(1 + STEPS):
        began = time.perf_counter()
        state, tick = step(state, batch)
        jax.block_until_ready(tick)
        times.append(time.perf_counter() - began)
    step_seconds = statistics.median(times[1:])
    device_bytes = (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
    )
    seconds = plan.steps * max(step_seconds, batch_seconds)
    # Weights dense, after each round and at the end; two checkpoints and the next.
    files = (2 + len(plan.ends)) * _bytes(state.params)
    disk_bytes = files + 3 * _bytes(state)

    table = Table(title="The run", title_justify="left", show_header=False)
    table.add_column("")
    table.add_column("", justify="right")
    kind = jax.devices()[0].device_kind
    table.add_row("devices", f"{dict(layout.mesh.shape)} of {kind}")
    table.add_row("memory for a step, each device", f"{device_bytes / 2**30:.2f} GiB")
    free = f"{_free(config.run.out or Path()) / 2**30:.1f} GiB free"
    table.add_row(
        "on disk, at most, each seed", f"{disk_bytes / 2**30:.1f} GiB, {free}"
    )
    table.add_row("images trained on", task.trained_on)
    table.add_row("images judged on", task.judged_on)
    table.add_row("steps in an epoch", f"{feed.steps_per_epoch:,}")
    ends = list(plan.ends.items())
    for (end, name), before in zip(ends, [0, *[e for e, _ in ends]], strict=False):
        table.add_row(f"steps, {name}", f"{end - before:,}")
    table.add_row("steps, all", f"{plan.steps:,}")
    rate = config.training.batch / step_seconds
    table.add_row("a step", f"{step_seconds:.4g} s, {rate:.4g} images/s")
    table.add_row(
        "a batch from the data", f"{batch_seconds:.4g} s, this process's part of it"
    )
    table.add_row("the whole run, without judging", _duration(seconds))
    console.print(table)
    if batch_seconds > step_seconds:
        console.print(
            "The data is slower than the device: more cores would help, or, of many, "
            "--workers, one for each 8.",
            soft_wrap=True,
        )
    return {
        "device_bytes": device_bytes,
        "disk_bytes": disk_bytes,
        "step_seconds": step_seconds,
        "batch_seconds": batch_seconds,
        "seconds": seconds,
    }


def time_batches(feed: Feed) -> tuple[Any, float]:
    """Gives the last of a few batches, and the seconds that one takes.

    Batches come in waves, of as many as are made at once. Those of the first wave come
    after a start, and all but one of them lie ready; so whole waves after it are timed.

    Raises:
      Refused: if the data ends.
    """
    skipped, timed = max(SKIPPED, 2 * feed.at_once), max(BATCHES, 4 * feed.at_once)
    began, batch = 0.0, None
    try:
        for step in range(skipped + timed):
            batch = jax.block_until_ready(feed.arrays(step))
            if step == skipped - 1:
                began = time.perf_counter()
    except StopIteration as error:
        raise Refused("the data ended while it was timed.") from error
    return batch, (time.perf_counter() - began) / timed


def _bytes(tree: Any) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


def _free(folder: Path) -> int:
    """Gives the bytes that are free where a folder is, or will be."""
    folder = folder.absolute()
    there = next(path for path in (folder, *folder.parents) if path.exists())
    return shutil.disk_usage(there).free


def _duration(seconds: float) -> str:
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.1f} seconds"
