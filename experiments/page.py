"""One page of a finished run: layers, storage, energy, pictures.

    python -m experiments.page runs/lenet5 --data-dir ~/tensorflow_datasets

reads the weights, the result and the pictures of the run folder, measures the share of
non-zero activations on the digits that the run was judged on, and writes beside them

    layers.csv    every number, exact
    layers.md     the table of the paper (tables 2 and 3), as Markdown
    report.html   that table, storage, energy and the pictures in one file
"""

import sys

from experiments.start import start


if __name__ == "__main__":  # before the imports, which take seconds
    sys.exit(start("experiments.page"))

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from rich.console import Console
from safetensors import SafetensorError, safe_open

import jaxprune
import jaxprune.report
from experiments import data, files
from experiments.config import Data, Refused
from experiments.models import LENET5, LENET300, Network


class Finished(NamedTuple):
    """A run folder as read: its network, settings of data, params, mask and result."""

    network: Network
    data: Data
    params: Any
    mask: Any
    result: dict[str, Any]


def read(
    folder: Path, data_dir: Path | None = None, stage: str | None = None
) -> Finished:
    """Reads a run folder.

    Args:
      folder: of a finished run of one seed.
      data_dir: where its data set is now; the default is where it was.
      stage: of the run, "100x" or "round-3", whose weights and error are read instead
        of the last ones.

    Raises:
      Refused: if it holds no finished run with pruned weights, or not that stage.
    """
    path = folder / "pruned.safetensors"
    try:
        with safe_open(path, "np") as opened:
            about = opened.metadata() or {}
        result = json.loads((folder / "result.json").read_text())
        settings = json.loads(about["settings"])
        network = {n.name: n for n in (LENET300, LENET5)}[about["network"]]
        leaves = about["pruned_leaves"].split()
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise Refused(
            f"{folder} holds no finished run with pruned weights ({error!r}), expected "
            "the folder of one seed of experiments.lenet300_prune or lenet5_prune."
        ) from error
    if stage is not None:
        path = folder / f"{stage}.safetensors"
        result |= {"error": _error_of(path)}
    shapes = jax.eval_shape(
        network.module.init, jax.random.key(0), jnp.zeros((1, 28, 28, 1))
    )
    params = files.load_weights(path, shapes["params"])
    mask = jaxprune.mask_from_zeros(params, lambda name, _: name in leaves)
    of_data = settings["data"]
    if data_dir is None and of_data["data_dir"] is not None:
        data_dir = Path(of_data["data_dir"])
    augment = of_data.get("augment", False)  # older runs do not say
    where = Data(of_data["dataset"], data_dir, of_data["holdout"], augment)
    return Finished(network, where, params, mask, result)


def _error_of(path: Path) -> float:
    """Reads the error of the weights that a round of pruning ended with."""
    try:
        with safe_open(path, "np") as opened:
            return float((opened.metadata() or {})["error_percent"])
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        others = path.parent.glob("*.safetensors")
        names = sorted(other.stem for other in others if other.stem != "pruned")
        raise Refused(
            f"{path} does not hold the weights of a stage ({error!r}); this run has "
            f"{', '.join(names) or 'none'}."
        ) from error


def rows(
    run: Finished, images: np.ndarray, cache_bytes: int, batch: int = 500
) -> list[dict[str, Any]]:
    """Counts, measures and estimates; gives the rows of `jaxprune.report.table`.

    Args:
      run: what `read` gives.
      images: uint8, (n, 28, 28, 1), that activations are measured on.
      cache_bytes: as in `jaxprune.report.energy`.
      batch: how many images are measured at once.
    """

    def apply(params: Any, x: jax.Array) -> Any:
        return run.network.module.apply({"params": params}, x)

    def batches() -> Iterator[jax.Array]:
        for i in range(0, len(images), batch):
            yield jnp.asarray(images[i : i + batch], jnp.float32) / 255

    report = jaxprune.report
    active = report.activations(apply, run.params, batches(), run.mask)
    x = jax.ShapeDtypeStruct((1, *images.shape[1:]), jnp.float32)
    counts = report.count(apply, run.params, run.mask, x, activations=active)
    stored = report.storage(counts, run.params, run.mask)
    spent = report.energy(counts, stored, cache_bytes=cache_bytes)
    return report.table(counts, stored, spent)


def parts(table: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Parts the table, which is wide, into two, by heading."""
    costs = ("layer", "dense_bytes", "stored_bytes", "index_bits", "picojoules",
             "picojoules_pruned")  # fmt: skip
    return {
        "Layers": [
            {k: v for k, v in row.items() if k == "layer" or k not in costs}
            for row in table
        ],
        "Storage and energy": [{k: row[k] for k in costs} for row in table],
    }


def write(folder: Path, run: Finished, table: list[dict[str, Any]], note: str) -> None:
    """Writes the three files."""
    report, result = jaxprune.report, run.result
    files.write_text(folder / "layers.csv", report.to_csv(table))
    files.write_text(folder / "layers.md", report.to_markdown(table))
    dense = result["dense_error"]
    facts = {
        "error": f"{result['error']:.2f}%",
        "error, dense": None if dense is None else f"{dense:.2f}%",
        "judged on": result["judged_on"],
        "compression, weights": f"{result['compression_weights']:.1f}x",
        "compression, params": f"{result['compression_params']:.1f}x",
        "paper": f"{run.network.pruned_error:.2f}% at {run.network.compression:g}x",
        "recipe": result["recipe"],
        "seed": result["seed"],
    }
    report.page(
        folder / "report.html",
        f"{run.network.name} on {result['dataset']}, pruned",
        facts={name: value for name, value in facts.items() if value is not None},
        tables=parts(table),
        pictures={p.stem.replace("_", " "): p for p in sorted(folder.glob("*.png"))},
        notes=[note],
    )


def make(
    folder: tyro.conf.Positional[Path],
    data_dir: Path | None = None,
    cache_bytes: Annotated[int, tyro.conf.arg(metavar="BYTES")] = 256 * 1024,
) -> None:
    """Makes the page of a finished run, and prints its table.

    Args:
      folder: folder of one seed, with pruned.safetensors and result.json.
      data_dir: folder of TFDS that holds the run's data set, if it has moved.
      cache_bytes: the SRAM that the estimate of energy reckons with.
    """
    run = read(folder, data_dir)
    digits = data.load(run.data)
    table = rows(run, digits.judge.images, cache_bytes)
    note = (
        "FLOP are 2 for each multiply-add, of one example. Act% is the share of "
        "non-zeros in a layer's output, as the next layer reads it, measured on "
        f"{digits.judge_name}. FLOP% is what is needed when dead weights are skipped, "
        "and when zero activations are skipped as well, as in the paper's tables. "
        "Stored weights have 32 bits and a relative index. Energy is an estimate by a "
        f"table for 45 nm, of one example with a cache of {cache_bytes:,} bytes, and "
        "not a measurement."
    )
    write(folder, run, table, note)
    console = Console()
    for heading, part in parts(table).items():
        # Without shapes it fits into 80 columns.
        part = [{k: v for k, v in row.items() if k != "shape"} for row in part]
        console.print(jaxprune.report.to_rich(part, f"{run.network.name}: {heading}"))
    console.print(f"Wrote layers.csv, layers.md and report.html to {folder}")


def main(args: list[str] | None = None) -> int:
    """Runs the command line; gives the exit code."""
    try:
        tyro.cli(
            make, prog="python -m experiments.page", args=args, description=__doc__
        )
    except (Refused, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0
