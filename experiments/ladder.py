"""Recipe best: gradual pruning to one target after the other, from a trained net."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

import jaxprune
from experiments.config import Best, Refused, Settings
from experiments.flags import qualities
from experiments.models import Network
from experiments.optimizers import cosine, optimizer
from experiments.plan import MAX_STEPS, MIN_KEEP, Plan, steps_of
from experiments.scores import fisher, spared, with_mean_square


def ladder(config: Settings, network: Network, epoch: int, given: bool = False) -> Plan:
    """Prunes a trained net to each target in turn, and trains it at each.

    A stage begins where the one before ended. In its first part the sparsity of the
    whole net rises by a cubic, while the learning rate falls by a cosine to 0. So one
    run gives a net for each target, and the smaller nets were trained the longer.

    Args:
      config: settings, of digits.
      network: what is pruned.
      epoch: steps in an epoch.
      given: not used: training always starts from trained weights.

    Raises:
      Refused: if a target leaves no weight, if a stage is too short, if the criterion
        does not go with the optimizer or if the settings have no such recipe.

    Source:
      Zhu and Gupta 2017 (arXiv:1710.01878), equation 1, for each stage.
    """
    del given
    best: Best | None = getattr(config, "best", None)
    if best is None:
        raise Refused("--recipe is best, which is for digits; expected another.")
    training, period = config.training, config.pruning.period
    length = steps_of("stage-epochs", best.stage_epochs, epoch)
    ramp = max(int(best.stage_ramp * length), 1)
    if length - ramp < period:
        raise Refused(
            f"--period is {period}, expected at most the {length - ramp} steps of a "
            "stage in which the sparsity stays; raise --stage-epochs or lower "
            "--stage-ramp."
        )
    if length * len(best.targets) >= MAX_STEPS:
        raise Refused(f"--stage-epochs is {best.stage_epochs:g}, expected fewer.")

    starts = [i * length for i in range(len(best.targets))]
    ends = [_sparsity(target, network) for target in best.targets]
    rises = [
        optax.polynomial_schedule(before, after, 3, ramp)
        for before, after in zip([0.0, *ends], ends, strict=False)
    ]
    sparsity = optax.join_schedules(rises, starts[1:])
    criterion = fisher if best.criterion == "fisher" else jaxprune.magnitude
    cut = jaxprune.to_sparsity(
        spared(criterion, qualities(best.spare)),
        sparsity,
        scope="global",
        min_keep=MIN_KEEP,
    )
    rate = cosine(training.lr * best.stage_lr, length)
    lr = optax.join_schedules([rate for _ in starts], starts[1:])
    tx = jaxprune.prune(optimizer(training, lr), jaxprune.every(period, cut))
    if best.criterion == "fisher":
        if training.optimizer != "adam":
            raise Refused(
                f"--criterion is fisher and --optimizer {training.optimizer}, expected "
                "adam, whose squared gradients it takes."
            )
        tx = with_mean_square(tx)
    names = [f"{target:g}x" for target in best.targets]
    return Plan(
        tx, length * len(starts), tuple(zip(starts, names, strict=True)), 0, True
    )


def _sparsity(target: float, network: Network) -> float:
    """Gives the sparsity at which all weights are `target` times the live ones."""
    params: Any = jax.eval_shape(
        network.module.init, jax.random.key(0), jnp.zeros((1, *network.input))
    )["params"]
    rows = jaxprune.summarize(params, jaxprune.dense_mask(params))
    sizes = [row.size for row in rows if row.prunable]
    alive = int(sum(sizes) / target)
    if alive < MIN_KEEP * len(sizes):
        raise Refused(
            f"--targets has {target:g}, expected at most {sum(sizes) // len(sizes)}: "
            f"each of the {len(sizes)} layers of {network.name} keeps a weight."
        )
    return 1 - alive / sum(sizes)
