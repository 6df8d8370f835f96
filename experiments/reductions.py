"""Ways to make a network smaller, as the paper's table 6 has them for AlexNet.

    python -m experiments.reductions
    python -m experiments.reductions --network LeNet-5 --dataset mnist --seeds 5

Prints the paper's rows, which come from several papers and base networks, and below
them what can be measured here without ImageNet, on a LeNet, at each compression:

    naive cut      a narrower net of at most as many weights, trained as long as the
                   dense net and retraining took
    svd            each layer but the last as a product of two thin matrices of at most
                   as many weights, the nearest by singular values; not retrained
    pruned at once one threshold for all layers; not retrained
    pruned         the same, retrained

In the folder, runs/reductions-NETWORK-DATASET, reductions.csv has a row for each, added
when it is done. With --resume what is done is skipped.
"""

import sys

from experiments.start import start


if __name__ == "__main__":  # before the imports, which take seconds
    sys.exit(start("experiments.reductions"))

import bisect
import dataclasses
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from experiments import paper, points
from experiments.config import Refused
from experiments.control_nets import narrower
from experiments.folders import command, open_points


METHODS = ("naive cut", "svd", "pruned at once", "pruned")
COLUMNS = (
    *("network", "dataset", "judged_on", "seed", "method", "target"),
    *("weights", "compression_weights", "dense_error", "error"),
)


@dataclasses.dataclass(frozen=True)
class Options:
    """Flags; epochs are, where None, the defaults of the network's own experiment."""

    #: What is made smaller.
    network: Literal["LeNet-300-100", "LeNet-5"] = "LeNet-300-100"
    #: Digits, as in experiments.lenet300_prune.
    dataset: Literal["mnist5k", "mnist"] = "mnist5k"
    #: Folder of TFDS. None: TFDS_DATA_DIR, else ~/tensorflow_datasets.
    data_dir: Path | None = None
    #: Seeds, counted from 0.
    seeds: int = 3
    #: Compressions, counted on weights; 4.4, 5 and 9 are of the paper's table.
    compressions: tuple[float, ...] = (2, 4.4, 5, 9)
    #: Epochs of dense training.
    dense_epochs: float | None = None
    #: Epochs of retraining.
    retrain_epochs: float | None = None
    #: Folder. None: runs/reductions-NETWORK-DATASET.
    out: Path | None = None
    #: Go on with what the folder holds; there may be more seeds and compressions.
    resume: bool = False


def run(options: Options) -> list[dict[str, str]]:
    """Makes the points that are not done, prints both tables; gives the rows.

    Raises:
      Refused: if a flag is wrong, or data or folder are not to be had.
    """
    points.check(options)
    subject = points.subject(options.network, options.dataset, options.data_dir)
    folder = open_points(
        options, "reductions", options.dataset, free=("seeds", "compressions")
    )
    table = folder / "reductions.csv"
    rows = points.read(table, COLUMNS)
    done = {(int(r["seed"]), r["method"], float(r["target"])) for r in rows}
    for seed in range(options.seeds):
        missing = [
            (method, target)
            for target in options.compressions
            for method in METHODS
            if (seed, method, target) not in done
        ]
        about = {"network": options.network, "dataset": options.dataset, "seed": seed}
        for row in one_seed(options, subject, folder, seed, missing):
            points.add(table, COLUMNS, about | row)
        print(f"seed {seed}, {seed + 1} of {options.seeds}: done", flush=True)
    rows = points.read(table, COLUMNS)
    console = Console()
    console.print(printed())
    console.print(show(rows))
    console.print(f"Folder: {folder}", soft_wrap=True, highlight=False)
    return rows


def one_seed(
    options: Options,
    subject: points.Subject,
    folder: Path,
    seed: int,
    missing: Sequence[tuple[str, float]],
) -> Iterator[dict[str, Any]]:
    """Makes the points of a seed that are missing, row by row."""
    if not missing:
        return
    own, home = subject.config, folder / f"seed{seed}"
    epochs = options.dense_epochs or own.training.dense_epochs
    more = options.retrain_epochs or own.pruning.retrain_epochs
    lr = own.training.lr * own.pruning.retrain_lr
    config = points.settings(own, seed, dense_epochs=epochs)
    again = points.settings(own, seed, dense_epochs=more, lr=lr, warmup=0.0)
    whole = points.settings(own, seed, dense_epochs=epochs + more)
    dense = points.trained(config, subject, home / "dense")
    judge = lambda net, params: subject.task(config, net).judge(params)["error"]
    before = judge(subject.network, dense)
    size = weights_of(dense)
    for method, target in missing:
        net = subject.network
        most = int(size / target)
        if method == "svd":
            params, left = low_rank(dense, most)
        elif method == "naive cut":
            net = narrower(net, most)
            its = subject._replace(network=net)
            params = points.trained(whole, its, home / f"naive{target:g}")
            left = weights_of(params)
        else:
            params, mask = cut = points.pruned(dense, target)
            left = sum(int(np.sum(m)) for m in jax.tree.leaves(mask))
            if method == "pruned":
                where = home / f"pruned{target:g}"
                params = points.trained(again, subject, where, cut)
        yield {
            "method": method,
            "target": f"{target:g}",
            "judged_on": subject.digits.judge_name if subject.digits else "",
            "weights": left,
            "compression_weights": f"{size / left:.3f}",
            "dense_error": f"{before:.4g}",
            "error": f"{judge(net, params):.4g}",
        }


def weights_of(params: Any) -> int:
    """Counts the weights of all kernels."""
    return sum(int(p.size) for p in jax.tree.leaves(params) if p.ndim > 1)


def low_rank(params: Any, weights: int) -> tuple[Any, int]:
    """Replaces each kernel but the last by the nearest one of low rank.

    A kernel of m x n weights and rank r is stored as r (m + n); the layers get the same
    share of the rank at which that is as much as m n. A convolution's kernel is a
    matrix of its outputs.

    Returns:
      The params, as large as before, and how many weights they are stored as.

    Raises:
      Refused: if rank 1 in each layer is too much.
    """
    leaves, structure = jax.tree.flatten(jax.device_get(params))
    kernels = [i for i, p in enumerate(leaves) if p.ndim > 1]
    matrices = {
        i: np.reshape(leaves[i], (-1, leaves[i].shape[-1])) for i in kernels[:-1]
    }
    last = leaves[kernels[-1]].size

    def ranks(share: int) -> dict[int, int]:
        most = {i: a.size / sum(a.shape) for i, a in matrices.items()}
        return {i: max(int(share / 1000 * rank), 1) for i, rank in most.items()}

    def size(share: int) -> int:
        chosen = ranks(share)
        return last + sum(chosen[i] * sum(a.shape) for i, a in matrices.items())

    share = bisect.bisect_right(range(1001), weights, key=size) - 1
    if share < 0:
        raise Refused(f"--compressions leaves {weights} weights, too few for rank 1.")
    for i, rank in ranks(share).items():
        u, s, v = np.linalg.svd(matrices[i].astype(np.float64), full_matrices=False)
        near = (u[:, :rank] * s[:rank]) @ v[:rank]
        leaves[i] = near.astype(leaves[i].dtype).reshape(leaves[i].shape)
    return jax.tree.unflatten(structure, leaves), size(share)


def printed() -> Table:
    """Makes the paper's own table."""
    table = Table(title="AlexNet, the paper's table 6", title_justify="left")
    for name in ("method", "top-1 error", "top-5", "parameters", "rate"):
        table.add_column(name, justify="left" if name == "method" else "right")
    for row in paper.REDUCTIONS:
        top5 = "" if row.top5 is None else f"{row.top5:.2f}%"
        cells = (f"{row.error:.2f}%", top5, f"{row.millions:.1f}M", f"{row.rate:g}x")
        table.add_row(row.method, *cells)
    return table


def show(rows: Sequence[dict[str, str]]) -> Table:
    """Makes the table of what was measured: mean and sample standard deviation."""
    targets = sorted({float(row["target"]) for row in rows})
    dense = {row["seed"]: float(row["dense_error"]) for row in rows}.values()
    title = f"{rows[0]['network']}, {rows[0]['judged_on']}, error in percent"
    table = Table(title=title, title_justify="left")
    table.add_column(f"seeds: {len(dense)}")
    for target in targets:
        table.add_column(f"{target:g}x", justify="right")
    table.add_row("dense", _mean(list(dense)), *[""] * (len(targets) - 1))
    for method in METHODS:
        cells = []
        for target in targets:
            mine = [
                float(row["error"])
                for row in rows
                if row["method"] == method and float(row["target"]) == target
            ]
            cells.append(_mean(mine) if mine else "")
        table.add_row(method, *cells)
    return table


def _mean(errors: list[float]) -> str:
    spread = f" +- {statistics.stdev(errors):.2f}" if len(errors) > 1 else ""
    return f"{statistics.mean(errors):.2f}{spread}"


def main(args: Sequence[str] | None = None) -> int:
    """Runs the command line; gives the exit code."""
    return command(Options, run, "python -m experiments.reductions", __doc__, args)
