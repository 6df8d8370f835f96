"""Removes the dead units of finished runs and measures what that saves.

    python -m experiments.bench.neurons runs/lenet300 runs/lenet5

reads the pruned weights of every run folder, removes the units that nothing feeds or
nothing reads, checks that the logits of the digits that the run was judged on are the
same, and times forward passes and a training step (Adam inside `jaxprune.prune`, its
state carried over) before and after, in turn; after twice, as narrow as can be and
with widths that are multiples of a number, which vector registers may like better. The
smaller params are left in each
folder as smaller.safetensors. Links are found in the traced network, and are checked
to remove what those written by hand do.
"""

import sys

from experiments.start import start


if __name__ == "__main__":  # before the imports, which take seconds
    sys.exit(start("experiments.bench.neurons"))

import json
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from rich.console import Console
from rich.table import Table

import jaxprune
import jaxprune.report
from experiments import data, files, page
from experiments.bench._common import hardware, interleave, write_csv
from experiments.config import Refused
from experiments.models import Network, resized
from jaxprune import units


TX = optax.adam(1e-4)


@dataclass(frozen=True)
class Settings:
    """Flags of the command."""

    folders: tyro.conf.Positional[tuple[Path, ...]]
    """Folders of one seed each, with pruned.safetensors and result.json."""
    data_dir: Path | None = None
    """Folder of TFDS that holds the runs' data set, if it has moved."""
    batches: tuple[int, ...] = (1, 100)
    """Images of a forward pass; the training step has the most of them."""
    calls: int = 101
    """Timed calls of each side."""
    multiple: int = 8
    """What widths are multiples of, on a side of its own; 1 for none."""
    out: Annotated[Path, tyro.conf.arg(metavar="FILE")] = Path(
        "experiments/results/bench_neurons.csv"
    )
    """The CSV to write."""


class Side(NamedTuple):
    """A network before or after, with the optimizer state to train it on."""

    network: Network
    params: Any
    mask: Any
    state: Any


def apply(network: Network) -> Callable[[Any, jax.Array], Any]:
    """Gives the network as a function of params and images."""
    return lambda params, x: network.module.apply({"params": params}, x)


def remove(
    run: page.Finished, multiple: int
) -> tuple[dict[str, Side], list[units.Units]]:
    """Gives the network of a run before and after, and what became of its units.

    Raises:
      ValueError: if the links that are found are not those written by hand.
    """
    params = jax.tree.map(jnp.asarray, run.params)
    x = jax.ShapeDtypeStruct((1, *run.network.input), jnp.float32)
    links = units.find_links(apply(run.network), params, x)
    by_hand = units.dead_units(params, run.mask, run.network.links)
    if units.dead_units(params, run.mask, links) != by_hand:
        raise ValueError(
            f"{run.network.name} has links that do not fit its program; expected "
            f"{links}."
        )
    state = jaxprune.prune(TX, jaxprune.hold, run.mask).init(params)
    sides = {"before": Side(run.network, params, run.mask, state)}
    for name, n in {"after": 1, f"after, multiples of {multiple}": multiple}.items():
        if n > 1 or name == "after":
            small = units.remove_dead(params, run.mask, links, state, multiple=n)
            smaller = resized(run.network, small.params)
            sides[name] = Side(smaller, small.params, small.mask, small.opt_state)
    return sides, by_hand


def logits(side: Side, images: np.ndarray, batch: int = 1000) -> np.ndarray:
    """Computes the logits of uint8 images."""
    run = jax.jit(apply(side.network))
    parts = (images[i : i + batch] for i in range(0, len(images), batch))
    return np.concatenate(
        [np.asarray(run(side.params, jnp.asarray(p, jnp.float32) / 255)) for p in parts]
    )


def timed(side: Side, images: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Makes the functions to time: a forward pass and a training step."""
    x, y = jnp.asarray(images, jnp.float32) / 255, jnp.asarray(labels, jnp.int32)
    run = jax.jit(apply(side.network))
    tx = jaxprune.prune(TX, jaxprune.hold, side.mask)

    def loss(params: Any) -> jax.Array:
        out = apply(side.network)(params, x)
        return optax.softmax_cross_entropy_with_integer_labels(out, y).mean()

    @jax.jit
    def step(params: Any, state: Any) -> Any:
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    return {
        "forward": lambda: jax.block_until_ready(run(side.params, x)),
        "step": lambda: jax.block_until_ready(step(side.params, side.state)),
    }


def speeds(
    sides: Mapping[str, Side], digits: data.Split, batches: tuple[int, ...], calls: int
) -> dict[str, dict[str, float]]:
    """Gives the median and the least microseconds of every function, by side."""
    found: dict[str, dict[str, float]] = {name: {} for name in sides}
    for batch in batches:
        images, labels = digits.images[:batch], digits.labels[:batch]
        made = {name: timed(side, images, labels) for name, side in sides.items()}
        for what in ("forward", "step") if batch == max(batches) else ("forward",):
            times = interleave({name: made[name][what] for name in made}, calls)
            for name, seconds in times.items():
                median, least = statistics.median(seconds), min(seconds)
                found[name][f"{what}_{batch}_us"] = round(1e6 * median, 1)
                found[name][f"{what}_{batch}_fastest_us"] = round(1e6 * least, 1)
    return found


def size(side: Side) -> dict[str, Any]:
    """Counts params, operations of one image, and bytes stored with indices."""
    x = jax.ShapeDtypeStruct((1, *side.network.input), jnp.float32)
    counts = jaxprune.report.count(apply(side.network), side.params, side.mask, x)
    stored = jaxprune.report.storage(counts, side.params, side.mask)
    layers = jaxprune.summarize(side.params, side.mask)
    params = sum(layer.size for layer in layers)
    widths = [layer.shape[-1] for layer in layers if len(layer.shape) > 1]
    return {
        "widths": "-".join(map(str, widths)),
        "params": params,
        "alive": sum(layer.alive for layer in layers),
        "dense_bytes": 4 * params,
        "stored_bytes": stored.total.weight_bytes + stored.total.index_bytes,
        "flop": counts.total.flop,
        "flop_kept": counts.total.flop_kept,
    }


def measure(folder: Path, settings: Settings) -> tuple[Table, list[dict[str, Any]]]:
    """Removes and measures one run; gives a table of its units and rows of the CSV."""
    run = page.read(folder, settings.data_dir)
    digits = data.load(run.data).judge
    sides, report = remove(run, settings.multiple)
    outs = {name: logits(side, digits.images) for name, side in sides.items()}
    times = speeds(sides, digits, settings.batches, settings.calls)
    widths = dict(sides["after"].network.module.widths)
    about = {"network": run.network.name, "widths": json.dumps(widths)}
    files.save_weights(folder / "smaller.safetensors", sides["after"].params, about)
    rows = []
    for name, side in sides.items():
        wrong = outs[name].argmax(-1) != digits.labels
        difference = float(abs(outs[name] - outs["before"]).max())
        rows.append(
            {
                "network": run.network.name,
                "compression": round(run.result["compression_params"], 1),
                "side": name,
                **size(side),
                "error": round(100 * float(wrong.mean()), 2),
                "largest_difference": f"{difference:.1e}",
                **times[name],
                "calls": settings.calls,
            }
        )
    return show(run.network, report), rows


def show(network: Network, report: list[units.Units]) -> Table:
    """Makes the table of what became of the units."""
    table = Table(title=f"{network.name}: units of each layer")
    for column in ("layer", "units", "unread", "unfed, 0", "folded", "left"):
        table.add_column(column, justify="left" if column == "layer" else "right")
    table.add_column("stay although dead")
    for layer in report:
        counts = (layer.size, *map(len, layer[2:5]), layer.kept)
        stay = "; ".join(f"{len(n)}: {why}" for why, n in layer.stay.items())
        table.add_row(layer.layer, *map(str, counts), stay)
    return table


def compare(rows: list[dict[str, Any]]) -> Table:
    """Makes the table of what was saved, of one run's rows: a line for each number."""
    before = rows[0]
    title = f"{before['network']} at {before['compression']}x"
    table = Table(title=title)
    table.add_column("")
    for row in rows:
        table.add_column(row["side"], justify="right")
    numbers = ("params", "alive", "dense_bytes", "stored_bytes", "flop", "flop_kept")
    times = [key for key in before if key.endswith("_us")]
    for key in ("widths", "error"):
        table.add_row(key, *(str(row[key]) for row in rows))
    for key in (*numbers, *times):
        shares = (f"{row[key]:,} ({row[key] / before[key]:.0%})" for row in rows[1:])
        table.add_row(key, f"{before[key]:,}", *shares)
    difference = max(float(row["largest_difference"]) for row in rows)
    table.caption = f"logits of the digits it is judged on differ by {difference:.1e}"
    return table


def main(args: list[str] | None = None) -> int:
    """Runs the command line; gives the exit code."""
    settings = tyro.cli(
        Settings,
        prog="python -m experiments.bench.neurons",
        description=__doc__,
        args=args,
    )
    console, rows = Console(), []
    try:
        for name, given in (
            ("calls", [settings.calls]),
            ("multiple", [settings.multiple]),
            ("batches", settings.batches or [0]),
        ):
            if min(given) < 1:
                raise Refused(f"--{name} is {min(given)}, expected 1 or more.")
        for folder in settings.folders:
            table, found = measure(folder, settings)
            console.print(table)
            console.print(compare(found))
            rows += found
    except (Refused, ValueError) as error:
        Console(stderr=True).print(f"error: {error}")
        return 2
    if not rows:
        Console(stderr=True).print("error: no run folder is given.")
        return 2
    write_csv(settings.out, [row | hardware() for row in rows])
    console.print(f"Written to {settings.out}")
    return 0
