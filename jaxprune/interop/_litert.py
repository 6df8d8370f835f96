"""A pruned net as LiteRT's `.tflite`, its weights sparse where that pays.

The net is read from its traced function. The file is made by the schema that comes with
ai-edge-litert, which also runs it once; TensorFlow is not needed.
"""

from collections.abc import Callable, Sequence
from operator import index
from os import PathLike
from typing import Any

import numpy as np

from jaxprune._types import Params
from jaxprune._whole import write_whole
from jaxprune.interop._litert_file import file_of
from jaxprune.interop._litert_trace import trace
from jaxprune.interop._optional import require


_TOLERANCE = 1e-4  # of the largest output: sums are taken in another order


def write_litert(
    path: str | PathLike[str],
    apply: Callable[[Any, Any], Any],
    params: Params,
    input_shape: Sequence[int],
    *,
    densest: float = 0.1,
) -> None:
    """Writes a net that LiteRT runs, whole or not at all.

    What can be written: convolutions over (batch, height, width, channels), grouped and
    depthwise ones too, dense layers, over several axes too, products of activations
    with each other, as attention has them, max and average pooling, local response
    normalisation, batch normalisation by constants, ReLU, GELU, sigmoid, tanh,
    exponentials, logarithms, roots, whole powers, sums, differences, products,
    quotients, maxima and minima of activations, sums and maxima over axes, and softmax
    by these, what selects number by number by a comparison, as ELU, leaky ReLU and
    softplus do, slices, borders, transposes, flatten and concatenation, with constants
    too; all in float32, whichever way the function writes them.
    The file's input and output have the function's shapes; the batch is 1 until the
    interpreter's `resize_tensor_input`.

    Args:
      path: the file.
      apply: `apply(params, x)` gives the output, one array with the batch first.
      params: any pytree of float32 arrays. Dead weights are zero.
      input_shape: of one example, without the batch.
      densest: a dense layer with a larger share of weights that are not zero is run
        dense. Its weights, and those of convolutions, are still stored sparse where
        that is smaller.

    Raises:
      ImportError: if ai-edge-litert is not installed.
      OSError: if the file cannot be written.
      ValueError: if `apply` has what cannot be written, random numbers say, LiteRT
        computes something else from the file than `apply` does, or `input_shape` is no
        shape.
    """
    write_whole(path, litert_bytes(apply, params, input_shape, densest=densest))


def litert_bytes(
    apply: Callable[[Any, Any], Any],
    params: Params,
    input_shape: Sequence[int],
    *,
    densest: float = 0.1,
) -> bytes:
    """Gives the bytes that `write_litert` writes."""
    require("ai_edge_litert.interpreter", "litert")
    try:
        shape = tuple(map(index, input_shape))
    except TypeError as error:
        raise ValueError(
            f"input_shape is {input_shape}, expected the whole numbers of one example, "
            "without the batch, such as (28, 28, 1) or (784,)."
        ) from error
    try:
        data = file_of(trace(apply, params, shape), densest)
    except ValueError as error:
        raise ValueError(f"the net cannot be written for LiteRT: {error}.") from error
    x = np.random.default_rng(0).normal(size=(2, *shape)).astype(np.float32)
    expected, made = np.asarray(apply(params, x)), run_litert(data, x)
    far = _TOLERANCE * np.abs(expected[np.isfinite(expected)]).max(initial=0)
    if made.shape != expected.shape or not np.allclose(made, expected, 0, far, True):
        raise ValueError(
            "LiteRT computes something else from the file than the net does, for a "
            f"batch of 2 of shape {shape}; it is not written."
        )
    return data


def run_litert(data: bytes, x: np.ndarray) -> np.ndarray:
    """Runs the bytes of a file of one input and one output once, on one thread.

    Raises:
      ImportError: if ai-edge-litert is not installed.
      ValueError: if they are no such file, or `x` does not fit.
    """
    return interpreter_of(data, x, 1)()


def interpreter_of(
    data: bytes, x: np.ndarray, threads: int
) -> Callable[[], np.ndarray]:
    """Gives a function that runs the bytes of a file on `x`; raises as `run_litert`."""
    interpreter = require("ai_edge_litert.interpreter", "litert")
    model = interpreter.Interpreter(model_content=data, num_threads=threads)
    (given,), (made,) = model.get_input_details(), model.get_output_details()
    model.resize_tensor_input(given["index"], x.shape, strict=True)
    model.allocate_tensors()

    def run() -> np.ndarray:
        model.set_tensor(given["index"], x)
        model.invoke()
        return model.get_tensor(made["index"])

    return run
