"""Photographs a second: the transforms, beside plain decoders, and the whole pipeline.

    python -m experiments.bench.input --data-dir FOLDER

One thread transforms blocks of photographs that lie in memory, with this project's
transforms and with plain ones around PIL, OpenCV and simplejpeg, in turn; the pipeline
reads the files from disk, with threads, and hands batches to the device. It reads all
of them in its turn, so that the start of its threads, which a training run has once,
counts little, and is compared with the bare transform in as many threads: busy cores
share caches and memory, whatever they do. Rates are medians over the turns. Those per
core are of CPU time, in which other work on the machine counts little, those a second
of the clock on the wall.
"""

import sys

from experiments.start import start


if __name__ == "__main__":  # before the imports, which take seconds
    sys.exit(start("experiments.bench.input"))

import dataclasses
import itertools
import math
import random
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from experiments.bench._common import hardware, interleave, usable_cores, write_csv
from experiments.bench._decoders import DECODERS, plain_transform
from experiments.bench._photographs import First, enlarge
from experiments.config import Refused
from experiments.data.decode import decode
from experiments.data.device import OnDevice
from experiments.data.loader import Batches, Plan, Shard
from experiments.data.settings import Images
from experiments.data.sources import Source, open_source
from experiments.data.transforms import Convention, Transform, crop_of, make_transform


OURS = "jaxprune"
# Both with --threads: the transform of photographs in memory, and the whole.
BARE = "transform"
PIPELINE = "pipeline"
THREADED = (BARE, PIPELINE)
TASKS: dict[str, tuple[Convention, bool]] = {
    f"{convention} {'train' if train else 'eval'}": (convention, train)
    for convention in ("caffe", "torchvision")
    for train in (True, False)
}


@dataclasses.dataclass(frozen=True)
class Options:
    """Flags."""

    #: As in training: a folder of TFDS, or of class folders. None: TFDS_DATA_DIR, else
    #: ~/tensorflow_datasets.
    data_dir: Path | None = None
    #: Name of the data set in a folder of TFDS.
    dataset: str = "imagenet2012"
    #: Split to read, or a slice of it.
    split: str = "validation"
    #: Enlarge the photographs in memory to this short side and encode them anew, at
    #: quality 90, to measure as if the files were so large; 0: as they are.
    enlarge: int = 0
    #: Photographs in a block, timed as one.
    block: int = 96
    #: Turns, each of a block.
    blocks: int = 20
    #: Photographs in a batch of the pipeline.
    batch: int = 128
    #: Threads of the pipeline. None: one for each core.
    threads: int | None = None
    #: Training rates, in images a second, to tell the cores for.
    rates: tuple[int, ...] = (500, 1000, 2500, 5000)
    #: Where the CSV goes.
    out: Path = Path("experiments/results/bench_input.csv")


def failures(files: list[bytes]) -> dict[str, int]:
    """Counts the files that each decoder fails on."""
    failed = dict.fromkeys((OURS, *DECODERS), 0)
    for name, function in ({OURS: decode} | DECODERS).items():
        for data in files:
            try:
                function(data)
            except Exception:  # each library has its own kinds
                failed[name] += 1
    return failed


def measure(source: Source, files: list[bytes], options: Options) -> dict[str, Any]:
    """Times everything in turn.

    Returns:
      (wall, CPU) seconds a photograph of each turn, by (task, name).
    """
    size, count = options.block, len(files) // options.block
    blocks = [files[i * size : (i + 1) * size] for i in range(count)]
    threads = options.threads or usable_cores()
    functions: dict[tuple[str, str], Callable[[int], int]] = {}

    def add(task: str, name: str, one: Callable[[bytes], Any]) -> None:
        functions[task, name] = lambda i: len([one(data) for data in blocks[i]])

    for name, function in ({OURS: decode} | DECODERS).items():
        add("decode", name, function)
    for task, (convention, train) in TASKS.items():
        crop = crop_of(convention)
        ours = make_transform(convention, train=train, crop=crop)
        for name in (OURS, *DECODERS):
            transform = ours
            if name != OURS:
                transform = plain_transform(name, convention, train=train, resize=256)
            add(task, name, _into(transform, crop))
        functions[task, BARE] = _bare(files, ours, crop, threads)
        part = First(source, len(files))
        functions[task, PIPELINE] = _pipeline(part, ours, crop, options.batch, threads)
    return _time(functions, count, options.blocks)


def _into(transform: Transform, crop: int) -> Callable[[bytes], Any]:
    out = np.empty((crop, crop, 3), np.uint8)
    draws = itertools.count()
    return lambda data: transform(data, random.Random(next(draws)), out)


def _bare(
    files: list[bytes], transform: Transform, crop: int, threads: int
) -> Callable[[int], int]:
    """Makes a function that transforms all photographs in threads, a part in each."""

    def part(first: int) -> None:
        one = _into(transform, crop)
        for data in files[first::threads]:
            one(data)

    def run(turn: int) -> int:
        del turn
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(part, range(threads)))
        return len(files)

    return run


def _pipeline(
    source: Source, transform: Transform, crop: int, batch: int, threads: int
) -> Callable[[int], int]:
    """Makes a function that runs a source through threads and to the device, whole.

    It draws as training does, but has an end: nothing is read ahead while the others
    are timed.
    """

    def run(turn: int) -> int:
        del turn
        plan = Plan(source, transform, crop, batch, Shard(), None)
        for made in OnDevice(Batches(plan, threads=threads)):
            made.image.block_until_ready()
        return len(source)

    return run


def _time(functions: dict[Any, Callable[[int], int]], count: int, repeats: int) -> Any:
    """Calls each with the number of a block, in turn; they count the photographs."""
    cpu: dict[Any, list[float]] = {name: [] for name in functions}
    photographs: dict[Any, list[int]] = {name: [] for name in functions}

    def timed(name: Any) -> Callable[[], None]:
        def call() -> None:
            begin = time.process_time()
            done = functions[name](len(cpu[name]) % count)
            cpu[name].append(time.process_time() - begin)
            photographs[name].append(done)

        return call

    wall = interleave({name: timed(name) for name in functions}, repeats)
    return {
        name: [
            (w / n, c / n)
            for w, c, n in zip(
                wall[name],
                cpu[name][-repeats:],
                photographs[name][-repeats:],
                strict=True,
            )
        ]
        for name in functions
    }


def make_rows(times: dict[Any, Any], options: Options) -> list[dict[str, Any]]:
    """Makes a row of each task and name.

    `ratio` is to jaxprune's rate per core, the pipeline's to that of the same number of
    threads.
    """
    rows = []
    for (task, name), pairs in times.items():
        ours = [cpu for _, cpu in times[task, BARE if name == PIPELINE else OURS]]
        rows.append(
            {
                "task": task,
                "name": name,
                "per_second": 1 / statistics.median(w for w, _ in pairs),
                "per_core": 1 / statistics.median(c for _, c in pairs),
                "ratio": statistics.median(
                    a / c for a, (_, c) in zip(ours, pairs, strict=True)
                ),
                "threads": (options.threads or usable_cores())
                if name in THREADED
                else 1,
            }
        )
    return rows


def cores_for(rate: float, per_core: float) -> int:
    """Counts the cores that a training rate needs, for decoding alone."""
    return math.ceil(rate / per_core)


def check(options: Options) -> None:
    """Checks the flags.

    Raises:
      Refused: naming the flag, its value and what was expected.
    """
    threads = options.threads
    rules = (
        ("enlarge", options.enlarge, options.enlarge >= 0, "0 or more"),
        ("block", options.block, options.block >= 1, "1 or more"),
        ("blocks", options.blocks, options.blocks >= 1, "1 or more"),
        ("batch", options.batch, options.batch >= 1, "1 or more"),
        ("threads", threads, threads is None or threads >= 1, "1 or more"),
        ("rates", options.rates, min(options.rates, default=0) >= 1, "1 or more"),
    )
    for flag, value, good, expected in rules:
        if not good:
            raise Refused(f"--{flag} is {value}, expected {expected}.")


def run(options: Options) -> None:
    """Measures, prints the report, writes the CSV."""
    images = Images(data_dir=options.data_dir, dataset=options.dataset)
    source = open_source(images, options.split)
    count = min(len(source), options.block * options.blocks)
    if count < options.block:
        raise Refused(
            f"--block is {options.block}, expected at most the {count} images of "
            f"{options.split}."
        )
    if options.enlarge:
        source = enlarge(source, options.enlarge, count)
    files = [source.read(i)[0] for i in range(count)]
    shapes = [decode(data).shape for data in files]
    about = {
        "photographs": count,
        "mean_kb": sum(map(len, files)) / count / 1000,
        "mean_height": statistics.mean(shape[0] for shape in shapes),
        "mean_width": statistics.mean(shape[1] for shape in shapes),
        "blocks": options.blocks,
        "block": options.block,
    }
    failed = failures(files)
    rows = make_rows(measure(source, files, options), options)
    report(rows, about, failed, options.rates)
    write_csv(
        options.out,
        [
            row | {"failed": failed.get(row["name"], 0)} | about | hardware()
            for row in rows
        ],
    )


def report(
    rows: list[dict[str, Any]],
    about: dict[str, Any],
    failed: dict[str, int],
    rates: tuple[int, ...],
) -> None:
    """Prints the rates, and the cores that training rates need."""
    console = Console()
    table = Table(
        title=f"{about['photographs']:,} photographs, {about['mean_kb']:.0f} KB, "
        f"{about['mean_height']:.0f}x{about['mean_width']:.0f} on average"
    )
    for column in ("task", "with", "images/s", "per core", "to jaxprune", "failed"):
        table.add_column(
            column, justify="left" if column in ("task", "with") else "right"
        )
    for row in rows:
        table.add_row(
            row["task"],
            f"{row['name']}, {row['threads']} threads"
            if row["name"] in THREADED
            else row["name"],
            f"{row['per_second']:.0f}",
            f"{row['per_core']:.0f}",
            f"{row['ratio']:.2f}",
            str(failed.get(row["name"], "")),
        )
    console.print(table)
    for row in rows:
        if row["name"] == PIPELINE and row["task"].endswith("train"):
            needs = ", ".join(
                f"{rate:,} images/s: {cores_for(rate, row['per_core'])}"
                for rate in rates
            )
            console.print(f"Cores that {row['task']} needs, for its input: {needs}")


def main(args: list[str] | None = None) -> int:
    """Runs the benchmark from the command line; gives the exit code."""
    options = tyro.cli(
        Options,
        prog="python -m experiments.bench.input",
        description=__doc__,
        args=args,
    )
    try:
        check(options)
        run(options)
    except Refused as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0
