"""Operators as the bytes of a `.tflite`, by the schema that comes with ai-edge-litert.

A dense layer's sparse weights are held by SPARSE_CSR, one row for each output, which
FULLY_CONNECTED runs as they are. CONV_2D runs dense weights alone. Such, and those of a
dense layer that would be slower sparse, are held in the same way where that is smaller,
and made dense by DENSIFY when the file is loaded.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxprune.interop._litert_nodes import Node
from jaxprune.interop._optional import require


# The first versions of the operators that have what is used of them.
_OPERATORS = {
    "abs": ("ABS", 1, None),
    "add": ("ADD", 1, "AddOptions"),
    "and": ("LOGICAL_AND", 1, None),
    "average": ("AVERAGE_POOL_2D", 1, "Pool2DOptions"),
    "concat": ("CONCATENATION", 1, "ConcatenationOptions"),
    "conv": ("CONV_2D", 1, "Conv2DOptions"),
    "dense": ("FULLY_CONNECTED", 8, "FullyConnectedOptions"),
    "densify": ("DENSIFY", 1, "DensifyOptions"),
    "depthwise": ("DEPTHWISE_CONV_2D", 2, "DepthwiseConv2DOptions"),
    "div": ("DIV", 1, "DivOptions"),
    "eq": ("EQUAL", 1, None),
    "exp": ("EXP", 1, None),
    "ge": ("GREATER_EQUAL", 1, None),
    "gelu": ("GELU", 1, "GeluOptions"),
    "gt": ("GREATER", 1, None),
    "largest": ("REDUCE_MAX", 1, "ReducerOptions"),
    "le": ("LESS_EQUAL", 1, None),
    "log": ("LOG", 1, None),
    "logistic": ("LOGISTIC", 1, None),
    "lt": ("LESS", 1, None),
    "matmul": ("BATCH_MATMUL", 1, "BatchMatMulOptions"),
    "max": ("MAXIMUM", 1, "MaximumMinimumOptions"),
    "min": ("MINIMUM", 1, "MaximumMinimumOptions"),
    "mul": ("MUL", 1, "MulOptions"),
    "ne": ("NOT_EQUAL", 1, None),
    "neg": ("NEG", 1, None),
    "not": ("LOGICAL_NOT", 1, None),
    "or": ("LOGICAL_OR", 1, None),
    "pad": ("PADV2", 1, "PadV2Options"),
    "pool": ("MAX_POOL_2D", 1, "Pool2DOptions"),
    "relu": ("RELU", 1, None),
    "reshape": ("RESHAPE", 1, "ReshapeOptions"),
    "rsqrt": ("RSQRT", 1, None),
    "select": ("SELECT_V2", 1, None),
    "slice": ("STRIDED_SLICE", 1, "StridedSliceOptions"),
    "sqrt": ("SQRT", 1, None),
    "sub": ("SUB", 1, "SubOptions"),
    "sum": ("SUM", 1, "ReducerOptions"),
    "tanh": ("TANH", 1, None),
    "transpose": ("TRANSPOSE", 1, "TransposeOptions"),
}

_TYPES = {"bool": "BOOL", "float32": "FLOAT32", "int32": "INT32"}
_TESTS = ("gt", "ge", "lt", "le", "eq", "ne", "and", "or", "not")


def file_of(output: Node, densest: float) -> bytes:
    """Gives the file that computes a tensor.

    Args:
      output: the operator that makes it.
      densest: a dense layer with a larger share of live weights runs dense.
    """
    flatbuffers = require("flatbuffers", "litert")
    writer = _Writer(require("ai_edge_litert.schema_py_generated", "litert"), densest)
    writer.bare = {id(n.inputs): n for n in _nodes(output, {}) if not n.relu}
    last = writer.node(output)
    builder = flatbuffers.Builder(1 << 16)
    builder.Finish(writer.model(last).Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


class _Writer:
    """Collects tensors, buffers and operators."""

    def __init__(self, schema: Any, densest: float):
        self.schema, self.densest = schema, densest
        self.tensors, self.operators, self.codes = [], [], []
        self.buffers = [schema.BufferT()]  # the first is empty, by convention
        self.kinds: list[str] = []
        self.inputs: list[int] = []
        self.made: dict[Node, int] = {}
        self.bare: dict[int, Node] = {}

    def node(self, node: Node) -> int:
        """Writes an operator after those that it needs, once; gives its tensor."""
        if node in self.made:
            return self.made[node]
        bare = self.bare.get(id(node.inputs))
        if node.relu and bare:  # read elsewhere too: it is not computed twice
            made = self.node(Node("relu", node.shape, (bare,)))
        elif node.kind == "input":
            made = self.tensor("input", node.shape)
            self.inputs.append(made)
        else:
            inputs = [
                self.node(x) if isinstance(x, Node) else self.constant(node, i, x)
                for i, x in enumerate(node.inputs)
            ]
            dtype = np.bool_ if node.kind in _TESTS else np.float32
            name = f"{node.kind}{len(self.operators)}"
            made = self.tensor(name, node.shape, dtype=dtype)
            self.write(node, inputs, made)
        self.made[node] = made
        return made

    def constant(self, node: Node, i: int, x: np.ndarray) -> int:
        name = f"{node.name or f'{node.kind}{len(self.operators)}'}/{i}"
        if i == 1 and node.kind == "conv":
            return self.weight(node.name or name, x.transpose(3, 0, 1, 2), False)
        if i == 1 and node.kind == "depthwise":
            return self.weight(node.name or name, x.transpose(2, 0, 1, 3), False)
        if i == 1 and node.kind == "dense":
            sparse = bool(np.count_nonzero(x) <= self.densest * x.size)
            return self.weight(node.name or name, np.ascontiguousarray(x.T), sparse)
        return self.tensor(name, x.shape, x)

    def tensor(
        self,
        name: str,
        shape: Sequence[int],
        values: np.ndarray | None = None,
        dtype: Any = np.float32,
    ) -> int:
        tensor = self.schema.TensorT()
        tensor.name, tensor.shape = name, [int(n) for n in shape]
        kind = _TYPES[np.dtype(dtype if values is None else values.dtype).name]
        tensor.type, tensor.buffer = getattr(self.schema.TensorType, kind), 0
        if values is None:
            tensor.shapeSignature = [-1, *tensor.shape[1:]]
        else:
            buffer = self.schema.BufferT()
            little = values.astype(values.dtype.newbyteorder("<"))
            buffer.data = np.frombuffer(little.tobytes(), np.uint8)
            tensor.buffer = len(self.buffers)
            self.buffers.append(buffer)
        self.tensors.append(tensor)
        return len(self.tensors) - 1

    def weight(self, name: str, w: np.ndarray, runs: bool) -> int:
        """Adds weights (out, ..., in); `runs` tells whether sparse ones are run."""
        alive = w != 0
        places = [self.vector(places) for places in _csr(alive)]
        size = 4 * alive.sum() + sum(vector.values.nbytes for _, vector in places)
        if not runs and size >= w.nbytes:
            return self.tensor(name, w.shape, w)
        index = self.tensor(name, w.shape, w[alive])
        dims = [self.schema.DimensionMetadataT() for _ in w.shape]
        for dim, n in zip(dims, w.shape, strict=True):
            dim.format, dim.denseSize = self.schema.DimensionType.DENSE, int(n)
        dims[-1].format = self.schema.DimensionType.SPARSE_CSR
        (dims[-1].arraySegmentsType, dims[-1].arraySegments) = places[0]
        (dims[-1].arrayIndicesType, dims[-1].arrayIndices) = places[1]
        sparsity = self.schema.SparsityParametersT()
        sparsity.traversalOrder, sparsity.blockMap = list(range(w.ndim)), []
        sparsity.dimMetadata = dims
        self.tensors[index].sparsity = sparsity
        if runs:
            return index
        made = self.tensor(f"{name}/dense", w.shape)
        self.tensors[made].shapeSignature = None
        self.write(Node("densify", w.shape), [index], made)
        return made

    def vector(self, values: np.ndarray) -> tuple[int, Any]:
        largest = int(values.max(initial=0))
        kinds: list[tuple[int, str, type]] = [
            (1 << 8, "Uint8Vector", np.uint8),
            (1 << 16, "Uint16Vector", np.uint16),
            (1 << 31, "Int32Vector", np.int32),
        ]
        _, kind, dtype = next(one for one in kinds if largest < one[0])
        vector = getattr(self.schema, f"{kind}T")()
        vector.values = values.astype(dtype)
        return getattr(self.schema.SparseIndexVector, kind), vector

    def write(self, node: Node, inputs: list[int], made: int) -> None:
        if node.kind == "reshape":
            inputs = [
                *inputs,
                self.tensor(f"shape{made}", (len(node.shape),), _shape(node)),
            ]
        if node.kind == "pad":
            fill = np.array([node.options["fill"]], np.float32)
            inputs = [*inputs, self.tensor(f"fill{made}", (1,), fill)]
        if node.kind not in _OPERATORS:
            raise ValueError(
                f"it has {node.kind} of {node.shape}, which only a GELU may have"
            )
        if node.kind not in self.kinds:
            self.kinds.append(node.kind)
        operator = self.schema.OperatorT()
        operator.opcodeIndex = self.kinds.index(node.kind)
        operator.inputs, operator.outputs = inputs, [made]
        options = _OPERATORS[node.kind][2]
        if options:
            kind = getattr(self.schema.BuiltinOptions, options)
            operator.builtinOptionsType = kind
            operator.builtinOptions = self.options(node, f"{options}T")
        self.operators.append(operator)

    def options(self, node: Node, kind: str) -> Any:
        made, given = getattr(self.schema, kind)(), node.options
        if node.relu:
            made.fusedActivationFunction = self.schema.ActivationFunctionType.RELU
        if node.kind in ("conv", "depthwise", "pool", "average"):
            made.padding = getattr(self.schema.Padding, given["padding"])
            made.strideH, made.strideW = (int(n) for n in given["strides"])
        if node.kind in ("conv", "depthwise"):
            made.dilationHFactor, made.dilationWFactor = map(int, given["dilation"])
        elif node.kind in ("pool", "average"):
            made.filterHeight, made.filterWidth = (int(n) for n in given["size"])
        if node.kind == "depthwise":
            made.depthMultiplier = node.shape[3] // node.inputs[0].shape[3]
        elif node.kind == "dense":
            made.keepNumDims = len(node.shape) != 2
        elif node.kind == "largest":
            made.keepDims = True
        elif node.kind == "reshape":
            made.newShape = _shape(node).tolist()
        elif node.kind == "slice":
            made.beginMask = made.endMask = 1  # all of the batch
        elif node.kind == "concat":
            made.axis = given["axis"]
        return made

    def model(self, last: int) -> Any:
        codes = []
        for kind in self.kinds:
            name, version, _ = _OPERATORS[kind]
            code = self.schema.OperatorCodeT()
            code.builtinCode = getattr(self.schema.BuiltinOperator, name)
            code.deprecatedBuiltinCode = min(code.builtinCode, 127)
            code.version = version
            codes.append(code)
        graph = self.schema.SubGraphT()
        graph.tensors, graph.operators = self.tensors, self.operators
        graph.inputs, graph.outputs, graph.name = self.inputs, [last], "main"
        model = self.schema.ModelT()
        model.version, model.operatorCodes = 3, codes
        model.subgraphs, model.buffers = [graph], self.buffers
        model.description = "jaxprune"
        return model


def _nodes(node: Node, seen: dict[Node, None]) -> dict[Node, None]:
    """Gives a node and all that it is computed from, each once."""
    if node not in seen:
        seen[node] = None
        for x in node.inputs:
            if isinstance(x, Node):
                _nodes(x, seen)
    return seen


def _csr(alive: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Gives where each row of the last axis starts, and the places of live weights."""
    rows = alive.reshape(-1, alive.shape[-1])
    return np.concatenate([[0], np.cumsum(rows.sum(1))]), np.nonzero(rows)[1]


def _shape(node: Node) -> np.ndarray:
    return np.array([-1, *node.shape[1:]], np.int32)
