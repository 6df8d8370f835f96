r"""Prunes LeNet-5, as Caffe has it, on MNIST.

The paper (Han et al. 2015, table 1): error 0.80% before and 0.77% after, 431K
parameters before and 36K after, 12x; conv1, conv2, fc1 and fc2 keep 66, 12, 8 and 19%
(table 3).

On 5,000 digits that need no download:

    python -m experiments.lenet5_prune

As in the paper's table, on all of MNIST, five seeds:

    python -m experiments.lenet5_prune --dataset mnist --seeds 5
    python -m experiments.lenet5_prune --dataset mnist --seeds 5 --recipe gradual

To 12x, 100x and 280x in one run, counted on weights (experiments/results/README.md):

    python -m experiments.lenet5_prune --dataset mnist --recipe best
    python -m experiments.lenet5_prune --dataset mnist --recipe best --augment \
        --distill 0

The first two: 13 minutes a seed, and 11 to 26, on one core of an AMD EPYC that had
other work to do. Reached, mean and standard deviation: 0.69 +- 0.03% dense, 0.74 +-
0.03% at 18.5x; gradual 0.67 +- 0.03% at 12.5x.
"""

import sys

from experiments.start import start


if __name__ == "__main__":  # before the imports, which take seconds
    sys.exit(start("experiments.lenet5_prune"))

from pathlib import Path
from typing import Any

from experiments import best, data, recipes, report, runs, train
from experiments.config import Best, Config, Pruning, Training
from experiments.models import LENET5


CONFIG = Config(
    network="LeNet-5",
    training=Training(lr=4e-3, batch=128, dense_epochs=12, strength=1e-4),
    pruning=Pruning(
        rounds=3,
        quality="conv1/*=0.3,conv2/*=1.1,fc1/*=1.6,fc2/*=0.8",
        quality_start=0.5,
        deviation="dense",
        retrain_epochs=6,
        epochs=20,
        ramp=(0.1, 0.5),
    ),
    best=Best(
        targets=(12.0, 100.0, 280.0), stage_epochs=14, criterion="fisher", distill=0.5
    ),
)


def run(config: Config, digits: data.Digits, folder: Path) -> dict[str, Any]:
    """Builds the optimizer with pruning inside, trains by it, reports."""
    if config.pruning.recipe == "best":
        return best.run(config, LENET5, digits, folder)
    task = runs.task_of(config, LENET5, digits)
    plan = recipes.plan(config, LENET5, task.feed.steps_per_epoch)
    fitted = train.fit(config, LENET5, plan, task, folder)
    return report.finish(config, LENET5, plan, task, fitted, folder)


def main(args: list[str] | None = None) -> int:
    """Runs the command line; gives the exit code."""
    return runs.main(run, CONFIG, LENET5, __doc__ or "", args)
