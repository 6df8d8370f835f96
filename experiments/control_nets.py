"""What the controls of a pruned network begin with: weights and masks, or widths."""

import bisect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxprune
from experiments.config import Refused
from experiments.models import Network, resized
from experiments.points import Start
from experiments.step import at_path


def begin(control: str, network: Network, dense: Any, cut: Start, seed: int) -> Start:
    """Makes the weights and the mask that a control begins with."""
    key = jax.random.fold_in(jax.random.key(seed), 4)
    if control == "pruned":
        return cut
    if control == "shuffled":
        return Start(*_permuted(cut, np.random.default_rng((seed, 0))))
    if control == "random mask":
        mask = _permuted(cut, np.random.default_rng((seed, 1))).mask
        return Start(jax.device_get(jaxprune.apply_mask(dense, mask)), mask)
    if control == "small dense":
        return Start(None, None)
    images = jnp.zeros((1, *network.input))
    params = jax.jit(network.module.init)(key, images)["params"]
    return Start(jax.device_get(jaxprune.apply_mask(params, cut.mask)), cut.mask)


def _permuted(start: Start, rng: np.random.Generator) -> Start:
    """Permutes each pruned leaf, the mask as the weights."""
    orders = jax.tree.map(lambda m: rng.permutation(m.size), start.mask)
    move = lambda x, order: np.asarray(x).ravel()[order].reshape(x.shape)
    kept = lambda p, order: p if order is None else move(p, order)
    return Start(
        jax.tree.map(kept, start.params, orders, is_leaf=lambda x: x is None),
        jax.tree.map(move, start.mask, orders),
    )


def narrower(network: Network, weights: int) -> Network:
    """Gives the widest net of at most so many weights, all layers narrowed alike.

    Raises:
      Refused: if a unit in each layer is too many.
    """
    images = jnp.zeros((1, *network.input))

    def shapes(module: Any) -> Any:
        return jax.eval_shape(module.init, jax.random.key(0), images)["params"]

    whole = shapes(network.module)
    units = {link.producer for link in network.links}
    units = {path: at_path(whole, path).shape[-1] for path in units}

    def narrowed(share: int) -> Any:
        widths = {
            path.rpartition("/")[0]: max(round(share / 1000 * all_of), 1)
            for path, all_of in units.items()
        }
        return shapes(network.module.clone(widths=widths))

    def size(share: int) -> int:
        return sum(p.size for p in jax.tree.leaves(narrowed(share)) if p.ndim > 1)

    share = bisect.bisect_right(range(1001), weights, key=size) - 1
    if share < 0:
        raise Refused(f"--compressions leaves {weights} weights, too few for a net.")
    return resized(network, narrowed(share))
