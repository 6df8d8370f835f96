"""The commands of `python -m jaxprune`."""

import json
import sys
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import tyro
from rich.console import Console
from rich.table import Column, Table

import jaxprune
from jaxprune import interop
from jaxprune._bench import check_numbers, measure
from jaxprune._carried import carried_bytes, graph_bytes, model_of, named
from jaxprune._given import (
    Flat,
    file_of,
    live_of,
    read_given,
    size_of,
)
from jaxprune._paths import nested


File = tyro.conf.Positional[Path]


def inspect(file: File, json: bool = False) -> None:
    """Shows the layers of a file: shapes, and how many of their weights live.

    Args:
      file: of `jaxprune.save` or safetensors, a checkpoint of Orbax, or a run's folder.
      json: print JSON and no table.
    """
    params, mask = read_given(file)
    rows = [
        {
            "name": name,
            "shape": list(p.shape),
            "dtype": str(p.dtype),
            "weights": p.size,
            "alive": live_of(p, mask[name]),
        }
        for name, p in params.items()
    ]
    size = size_of(file_of(file))
    total = {key: sum(row[key] for row in rows) for key in ("weights", "alive")}
    if json:
        _say({"file": str(file), "bytes": size, **total, "layers": rows}, True)
        return
    name = Column("leaf", overflow="fold")
    table = Table(name, "shape", "dtype", caption=f"{file}: {size:,} bytes")
    for heading in ("weights", "alive", "%"):
        table.add_column(heading, justify="right")
    for row in [*rows, {"name": "all", "shape": "", "dtype": "", **total}]:
        share = 100 * row["alive"] / max(row["weights"], 1)
        shape = " x ".join(map(str, row["shape"]))
        numbers = f"{row['weights']:,}", f"{row['alive']:,}", f"{share:.2f}"
        table.add_row(row["name"], shape, row["dtype"], *numbers)
    # A name is shown as it is, and on one line where no terminal sets the width.
    width = None if sys.stdout.isatty() else 10_000
    Console(width=width, markup=False, emoji=False).print(table)


def compress(
    file: File,
    out: Path,
    model: str | None = None,
    input_shape: tuple[int, ...] = (),
    json: bool = False,
) -> None:
    """Writes the small file of `jaxprune.save`; no weight changes.

    Args:
      file: of `jaxprune.save` or safetensors, a checkpoint of Orbax, or a run's folder.
      out: the file to write.
      model: module:name of what the file is to carry as its program, so that `bench`
        and `export --to stablehlo` need no --model: a module of flax.linen, or a
        function of params and inputs; a class is made without arguments. Without it
        the program that the given file carries is kept.
      input_shape: of one float32 input of the model, without the batch.
      json: print JSON.
    """
    params, mask = read_given(file)
    graph = carried_bytes(file)
    if model is not None or input_shape:
        apply, _ = model_of("compress with a program", file, model, input_shape)
        with named("exported", model, file, input_shape):
            graph = graph_bytes(apply, params, input_shape)
    jaxprune.save(out, params, mask, graph=graph)
    _say(_sizes(file, out), json)


def expand(file: File, out: Path, json: bool = False) -> None:
    """Writes the weights as a dense safetensors file.

    Args:
      file: of `jaxprune.save` or safetensors, a checkpoint of Orbax, or a run's folder.
      out: the file to write.
      json: print JSON.
    """
    interop.write_safetensors(out, read_given(file)[0])
    _say(_sizes(file, out), json)


def export(
    file: File,
    to: Literal["litert", "stablehlo", "npz", "safetensors"],
    out: Path,
    model: str | None = None,
    input_shape: tuple[int, ...] = (),
    json: bool = False,
) -> None:
    """Writes the weights for another program.

    Args:
      file: of `jaxprune.save` or safetensors, a checkpoint of Orbax, or a run's folder.
      to: litert, a .tflite of convolutions, dense layers, max pooling and the like, run
        and compared with the model before it is written; stablehlo, one file that runs
        with JAX alone; npz, a new folder of SciPy's CSR matrices; safetensors, dense.
      out: the file or folder to write.
      model: for litert and stablehlo: module:name of a module of flax.linen, or of a
        function of params and inputs; a class is made without arguments.
      input_shape: for litert and stablehlo: of one float32 input, without the batch, of
        any size.
      json: print JSON.
    """
    if to in ("npz", "safetensors") and (model is not None or input_shape):
        raise ValueError(
            f"--to {to} writes weights without a program, but got --model or "
            "--input-shape: leave them out, or write --to litert or stablehlo."
        )
    params, mask = read_given(file)
    if to == "npz":
        interop.write_csr(out, params, mask)
    elif to == "safetensors":
        interop.write_safetensors(out, params)
    else:
        apply, input_shape = model_of(f"--to {to}", file, model, input_shape)
        write = _litert if to == "litert" else _stablehlo
        with named("exported", model, file, input_shape):
            write(out, apply, params, mask, input_shape)
    _say(_sizes(file, out), json)


def bench(
    file: File,
    model: str | None = None,
    input_shape: tuple[int, ...] = (),
    batch: tuple[int, ...] = (1,),
    repeats: int = 50,
    threads: int = 1,
    json: bool = False,
) -> None:
    """Times the forward pass: dense, sparse, and by LiteRT where it is installed.

    They run in turns, each time on the same random inputs. JAX uses all cores that the
    process may use (taskset).

    Args:
      file: of `jaxprune.save` or safetensors, a checkpoint of Orbax, or a run's folder.
      model: module:name of a module of flax.linen, or of a function of params and
        inputs; a class is made without arguments.
      input_shape: of one float32 input, without the batch, of any size.
      batch: sizes of the batch, one after another.
      repeats: how often each is timed.
      threads: of LiteRT.
      json: print JSON and no table.
    """
    check_numbers(batch, repeats, threads)
    params, mask = read_given(file)
    apply, input_shape = model_of("bench", file, model, input_shape)
    with named("timed", model, file, input_shape):
        told = measure(
            apply,
            nested(params),
            nested(mask),
            input_shape,
            batch,
            repeats,
            threads,
            dense_only=model is None,
        )
    if json:
        _say({"file": str(file), "model": model, **told}, True)
        return
    machine = ", ".join(f"{name} {value}" for name, value in told["machine"].items())
    table = Table("batch", "way", caption=f"{file}: median of {repeats}; {machine}")
    for heading in ("median ms", "fastest ms", "times as fast", "difference"):
        table.add_column(heading, justify="right")
    for row in told["rows"]:
        numbers = f"{row['median_ms']:.4f}", f"{row['fastest_ms']:.4f}"
        ratio = f"{row['times_as_fast']:.2f}", f"{row['difference']:.1e}"
        table.add_row(str(row["batch"]), row["way"], *numbers, *ratio)
    Console().print(table)
    for row in told["missing"]:
        print(f"batch {row['batch']}: no {row['way']}: {row['reason']}")


def _stablehlo(
    out: Path, apply: Any, params: Flat, mask: Flat, shape: tuple[int, ...]
) -> None:
    (batch,) = jax.export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, *shape), jnp.float32)
    interop.write_stablehlo(out, apply, nested(params), nested(mask), images)


def _litert(
    out: Path, apply: Any, params: Flat, mask: Flat, shape: tuple[int, ...]
) -> None:
    interop.write_litert(out, apply, nested(params), shape)


def _sizes(file: Path, out: Path) -> dict[str, Any]:
    return {
        "file": str(file),
        "bytes": size_of(file_of(file)),
        "out": str(out),
        "out_bytes": size_of(out),
    }


def _say(told: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(told))
    else:
        print(
            f"{told['file']}: {told['bytes']:,} bytes; "
            f"{told['out']}: {told['out_bytes']:,} bytes"
        )


COMMANDS = {
    "inspect": inspect,
    "compress": compress,
    "expand": expand,
    "export": export,
    "bench": bench,
}
