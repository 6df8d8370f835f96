"""What is measured: cross-entropy, divergence, and pairs of them."""

from typing import Any, NamedTuple

import numpy as np


class Difference(NamedTuple):
    """The mean of paired differences, and its standard error."""

    mean: float
    error: float


def log_softmax(logits: Any) -> np.ndarray:
    """Gives log-probabilities, in float64.

    >>> np.exp(log_softmax([[0.0, np.log(3.0)]])).round(6).tolist()
    [[0.25, 0.75]]
    """
    x = np.asarray(logits, np.float64)
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def cross_entropies(logits: Any, labels: np.ndarray) -> np.ndarray:
    """Gives the cross-entropy of each example."""
    return -log_softmax(logits)[np.arange(len(labels)), labels]


def divergences(before: Any, after: Any) -> np.ndarray:
    """Gives the divergence of each example's answer from the one it had before.

    Kullback and Leibler's, of the probabilities `before` from those `after`: what the
    cross-entropy rises by, where the answers before were right as often as they said.
    """
    p, q = log_softmax(before), log_softmax(after)
    return (np.exp(p) * (p - q)).sum(-1)


def paired(a: np.ndarray, b: np.ndarray) -> Difference:
    """Gives the mean of a - b and its standard error.

    >>> paired(np.array([3.0, 1.0]), np.array([1.0, 1.0]))
    Difference(mean=1.0, error=1.0)
    """
    difference = a - b
    error = difference.std(ddof=1) / np.sqrt(len(difference))
    return Difference(float(difference.mean()), float(error))
