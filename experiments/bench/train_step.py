"""Full-size VGG-16 and AlexNet: images a second of a training step, dense and pruned.

    python -m experiments.bench.train_step
    python -m experiments.bench.train_step --networks vgg16 --dtype float32 --batch 64
    python -m experiments.bench.train_step --small          (tiny, on a CPU)

Random uint8 images that lie on one device, normalised there; SGD with momentum,
dropout and L2. "pruned" is the experiments' compiled step with 90% of the weights dead,
in steady state (a step that prunes comes every --period steps); "dense" the same step
with all of them alive, as --recipe dense runs it; "plain" a step without jaxprune:
optax alone, constant dropout. "torch" is the same network in PyTorch, where that is
installed and sees the same kind of device: channels_last, torch.compile, autocast, a
fused optimizer. Calls of a few steps each are timed in turn, in one process.

The share of the peak counts three times the forward pass's operations less the first
layer's gradient of its input, which nobody needs, over what --peak-tflops says or, if
it is not given, over the best of a few large matrix products of the same dtype in this
run. Memory is what the compiled step needs by XLA's own account, arguments included;
PyTorch's is the most its allocator had in use. `device_peak_gib` is the most that the
device had in use when a side had run, if no other had before it.
"""

import sys

from experiments.start import start


if __name__ == "__main__":  # before the imports, which take seconds
    sys.exit(start("experiments.bench.train_step"))

import dataclasses
import os
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from experiments.bench import _train_sides as sides
from experiments.bench._common import hardware, interleave, write_csv
from experiments.bench._train_nets import matrix_peak, network_of, train_flop


Side = Literal["pruned", "dense", "plain", "torch"]
DENSE = "dense"


@dataclasses.dataclass(frozen=True)
class Options:
    """Flags."""

    #: Networks to run; alexnet is Caffe's, with groups and LRN.
    networks: tuple[Literal["vgg16", "alexnet", "alexnet-torchvision"], ...] = (
        "vgg16",
        "alexnet",
    )
    #: What is timed. torch is left out where it is not installed.
    sides: tuple[Side, ...] = ("pruned", "dense", "plain", "torch")
    #: Images a step.
    batch: int = 256
    #: Side of an image. None: the network's own.
    side: int | None = None
    #: Type of the computation; weights and moments are float32.
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    #: Timed calls of each side.
    pairs: int = 15
    #: Steps in a call.
    steps: int = 10
    #: Steps between two prunings.
    period: int = 500
    #: Rate of the device's matrix units in this dtype. None: measured.
    peak_tflops: float | None = None
    #: Run PyTorch without torch.compile.
    eager: bool = False
    #: Tiny: small images, few units, a batch of 4, two calls of one step.
    small: bool = False
    #: The CSV to write.
    out: Path = Path("experiments/results/bench_train_step.csv")


def shrunk(options: Options) -> Options:
    """Gives the options as `small` changes them."""
    if not options.small:
        return options
    return dataclasses.replace(options, batch=4, pairs=2, steps=1)


def measure(name: str, options: Options, console: Console) -> list[dict[str, Any]]:
    """Times one network; gives a row for each side."""
    network = network_of(name, options.dtype, options.side, options.small)
    flop, weights = train_flop(network)
    peak, peak_from = options.peak_tflops, "given"
    if peak is None:
        peak, peak_from = matrix_peak(options.dtype, options.small) / 1e12, "measured"
    draw = np.random.default_rng(0)
    shape = (options.batch, *network.input)
    images = draw.integers(0, 256, shape, np.uint8)
    labels = draw.integers(0, network.classes, options.batch).astype(np.int32)
    made: dict[str, sides.Timed] = {}
    for side in options.sides:
        console.print(f"{name}, {side}: compiling", highlight=False)
        make = sides.torch_side if side == "torch" else sides.jax_side
        timed = make(side, network, images, labels, options, first=not made)
        if timed is None:
            console.print("PyTorch is not there, or not with this kind of device.")
        else:
            made[side] = timed
    calls: dict[str, Callable[[], Any]] = {n: t.call for n, t in made.items()}
    seconds = interleave(calls, options.pairs)
    base = seconds.get(DENSE)
    rows = []
    for side, times in seconds.items():
        median = statistics.median(times) / options.steps
        rate = options.batch / median
        # Of the speeds, so that 1 is as fast as the dense step and less is slower.
        over = None
        if base is not None:
            pairs = zip(base, times, strict=True)
            over = statistics.median(dense / time for dense, time in pairs)
        rows.append(
            {
                "network": name,
                "side": side,
                "batch": options.batch,
                "image_side": network.input[0],
                "dtype": options.dtype,
                "weights": weights,
                "sparsity": made[side].sparsity,
                "calls": options.pairs,
                "steps_per_call": options.steps,
                "ms_per_step": f"{1e3 * median:.3f}",
                "fastest_ms": f"{1e3 * min(times) / options.steps:.3f}",
                "images_per_second": f"{rate:.1f}",
                "speed_over_dense": "" if over is None else f"{over:.3f}",
                "gflop_per_image": f"{flop / 1e9:.3f}",
                "peak_tflops": f"{peak:.4g}",
                "peak_from": peak_from,
                "share_of_peak": f"{rate * flop / (peak * 1e12):.3f}",
                "step_gib": _gib(made[side].step_bytes),
                "device_peak_gib": _gib(made[side].device_bytes),
            }
        )
    return rows


def check(options: Options) -> None:
    """Checks the flags.

    Raises:
      ValueError: naming the flag, its value and what was expected.
    """
    for flag in ("networks", "sides"):
        if not getattr(options, flag):
            raise ValueError(f"--{flag} names none, expected one or more.")
    for flag in ("batch", "pairs", "steps", "period"):
        if getattr(options, flag) < 1:
            raise ValueError(
                f"--{flag} is {getattr(options, flag)}, expected 1 or more."
            )
    if options.side is not None and options.side < 32:
        raise ValueError(f"--side is {options.side}, expected 32 or more.")
    if options.peak_tflops is not None and not options.peak_tflops > 0:
        raise ValueError(f"--peak-tflops is {options.peak_tflops}, expected above 0.")


def show(rows: list[dict[str, Any]], machine: dict[str, str]) -> Table:
    """Makes the table that is printed."""
    first = rows[0]
    table = Table(
        title=f"A training step, batch {first['batch']}, {first['dtype']}",
        caption=", ".join(f"{k} {v}" for k, v in machine.items())
        + f"; peak {first['peak_tflops']} TFLOP/s, {first['peak_from']}",
    )
    columns = {
        "network": "network", "side": "side", "ms_per_step": "ms",
        "images_per_second": "images/s", "speed_over_dense": "over dense",
        "share_of_peak": "of peak", "step_gib": "step GiB",
        "device_peak_gib": "device GiB",
    }  # fmt: skip
    for key, title in columns.items():
        text = key in ("network", "side")
        table.add_column(title, justify="left" if text else "right", no_wrap=True)
    for row in rows:
        table.add_row(*[str(row[key]) for key in columns])
    return table


def main(args: list[str] | None = None) -> int:
    """Runs the benchmark from the command line; gives the exit code."""
    options = tyro.cli(
        Options,
        prog="python -m experiments.bench.train_step",
        description=__doc__,
        args=args,
    )
    try:
        check(options)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    # PyTorch needs room beside JAX, which else takes most of a GPU at once.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    run(shrunk(options), Console())
    return 0


def run(options: Options, console: Console) -> None:
    """Measures, prints a table, writes the CSV after each network."""
    machine = hardware() | {"torch": sides.torch_version()}
    rows: list[dict[str, Any]] = []
    for name in options.networks:
        rows += measure(name, options, console)
        write_csv(options.out, [row | machine for row in rows])
    console.print(show(rows, machine))
    console.print(f"Written to {options.out}")


def _gib(size: int | None) -> str:
    return "" if size is None else f"{size / 2**30:.3f}"
