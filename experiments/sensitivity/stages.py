"""SqueezeNet in stages, so that a scan need not compute anew what comes before a leaf.

Pruning a leaf changes nothing before it. Over all leaves of SqueezeNet that saves half
of the work of a scan.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from experiments.models import conv, preprocess
from experiments.models.squeezenet import POOLED, SQUEEZE, Fire


Stage = tuple[str, Callable[[Any, jax.Array], jax.Array]]


def squeezenet() -> list[Stage]:
    """Gives SqueezeNet from pixels to logits: names of params, function of them."""

    def first(params: Any, pixels: jax.Array) -> jax.Array:
        images = preprocess(pixels, "caffe")
        x: Any = nn.Conv(96, (7, 7), 2, padding=0).apply({"params": params}, images)
        return conv.max_pool(nn.relu(x), 3, 2)

    def fire(number: int) -> Callable[[Any, jax.Array], jax.Array]:
        def run(params: Any, x: jax.Array) -> jax.Array:
            y: Any = Fire(SQUEEZE[number]).apply({"params": params}, x)
            return conv.max_pool(y, 3, 2) if number in POOLED else y

        return run

    def last(params: Any, x: jax.Array) -> jax.Array:
        classes = params["kernel"].shape[-1]
        y: Any = nn.Conv(classes, (1, 1), padding=1).apply({"params": params}, x)
        return nn.relu(y).mean((1, 2))

    fires = [(f"fire{number}", fire(number)) for number in SQUEEZE]
    return [("conv1", first), *fires, ("conv_final", last)]


def from_first_change(
    stages: Sequence[Stage], base: Any, inputs: Sequence[np.ndarray]
) -> Callable[[Any], list[jax.Array]]:
    """Makes the function from params to the outputs for each input.

    It begins at the first stage whose params are not those of `base`, with what came
    out of the stage before it, kept from the start.

    Args:
      stages: the network.
      base: params that most calls have most stages in common with.
      inputs: batches.
    """
    runs = [(name, jax.jit(run)) for name, run in stages]
    kept = [[jnp.asarray(x)] for x in inputs]
    for xs in kept:
        for name, run in runs:
            xs.append(run(base[name], xs[-1]))
    same = jax.jit(
        lambda a, b: jnp.all(
            jnp.stack(jax.tree.leaves(jax.tree.map(lambda x, y: jnp.all(x == y), a, b)))
        )
    )

    def outputs(params: Any) -> list[jax.Array]:
        begin = 0
        while begin < len(runs) and same(params[runs[begin][0]], base[runs[begin][0]]):
            begin += 1
        found = []
        for xs in kept:
            x = xs[begin]
            for name, run in runs[begin:]:
                x = run(params[name], x)
            found.append(x)
        return found

    return outputs
