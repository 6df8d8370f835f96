"""Losses of a batch, one for each image."""

from collections.abc import Callable

import jax
import optax


# From logits, labels and soft labels, or None, to (n,) losses.
Loss = Callable[[jax.Array, jax.Array, jax.Array | None], jax.Array]


def cross_entropy(
    logits: jax.Array, labels: jax.Array, soft: jax.Array | None = None
) -> jax.Array:
    """Gives the cross-entropy with the labels, whatever `soft` is."""
    del soft
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def distilled(share: float, temperature: float) -> Loss:
    r"""Makes a loss that is in part the agreement with a teacher's logits.

    :math:`(1 - a) H(y, p) + a T^2 H(q_T, p_T)`, where p and q are the softmax of the
    student's and of the teacher's logits, and those with an index of logits / T.

    Args:
      share: a, in [0, 1].
      temperature: T, above 0.

    Source:
      Hinton et al. 2015 (arXiv:1503.02531), section 2.
    """

    def loss(logits: jax.Array, labels: jax.Array, soft: jax.Array | None) -> jax.Array:
        if soft is None:
            raise ValueError("soft is None, expected the teacher's logits.")
        teacher = jax.nn.softmax(soft / temperature)
        agreement = optax.softmax_cross_entropy(logits / temperature, teacher)
        return (1 - share) * cross_entropy(logits, labels) + (
            share * temperature**2
        ) * agreement

    return loss
