"""From the compression that is wanted to the sparsity that gives it."""

import jax
import jax.numpy as jnp

import jaxprune
from experiments.config import Refused
from experiments.models import Network


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
