"""Error over compression, as the paper's figure 5: five lines, with seeds and bands.

    python -m experiments.tradeoff
    python -m experiments.tradeoff --network LeNet-5 --dataset mnist --seeds 5

For each seed a dense network is trained with an L1 and one with an L2 penalty. Each is
pruned by one threshold for all layers, to every compression, and judged at once ("l1",
"l2") and after retraining ("l1 retrained", "l2 retrained"). "l2 iterative" goes on from
its own point at the compression before, so its later points were retrained longer; it
begins with that of "l2 retrained". In the folder, runs/tradeoff-NETWORK-DATASET:

    tradeoff.csv    a row for each point, added when it is done
    tradeoff.png    mean error of the seeds, and one sample standard deviation about it

With --resume what is done is skipped. The paper draws AlexNet on ImageNet; it prints
no strengths of its penalties, and the one of L1 here is a guess.
"""

import sys

from experiments.start import start


if __name__ == "__main__":  # before the imports, which take seconds
    sys.exit(start("experiments.tradeoff"))

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from experiments import flags, points
from experiments.folders import command, open_points
from experiments.pictures import tradeoff as picture


LINES = ("l1", "l2", "l1 retrained", "l2 retrained", "l2 iterative")
COLUMNS = (
    *("network", "dataset", "judged_on", "seed", "line", "target"),
    *("compression_weights", "compression_params", "dense_error", "error"),
)
#: The flags that change the settings of the network's own experiment.
DENSE = ("batch", "dense_epochs", "lr", "warmup", "dropout")
RETRAINING = ("retrain_epochs", "retrain_lr")


@dataclasses.dataclass(frozen=True)
class Options:
    """Flags; those of training are, where None, the defaults of the network's own."""

    #: What is pruned. The last two need CIFAR-10, whatever the dataset.
    network: points.Name = "LeNet-300-100"
    #: Digits, as in experiments.lenet300_prune.
    dataset: Literal["mnist5k", "mnist"] = "mnist5k"
    #: Folder of TFDS. None: TFDS_DATA_DIR, else ~/tensorflow_datasets.
    data_dir: Path | None = None
    #: Seeds, counted from 0.
    seeds: int = 3
    #: Compressions, counted on the weights that may be pruned.
    compressions: tuple[float, ...] = (2, 3, 4, 6, 8, 12, 16, 24, 32, 48)
    #: Examples a step.
    batch: int | None = None
    #: Images of CIFAR-10 to judge on, such as test[:2000].
    eval_split: str = "test"
    #: Epochs of dense training.
    dense_epochs: float | None = None
    #: Highest learning rate of dense training.
    lr: float | None = None
    #: Epochs in which it rises to that.
    warmup: float | None = None
    #: Dropout rate of the dense network; the pruned one's follows from it.
    dropout: float | None = None
    #: Epochs of retraining, at each point.
    retrain_epochs: float | None = None
    #: Learning rate of retraining, as a share of --lr.
    retrain_lr: float | None = None
    #: Factor of the L1 penalty.
    l1: float = 1e-5
    #: Factor of the L2 penalty.
    l2: float | None = None
    #: Folder. None: runs/tradeoff-NETWORK-DATASET.
    out: Path | None = None
    #: Go on with what the folder holds; there may be more seeds.
    resume: bool = False


def run(options: Options) -> list[dict[str, str]]:
    """Makes the points that are not done, and the picture; gives the rows.

    Raises:
      Refused: if a flag is wrong, or data or folder are not to be had.
    """
    points.check(options)
    dataset = options.dataset if options.network in points.LENETS else "cifar10"
    subject = points.subject(
        options.network, options.dataset, options.data_dir, options.eval_split
    )
    own = subject.config
    training = dataclasses.replace(own.training, **_given(options, *DENSE))
    pruning = dataclasses.replace(own.pruning, **_given(options, *RETRAINING))
    own = dataclasses.replace(own, training=training, pruning=pruning)
    flags.check(own)
    subject = subject._replace(config=own)
    folder = open_points(options, "tradeoff", dataset, free=("seeds",))
    table = folder / "tradeoff.csv"
    rows = points.read(table, COLUMNS)
    done = {(int(r["seed"]), r["line"], float(r["target"])) for r in rows}
    wanted = [(line, c) for c in options.compressions for line in LINES]
    for seed in range(options.seeds):
        if all((seed, *point) in done for point in wanted):
            continue
        about = {"network": options.network, "dataset": dataset, "seed": seed}

        def add(line: str, target: float, row: dict[str, Any], about: Any = about):
            if (about["seed"], line, target) not in done:
                row = about | {"line": line, "target": f"{target:g}"} | row
                points.add(table, COLUMNS, row)

        one_seed(options, subject, folder, seed, add)
        print(f"seed {seed}, {seed + 1} of {options.seeds}: done", flush=True)
    rows = points.read(table, COLUMNS)
    title = f"{options.network}, {dataset}, seeds: {options.seeds}; mean, and one sd"
    picture.draw(folder / "tradeoff.png", rows, LINES, title)
    Console().print(f"Folder: {folder}", soft_wrap=True, highlight=False)
    return rows


def one_seed(
    options: Options,
    subject: points.Subject,
    folder: Path,
    seed: int,
    add: Callable[[str, float, dict[str, Any]], None],
) -> None:
    """Makes the points of a seed, those of both penalties from one dense net each."""
    own = subject.config
    retrain = {
        "lr": own.training.lr * own.pruning.retrain_lr,
        "dense_epochs": own.pruning.retrain_epochs,
        "warmup": 0.0,
    }
    strengths = {"l1": options.l1, "l2": options.l2 or own.training.strength}
    for penalty, strength in strengths.items():
        home = folder / f"seed{seed}-{penalty}"
        kind = {"regularizer": penalty, "strength": strength}
        config = points.settings(own, seed, **kind)
        again = points.settings(own, seed, **retrain, **kind)
        dense = points.trained(config, subject, home / "dense")
        task = subject.task(config, subject.network)
        dense_error = task.judge(dense)["error"]

        def point(
            line: str,
            target: float,
            params: Any,
            mask: Any,
            task: Any = task,
            before: float = dense_error,
        ) -> None:
            error = {"dense_error": before, "error": task.judge(params)["error"]}
            counted = points.compressions(params, mask)
            add(line, target, {"judged_on": task.judged_on, **counted, **error})

        chain = None
        for target in options.compressions:
            cut = points.pruned(dense, target)
            point(penalty, target, *cut)
            params = points.trained(again, subject, home / f"at{target:g}", cut)
            point(f"{penalty} retrained", target, params, cut.mask)
            if penalty == "l2":
                if chain is not None:
                    cut = points.pruned(chain, target)
                    where = home / f"iterative{target:g}"
                    params = points.trained(again, subject, where, cut)
                point("l2 iterative", target, params, cut.mask)
                chain = params


def _given(options: Options, *names: str) -> dict[str, Any]:
    """The flags of these names that were given."""
    values = {name: getattr(options, name) for name in names}
    return {name: value for name, value in values.items() if value is not None}


def main(args: Sequence[str] | None = None) -> int:
    """Runs the command line; gives the exit code."""
    prog = "python -m experiments.tradeoff"
    return command(Options, run, prog, __doc__, args)
