"""A few steps of retraining at each point of a scan."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxprune
from experiments import data
from experiments.models import Network, preprocess


def make(
    network: Network, digits: data.Split, steps: int, batch: int = 64, lr: float = 0.01
) -> Callable[[Any, Any], Any]:
    """Makes the function that trains params with a mask on, always the same batches.

    Args:
      network: which.
      digits: to train on.
      steps: how many, by momentum 0.9 and without dropout.
      batch: digits in each.
      lr: learning rate.
    """
    draw = np.random.default_rng(0).integers(0, len(digits.labels), (steps, batch))
    images, labels = digits.images[draw], digits.labels[draw]

    def loss(params: Any, images: jax.Array, labels: jax.Array) -> jax.Array:
        pixels = preprocess(images, network.preprocessing)
        logits: Any = network.module.apply({"params": params}, pixels)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    @jax.jit
    def retrain(params: Any, mask: Any) -> Any:
        tx = jaxprune.prune(optax.sgd(lr, 0.9), jaxprune.hold, mask)

        def step(state: Any, batch: Any) -> Any:
            params, opt_state = state
            grads = jax.grad(loss)(params, *batch)
            updates, opt_state = tx.update(grads, opt_state, params)
            return (optax.apply_updates(params, updates), opt_state), None

        batches = (jnp.asarray(images), jnp.asarray(labels))
        return jax.lax.scan(step, (params, tx.init(params)), batches)[0][0]

    return retrain
