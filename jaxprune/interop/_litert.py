"""Stacks of dense layers as LiteRT's `.tflite`, sparse where that is faster.

A sparse layer holds its live weights by SPARSE_CSR, one row for each output, which
LiteRT's FULLY_CONNECTED runs as they are. The file is made by the schema that comes
with ai-edge-litert; TensorFlow is not needed.
"""

from collections.abc import Sequence
from os import PathLike
from typing import Any

import numpy as np

from jaxprune._types import Mask, Params
from jaxprune.compress._save import named_leaves
from jaxprune.interop._atomic import write_whole
from jaxprune.interop._optional import require


_VERSION = 8  # of FULLY_CONNECTED, the first with sparse weights


def write_litert(
    path: str | PathLike[str],
    params: Params,
    mask: Mask | None,
    layers: Sequence[str],
    *,
    densest: float = 0.1,
) -> None:
    """Writes a stack of dense layers with a ReLU between each two, whole or not at all.

    The input is (batch, in) and the output (batch, out), float32; the batch is 1 until
    the interpreter's `resize_tensor_input`.

    Args:
      path: the file.
      params: any pytree with "layer/kernel", (in, out), and "layer/bias" of each layer,
        float32. Dead weights are zero.
      mask: their mask.
      layers: the layers in their order.
      densest: a layer with a larger share of live weights, or without a mask, is stored
        dense.

    Raises:
      ImportError: if ai-edge-litert is not installed.
      OSError: if the file cannot be written.
      ValueError: as `jaxprune.save`, or if there are no layers, or one is not there, is
        not float32, or does not fit the layer before it.
    """
    write_whole(path, litert_bytes(params, mask, layers, densest=densest))


def litert_bytes(
    params: Params, mask: Mask | None, layers: Sequence[str], *, densest: float = 0.1
) -> bytes:
    """Gives the bytes that `write_litert` writes."""
    schema = require("ai_edge_litert.schema_py_generated", "litert")
    flatbuffers = require("flatbuffers", "litert")
    leaves = {name: (p, m) for name, p, m in named_leaves(params, mask)}
    _check(leaves, layers)
    build = _Builder(schema)
    at = first = build.tensor("input", (1, leaves[f"{layers[0]}/kernel"][0].shape[0]))
    for i, layer in enumerate(layers):
        kernel, alive = leaves[f"{layer}/kernel"]
        if alive is not None and alive.mean() > densest:
            alive = None
        weight = build.weight(f"{layer}/kernel", kernel.T, alive)
        bias = leaves[f"{layer}/bias"][0]
        inputs = [at, weight, build.tensor(f"{layer}/bias", bias.shape, bias)]
        at = build.tensor(layer, (1, bias.size))
        build.dense(inputs, at, relu=i + 1 < len(layers))
    builder = flatbuffers.Builder(1 << 16)
    builder.Finish(build.model(first, at).Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


def run_litert(data: bytes, x: np.ndarray) -> np.ndarray:
    """Runs the bytes of a file of one input and one output with LiteRT, on one thread.

    Raises:
      ImportError: if ai-edge-litert is not installed.
      ValueError: if they are no such file, or `x` does not fit.
    """
    interpreter = require("ai_edge_litert.interpreter", "litert")
    model = interpreter.Interpreter(model_content=data, num_threads=1)
    (given,), (made,) = model.get_input_details(), model.get_output_details()
    model.resize_tensor_input(given["index"], x.shape, strict=True)
    model.allocate_tensors()
    model.set_tensor(given["index"], x)
    model.invoke()
    return model.get_tensor(made["index"])


def _check(leaves: dict[str, Any], layers: Sequence[str]) -> None:
    if not layers:
        raise ValueError("`layers` is empty, expected the names of dense layers.")
    before = None
    for layer in layers:
        for name, rank in ((f"{layer}/kernel", 2), (f"{layer}/bias", 1)):
            p = leaves[name][0] if name in leaves else None
            if p is None or p.ndim != rank or p.dtype != np.float32:
                found = "not there" if p is None else f"{p.dtype} {p.shape}"
                raise ValueError(
                    f"{name} is {found}, expected float32 of {rank} dimensions: only "
                    "stacks of dense layers can be written."
                )
        kernel, bias = leaves[f"{layer}/kernel"][0], leaves[f"{layer}/bias"][0]
        if before not in (None, kernel.shape[0]) or kernel.shape[1] != bias.size:
            raise ValueError(
                f"{layer} is {kernel.shape} with {bias.size} biases, expected "
                f"({before or 'in'}, out) and as many biases as outputs."
            )
        before = bias.size


class _Builder:
    """Collects tensors, buffers and operators."""

    def __init__(self, schema: Any):
        self.schema = schema
        self.tensors, self.operators = [], []
        self.buffers = [schema.BufferT()]  # the first is empty, by convention

    def tensor(
        self, name: str, shape: Sequence[int], values: np.ndarray | None = None
    ) -> int:
        tensor = self.schema.TensorT()
        tensor.name, tensor.shape = name, [int(n) for n in shape]
        tensor.type, tensor.buffer = self.schema.TensorType.FLOAT32, 0
        if values is None:
            tensor.shapeSignature = [-1, *tensor.shape[1:]]
        else:
            buffer = self.schema.BufferT()
            buffer.data = np.frombuffer(values.astype("<f4").tobytes(), np.uint8)
            tensor.buffer = len(self.buffers)
            self.buffers.append(buffer)
        self.tensors.append(tensor)
        return len(self.tensors) - 1

    def weight(self, name: str, w: np.ndarray, alive: np.ndarray | None) -> int:
        """Adds a weight (out, in), sparse if its live weights, (in, out), are given."""
        if alive is None:
            return self.tensor(name, w.shape, w)
        alive = alive.T
        index = self.tensor(name, w.shape, w[alive])
        rows, columns = (
            self.schema.DimensionMetadataT(),
            self.schema.DimensionMetadataT(),
        )
        rows.format, rows.denseSize = self.schema.DimensionType.DENSE, w.shape[0]
        columns.format = self.schema.DimensionType.SPARSE_CSR
        starts = np.concatenate([[0], np.cumsum(alive.sum(1))])
        columns.arraySegmentsType, columns.arraySegments = self._vector(starts)
        columns.arrayIndicesType, columns.arrayIndices = self._vector(
            np.nonzero(alive)[1]
        )
        sparsity = self.schema.SparsityParametersT()
        sparsity.traversalOrder, sparsity.blockMap = [0, 1], []
        sparsity.dimMetadata = [rows, columns]
        self.tensors[index].sparsity = sparsity
        return index

    def _vector(self, values: np.ndarray) -> tuple[int, Any]:
        largest = int(values.max(initial=0))
        kind, dtype = ("Int32Vector", np.int32)
        if largest < 1 << 16:
            kind, dtype = ("Uint16Vector", np.uint16)
        vector = getattr(self.schema, f"{kind}T")()
        vector.values = values.astype(dtype)
        return getattr(self.schema.SparseIndexVector, kind), vector

    def dense(self, inputs: list[int], output: int, relu: bool) -> None:
        options = self.schema.FullyConnectedOptionsT()
        kinds = self.schema.ActivationFunctionType
        options.fusedActivationFunction = kinds.RELU if relu else kinds.NONE
        operator = self.schema.OperatorT()
        operator.opcodeIndex, operator.inputs, operator.outputs = 0, inputs, [output]
        operator.builtinOptionsType = self.schema.BuiltinOptions.FullyConnectedOptions
        operator.builtinOptions = options
        self.operators.append(operator)

    def model(self, first: int, last: int) -> Any:
        code = self.schema.OperatorCodeT()
        code.builtinCode = self.schema.BuiltinOperator.FULLY_CONNECTED
        code.deprecatedBuiltinCode, code.version = code.builtinCode, _VERSION
        graph = self.schema.SubGraphT()
        graph.tensors, graph.operators = self.tensors, self.operators
        graph.inputs, graph.outputs, graph.name = [first], [last], "main"
        model = self.schema.ModelT()
        model.version, model.operatorCodes = 3, [code]
        model.subgraphs, model.buffers = [graph], self.buffers
        model.description = "jaxprune"
        return model
