r"""Prunes LeNet-300-100 on MNIST.

The paper (Han et al. 2015, table 1): error 1.64% before and 1.59% after, 267K
parameters before and 22K after, 12x; fc1, fc2 and fc3 keep 8, 9 and 26% (table 2).

In about half a minute on two free cores, on 5,000 digits that need no download:

    python -m experiments.lenet300_prune

As in the paper's table, on all of MNIST, five seeds. The weights spread wider there,
so the same compression takes a smaller quality:

    python -m experiments.lenet300_prune --dataset mnist --seeds 5 --batch 128 \
        --strength 1e-4 --quality "fc3/*=1.2,**=1.5"
    python -m experiments.lenet300_prune --dataset mnist --seeds 5 --batch 128 \
        --strength 1e-4 --recipe gradual --epochs 60 --ramp 0.1 0.5

To 12x, 40x, 68x and 100x in one run, counted on weights, without and with distorted
digits, and the table of either:

    python -m experiments.lenet300_prune --dataset mnist --seeds 5 --batch 128 \
        --strength 1e-4 --recipe best
    python -m experiments.lenet300_prune --dataset mnist --seeds 5 --batch 128 \
        --strength 1e-5 --dropout 0 --recipe best --augment
    python -m experiments.records runs/lenet300100-best-mnist-seeds --out best.csv
    python -m experiments.records runs/lenet300100-best-mnist-augmented-seeds

Two to six minutes a seed on one core of an AMD EPYC that had other work to do. The
figures reached are in experiments/results/README.md.
"""

import sys

from experiments.start import start


if __name__ == "__main__":  # before the imports, which take seconds
    sys.exit(start("experiments.lenet300_prune"))

from pathlib import Path
from typing import Any

from experiments import best, data, recipes, report, runs, train
from experiments.config import Best, Config, Pruning, Training
from experiments.models import LENET300


CONFIG = Config(
    network="LeNet-300-100",
    training=Training(lr=4e-3, batch=64, dense_epochs=20, strength=2e-4),
    pruning=Pruning(
        rounds=5,
        quality="fc3/*=1.2,**=1.9",
        quality_start=0.4,
        deviation="dense",
        retrain_epochs=10,
        epochs=40,
    ),
    best=Best(targets=(12.0, 40.0, 68.0, 100.0), stage_epochs=20, criterion="fisher"),
)


def run(config: Config, digits: data.Digits, folder: Path) -> dict[str, Any]:
    """Builds the optimizer with pruning inside, trains by it, reports."""
    if config.pruning.recipe == "best":
        return best.run(config, LENET300, digits, folder)
    task = runs.task_of(config, LENET300, digits)
    plan = recipes.plan(config, LENET300, task.feed.steps_per_epoch)
    fitted = train.fit(config, LENET300, plan, task, folder)
    return report.finish(config, LENET300, plan, task, fitted, folder)


def main(args: list[str] | None = None) -> int:
    """Runs the command line; gives the exit code."""
    return runs.main(run, CONFIG, LENET300, __doc__ or "", args)
