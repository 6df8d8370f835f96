"""Controls: what of a pruned network's accuracy is owed to which weights were kept.

    python -m experiments.controls
    python -m experiments.controls --network LeNet-5 --dataset mnist --seeds 5

A dense network of each seed is pruned by one threshold for all layers. Beside it, at
each compression, with as many live weights in every layer but for the last:

    pruned         the kept weights retrained
    shuffled       the weights of each layer permuted, dead ones with them; retrained
    random mask    a random mask of as many weights in each layer; retrained
    new weights    the same mask, weights drawn anew; retrained as the pruned ones
    scratch        the same, but trained as long as the dense net and retraining took,
                   at the learning rates of dense training
    small dense    a narrower net of at most as many weights, trained as long

In the folder, runs/controls-NETWORK-DATASET, controls.csv has a row for each, added
when it is done: errors, and by how many points the accuracy on each class changed from
the dense net's, with the best and the worst class. With --resume what is done is
skipped.
"""

import sys

from experiments.start import start


if __name__ == "__main__":  # before the imports, which take seconds
    sys.exit(start("experiments.controls"))

import dataclasses
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

import jaxprune
from experiments import points
from experiments.config import Refused
from experiments.control_nets import begin, narrower
from experiments.folders import command, open_points
from experiments.models import Network


CONTROLS = "pruned,shuffled,random mask,new weights,scratch,small dense".split(",")
CHANGES = tuple(f"change_{number}" for number in range(10))
COLUMNS = (
    *("network", "dataset", "judged_on", "seed", "control", "target"),
    *("compression_weights", "compression_params", "epochs", "dense_error", "error"),
    *("best_class", "best_change", "worst_class", "worst_change", *CHANGES),
)


@dataclasses.dataclass(frozen=True)
class Options:
    """Flags; epochs are, where None, the defaults of the network's own experiment."""

    #: What is pruned.
    network: Literal["LeNet-300-100", "LeNet-5"] = "LeNet-300-100"
    #: Digits, as in experiments.lenet300_prune.
    dataset: Literal["mnist5k", "mnist"] = "mnist5k"
    #: Folder of TFDS. None: TFDS_DATA_DIR, else ~/tensorflow_datasets.
    data_dir: Path | None = None
    #: Seeds, counted from 0; 2 or more, whose deviation can be told.
    seeds: int = 3
    #: Compressions, counted on the weights that may be pruned.
    compressions: tuple[float, ...] = (2, 4, 8, 16, 32)
    #: Epochs of dense training.
    dense_epochs: float | None = None
    #: Epochs of retraining.
    retrain_epochs: float | None = None
    #: Folder. None: runs/controls-NETWORK-DATASET.
    out: Path | None = None
    #: Go on with what the folder holds; there may be more seeds and compressions.
    resume: bool = False


def run(options: Options) -> list[dict[str, str]]:
    """Makes the points that are not done, prints the table; gives the rows.

    Raises:
      Refused: if a flag is wrong, or data or folder are not to be had.
    """
    points.check(options)
    if options.seeds < 2:
        raise Refused(f"--seeds is {options.seeds}, expected 2 or more.")
    subject = points.subject(options.network, options.dataset, options.data_dir)
    folder = open_points(
        options, "controls", options.dataset, free=("seeds", "compressions")
    )
    table = folder / "controls.csv"
    rows = points.read(table, COLUMNS)
    done = {(int(r["seed"]), r["control"], float(r["target"])) for r in rows}
    for seed in range(options.seeds):
        missing = {
            (control, target)
            for target in options.compressions
            for control in CONTROLS
            if (seed, control, target) not in done
        }
        about = {"network": options.network, "dataset": options.dataset, "seed": seed}
        for row in one_seed(options, subject, folder, seed, missing):
            points.add(table, COLUMNS, about | row)
        print(f"seed {seed}, {seed + 1} of {options.seeds}: done", flush=True)
    rows = points.read(table, COLUMNS)
    Console().print(show(rows))
    Console().print(f"Folder: {folder}", soft_wrap=True, highlight=False)
    return rows


def one_seed(
    options: Options,
    subject: points.Subject,
    folder: Path,
    seed: int,
    missing: set[tuple[str, float]],
) -> Iterator[dict[str, Any]]:
    """Makes the points of a seed that are missing, row by row."""
    if not missing:
        return
    own, network = subject.config, subject.network
    epochs = options.dense_epochs or own.training.dense_epochs
    more = options.retrain_epochs or own.pruning.retrain_epochs
    lr = own.training.lr * own.pruning.retrain_lr
    home = folder / f"seed{seed}"
    config = points.settings(own, seed, dense_epochs=epochs)
    again = points.settings(own, seed, dense_epochs=more, lr=lr, warmup=0.0)
    whole = points.settings(own, seed, dense_epochs=epochs + more)
    dense = points.trained(config, subject, home / "dense")
    before = right(subject, network, dense)
    for control, target in sorted(missing, key=lambda m: (m[1], m[0])):
        cut = points.pruned(dense, target)
        its, given = subject, begin(control, network, dense, cut, seed)
        if control == "small dense":
            alive = sum(int(np.sum(m)) for m in jax.tree.leaves(cut.mask))
            its = subject._replace(network=narrower(network, alive))
        long = control in ("scratch", "small dense")
        where = home / f"{control.replace(' ', '-')}{target:g}"
        params = points.trained(whole if long else again, its, where, given)
        after = right(subject, its.network, params)
        # Of the whole net, for the small one too.
        mask = jaxprune.dense_mask(params) if given.mask is None else given.mask
        yield {
            "control": control,
            "target": f"{target:g}",
            "judged_on": subject.digits.judge_name if subject.digits else "",
            **points.compressions(params, mask, of=dense),
            "epochs": f"{(epochs + more if long else more):g}",
            **changes(subject, before, after),
        }


def right(subject: points.Subject, network: Network, params: Any) -> np.ndarray:
    """Tells for each digit that is judged on whether the net is right."""
    assert subject.digits is not None
    images, labels = subject.digits.judge

    @jax.jit
    def classes(params: Any, images: jax.Array) -> jax.Array:
        inputs = images.astype(jnp.float32) / 255
        logits: Any = network.module.apply({"params": params}, inputs)
        return jnp.argmax(logits, -1)

    parts = [classes(params, images[i : i + 1000]) for i in range(0, len(images), 1000)]
    return np.concatenate(parts) == labels


def changes(
    subject: points.Subject, before: np.ndarray, after: np.ndarray
) -> dict[str, Any]:
    """Sums up in percent: errors, and the change of accuracy on each class."""
    assert subject.digits is not None
    labels = subject.digits.judge.labels
    change = [
        100 * (after[labels == n].mean() - before[labels == n].mean())
        for n in range(10)
    ]
    best, worst = int(np.argmax(change)), int(np.argmin(change))
    return {
        "dense_error": f"{100 * (1 - before.mean()):.4g}",
        "error": f"{100 * (1 - after.mean()):.4g}",
        "best_class": best,
        "best_change": f"{change[best]:.2f}",
        "worst_class": worst,
        "worst_change": f"{change[worst]:.2f}",
    } | {name: f"{c:.2f}" for name, c in zip(CHANGES, change, strict=True)}


def show(rows: Sequence[dict[str, str]]) -> Table:
    """Makes the table: mean and sample standard deviation of the seeds' errors."""
    targets = sorted({float(row["target"]) for row in rows})
    dense = {row["seed"]: float(row["dense_error"]) for row in rows}.values()
    title = f"{rows[0]['network']}, {rows[0]['judged_on']}, {len(dense)} seeds"
    caption = (
        "Error in percent, mean +- sd; below it the change of accuracy on the worst "
        f"class of each seed, in points, its mean. Dense: {_spread(dense)}"
    )
    table = Table(title=title, caption=caption, title_justify="left")
    table.add_column("")
    for target in targets:
        table.add_column(f"{target:g}x", justify="right")
    for control in CONTROLS:
        cells = []
        for target in targets:
            mine = [
                row
                for row in rows
                if row["control"] == control and float(row["target"]) == target
            ]
            worst = statistics.mean(float(row["worst_change"]) for row in mine)
            errors = [float(row["error"]) for row in mine]
            cells.append(f"{_spread(errors)}\n{worst:+.1f}")
        table.add_row(control, *cells)
    return table


def _spread(values: Any) -> str:
    return f"{statistics.mean(values):.2f} +- {statistics.stdev(values):.2f}"


def main(args: Sequence[str] | None = None) -> int:
    """Runs the command line; gives the exit code."""
    prog = "python -m experiments.controls"
    return command(Options, run, prog, __doc__, args)
