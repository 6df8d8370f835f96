"""What XLA makes of our programs for a GPU that is not there: nothing is run.

    pip install "jax[cuda12]"
    python -m experiments.bench.compiled
    python -m experiments.bench.compiled --programs select

Compiled are the choice of a mask, 90% by magnitude, as `select` times it, and the
training steps of `train_step`: pruned, dense, and without jaxprune. A row says what
the device would have to do in a call, but for what is inside of loops and branches: the
bytes that its kernels read and write, as if each read its operands whole, how many
kernels, how often the next is decided on, which a GPU waits for, copies of 1 MiB and
more, and the memory beside arguments and results; and the most bytes that a part of
a loop moves, in a selection one pass over the weights. No time follows from it; that
two programs move the same bytes does.

The GPU is an H100; without one XLA cannot try which of cuDNN's algorithms is fastest,
which changes none of these numbers but for the workspace.
"""

import sys

from experiments.start import start


if __name__ == "__main__":  # before the imports, which take seconds
    sys.exit(start("experiments.bench.compiled"))

import dataclasses
import os
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import tyro
from jax.experimental import topologies
from rich.console import Console
from rich.table import Table

import jaxprune
from experiments.bench import _train_sides as sides
from experiments.bench._common import write_csv
from experiments.bench._cuts import SPARSITY
from experiments.bench._train_nets import network_of
from experiments.bench.select import SHAPES
from experiments.data import Batch
from experiments.step import first_state, make_step


# What XLA wants to know of a GPU, from the data sheet and CUDA's device properties.
H100 = """
gpu_device_info {
  cuda_compute_capability { major: 9 }
  core_count: 132  fpus_per_core: 128  clock_rate_ghz: 1.98
  threads_per_warp: 32  threads_per_block_limit: 1024  threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647  block_dim_limit_y: 65535  block_dim_limit_z: 65535
  registers_per_core_limit: 65536  registers_per_block_limit: 65536
  shared_memory_per_block: 49152  shared_memory_per_core: 233472
  shared_memory_per_block_optin: 232448  l2_cache_size: 52428800
  memory_bandwidth: 3352320000000  device_memory_size: 84929347584
}
platform_name: "CUDA"
dnn_version_info { major: 9  minor: 10 }
runtime_version { major: 12  minor: 9 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2}
_BYTES |= {"f32": 4, "s32": 4, "u32": 4, "f64": 8, "s64": 8, "u64": 8}
_NO_KERNEL = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast"}
_DECIDES = {"while", "conditional"}
_LARGE = 2**20  # bytes of a copy that is told


@dataclasses.dataclass(frozen=True)
class Options:
    """Flags."""

    #: What is compiled.
    programs: tuple[Literal["select", "step"], ...] = ("select", "step")
    #: Networks.
    networks: tuple[Literal["alexnet", "vgg16"], ...] = ("alexnet", "vgg16")
    #: Images a step, in bfloat16.
    batch: int = 256
    #: The CSV to write.
    out: Path = Path("experiments/results/bench_compiled.csv")


def absent_gpu() -> Any:
    """Gives the device that is compiled for, and has the code take it for the default.

    Raises:
      RuntimeError: if the plugin for it is not installed.
    """
    jax.config.update("jax_platforms", "cpu")  # no driver is asked for its devices
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{flags} --xla_gpu_autotune_level=0"
    try:
        found = topologies.get_topology_desc(
            platform="cuda", target_config=H100, topology="1x1x1"
        )
    except Exception as error:
        raise RuntimeError(
            f"JAX cannot compile for a GPU here ({error}); expected its plugin: "
            'pip install "jax[cuda12]".'
        ) from error
    jax.default_backend = lambda: "gpu"
    return found.devices[0]


def programs(options: Options, device: Any) -> Iterator[tuple[str, str, Callable]]:
    """Gives network, name and what lowers of each program."""
    lies = jax.sharding.SingleDeviceSharding(device)
    on_device = lambda tree: jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=lies), tree
    )
    for network in options.networks:
        if "select" in options.programs:
            tree = [jax.ShapeDtypeStruct(s, jnp.float32) for s in SHAPES[network]]
            mask = jax.eval_shape(jaxprune.dense_mask, tree)
            args = on_device((tree, mask, jax.ShapeDtypeStruct((), jnp.int32)))
            for scope in ("leaf", "global"):
                cut = jaxprune.to_sparsity(jaxprune.magnitude, SPARSITY, scope=scope)
                yield network, f"select {scope}", partial(jax.jit(cut).lower, *args)
        if "step" in options.programs:
            for side in ("plain", "dense", "pruned"):
                step, args = step_of(network, side, options.batch)
                yield network, f"step {side}", partial(step.lower, *on_device(args))


def step_of(name: str, side: str, batch: int) -> tuple[Any, Any]:
    """Makes a training step, and the types of its arguments."""
    network = network_of(name, "bfloat16", None, False)
    config = sides.config_of(network, batch)
    images = jax.ShapeDtypeStruct((batch, *network.input), jnp.uint8)
    number = lambda dtype: jax.ShapeDtypeStruct((batch,), dtype)
    arrays = Batch(images, number(jnp.int32), number(jnp.bool_))
    feed: Any = sides.Fixed(arrays, network.preprocessing)
    if side == "plain":
        begin, step = sides.plain_program(config, network, feed)
        return step, (jax.eval_shape(begin, None), arrays)
    plan, key = sides.plan_of(config, side, period=500), jax.random.key(0)
    state = jax.eval_shape(partial(first_state, network, plan.tx), key)
    train = make_step(config, network, plan.tx, key)
    step = lambda state, arrays: train(state, feed.batch(arrays, state.step))
    return jax.jit(step, donate_argnums=0), (state, arrays)


def row_of(compiled: Any) -> dict[str, Any]:
    """Reads a compiled program: what runs in every call, and the largest pass."""
    parts = re.split(r"\n(?=ENTRY |%)", compiled.as_text())
    (entry,) = [part for part in parts if part.startswith("ENTRY ")]
    kernels, decisions, copies, moved = counted(entry)
    others = [counted(part) for part in parts if part != entry and "fusion(" in part]
    passes = [moved for _, decisions, _, moved in others if not decisions]
    temporary = compiled.memory_analysis().temp_size_in_bytes
    return {
        "kernels": kernels,
        "decisions": decisions,
        "copies": len(copies),
        "copied_mb": f"{sum(copies) / 1e6:.1f}",
        "gb_moved": f"{moved / 1e9:.3f}",
        "gb_a_pass": f"{max(passes, default=0) / 1e9:.3f}",
        "temporary_mib": f"{temporary / 2**20:.1f}",
    }


def counted(part: str) -> tuple[int, int, list[int], int]:
    """Counts kernels, loops and branches, bytes of each large copy, bytes moved."""
    sizes: dict[str, int] = {}
    kernels = decisions = moved = 0
    copies: list[int] = []
    for line in re.sub(r"/\*.*?\*/", "", part).splitlines():
        found = re.match(r"\s*(?:ROOT )?%(\S+) = (\(.*?\)|\S+) ([\w-]+)\((.*)", line)
        if not found:
            continue
        name, kind, op, rest = found.groups()
        sizes[name] = size_of(kind)
        if op in _DECIDES:
            decisions += 1
        elif op not in _NO_KERNEL:
            operands = re.findall(r"%([\w.-]+)", rest.split("), ")[0])
            kernels += 1
            moved += sizes[name] + sum(sizes.get(operand, 0) for operand in operands)
            if op == "copy" and sizes[name] >= _LARGE:
                copies.append(sizes[name])
    return kernels, decisions, copies, moved


def size_of(kind: str) -> int:
    """Gives the bytes of an array, or of a tuple of arrays, of XLA's notation.

    >>> size_of("(f32[2,3]{1,0}, pred[])")
    25
    """
    total = 0
    for dtype, shape in re.findall(r"\b([a-z]+\d*)\[([\d,]*)\]", kind):
        size = _BYTES.get(dtype, 0)
        for axis in filter(None, shape.split(",")):
            size *= int(axis)
        total += size
    return total


def main(args: list[str] | None = None) -> int:
    """Compiles from the command line; gives the exit code."""
    options = tyro.cli(
        Options,
        prog="python -m experiments.bench.compiled",
        description=__doc__,
        args=args,
    )
    if options.batch < 1:
        print(
            f"error: --batch is {options.batch}, expected 1 or more.", file=sys.stderr
        )
        return 2
    try:
        device = absent_gpu()
    except RuntimeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    console = Console()
    rows = []
    for network, name, lower in programs(options, device):
        console.print(f"{network}, {name}: compiling", highlight=False)
        about = {"network": network, "program": name}
        rows.append(about | row_of(lower().compile()))
        rows[-1] |= {"device": device.device_kind, "jax": jax.__version__}
        write_csv(options.out, rows)
    table = Table(title=f"Compiled for {device.device_kind}, not run")
    for key in list(rows[0])[:-2]:
        table.add_column(key.replace("_", " "), justify="right")
    for row in rows:
        table.add_row(*[str(value) for value in list(row.values())[:-2]])
    console.print(table)
    console.print(f"Written to {options.out}")
    return 0
