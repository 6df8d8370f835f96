"""The product by a numba kernel that XLA calls, on all threads of XLA's pool."""

import logging
import os
import sys
import threading
from importlib import import_module
from typing import Any, Literal, no_type_check

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxprune.sparse import _abi as abi
from jaxprune.sparse import _worker as job
from jaxprune.sparse._conv_worker import conv_worker
from jaxprune.sparse._kernel import SparseKernel
from jaxprune.sparse._lanes import lanes


Kind = Literal["one", "many", "conv"]
_LOG = logging.getLogger(__name__)
ALONE = 2**16  # weights times images up to which a second thread does not pay
_MOST = 16  # threads


_LOCK = threading.Lock()
_FOUND: dict[tuple[str, str, Kind], str | None] = {}  # what `target` gave
_KEPT: list[object] = []  # compiled functions, whose addresses XLA holds


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
        handler = _handler(values, inputs, kind, minor)
        _KEPT.append(handler)
        capsule = jax.ffi.pycapsule(handler.ctypes)
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
    rows: Float[Array, "batch inputs"], kernel: SparseKernel, name: str
) -> Float[Array, "batch outputs"]:
    """Multiplies by the kernel that `target` registered as `name`; CPU only."""
    batch = rows.shape[0]
    pieces, outputs = kernel.order.size, kernel.shape[1 - kernel.axis]
    images = padded(batch)
    if images > 1:
        rows = jnp.pad(rows, ((0, images - batch), (0, 0))).T
    work = images * sum(v.size for v in kernel.values)
    threads = min(_MOST, os.cpu_count() or 1, 1 + work // ALONE)
    owner = jnp.zeros(0, jnp.int32) if kernel.owner is None else kernel.owner
    sums = (threads, pieces * images)
    operands = (rows, kernel.order, owner)
    return custom_call(name, (batch, outputs), sums, operands, kernel)


def custom_call(
    name: str,
    out: tuple[int, int],
    sums: tuple[int, int],
    operands: tuple[Array, Array, Array],
    kernel: SparseKernel,
) -> Float[Array, "_ _"]:
    """Has XLA call what `target` registered.

    Args:
      name: what `target` gave.
      out: shape of the result.
      sums: threads at most, and floats that each may write.
      operands: the first three.
      kernel: its scale, values and inputs are the others.
    """
    words = 2 * (job.HEAD + job.BLOCK * len(kernel.values))
    call = jax.ffi.ffi_call(
        name,
        (
            jax.ShapeDtypeStruct(out, jnp.float32),
            jax.ShapeDtypeStruct(sums, jnp.float32),
            # Words of 64 bits, which JAX has not by default.
            jax.ShapeDtypeStruct((words,), jnp.int32),
        ),
    )
    scale = jnp.zeros(0) if kernel.scale is None else kernel.scale
    pairs = zip(kernel.values, kernel.inputs, strict=True)
    return call(*operands, scale, *(a for pair in pairs for a in pair))[0]


def padded(batch: int) -> int:
    """Gives how many images are multiplied, zeros added: as many as vectors hold.

    >>> [padded(batch) for batch in (1, 3, 8, 17)]
    [1, 4, 8, 32]
    """
    lanes = next((n for n in (1, 4, 8) if batch <= n), 16)
    return -(-batch // lanes) * lanes


@no_type_check
def _handler(values, inputs, kind, minor):
    """Compiles the function that XLA calls with a call frame."""
    nb: Any = import_module("numba")

    words, add, call = lanes()
    conv = kind == "conv"
    if conv:
        share, finish, chunks_of = conv_worker(values, inputs)
    else:
        share, finish, chunks_of = job.worker(values, inputs, kind == "many")
    word = nb.int64

    @nb.njit
    def ask(at, size, function, first, second, third):
        """Calls a function of XLA's; gives where its arguments are, 0 if it fails."""
        head = nb.carray(words(at), job.HEAD, word)
        api = nb.carray(words(head[job.API]), abi.FUTURE_SET + 1, word)
        argument, place = head[job.ARGUMENTS :], at + 8 * job.ARGUMENTS
        argument[0], argument[1] = size, 0
        argument[2], argument[3], argument[4] = first, second, third
        error = call(api[function], place)
        if error == 0:
            return place
        argument[0], argument[2] = 24, error
        call(api[abi.ERROR_DESTROY], place)
        return 0

    @nb.cfunc(nb.void(word))
    def task(at):
        if share(at):
            finish(at)
            head = nb.carray(words(at), job.HEAD, word)
            ask(at, 24, abi.FUTURE_SET, head[job.FUTURE], 0, 0)

    task_address = task.address
    _KEPT.append(task)

    @nb.njit
    def buffers(frame, place):
        """Gives the words of every buffer among arguments or results."""
        return nb.carray(words(frame[place]), frame[place - 2], word)

    @nb.njit
    def data(buffer):
        """Gives the address of a buffer's data, 0 if it is empty."""
        fields = nb.carray(words(buffer), abi.DIMS + 1, word)
        return fields[abi.DATA] if size(buffer, 0) else 0

    @nb.njit
    def size(buffer, axis):
        fields = nb.carray(words(buffer), abi.DIMS + 1, word)
        return nb.carray(words(fields[abi.DIMS]), axis + 1, word)[axis]

    @nb.njit
    def fill(frame, at):
        """Writes the job that a call frame describes."""
        args, results = buffers(frame, abi.ARGS), buffers(frame, abi.RETS)
        blocks = (args.size - 4) // 2
        head = nb.carray(words(at), job.HEAD + job.BLOCK * blocks, word)
        head[job.NEXT] = head[job.JOINED] = head[job.FUTURE] = 0
        head[job.LEFT] = 1
        head[job.API], head[job.BLOCKS] = frame[abi.API], blocks
        head[job.X], head[job.ORDER] = data(args[0]), data(args[1])
        head[job.OWNER], head[job.SCALE] = data(args[2]), data(args[3])
        head[job.OUT], head[job.SUMS] = data(results[0]), data(results[1])
        head[job.BATCH], head[job.OUTPUTS] = size(results[0], 0), size(results[0], 1)
        head[job.PIECES] = size(args[1], 0)
        if conv:
            head[job.IMAGES] = head[job.OUTPUTS]
        else:
            head[job.IMAGES] = size(results[1], 1) // head[job.PIECES]
        first = chunks = 0
        for b in range(blocks):
            values = args[4 + 2 * b]
            block = head[job.HEAD + job.BLOCK * b :]
            block[job.VALUES], block[job.INPUTS] = data(values), data(args[5 + 2 * b])
            block[job.LONGEST], block[job.WIDE] = size(values, 0), size(values, 1)
            block[job.FIRST], block[job.BEGIN] = first, chunks
            first += block[job.WIDE]
            chunks += chunks_of(block[job.LONGEST], block[job.WIDE])
        head[job.CHUNKS] = chunks
        return head

    @nb.njit
    def helpers(frame, at, most):
        """Has threads of the pool take part, at most so many; tells if any may."""
        context = frame[abi.CONTEXT]
        head = nb.carray(words(at), job.HEAD, word)
        if most < 1 or not ask(at, 32, abi.THREADS, context, at + 8 * job.THREADS, 0):
            return False
        most = min(most, head[job.THREADS] - 1)
        if most < 1:
            return False
        made = ask(at, 16, abi.FUTURE_CREATE, 0, 0, 0)
        if not made:
            return False
        head[job.FUTURE] = nb.carray(words(made), 3, word)[2]
        add(at + 8 * job.LEFT, most)
        for _ in range(most):
            if not ask(at, 40, abi.SCHEDULE, context, task_address, at):
                add(at + 8 * job.LEFT, -1)
        frame[abi.FUTURE] = head[job.FUTURE]
        return True

    @nb.cfunc(word(word))
    def handler(frame_address):
        frame = nb.carray(words(frame_address), abi.FUTURE + 1, word)
        extension = frame[abi.EXTENSION]
        if extension != 0:
            while extension != 0:
                fields = nb.carray(words(extension), 4, word)
                if fields[abi.KIND] & 0xFFFFFFFF == abi.METADATA_KIND:
                    answer = nb.carray(words(fields[abi.METADATA]), 6, word)
                    answer[abi.VERSION] = minor << 32
                    answer[abi.TRAITS] = 0
                    if minor > 1:
                        answer[abi.STATE] = 0
                extension = fields[abi.NEXT]
            return 0
        results = buffers(frame, abi.RETS)
        at = data(results[2])
        head = fill(frame, at)
        most = min(size(results[1], 0), head[job.CHUNKS]) - 1
        helped = helpers(frame, at, most)
        if share(at):
            finish(at)
            if helped:
                ask(at, 24, abi.FUTURE_SET, head[job.FUTURE], 0, 0)
        return 0

    return handler
