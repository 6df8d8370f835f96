"""The program that goes with weights: named by flags, or carried by their file."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxprune import compress
from jaxprune._given import Flat, apply_of, file_of, is_ours
from jaxprune._paths import leaf_name, nested
from jaxprune.interop._stablehlo import PLATFORMS, read_exported


def graph_bytes(
    apply: Callable[[Any, Any], Any], params: Flat, shape: tuple[int, ...]
) -> bytes:
    """Exports a model as a program of flat params and inputs of any batch."""
    (batch,) = jax.export.symbolic_shape("batch")
    shapes = jax.eval_shape(lambda flat: flat, params)  # in the dtypes that JAX has
    x = jax.ShapeDtypeStruct((batch, *shape), np.float32)
    program = jax.jit(lambda flat, x: apply(nested(flat), x))
    exported = jax.export.export(program, platforms=PLATFORMS)(shapes, x)
    return bytes(exported.serialize())


def carried_bytes(path: Path) -> bytes | None:
    """Reads the program that a file carries, as it is stored; `None` if none."""
    path = file_of(path)
    return compress.read_graph(path) if is_ours(path) else None


def graph_of(path: Path) -> tuple[Callable[[Any, Any], Any], tuple[int, ...]] | None:
    """Reads the program that a file carries.

    Returns:
      A function of nested params and inputs, and the shape of an input without the
      batch; `None` if the file carries none.

    Raises:
      ImportError: if flatbuffers, by which jax reads it, is not installed.
      ValueError: if it is damaged, or of a newer jax.
    """
    graph = carried_bytes(path)
    if graph is None:
        return None
    program = read_exported(graph, f"the graph of {file_of(path)}")
    apply = lambda params, x: program.call(_by_name(params), x)
    return apply, tuple(program.in_avals[-1].shape[1:])


def model_of(
    what: str, file: Path, model: str | None, input_shape: tuple[int, ...]
) -> tuple[Callable[[Any, Any], Any], tuple[int, ...]]:
    """Finds the model and its input, or exits if neither flags nor file name them.

    Raises:
      ValueError: if a size of the input is less than 1, or as `apply_of`, `graph_of`.
    """
    if min(input_shape, default=1) < 1:
        raise ValueError(
            f"--input-shape is {input_shape}, expected sizes of 1 or more."
        )
    if model is not None and input_shape:
        return apply_of(model), input_shape
    carried = graph_of(file) if model is None else None
    said = f"{what} needs --model and --input-shape."
    if carried is not None and what == "--to litert":
        said += " The program that the file carries is no help."
    elif carried is not None and input_shape:
        said = (
            f"--input-shape is {input_shape}, but {file} carries its program: leave "
            "--input-shape out, or give --model too."
        )
    elif carried is not None:
        return carried
    print(f"error: {said}", file=sys.stderr)
    raise SystemExit(2)


@contextmanager
def named(
    done: str, model: str | None, file: Path, input_shape: tuple[int, ...]
) -> Iterator[None]:
    """Says with which model and weights something went wrong, and makes one error."""
    try:
        yield
    except (ImportError, OSError):
        raise
    except Exception as error:
        # Each framework has errors of its own for weights of another shape.
        raise ValueError(
            f"{model or 'its program'} cannot be {done} with the weights of {file} and "
            f"inputs of shape {input_shape}: {type(error).__name__}: {error}"
        ) from error


def _by_name(params: Any) -> Flat:
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {leaf_name(key): p for key, p in leaves}
