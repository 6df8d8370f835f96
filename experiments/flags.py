"""The command line: flags, read into settings and checked."""

import dataclasses
import math
import sys
from collections.abc import Sequence
from typing import Any, TypeVar

import tyro

from experiments.config import Best, Refused, Settings


S = TypeVar("S", bound=Settings)

# The recipes that read a setting; those of `Best` are read by best.
_READ_BY = {
    "dense_epochs": ("paper", "rewind", "best", "dense"),
    **dict.fromkeys(("rounds", "retrain_epochs"), ("paper", "rewind")),
    **dict.fromkeys(("quality", "quality_start", "deviation"), ("paper",)),
    **dict.fromkeys(("freeze", "retrain_lr"), ("paper",)),
    "target": ("gradual", "rewind"),
    **dict.fromkeys(("epochs", "ramp"), ("gradual",)),
    "period": ("gradual", "best"),
    **{field.name: ("best",) for field in dataclasses.fields(Best)},
}


def parse(default: S, prog: str, description: str, args: Sequence[str] | None) -> S:
    """Reads the command line; exits with code 2, and a message, where it is wrong.

    Args:
      default: settings of this experiment; flags change them.
      prog: the command, for `--help`.
      description: what `--help` begins with.
      args: flags; `None` reads those of the process.
    """
    config = tyro.cli(
        type(default),
        default=default,
        prog=prog,
        description=description,
        args=args,
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff),
    )
    try:
        check(config)
        _check_read(config, default)
    except Refused as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    return config


def check(config: Settings) -> None:
    """Checks ranges.

    Raises:
      Refused: naming the flag, its value and what was expected.
    """
    training, pruning, run = config.training, config.pruning, config.run
    holdout = getattr(config.data, "holdout", 0)
    rules = (
        ("holdout", holdout, holdout >= 0, "0 or more"),
        ("lr", training.lr, training.lr > 0, "more than 0"),
        ("warmup", training.warmup, training.warmup >= 0, "0 or more"),
        ("batch", training.batch, training.batch >= 1, "1 or more"),
        ("dense-epochs", training.dense_epochs, training.dense_epochs > 0, "above 0"),
        (
            "dropout",
            training.dropout,
            training.dropout is None or 0 <= training.dropout < 1,
            "a probability in [0, 1)",
        ),
        ("strength", training.strength, training.strength >= 0, "0 or more"),
        ("rounds", pruning.rounds, pruning.rounds >= 1, "1 or more"),
        (
            "quality-start",
            pruning.quality_start,
            0 < pruning.quality_start <= 1,
            "a share in (0, 1]",
        ),
        (
            "retrain-epochs",
            pruning.retrain_epochs,
            pruning.retrain_epochs > 0,
            "above 0",
        ),
        ("retrain-lr", pruning.retrain_lr, pruning.retrain_lr > 0, "above 0"),
        ("target", pruning.target, pruning.target >= 1, "a ratio of 1 or more"),
        ("epochs", pruning.epochs, pruning.epochs > 0, "above 0"),
        (
            "ramp",
            pruning.ramp,
            0 <= pruning.ramp[0] < pruning.ramp[1] <= 1,
            "two rising shares in [0, 1]",
        ),
        ("period", pruning.period, pruning.period >= 1, "1 or more"),
        # JAX makes its keys from 32 bits and would take later seeds for earlier ones.
        ("seed", run.seed, 0 <= run.seed < 2**32, "0 to 4294967295"),
        ("seeds", run.seeds, 1 <= run.seeds <= 2**32 - run.seed, "1 or more"),
        (
            "checkpoint-every",
            run.checkpoint_every,
            run.checkpoint_every >= 1,
            "1 or more",
        ),
        (
            "checkpoint-minutes",
            run.checkpoint_minutes,
            run.checkpoint_minutes > 0,
            "above 0",
        ),
        ("log-every", run.log_every, run.log_every >= 1, "1 or more"),
        ("steps-per-call", run.steps_per_call, run.steps_per_call >= 1, "1 or more"),
    )
    best = getattr(config, "best", None)
    for flag, value, good, expected in (*rules, *_of_best(best)):
        numbers = value if isinstance(value, tuple) else (value,)
        if not all(number is None or math.isfinite(number) for number in numbers):
            raise Refused(f"--{flag} is {value}, expected a finite number.")
        if not good:
            raise Refused(f"--{flag} is {value}, expected {expected}.")
    if run.resume and run.overwrite:
        raise Refused("--resume and --overwrite exclude each other: give one of them.")
    qualities(pruning.quality)
    if best is not None:
        qualities(best.spare, "spare")


def _check_read(config: Settings, default: Settings) -> None:
    """Refuses a setting that was changed, but that the recipe would ignore."""
    recipe = config.pruning.recipe
    for name, recipes in _READ_BY.items():
        for group in ("training", "pruning", "best"):
            value = getattr(getattr(config, group, None), name, None)
            was = getattr(getattr(default, group, None), name, None)
            if value != was and recipe not in recipes:
                raise Refused(
                    f"--{name.replace('_', '-')} is {value}, but --recipe {recipe} "
                    f"does not read it, expected --recipe {' or '.join(recipes)}."
                )


def _of_best(best: Best | None) -> tuple[tuple[str, Any, bool, str], ...]:
    if best is None:
        return ()
    targets = best.targets
    rising = bool(targets) and targets[0] >= 1 and list(targets) == sorted(set(targets))
    return (
        ("targets", targets, rising, "rising ratios of 1 or more, such as 12 40"),
        ("stage-epochs", best.stage_epochs, best.stage_epochs > 0, "above 0"),
        ("stage-lr", best.stage_lr, best.stage_lr > 0, "above 0"),
        ("stage-ramp", best.stage_ramp, 0 < best.stage_ramp < 1, "a share in (0, 1)"),
        ("distill", best.distill, 0 <= best.distill <= 1, "a share in [0, 1]"),
        ("teachers", best.teachers, best.teachers >= 1, "1 or more"),
        ("temperature", best.temperature, best.temperature > 0, "above 0"),
    )


def qualities(text: str, flag: str = "quality") -> dict[str, float]:
    """Reads `--quality`: a number, or numbers by glob of the kernel's path.

    >>> qualities("1.5")
    {'**': 1.5}
    >>> qualities("fc1/*=1.2,**=1")
    {'fc1/*': 1.2, '**': 1.0}

    Raises:
      Refused: if a part is not a positive number, or has no "=".
    """
    parts = [part.strip() for part in text.split(",")]
    pairs = [("**", text)] if "=" not in text else [p.split("=", 1) for p in parts if p]
    try:
        found = {glob.strip(): float(value) for glob, value in pairs}
    except ValueError:
        found = {}
    if not found or not all(0 < value < float("inf") for value in found.values()):
        raise Refused(
            f"--{flag} is {text!r}, expected a positive number such as 1.2, or "
            "numbers by layer such as 'fc1/*=1.2,fc3/*=0.8'."
        )
    return found
