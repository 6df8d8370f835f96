"""From a pruned network to shared weights: clusters, then their centroids trained."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

import jaxprune
from experiments.config import Config
from experiments.models import Network
from experiments.step import State, first_state, make_step, sound
from experiments.tasks import Task
from jaxprune import compress


BIASES = "**/bias"


class Sharing(NamedTuple):
    """How weights are shared.

    Attributes:
      bits: of a code, by glob of the leaf's path.
      init: first centroids, as in `jaxprune.compress.share`.
      epochs: of training the centroids and biases; 0 for none.
    """

    bits: dict[Any, int]
    init: Any
    epochs: float


def with_biases(mask: Any, params: Any) -> Any:
    """Adds to a mask all weights of the leaves that are not pruned, alive."""
    return jaxprune.map_masked(
        lambda _, m: m, params, mask, elsewhere=lambda p: np.ones(p.shape, bool)
    )


def share_and_train(
    config: Config,
    network: Network,
    task: Task,
    params: Any,
    mask: Any,
    sharing: Sharing,
) -> Any:
    """Shares the live weights of pruned params and trains what they share.

    Assignments stay as they are; only centroids and biases move, by Adam with a
    learning rate that falls to zero.

    Args:
      config: its `training` and `run.seed` are used.
      network: what is trained.
      task: what it is trained on.
      params: pruned params.
      mask: their mask.
      sharing: bits, first centroids, epochs.

    Raises:
      Diverged: if a weight is not finite at the end.
      ValueError: if a glob of `bits` matches no leaf.
    """
    params, codes = compress.share(
        params, mask, sharing.bits, init=sharing.init, seed=config.run.seed
    )
    feed = task.feed
    steps = round(sharing.epochs * feed.steps_per_epoch)
    if not steps:
        return params
    lr = optax.cosine_decay_schedule(config.training.lr, steps)
    tx = jaxprune.prune(compress.tie(optax.adam(lr), codes), jaxprune.hold, mask)
    key = jax.random.key(config.run.seed)
    state = first_state(network, tx, key, jax.tree.map(jnp.asarray, params))
    train_step = make_step(config, network, tx, jax.random.fold_in(key, 4))

    @partial(jax.jit, donate_argnums=0)
    def run(state: State, arrays: Any, until: int) -> State:
        return lax.while_loop(
            lambda s: (s.step < until) & (s.bad < 0),
            lambda s: train_step(s, feed.batch(arrays, s.step)),
            state,
        )

    for begin in range(0, steps, feed.steps_per_epoch):
        until = min(begin + feed.steps_per_epoch, steps)
        state = run(state, feed.arrays(begin), until)
    return sound(state, None).params
