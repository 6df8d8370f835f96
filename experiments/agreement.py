"""Whether a network says the same of photographs without its dead weights."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from experiments.data.loader import Batch
from experiments.models import Network, preprocess
from experiments.sparse_layers import all_sparse, all_sparse_apply


@dataclasses.dataclass
class Agreement:
    """How the sparse network and the dense one compare, over the photographs so far.

    Attributes:
      top1: photographs of which the sparse network says the right class.
      same: those of which both say the same.
      difference: the largest of logits, over the largest logit of its batch.
    """

    top1: int = 0
    same: int = 0
    difference: float = 0.0


def compare(
    network: Network, params: Any, mask: Any
) -> Callable[[Batch], tuple[jax.Array, jax.Array, jax.Array]]:
    """Makes the function of a batch that gives what an `Agreement` counts."""
    lean, apply = all_sparse(params, mask), all_sparse_apply(network.module)

    @jax.jit
    def both(params: Any, lean: Any, batch: Batch) -> Any:
        images = preprocess(batch.image, network.preprocessing)
        dense: Any = network.module.apply({"params": params}, images)
        logits = apply(lean, images)
        first = logits.argmax(-1)
        right = (first == batch.label) & batch.valid
        same = (first == dense.argmax(-1)) & batch.valid
        far = jnp.abs(logits - dense).max() / jnp.abs(dense).max()
        return right.sum(), same.sum(), far

    return lambda batch: both(params, lean, batch)


def watched(
    both: Callable[[Batch], Any], batches: Iterable[Batch], found: Agreement
) -> Iterator[Batch]:
    """Passes batches on and counts."""
    for batch in batches:
        right, same, far = jax.device_get(both(batch))
        found.top1 += int(right)
        found.same += int(same)
        found.difference = max(found.difference, float(far))
        yield batch
