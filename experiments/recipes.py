"""Recipes: each is an optimizer wrapped by `prune`, and how many steps to run it.

All of pruning is in `tx`; `train.fit` runs any of them alike.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import jaxprune
from experiments.config import Config, Refused, Training
from experiments.flags import qualities
from experiments.models import Network


# Weights that stay alive in each layer, whatever the settings.
MIN_KEEP = 1


class Plan(NamedTuple):
    """What `train.fit` runs.

    Attributes:
      tx: the optimizer, with pruning inside; its state holds a `PruneState`.
      steps: how many steps in all.
      phases: first step and name of each part, for the progress bar and the figures.
      dense_step: the first step of the phase in which pruning begins; the params are
        kept then. `None` if it never does.
      dense_is_trained: whether the params kept there are those of a fully trained
        dense network, so that its error is a reference.
    """

    tx: optax.GradientTransformationExtraArgs
    steps: int
    phases: tuple[tuple[int, str], ...]
    dense_step: int | None
    dense_is_trained: bool


def plan(config: Config, network: Network, epoch: int) -> Plan:
    """Makes the plan of the recipe in `config`; `epoch` is steps per epoch."""
    recipes = {"paper": paper, "gradual": gradual, "dense": dense}
    return recipes[config.pruning.recipe](config, network, epoch)


def dense(config: Config, network: Network, epoch: int) -> Plan:
    """Trains without pruning, in the same loop: the control."""
    del network
    steps = _steps("dense-epochs", config.training.dense_epochs, epoch)
    inner = _optimizer(config.training, _first_phase(config.training, steps, epoch))
    tx = jaxprune.prune(inner, jaxprune.hold)
    return Plan(tx, steps, ((0, "dense"),), None, True)


def paper(config: Config, network: Network, epoch: int) -> Plan:
    """Trains dense, then prunes by quality x deviation and retrains, round by round.

    Source:
      Han et al. 2015 (arXiv:1506.02626), sections 3 and 4.
    """
    del network
    training, pruning = config.training, config.pruning
    begin = _steps("dense-epochs", training.dense_epochs, epoch)
    length = _steps("retrain-epochs", pruning.retrain_epochs, epoch)
    if begin + pruning.rounds * length >= _MAX_STEPS:
        raise Refused(f"--rounds is {pruning.rounds}, expected {_FEWER_STEPS}.")
    starts = [begin + r * length for r in range(pruning.rounds)]

    retrain_lr = training.lr * pruning.retrain_lr
    lr = optax.join_schedules(
        [
            _first_phase(training, begin, epoch),
            *[_cosine(retrain_lr, length) for _ in starts],
        ],
        starts,
    )
    full = qualities(pruning.quality)
    rounds = []
    for r, start in enumerate(starts):
        done = r / (len(starts) - 1) if len(starts) > 1 else 1.0
        share = pruning.quality_start + (1 - pruning.quality_start) * done
        quality = {glob: share * q for glob, q in full.items()}
        rounds.append((start + 1, jaxprune.once(start, _by_std(quality, pruning))))

    tx = jaxprune.prune(_optimizer(training, lr), jaxprune.then(*rounds))
    if pruning.deviation == "dense":
        tx = keep_deviation(tx, begin)
    names = [(s, f"round {r + 1}") for r, s in enumerate(starts)]
    return Plan(tx, begin + len(starts) * length, ((0, "dense"), *names), begin, True)


def gradual(config: Config, network: Network, epoch: int) -> Plan:
    """Prunes while training, by a cubic schedule of one sparsity for the whole net.

    Source:
      Zhu and Gupta 2017 (arXiv:1710.01878), equation 1.
    """
    training, pruning = config.training, config.pruning
    steps = _steps("epochs", pruning.epochs, epoch)
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
        _optimizer(training, _first_phase(training, steps, epoch)), schedule
    )
    phases = ((0, "dense"), (begin, "pruning"), (end, "retraining"))
    return Plan(tx, steps, phases[begin == 0 :], begin, False)


def sparsity_for(target: float, network: Network) -> float:
    """Gives the sparsity of prunable weights that compresses all by `target`.

    Compression is parameters before / parameters after, and biases are never pruned:
    with p prunable weights among n parameters, p - (n / target - (n - p)) must die.

    Raises:
      Refused: if even an empty net would not reach the target.
    """
    params = jax.eval_shape(
        network.module.init, jax.random.key(0), jnp.zeros((1, *network.input))
    )["params"]
    rows = jaxprune.summarize(params, jaxprune.dense_mask(params))
    total = sum(row.size for row in rows)
    prunable = sum(row.size for row in rows if row.prunable)
    alive = int(total / target) - (total - prunable)
    if alive < 1:
        raise Refused(
            f"--target is {target:g}, expected less than "
            f"{total / (total - prunable + 1):.0f}: {total - prunable} parameters of "
            f"{network.name} are biases, which are never pruned."
        )
    return (prunable - alive) / prunable


class DeviationState(NamedTuple):
    """What `keep_deviation` carries: the deviations, zeros until they are taken."""

    step: jax.Array
    std: Any
    inner_state: optax.OptState


def keep_deviation(
    tx: optax.GradientTransformationExtraArgs, step: int
) -> optax.GradientTransformationExtraArgs:
    """Takes the layers' deviations at `step` and hands them to every later update.

    They reach the schedule as the extra argument `std`. Being optimizer state, they
    are in the checkpoint, and a resumed run prunes at the same thresholds.
    """

    def init(params: Any) -> DeviationState:
        inner_state = tx.init(params)
        std = jaxprune.layer_std(params, jaxprune.get_mask(inner_state))
        return DeviationState(
            jnp.zeros([], jnp.int32), jax.tree.map(jnp.zeros_like, std), inner_state
        )

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        mask = jaxprune.get_mask(state.inner_state)
        std = jax.lax.cond(
            state.step == step,
            lambda: jaxprune.layer_std(params, mask),
            lambda: state.std,
        )
        updates, inner_state = tx.update(
            updates, state.inner_state, params, std=std, **extra
        )
        count = jnp.asarray(optax.safe_increment(state.step))
        return updates, DeviationState(count, std, inner_state)

    return optax.GradientTransformationExtraArgs(init, update)


def _by_std(quality: dict[Any, float], pruning: Any) -> jaxprune.MaskSchedule:
    if pruning.deviation == "live":
        return jaxprune.by_std(quality, min_keep=MIN_KEEP)

    def schedule(params: Any, mask: Any, step: Any, *, std: Any, **extra: Any) -> Any:
        by_std = jaxprune.by_std(quality, std=std, min_keep=MIN_KEEP)
        return by_std(params, mask, step, **extra)

    return schedule


def _optimizer(
    training: Training, lr: optax.Schedule
) -> optax.GradientTransformationExtraArgs:
    if training.optimizer == "adam":
        return optax.with_extra_args_support(optax.adam(lr))
    return optax.with_extra_args_support(optax.sgd(lr, momentum=0.9))


def _first_phase(training: Training, steps: int, epoch: int) -> optax.Schedule:
    warmup = min(round(training.warmup * epoch), steps // 2)
    return optax.warmup_cosine_decay_schedule(
        training.lr * (not warmup), training.lr, warmup, steps
    )


def _cosine(lr: float, steps: int) -> optax.Schedule:
    return optax.cosine_decay_schedule(lr, steps)


# Steps are counted in 32 bits.
_MAX_STEPS = 2**31
_FEWER_STEPS = f"so few that the steps stay below {_MAX_STEPS}"


def _steps(flag: str, epochs: float, epoch: int) -> int:
    if epochs * epoch >= _MAX_STEPS - 1:
        raise Refused(f"--{flag} is {epochs:g}, expected {_FEWER_STEPS}.")
    return max(round(epochs * epoch), 1)
