"""From a pruned network to shared weights: clusters, then their centroids trained."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

import jaxprune
from experiments import data
from experiments.config import Config
from experiments.models import Network
from experiments.step import first_state, make_step, sound
from experiments.train import order, steps_per_epoch
from jaxprune import compress


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


def share_and_train(
    config: Config,
    network: Network,
    digits: data.Digits,
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
      digits: what it is trained on.
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
    epoch_steps = steps_per_epoch(config, digits)
    steps = round(sharing.epochs * epoch_steps)
    if not steps:
        return params
    lr = optax.cosine_decay_schedule(config.training.lr, steps)
    tx = jaxprune.prune(compress.tie(optax.adam(lr), codes), jaxprune.hold, mask)
    key = jax.random.key(config.run.seed)
    images, labels = data.put(digits.train)
    params = jax.tree.map(jnp.asarray, params)
    state = first_state(network, tx, images.shape[1:], key)
    state = state._replace(params=params, opt_state=tx.init(params))
    train_step = make_step(config, network, tx, jax.random.fold_in(key, 3))
    rows_of, batch = order(key, images.shape[0]), config.training.batch

    @partial(jax.jit, donate_argnums=0)
    def run(state: Any, images: Any, labels: Any, rows: Any, until: Any) -> Any:
        def one(state: Any) -> Any:
            first = state.step % epoch_steps * batch
            some = lax.dynamic_slice(rows, (first,), (batch,))
            pixels = images[some].astype(jnp.float32) / 255
            return train_step(state, (pixels, labels[some]))

        return lax.while_loop(lambda s: (s.step < until) & (s.bad < 0), one, state)

    for begin in range(0, steps, epoch_steps):
        until = min(begin + epoch_steps, steps)
        state = run(state, images, labels, rows_of(begin // epoch_steps), until)
    return sound(state, None).params
