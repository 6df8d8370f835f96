"""A pruned model as one file: its program in StableHLO, its weights packed inside.

The file is what `jax.export` serializes, so that a process that has jax alone runs it:

    model = jax.export.deserialize(bytearray(open("net.stablehlo", "rb").read()))
    logits = model.call(images)

The weights are constants of the program. Those that a mask covers are packed, as gaps
between live weights and their values (`_packed.py`), and become dense arrays within the
program once a call, so that the file is small and any network can be written. Leaves
without a mask stay as they are. Params that are already in a form of their own, with a
function that runs on it, are therefore written by giving no mask.
"""

from collections.abc import Callable, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import jax
from jax import export

from jaxprune._types import Mask, Params
from jaxprune.compress._save import named_leaves
from jaxprune.interop._atomic import write_whole
from jaxprune.interop._optional import require
from jaxprune.interop._packed import pack, unpack


PLATFORMS = ("cpu", "cuda", "tpu")


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
    write_whole(path, bytes(exported.serialize()))


def read_stablehlo(path: str | PathLike[str]) -> export.Exported:
    """Reads what `write_stablehlo` wrote; `.call(*inputs)` of the result runs it.

    Raises:
      ImportError: if flatbuffers is not installed.
      OSError: if the file cannot be opened.
      ValueError: if it is no such file.
    """
    require("flatbuffers", "interop")
    data = bytearray(Path(path).read_bytes())
    try:
        return export.deserialize(data)
    except Exception as error:
        # The format has no checksum; what a damaged one raises depends on the damage.
        raise ValueError(
            f"{path} is not a whole file of jax.export, or one of a newer jax: "
            f"{type(error).__name__}: {error}"
        ) from error
