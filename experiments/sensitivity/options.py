"""Flags of the command, and their defaults by network."""

import dataclasses
import math
from pathlib import Path
from typing import Literal, NamedTuple

from experiments.config import Refused


@dataclasses.dataclass(frozen=True)
class Options:
    """Flags."""

    #: What is scanned.
    network: Literal["LeNet-300-100", "LeNet-5", "SqueezeNet"] = "LeNet-5"
    #: Trained weights: dense.safetensors in the folder of a run with --holdout, or for
    #: SqueezeNet a published file. None: train a LeNet here first.
    weights: Path | None = None
    #: Digits to train on, as in experiments.lenet5_prune, for weights trained here.
    dataset: Literal["mnist5k", "mnist"] = "mnist5k"
    #: Folder of TFDS. None: TFDS_DATA_DIR, else ~/tensorflow_datasets.
    data_dir: Path | None = None
    #: Digits held out of training here, to choose on. None: 5,000, of the small sample
    #: 1,000.
    holdout: int | None = None
    #: Seed of the training.
    seed: int = 0
    #: Examples to choose on: of the held-out digits, or of the first half of the
    #: photographs. None: 5,000 digits, 150 photographs.
    examples: int | None = None
    #: LeNets: judge on the held-out digits that were not chosen on as well as on the
    #: test digits.
    judge_holdout: bool = False
    #: Share of each layer's live weights that is left at the levels of the scan. None:
    #: 14 levels for the LeNets, 5 for SqueezeNet.
    kept: tuple[float, ...] | None = None
    #: What is scanned. divergence: of the network's answers from those given before,
    #: which varies less from example to example than the cross-entropy.
    metric: Literal["cross-entropy", "divergence"] | None = None
    #: Compressions to solve for, counted on prunable weights. None: 2, 4 and 8 for the
    #: LeNets, 4, 5 and 6 for SqueezeNet, whose weights begin at 3.
    targets: tuple[float, ...] | None = None
    #: Exponents of what each layer adds to the metric: 1 adds it up, more spreads it
    #: evenly. The solution that measures best is taken. None: 1; SqueezeNet 1, 2, 4, 8.
    powers: tuple[float, ...] | None = None
    #: Scans around the solution, to improve it, or around one of the ways that it is
    #: compared with, if that is better on what is chosen on. None: 6 for the LeNets, of
    #: two points a layer each; 0 for SqueezeNet.
    rounds: int | None = None
    #: LeNets: steps of retraining at each point of the scan, on training digits.
    retrain_steps: int = 0
    #: Folder. None: runs/sensitivity-NETWORK.
    out: Path | None = None
    #: Go on with what the folder holds.
    resume: bool = False


class Defaults(NamedTuple):
    """What a network takes where no flag is given."""

    examples: int
    kept: tuple[float, ...]
    metric: Literal["cross-entropy", "divergence"]
    targets: tuple[float, ...]
    powers: tuple[float, ...]
    rounds: int


_KEPT = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.22, 0.16, 0.12, 0.08, 0.05, 0.03, 0.01)
_DIGITS = Defaults(5000, _KEPT, "cross-entropy", (2.0, 4.0, 8.0), (1.0,), 6)
DEFAULTS = {
    "LeNet-300-100": _DIGITS,
    "LeNet-5": _DIGITS,
    "SqueezeNet": Defaults(
        150,
        (0.85, 0.7, 0.55, 0.4, 0.25),
        "divergence",
        (4.0, 5.0, 6.0),
        (1.0, 2.0, 4.0, 8.0),
        0,
    ),
}


def completed(options: Options) -> Options:
    """Fills in the defaults of the network.

    Raises:
      Refused: naming the flag, its value and what was expected.
    """
    default = DEFAULTS[options.network]
    values = {
        name: value if getattr(options, name) is None else getattr(options, name)
        for name, value in default._asdict().items()
    }
    holdout = options.holdout
    if holdout is None:
        holdout = 5000 if options.dataset == "mnist" else 1000
    out = options.out
    if out is None:
        out = Path("runs") / f"sensitivity-{options.network.lower().replace('-', '')}"
    options = dataclasses.replace(options, **values, holdout=holdout, out=out)
    _check(options)
    return options


def _check(options: Options) -> None:
    kept, targets = options.kept or (), options.targets or ()
    photographs = options.network == "SqueezeNet"
    rules = (
        ("examples", options.examples, (options.examples or 0) >= 2, "2 or more"),
        ("holdout", options.holdout, (options.holdout or 0) >= 2, "2 or more"),
        (
            "kept",
            kept,
            bool(kept) and all(0 < share < 1 for share in kept),
            "shares in (0, 1)",
        ),
        (
            "targets",
            targets,
            bool(targets) and all(1 < x < math.inf for x in targets),
            "ratios above 1",
        ),
        (
            "powers",
            options.powers,
            bool(options.powers) and all(0 < p < math.inf for p in options.powers),
            "exponents above 0",
        ),
        ("rounds", options.rounds, (options.rounds or 0) >= 0, "0 or more"),
        ("seed", options.seed, 0 <= options.seed < 2**32, "0 to 4294967295"),
        (
            "judge-holdout",
            options.judge_holdout,
            not (options.judge_holdout and photographs),
            "digits, of which photographs have none",
        ),
        (
            "retrain-steps",
            options.retrain_steps,
            options.retrain_steps == 0
            or (options.retrain_steps > 0 and not photographs),
            "0 or more, and 0 for photographs, of which none are trained on",
        ),
    )
    for flag, value, good, expected in rules:
        if not good:
            raise Refused(f"--{flag} is {value}, expected {expected}.")
    if photographs and options.weights is None:
        raise Refused("--weights is None, expected a file of weights of SqueezeNet.")
