"""Scores of the recipe best: a weight's worth by curvature, and factors by layer."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

import jaxprune


def fisher(params: Any, mask: Any, step: Any, *, mean_square: Any, **extra: Any) -> Any:
    r"""Scores a weight by :math:`|w| \sqrt{v}`, v the mean of its squared gradients.

    Half its square is the rise of the loss without the weight, to the second order,
    where the loss is at a minimum and v stands for the curvature. Unlike magnitudes
    such scores can be compared between layers.

    Args:
      params: weights.
      mask: `None` where nothing is scored.
      step: not used.
      mean_square: v, a tree like `params`; `with_mean_square` gives it.
      **extra: not used.

    Source:
      Theis et al. 2018 (arXiv:1801.05787), section 2.
    """
    del step, extra
    return jaxprune.map_masked(
        lambda w, m, v: jnp.abs(w) * jnp.sqrt(v),
        params,
        mask,
        mean_square,
        elsewhere=lambda w: None,
    )


def with_mean_square(
    tx: optax.GradientTransformationExtraArgs,
) -> optax.GradientTransformationExtraArgs:
    """Hands the mean squared gradients of the Adam in `tx` to the schedule in it."""

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        mean_square = optax.tree.get(state, "nu")
        return tx.update(updates, state, params, mean_square=mean_square, **extra)

    return optax.GradientTransformationExtraArgs(tx.init, update)


def spared(
    criterion: jaxprune.Criterion, factors: Mapping[str, float]
) -> jaxprune.Criterion:
    """Multiplies the scores of some layers.

    Args:
      criterion: gives the scores.
      factors: by glob of the leaf's path; the first match counts, 1 where none does.

    Raises:
      ValueError: at the first call, if a glob matches no leaf that is scored.
    """

    def scores(params: Any, mask: Any, step: Any, **extra: Any) -> Any:
        unused = set(factors)

        def scaled(path: Any, p: Any, m: Any, s: Any) -> Any:
            if m is None:
                return None
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            found = [glob for glob in factors if jaxprune.where(glob)(name, p)]
            unused.difference_update(found)
            return s * factors[found[0]] if found else s

        found = criterion(params, mask, step, **extra)
        scaled_scores = jax.tree_util.tree_map_with_path(scaled, params, mask, found)
        if unused:
            raise ValueError(f"--spare has {sorted(unused)}, which match no kernel.")
        return scaled_scores

    return scores
