"""A pruned model as one file: its program in StableHLO, its weights packed inside.

The file is what `jax.export` serializes, so that a process that has jax alone runs it:

    model = jax.export.deserialize(bytearray(open("net.stablehlo", "rb").read()))
    logits = model.call(images)

The weights are constants of the program. Those that a mask covers are packed, as gaps
between live weights and their values (`_packed.py`), and become dense arrays within the
program once a call, so that the file is small and any network can be written. Leaves
without a mask stay as they are. Params that are already in a form of their own, with a
function that runs on it, are therefore written by giving no mask.

`jax.export` has no checksum. Its format is a FlatBuffer, whose first four bytes tell
where the root is, so that there is room after them for a mark and a CRC-32 of all other
bytes; who reads the file with jax alone passes over both.
"""

import zlib
from collections.abc import Callable, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import jax
from jax import export

from jaxprune._types import Mask, Params
from jaxprune._whole import write_whole
from jaxprune.compress._save import named_leaves
from jaxprune.interop._optional import require
from jaxprune.interop._packed import pack, unpack


PLATFORMS = ("cpu", "cuda", "tpu")

_MARK = b"jaxprune CRC"  # with the checksum 16 bytes, so that all stays aligned


def write_stablehlo(
    path: str | PathLike[str],
    apply: Callable[..., Any],
    params: Params,
    mask: Mask | None,
    *inputs: Any,
    platforms: Sequence[str] = PLATFORMS,
) -> None:
    """Writes a pruned model with its weights as one file, whole or not at all.

    Args:
      path: the file.
      apply: `apply(params, *inputs)` gives the outputs, arrays in any pytree.
      params: any pytree of arrays. Dead weights are zero.
      mask: their mask; what it does not cover, or all if it is `None`, is stored as it
        is.
      *inputs: the inputs, or their shapes as `jax.ShapeDtypeStruct`s. A dimension of
        `jax.export.symbolic_shape` may have any size when the file is run, such as
        that of the batch.
      platforms: where the file can run, by JAX's names.

    Raises:
      ImportError: if flatbuffers, by which jax serializes, is not installed.
      OSError: if the file cannot be written.
      ValueError: as `jaxprune.save`, or if `apply` has what cannot be exported, such as
        a custom call that jax does not promise to keep.
    """
    require("flatbuffers", "interop")
    packed = [pack(name, p, m) for name, p, m in named_leaves(params, mask)]
    structure = jax.tree.structure(params)

    def run(*inputs: Any) -> Any:
        # The barrier keeps the compiler from unpacking constants while it compiles.
        held = jax.lax.optimization_barrier([leaf.arrays for leaf in packed])
        leaves = [
            unpack(leaf._replace(arrays=arrays))
            for leaf, arrays in zip(packed, held, strict=True)
        ]
        return apply(structure.unflatten(leaves), *inputs)

    exported = export.export(jax.jit(run), platforms=tuple(platforms))(*inputs)
    write_whole(path, _marked(bytes(exported.serialize())))


def read_stablehlo(path: str | PathLike[str]) -> export.Exported:
    """Reads what `write_stablehlo` wrote; `.call(*inputs)` of the result runs it.

    A file that has no checksum, as `jax.export` writes it, is read as well.

    Raises:
      ImportError: if flatbuffers is not installed.
      OSError: if the file cannot be opened.
      ValueError: if it is no such file, or its checksum is wrong.
    """
    data = Path(path).read_bytes()
    if data[4:16] == _MARK and data[16:20] != _checksum(data):
        raise ValueError(
            f"{path} is not a whole file of jax.export: its checksum is wrong."
        )
    return read_exported(data, str(path))


def read_exported(data: bytes, where: str) -> export.Exported:
    """Reads what `jax.export` serialized; `where` names it.

    Raises:
      ImportError: if flatbuffers is not installed.
      ValueError: if it is no such thing.
    """
    require("flatbuffers", "interop")
    try:
        return export.deserialize(bytearray(data))
    except Exception as error:
        # Without a checksum what a damaged one raises depends on the damage.
        raise ValueError(
            f"{where} is not a whole file of jax.export, or one of a newer jax: "
            f"{type(error).__name__}: {error}"
        ) from error


def _marked(data: bytes) -> bytes:
    """Puts mark and checksum after the first four bytes, and moves the root along."""
    root = int.from_bytes(data[:4], "little") + len(_MARK) + 4
    marked = b"".join([root.to_bytes(4, "little"), _MARK, bytes(4), data[4:]])
    return marked[:16] + _checksum(marked) + marked[20:]


def _checksum(data: bytes) -> bytes:
    return zlib.crc32(data[20:], zlib.crc32(data[:16])).to_bytes(4, "little")
