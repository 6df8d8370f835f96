"""The product by a numba kernel that XLA calls, on all threads of XLA's pool."""

import itertools
import logging
import os
import sys
import threading
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxprune.sparse import _abi as abi
from jaxprune.sparse import _worker as job
from jaxprune.sparse._handler import handler
from jaxprune.sparse._kernel import SparseKernel
from jaxprune.sparse._lanes import LINE, STACK


Kind = Literal["one", "many", "conv"]
_LOG = logging.getLogger(__name__)
ALONE = 2**16  # weights times images up to which a second thread does not pay
_MOST = 16  # threads


_LOCK = threading.Lock()
_FOUND: dict[tuple[str, str, Kind], str | None] = {}  # what `target` gave


def target(values: str, inputs: str, kind: Kind) -> str | None:
    """Gives the name by which XLA knows the kernel for two dtypes.

    It is compiled and registered at the first call in a process. That takes some
    seconds, so one image and many have a kernel each.

    Returns:
      The name, or `None` where there is no kernel; a line of the log says why.
    """
    key = (values, inputs, kind)
    with _LOCK:
        if key not in _FOUND:
            _FOUND[key] = _register(*key)
        return _FOUND[key]


def _register(values: str, inputs: str, kind: Kind) -> str | None:
    name = f"jaxprune_sparse_{values}_{inputs}_{kind}"
    try:
        if sys.maxsize < 2**63 - 1 or sys.byteorder != "little":
            raise ValueError("the processor is not of 64 bits, little-endian.")
        _, minor = abi.version()
        compiled = handler(values, inputs, kind, minor)
        capsule = jax.ffi.pycapsule(compiled.ctypes)
        jax.ffi.register_ffi_target(name, capsule, platform="cpu")
    except ImportError as error:
        _LOG.warning(
            "sparse products run by XLA alone, which is slower: the package %s is not "
            "installed; pip install 'jaxprune[fast]'.",
            error.name,
        )
    except Exception as error:  # whatever numba or LLVM lacks on this machine
        _LOG.warning("sparse products run by XLA alone, which is slower: %s", error)
    else:
        return name
    return None


def fast(
    rows: Float[Array, "batch inputs"],
    kernel: SparseKernel,
    bias: Float[Array, " outputs"] | None,
    name: str,
) -> Float[Array, "batch outputs"]:
    """Multiplies by the kernel that `target` registered as `name`; CPU only."""
    batch, outputs = rows.shape[0], kernel.shape[1 - kernel.axis]
    images = padded(batch)
    if images > 1:
        rows = jnp.pad(rows, ((0, images - batch), (0, 0))).T
    threads = min(most_threads(), 1 + images * kernel.slots // ALONE)
    sums = (threads, kernel.pieces * images)
    return custom_call(name, (batch, outputs), sums, images, rows, kernel, bias)


def custom_call(
    name: str,
    out: tuple[int, int],
    sums: tuple[int, int],
    images: int,
    x: Array,
    kernel: SparseKernel,
    bias: Float[Array, " outputs"] | None,
    table: Sequence[int] = (),
) -> Float[Array, "_ _"]:
    """Has XLA call what `target` registered.

    Every array, also a constant one or one to work in, takes XLA half a microsecond of
    each call, so what is known beforehand is told by an attribute.

    Args:
      name: what `target` gave.
      out: shape of the result.
      sums: threads at most, and floats that each may write.
      images: how many are multiplied, or positions of a convolution.
      x: what is multiplied.
      kernel: by what.
      bias: what is added to each output.
      table: what a convolution is told besides.
    """
    threads, room = sums
    # The sums of all threads, in whole lines of a cache, the words of the job, which
    # are of 64 bits, and behind them, of a convolution, the output of each piece. What
    # one thread needs fits on its stack if it is little.
    floats = -(-threads * room // LINE) * LINE
    words = 2 * (job.HEAD + job.BLOCK * len(kernel.blocks)) + kernel.pieces
    shapes = [jax.ShapeDtypeStruct(out, jnp.float32)]
    if threads > 1 or 4 * (floats + words) > STACK:
        shapes.append(jax.ShapeDtypeStruct((floats + words,), jnp.int32))
    given = [x, *kernel.arrays] + ([] if bias is None else [bias])
    told = [room, threads, images, 0 if kernel.packed is None else kernel.behind]
    told += [kernel.cut, kernel.scale is not None, bias is not None]
    told += [len(kernel.blocks), *itertools.chain(*kernel.blocks), *table]
    call = jax.ffi.ffi_call(name, shapes)
    return call(*given, told=np.array(told, np.int64))[0]


def most_threads() -> int:
    """Gives how many threads a product may use."""
    return min(_MOST, cores())


def cores() -> int:
    """Counts the cores that this process may use, as XLA does for its pool."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def padded(batch: int) -> int:
    """Gives how many images are multiplied, zeros added: as many as vectors hold.

    >>> [padded(batch) for batch in (1, 3, 8, 17)]
    [1, 4, 8, 32]
    """
    lanes = next((n for n in (1, 4, 8) if batch <= n), 16)
    return -(-batch // lanes) * lanes
