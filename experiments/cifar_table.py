"""VGG-16 and AlexNet on CIFAR-10, dense and pruned, over several seeds: one table.

    python -m experiments.cifar_table
    python -m experiments.cifar_table --networks alexnet --seeds 2 --dense-epochs 1 \
        --retrain-epochs 0.5 --rounds 1 --targets 9 2                  (on a CPU)

For each network it runs `experiments.vgg16_prune` or `experiments.alexnet_prune` with
`--dataset cifar10 --recipe rewind --seeds N`: each seed trains a dense network and
prunes that one, VGG-16 to 13 times fewer parameters and AlexNet to 9, as the paper does
on ImageNet. Seeds that are done are skipped, and one that was interrupted goes on. A
network holds if the mean accuracy of the pruned ones is at least that of the dense ones
less one standard deviation of the dense.
"""

import sys

from experiments.start import start


if __name__ == "__main__":  # before the imports, which take seconds
    sys.exit(start("experiments.cifar_table"))

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import tyro
from rich.console import Console
from rich.table import Table

from experiments import alexnet_prune, seeds, vgg16_prune
from experiments.bench._common import hardware, write_csv


COMMANDS = {"vgg16": vgg16_prune.main, "alexnet": alexnet_prune.main}
NETWORKS: tuple[Literal["vgg16", "alexnet"], ...] = ("vgg16", "alexnet")


@dataclasses.dataclass(frozen=True)
class Options:
    """Flags."""

    #: Networks to run.
    networks: tuple[Literal["vgg16", "alexnet"], ...] = NETWORKS
    #: Seeds of each, 2 or more, counted from 0.
    seeds: int = 3
    #: Compression wanted of VGG-16 and of AlexNet, counted on all parameters.
    targets: tuple[float, float] = (13.0, 9.0)
    #: Epochs of dense training.
    dense_epochs: float = 100.0
    #: Rounds of pruning and retraining.
    rounds: int = 5
    #: Epochs of a round.
    retrain_epochs: float = 20.0
    #: Images a step.
    batch: int = 128
    #: Highest learning rate.
    lr: float = 0.05
    #: Type of the computation.
    dtype: Literal["float32", "bfloat16"] = "float32"
    #: Folder of TFDS that holds cifar10/. None: TFDS_DATA_DIR, else
    #: ~/tensorflow_datasets.
    data_dir: Path | None = None
    #: Where the runs go.
    runs: Path = Path("runs/cifar10")
    #: The CSV to write.
    out: Path = Path("experiments/results/cifar10.csv")


def flags_of(name: str, options: Options) -> list[str]:
    """Gives the flags of a network's command."""
    target = options.targets[0 if name == "vgg16" else 1]
    pairs = {
        "dataset": "cifar10",
        "recipe": "rewind",
        "seeds": options.seeds,
        "target": target,
        "dense-epochs": options.dense_epochs,
        "rounds": options.rounds,
        "retrain-epochs": options.retrain_epochs,
        "batch": options.batch,
        "lr": options.lr,
        "dtype": options.dtype,
        "out": options.runs / name,
    }
    if options.data_dir is not None:
        pairs["data-dir"] = options.data_dir
    return [word for flag, value in pairs.items() for word in (f"--{flag}", str(value))]


def row_of(name: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Sums the seeds of a network up; accuracies in percent."""
    dense = [100 - float(row["dense_error"]) for row in rows]
    pruned = [100 - float(row["error"]) for row in rows]
    compression = [float(row["compression_params"]) for row in rows]
    mean, sd = statistics.mean(dense), statistics.stdev(dense)
    found = statistics.mean(pruned)
    return {
        "network": name,
        "judged_on": rows[0]["judged_on"],
        "seeds": len(rows),
        "dense_mean": f"{mean:.3f}",
        "dense_sd": f"{sd:.3f}",
        "pruned_mean": f"{found:.3f}",
        "pruned_sd": f"{statistics.stdev(pruned):.3f}",
        "compression_params": f"{statistics.mean(compression):.3f}",
        "holds": "yes" if found >= mean - sd else "no",
        "train_seconds": f"{sum(float(row['train_seconds']) for row in rows):.0f}",
    }


def main(args: list[str] | None = None) -> int:
    """Runs what is not done, prints the table, writes the CSV; gives the exit code."""
    options = tyro.cli(
        Options,
        prog="python -m experiments.cifar_table",
        description=__doc__,
        args=args,
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    if options.seeds < 2 or not options.networks:
        print(
            f"error: --seeds is {options.seeds} and --networks names "
            f"{len(options.networks)}, expected 2 seeds or more, whose deviation can "
            "be told, and one network or more.",
            file=sys.stderr,
        )
        return 2
    found = []
    for name in options.networks:
        code = COMMANDS[name](flags_of(name, options))
        rows = seeds.read_rows(options.runs / name / "seeds.csv")
        if code or not all(seed in rows for seed in range(options.seeds)):
            return code  # stopped or refused, and it has said so
        mine = [rows[seed] for seed in range(options.seeds)]
        settings = {
            key: getattr(options, key)
            for key in ("dense_epochs", "rounds", "retrain_epochs", "batch", "lr")
        }
        found.append(row_of(name, mine) | settings | {"dtype": options.dtype})
        write_csv(options.out, [row | hardware() for row in found])
    Console().print(show(found))
    Console().print(f"Written to {options.out}", soft_wrap=True)
    return 0


def show(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Makes the table that is printed."""
    table = Table(title=f"CIFAR-10, accuracy on {rows[0]['judged_on']}, mean +- sd")
    for column in ("network", "seeds", "dense", "pruned", "compression", "holds"):
        table.add_column(column, justify="left" if column == "network" else "right")
    for row in rows:
        table.add_row(
            row["network"],
            str(row["seeds"]),
            f"{row['dense_mean']} +- {row['dense_sd']}%",
            f"{row['pruned_mean']} +- {row['pruned_sd']}%",
            f"{row['compression_params']}x",
            row["holds"],
        )
    return table
