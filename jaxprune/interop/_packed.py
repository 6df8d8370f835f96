"""Live weights as gaps and values, packed by NumPy and unpacked within a program.

A gap is a byte, and its symbols are those of `compress/_index.py`: 255 is a filler, 255
dead weights and no live one. Each symbol has a value, a filler the zero of the last
dead weight that it passes; so positions are the running sum, and no two are the same.
Values of few kinds, as after `jaxprune.compress.share`, are a codebook and codes.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.compress._index import find_gaps, to_symbols


_BITS = 8
_FILLER = 2**_BITS - 1
_LARGEST = 2**32 - 1  # weights in a leaf: positions are uint32


class Packed(NamedTuple):
    """A leaf as it is in a program.

    Attributes:
      arrays: the leaf itself; or gaps and values; or gaps, codes and codebook.
      shape: of the leaf.
    """

    arrays: tuple[Any, ...]
    shape: tuple[int, ...]


def pack(name: str, p: np.ndarray, alive: np.ndarray | None) -> Packed:
    """Packs a leaf, unless it has no mask or is smaller as it is.

    Raises:
      ValueError: naming the leaf, if it has too many weights.
    """
    if alive is None:
        return Packed((p,), p.shape)
    if p.size > _LARGEST:
        raise ValueError(
            f"{name} has {p.size:,} weights, expected at most {_LARGEST:,}; split it."
        )
    symbols = to_symbols(find_gaps(alive.ravel()), _BITS).astype(np.uint8)
    values = np.zeros(symbols.size, p.dtype)
    values[symbols != _FILLER] = p[alive]
    ways = [(p,), (symbols, values), (symbols, *_shared(values))]
    return Packed(min(ways, key=lambda way: sum(a.nbytes for a in way)), p.shape)


def unpack(packed: Packed) -> jax.Array:
    """Makes the dense leaf again, under `jit` or not.

    >>> alive = np.zeros((2, 300), bool)
    >>> alive[1, 299] = True
    >>> leaf = pack("w", 7 * alive.astype(np.int32), alive)
    >>> leaf.arrays[0]  # two fillers pass 510 dead weights, and 89 are left
    array([255, 255,  89], dtype=uint8)
    >>> unpack(leaf)[:, 298:]
    Array([[0, 0],
           [0, 7]], dtype=int32)
    """
    if len(packed.arrays) == 1:
        return jnp.asarray(packed.arrays[0])
    symbols, values, *codebook = packed.arrays
    values = jnp.asarray(codebook[0])[values] if codebook else jnp.asarray(values)
    steps = jnp.where(symbols == _FILLER, jnp.uint32(_FILLER), symbols + jnp.uint32(1))
    at = jnp.cumsum(steps, dtype=jnp.uint32) - jnp.uint32(1)
    dense = jnp.zeros(math.prod(packed.shape), values.dtype)
    dense = dense.at[at].set(
        values,
        unique_indices=True,
        indices_are_sorted=True,
        mode="promise_in_bounds",
    )
    return dense.reshape(packed.shape)


def _shared(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Gives codes and codebook. Zeros of either sign are one, as they are elsewhere."""
    codebook, codes = np.unique(values, return_inverse=True)
    small = np.uint8 if codebook.size <= 1 << 8 else np.uint16
    wide = np.uint32 if codebook.size > 1 << 16 else small
    return codes.astype(wide), codebook
