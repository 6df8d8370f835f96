"""Optimizers and learning rates of the recipes, and what wraps them."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import jaxprune
from experiments.config import Training


def optimizer(
    training: Training, lr: optax.Schedule
) -> optax.GradientTransformationExtraArgs:
    """Makes the optimizer that is pruned."""
    if training.optimizer == "adam":
        return optax.with_extra_args_support(optax.adam(lr))
    return optax.with_extra_args_support(optax.sgd(lr, momentum=0.9))


def first_phase(training: Training, steps: int, epoch: int) -> optax.Schedule:
    """Gives the learning rate of the first phase: up to the highest, then down to 0."""
    warmup = min(round(training.warmup * epoch), steps // 2)
    return optax.warmup_cosine_decay_schedule(0.0, training.lr, warmup, steps)


def cosine(lr: float, steps: int) -> optax.Schedule:
    """Gives a learning rate that falls from `lr` to 0."""
    return optax.cosine_decay_schedule(lr, steps)


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


class TurnState(NamedTuple):
    """What `in_turn` carries."""

    step: jax.Array
    inner_state: optax.OptState


def in_turn(
    tx: optax.GradientTransformationExtraArgs,
    frozen: Sequence[tuple[int, Sequence[str]]],
) -> optax.GradientTransformationExtraArgs:
    """Trains some layers while the others are frozen, and then others.

    A frozen leaf stays as it is, and the optimizer sees a gradient of 0 for it.

    Args:
      tx: the optimizer.
      frozen: pairs of a step and the kernels whose layers are frozen from then on, in
        the order of the steps; before the first nothing is.

    Source:
      Han et al. 2015 (arXiv:1506.02626), section 3.3.
    """
    begins = jnp.array([begin for begin, _ in frozen])
    layers = [{kernel.rsplit("/", 1)[0] + "/" for kernel in k} for _, k in frozen]

    def init(params: Any) -> TurnState:
        return TurnState(jnp.zeros([], jnp.int32), tx.init(params))

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        turn = jnp.sum(state.step >= begins)

        def thawed(path: Any, leaf: jax.Array) -> jax.Array:
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            free = [not name.startswith(tuple(there)) for there in layers]
            return jnp.where(jnp.array([True, *free])[turn], leaf, 0)

        updates = jax.tree_util.tree_map_with_path(thawed, updates)
        updates, inner_state = tx.update(updates, state.inner_state, params, **extra)
        updates = jax.tree_util.tree_map_with_path(thawed, updates)
        count = jnp.asarray(optax.safe_increment(state.step))
        return updates, TurnState(count, inner_state)

    return optax.GradientTransformationExtraArgs(init, update)
