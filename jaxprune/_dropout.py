"""Dropout for retraining: less of it, the fewer connections are left."""

import math

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Bool, Float


def adjust_dropout(rate: float, connections: int, alive: int) -> float:
    r"""Gives the dropout rate for retraining a layer that has lost connections.

    Pruning already limits capacity, so the rate falls with the square root of the
    fraction of connections alive: :math:`D_r = D_o \sqrt{C_{ir} / C_{io}}`.

    >>> adjust_dropout(0.5, connections=400, alive=100)
    0.25

    Args:
      rate: probability of dropping a unit before pruning, in [0, 1).
      connections: weights of the layer before pruning, at least 1.
      alive: weights of the layer after pruning, from 0 to `connections`.

    Raises:
      ValueError: if an argument is out of range.

    Source:
      Han et al. 2015 (arXiv:1506.02626), section 3.2, equation 2.
    """
    _check_rate(rate)
    if connections < 1:
        raise ValueError(f"connections is {connections}, expected at least 1.")
    if not 0 <= alive <= connections:
        raise ValueError(
            f"alive is {alive}, expected a count from 0 to connections, {connections}."
        )
    return rate * math.sqrt(alive / connections)


def dropout_rate(
    rate: ArrayLike, mask_leaf: Bool[Array, "..."] | None
) -> Float[Array, ""]:
    """Is `adjust_dropout` as a traced value, for use inside a jitted step.

    The model must take its rate as an argument: Flax's own `Dropout` refuses a traced
    one.

    >>> dropout_rate(0.5, jnp.array([True, False, False, False]))
    Array(0.25, dtype=float32)

    Args:
      rate: probability of dropping a unit before pruning, in [0, 1).
      mask_leaf: the mask of the layer's kernel; with `None`, never pruned, the rate
        stays.

    Raises:
      ValueError: if the mask has no element, or a rate that is not traced is out of
        range.

    Source:
      Han et al. 2015 (arXiv:1506.02626), section 3.2, equation 2.
    """
    if not isinstance(rate, Tracer):
        _check_rate(np.asarray(rate))
    rate = jnp.asarray(rate, jnp.float32)
    if mask_leaf is None:
        return rate
    if not mask_leaf.size:
        raise ValueError(
            f"mask_leaf has shape {mask_leaf.shape}, expected at least one connection."
        )
    # Rows are counted in integers, for float32 cannot count past 2**24.
    rows = jnp.sum(mask_leaf, axis=-1, dtype=jnp.int32).astype(jnp.float32)
    return rate * jnp.sqrt(jnp.sum(rows) / mask_leaf.size)


def _check_rate(rate: float | np.ndarray) -> None:
    if not 0 <= rate < 1:
        raise ValueError(f"rate is {rate}, expected a probability in [0, 1).")
