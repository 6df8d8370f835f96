"""Prunes AlexNet on ImageNet, or a small one on CIFAR-10.

The paper (Han et al. 2015, tables 1 and 4): top-1 error 42.78% before and 42.77% after,
top-5 19.73% and 19.67%, 61M parameters before and 6.7M after, 9x.

On ImageNet as TFDS has prepared it, or on a folder of class folders, from published
weights or from scratch; first what it would be, then the run:

    python -m experiments.alexnet_prune --weights AlexNet.caffemodel --dry-run
    python -m experiments.alexnet_prune --weights AlexNet.caffemodel
    python -m experiments.alexnet_prune --convention torchvision --dtype bfloat16

A run goes on where it stopped with --resume. On CIFAR-10:

    python -m experiments.alexnet_prune --dataset cifar10

The defaults below are those of --convention caffe; another --convention or --dataset
before --help shows its own. The paper prints that retraining begins at 1/100 of the
initial learning rate, and that convolutions and dense layers take turns; ours are the
number of rounds, the epochs, the momentum, the L2 penalty, the batch and how the
thresholds rise. The quality parameters are ours too: they keep what table 4 keeps where
weights spread as a Laplace distribution.
"""

import sys

from experiments.start import start


if __name__ == "__main__":  # before the imports, which take seconds
    sys.exit(start("experiments.alexnet_prune"))

from pathlib import Path
from typing import Any

from experiments import imagenet
from experiments.config import Pruning, Run, Training
from experiments.data import Images
from experiments.image_settings import ImageConfig
from experiments.imagenet import Loaded, Preset
from experiments.models import ALEXNET, ALEXNET_CIFAR10, ALEXNET_TORCHVISION


CONFIG = ImageConfig(
    network="AlexNet",
    training=Training(
        optimizer="sgd", lr=0.01, batch=256, dense_epochs=90, strength=5e-4
    ),
    pruning=Pruning(
        rounds=5,
        quality=imagenet.spread_quality(ALEXNET.kept),
        deviation="dense",
        freeze="turns",
        retrain_epochs=10,
        retrain_lr=0.01,
        target=9,
        epochs=90,
        period=500,
    ),
    # A checkpoint takes a GB: the minutes decide, up to 22 steps a second.
    run=Run(steps_per_call=1, checkpoint_every=20_000),
)
PRESETS = {
    "caffe": Preset(ALEXNET, CONFIG),
    "torchvision": Preset(ALEXNET_TORCHVISION, CONFIG),
    "cifar10": Preset(
        ALEXNET_CIFAR10,
        ImageConfig(
            network="AlexNet-CIFAR10",
            data=Images(dataset="cifar10", eval_split="test"),
            training=Training(
                optimizer="sgd", lr=0.05, batch=128, dense_epochs=100, strength=5e-4
            ),
            pruning=Pruning(
                rounds=5,
                quality="fc*/*=1.6,**=1.2",
                deviation="dense",
                retrain_epochs=20,
                retrain_lr=0.1,
                target=9,
                epochs=100,
                period=100,
            ),
            # Several are a loop, in which XLA's convolutions crawl on a CPU: one core
            # took 0.7 s a step of AlexNet, batch 32, and 23 s.
            run=Run(steps_per_call=1),
        ),
    ),
}


def run(config: ImageConfig, loaded: Loaded, folder: Path) -> dict[str, Any]:
    """Trains, prunes and reports one seed."""
    return imagenet.train_and_report(config, loaded, folder)


def main(args: list[str] | None = None) -> int:
    """Runs the command line; gives the exit code."""
    return imagenet.main(run, PRESETS, __doc__ or "", args)
