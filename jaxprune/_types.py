"""The types and the vocabulary that the whole library shares.

True in a mask means alive. *Sparsity* is dead / prunable, counted on the leaves that a
mask covers. *Compression* is all / alive, counted on every parameter of the model.
"""

from numbers import Number
from typing import Any, Protocol, TypeAlias, runtime_checkable

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree, Shaped


# What may stand at a leaf: arrays of JAX or NumPy, or their shapes alone.
Leaf: TypeAlias = Array | np.ndarray | jax.ShapeDtypeStruct

# A Python number among params is never pruned.
Params: TypeAlias = PyTree[Shaped[Leaf, "..."] | Number]
Mask: TypeAlias = PyTree[Bool[Leaf, "..."]]  # None at leaves that are never pruned
Scores: TypeAlias = PyTree[Float[Array, "..."]]  # None where the mask is None
Step: TypeAlias = Int[Array, ""] | int  # updates made so far


@runtime_checkable
class Criterion(Protocol):
    """Scores every prunable weight; the larger the score, the more worth keeping.

    Pure and jit-able. Returns non-negative scores shaped like `params`, and `None`
    wherever `mask` is `None`. `extra` always holds `grads`, the raw gradients, and
    whatever else the caller gave `update`; an implementation names what it needs as
    keyword-only arguments and ignores the rest, so a missing one fails by name, as in
    optax. It is called several times while a threshold is sought, so that no score need
    be stored: it should be cheap, and the same whenever its arguments are.
    """

    def __call__(
        self, params: Params, mask: Mask, step: Step, **extra: Any
    ) -> Scores: ...


@runtime_checkable
class MaskSchedule(Protocol):
    """Decides which weights are alive, given params, the present mask and the step.

    Pure and jit-able: no hidden counters, no Python branch on a value. The mask it
    returns has the structure, shapes and sharding of the one it was given. Schedules
    compose: `every` wraps one, `hold` is the identity.
    """

    def __call__(
        self, params: Params, mask: Mask, step: Step, **extra: Any
    ) -> Mask: ...
