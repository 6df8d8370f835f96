"""Memory for batches, which is used again when nothing refers to it any more.

Fresh memory for each batch would be cleared by the system page by page, which took a
fifth of the time of decoding with batches of 240 (40 MB).
"""

import ctypes
import math
import weakref

import numpy as np


_ALIGNMENT = 64  # bytes: an array that begins there JAX need not copy on a CPU


class Memory:
    """Makes uint8 arrays of one shape; threads may share it."""

    def __init__(self, shape: tuple[int, ...]):
        """Makes it; no memory is taken before the first array is asked for."""
        self._shape = shape
        self._size = math.prod(shape)
        self._free: list[np.ndarray] = []

    def take(self) -> np.ndarray:
        """Gives an array with anything in it.

        Its memory comes back once the array and all that share its memory are gone:
        views of it, and what JAX made of it without a copy.
        """
        try:
            block = self._free.pop()
        except IndexError:
            block = np.empty(self._size + _ALIGNMENT, np.uint8)
        # What NumPy and JAX keep alive for the array, and whose end is told; the block
        # itself lives on.
        lent = (ctypes.c_uint8 * self._size).from_buffer(
            block.data, -block.ctypes.data % _ALIGNMENT
        )
        weakref.finalize(lent, self._free.append, block).atexit = False
        return np.ctypeslib.as_array(lent).reshape(self._shape)
