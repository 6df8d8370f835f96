"""Recipes: each is an optimizer wrapped by `prune`, and how many steps to run it.

All of pruning is in `tx`; `train.fit` runs any of them alike.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

import jaxprune
from experiments.config import Refused, Settings
from experiments.flags import qualities
from experiments.ladder import ladder
from experiments.models import Network
from experiments.optimizers import (
    cosine,
    first_phase,
    in_turn,
    keep_deviation,
    optimizer,
)
from experiments.plan import FEWER_STEPS, MAX_STEPS, MIN_KEEP, Plan, steps_of
from experiments.target import sparsity_for


def plan(config: Settings, network: Network, epoch: int, given: bool = False) -> Plan:
    """Makes the plan of the recipe in `config`.

    Args:
      config: settings.
      network: what is pruned.
      epoch: steps in an epoch.
      given: whether training starts from trained weights, so that recipes that begin
        by training dense begin with the first round.
    """
    recipes = {
        "paper": paper,
        "gradual": gradual,
        "rewind": rewind,
        "best": ladder,
        "dense": dense,
    }
    return recipes[config.pruning.recipe](config, network, epoch, given)


def dense(
    config: Settings,
    network: Network,
    epoch: int,
    given: bool = False,
    mask: Any = None,
) -> Plan:
    """Trains without pruning, in the same loop: the control.

    With a `mask` it trains a network that was pruned before, whose dead weights stay
    dead.
    """
    del network, given
    steps = steps_of("dense-epochs", config.training.dense_epochs, epoch)
    inner = optimizer(config.training, first_phase(config.training, steps, epoch))
    tx = jaxprune.prune(inner, jaxprune.hold, mask)
    name = "dense" if mask is None else "pruned"
    return Plan(tx, steps, ((0, name),), None, True)


def paper(config: Settings, network: Network, epoch: int, given: bool = False) -> Plan:
    """Trains dense, then prunes by quality x deviation and retrains, round by round.

    With `--freeze turns` a round prunes and retrains the convolutions while the dense
    layers are frozen, and then the other way round.

    Source:
      Han et al. 2015 (arXiv:1506.02626), sections 3 and 4; for the turns 3.3.
    """
    training, pruning = config.training, config.pruning
    turns = [()]
    if pruning.freeze == "turns":
        turns = [(name,) for name, paths in network.groups.items() if paths]
    starts = _rounds(config, epoch, given, turns=len(turns))
    begin, length = starts[0], steps_of("retrain-epochs", pruning.retrain_epochs, epoch)
    retrain = cosine(training.lr * pruning.retrain_lr, length)

    full = qualities(pruning.quality)
    rounds, names, frozen = [], [], []
    for i, start in enumerate(starts):
        r, turn = i // len(turns), turns[i % len(turns)]
        done = r / (pruning.rounds - 1) if pruning.rounds > 1 else 1.0
        share = pruning.quality_start + (1 - pruning.quality_start) * done
        quality = {glob: share * q for glob, q in full.items()}
        if turn:
            paths = network.groups[turn[0]]
            quality = {path: q for path in paths if (q := _first(quality, path))}
            others = set(network.groups) - set(turn)
            frozen.append((start, [k for name in others for k in network.groups[name]]))
        rounds.append((start + 1, jaxprune.once(start, _by_std(quality, pruning))))
        names.append((start, " ".join([f"round {r + 1}", *turn])))

    lr = _then(training, begin, epoch, starts, retrain)
    inner = optimizer(training, lr)
    if frozen:
        inner = in_turn(inner, frozen)
    tx = jaxprune.prune(inner, jaxprune.then(*rounds))
    if pruning.deviation == "dense":
        tx = keep_deviation(tx, begin)
    phases = (*[(0, "dense")][: begin > 0], *names)
    return Plan(tx, starts[-1] + length, phases, begin, True)


def rewind(config: Settings, network: Network, epoch: int, given: bool = False) -> Plan:
    """Prunes round by round, and retrains as the end of the dense training went.

    Each round leaves the same share of the weights alive, by magnitude over the whole
    net, and repeats the last epochs of the dense learning rate ("learning rate
    rewinding"); from given weights, a cosine from the full rate.

    Source:
      Renda et al. 2020 (arXiv:2003.02389), section 3.
    """
    training, pruning = config.training, config.pruning
    starts = _rounds(config, epoch, given)
    begin, length = starts[0], steps_of("retrain-epochs", pruning.retrain_epochs, epoch)
    if 0 < begin < length:
        raise Refused(
            f"--retrain-epochs is {pruning.retrain_epochs:g}, expected at most the "
            f"{training.dense_epochs:g} of --dense-epochs, the end of which --recipe "
            "rewind repeats."
        )
    replay = cosine(training.lr, length)
    if begin:
        first = first_phase(training, begin, epoch)
        replay = lambda step: first(begin - length + step)
    kept = 1 - sparsity_for(pruning.target, network)
    shares = [1 - kept ** (r / len(starts)) for r in range(1, len(starts) + 1)]

    def share(step: Any) -> jax.Array:
        return jnp.array(shares, jnp.float32)[(step - begin) // length]

    cut = jaxprune.to_sparsity(
        jaxprune.magnitude, share, scope="global", min_keep=MIN_KEEP
    )
    # One schedule for all rounds, for a selection takes a minute and more to compile.
    schedule = jaxprune.every(length, cut, begin=begin, end=starts[-1])
    inner = optimizer(training, _then(training, begin, epoch, starts, replay))
    tx = jaxprune.prune(inner, schedule)
    names = [(start, f"round {r}") for r, start in enumerate(starts, 1)]
    phases = (*[(0, "dense")][: begin > 0], *names)
    return Plan(tx, starts[-1] + length, phases, begin, True)


def gradual(
    config: Settings, network: Network, epoch: int, given: bool = False
) -> Plan:
    """Prunes while training, by a cubic schedule of one sparsity for the whole net.

    Source:
      Zhu and Gupta 2017 (arXiv:1710.01878), equation 1.
    """
    training, pruning = config.training, config.pruning
    steps = steps_of("epochs", pruning.epochs, epoch)
    begin, end = (int(share * steps) for share in pruning.ramp)
    # The last pruning falls on `end`, where the schedule reaches the target.
    begin = end - max((end - begin) // pruning.period, 1) * pruning.period
    if begin < 0:
        raise Refused(
            f"--period is {pruning.period}, expected at most the {end} steps to "
            "the end of --ramp."
        )
    sparsity = sparsity_for(pruning.target, network)
    cubic = optax.polynomial_schedule(0.0, sparsity, 3, end - begin, begin)
    schedule = jaxprune.every(
        pruning.period,
        jaxprune.to_sparsity(
            jaxprune.magnitude, cubic, scope="global", min_keep=MIN_KEEP
        ),
        begin=begin,
        end=end,
    )
    tx = jaxprune.prune(
        optimizer(training, first_phase(training, steps, epoch)), schedule
    )
    phases = ((0, "dense"), (begin, "pruning"), (end, "retraining"))
    return Plan(tx, steps, phases[begin == 0 :], begin, False)


def _rounds(config: Settings, epoch: int, given: bool, turns: int = 1) -> list[int]:
    """Gives the first step of each round, or turn of a round."""
    begin = 0
    if not given:
        begin = steps_of("dense-epochs", config.training.dense_epochs, epoch)
    pruning = config.pruning
    length = steps_of("retrain-epochs", pruning.retrain_epochs, epoch)
    if begin + pruning.rounds * turns * length >= MAX_STEPS:
        raise Refused(f"--rounds is {pruning.rounds}, expected {FEWER_STEPS}.")
    return [begin + i * length for i in range(pruning.rounds * turns)]


def _then(
    training: Any, begin: int, epoch: int, starts: list[int], retrain: optax.Schedule
) -> optax.Schedule:
    """Joins the learning rate of dense training, if there is any, and of the rounds."""
    rates = [retrain for _ in starts]
    if not begin:
        return optax.join_schedules(rates, starts[1:])
    return optax.join_schedules([first_phase(training, begin, epoch), *rates], starts)


def _first(quality: dict[str, float], path: str) -> float | None:
    leaf = jax.ShapeDtypeStruct((1, 1), jnp.float32)
    found = [q for glob, q in quality.items() if jaxprune.where(glob)(path, leaf)]
    return found[0] if found else None


def _by_std(quality: dict[Any, float], pruning: Any) -> jaxprune.MaskSchedule:
    if pruning.deviation == "live":
        return jaxprune.by_std(quality, min_keep=MIN_KEEP)

    def schedule(params: Any, mask: Any, step: Any, *, std: Any, **extra: Any) -> Any:
        by_std = jaxprune.by_std(quality, std=std, min_keep=MIN_KEEP)
        return by_std(params, mask, step, **extra)

    return schedule
