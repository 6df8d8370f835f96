"""The sides of the sparse benchmark that run a file: ONNX Runtime and LiteRT."""

import importlib
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from experiments.bench._sparse_nets import Case, Conv, Net, Op
from experiments.bench._sparse_others import channels_first, channels_last, leaves
from experiments.bench._sparse_sides import Maker, Side
from jaxprune import interop


def onnx_dense(net: Net, case: Case, threads: int) -> Maker:
    """ONNX Runtime on a model written here, its weights dense."""
    runtime: Any = importlib.import_module("onnxruntime")  # extras, so not typed
    onnx: Any = importlib.import_module("onnx")
    nodes, stored, at = [], [], "x"
    for op in case.ops:
        arrays = leaves(net, case, op)
        added, at = _nodes(onnx, op, at)
        nodes += added
        for array, leaf in zip(arrays, ("kernel", "bias"), strict=True):
            if array.ndim == 4:
                array = np.ascontiguousarray(array.transpose(3, 2, 0, 1))
            name = f"{op.name}/{leaf}"
            stored.append(onnx.numpy_helper.from_array(array, name))
    real, value = onnx.TensorProto.FLOAT, onnx.helper.make_tensor_value_info
    given = channels_first(np.empty((1, *case.shape), np.float32)).shape[1:]
    graph = onnx.helper.make_graph(
        nodes,
        "net",
        [value("x", real, ("batch", *given))],
        [value(at, real, None)],
        stored,
    )
    opset = [onnx.helper.make_opsetid("", 17)]
    model = onnx.helper.make_model(graph, opset_imports=opset, ir_version=9)
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    session = runtime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    nbytes = sum(p.nbytes for name in case.names for p in net.params[name].values())

    def make(x: np.ndarray) -> Side:
        images = channels_first(x)
        call = lambda: session.run(None, {"x": images})[0]
        return Side(call, lambda: channels_last(call()), nbytes)

    return make


def _nodes(onnx: Any, op: Op, at: str) -> tuple[list[Any], str]:
    """Makes the nodes of a layer that reads `at`; gives what they write, too."""
    follow: list[tuple[str, dict[str, Any]]] = [("Relu", {})] if op.relu else []
    if isinstance(op, Conv):
        sizes = {"strides": [op.stride] * 2, "pads": [op.padding] * 4}
        first = ("Conv", sizes | {"group": op.groups})
        if op.lrn:
            follow.append(("LRN", {"size": 5, "alpha": 1e-4, "beta": 0.75}))
        if op.pool:
            size, stride = op.pool
            both = {"kernel_shape": [size] * 2, "strides": [stride] * 2}
            follow.append(("MaxPool", both | {"ceil_mode": 1}))
        steps = [first, *follow]
    else:
        steps = [("Flatten", {}), ("Gemm", {}), *follow]
    made = []
    for kind, settings in steps:
        reads, writes = [at], f"{op.name}/{kind}"
        if kind in ("Conv", "Gemm"):
            reads += [f"{op.name}/kernel", f"{op.name}/bias"]
        made.append(onnx.helper.make_node(kind, reads, [writes], **settings))
        at = writes
    return made, at


def litert_dense(net: Net, case: Case, threads: int) -> Maker:
    """LiteRT on a file whose weights are all stored."""
    return _litert(net, case, threads, filled, densest=0.0)


def litert_sparse(net: Net, case: Case, threads: int) -> Maker:
    """LiteRT on a file as `write_litert` makes it, sparse where that should pay."""
    return _litert(net, case, threads, lambda kernel: kernel, densest=0.1)


def filled(kernel: np.ndarray) -> np.ndarray:
    """Gives a kernel whose zeros are stored, yet so near zero that no sum is changed.

    A dense file is what has no zeros; `write_litert` stores what has them sparse where
    that is smaller.
    """
    return np.where(kernel == 0, np.float32(1e-30), kernel)


def _litert(
    net: Net,
    case: Case,
    threads: int,
    change: Callable[[np.ndarray], np.ndarray],
    densest: float,
) -> Maker:
    of = {name: dict(net.params[name]) for name in case.names}
    for layer in of.values():
        layer["kernel"] = change(layer["kernel"])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.tflite"
        interop.write_litert(path, case.apply, of, case.shape, densest=densest)
        data = path.read_bytes()

    def make(x: np.ndarray) -> Side:
        call = litert_call(data, x, threads)
        return Side(call, lambda: np.array(call()), len(data))

    return make


def litert_call(data: bytes, x: np.ndarray, threads: int) -> Callable[[], np.ndarray]:
    """Gives the function that runs the bytes of a file of one input and one output."""
    litert: Any = importlib.import_module("ai_edge_litert.interpreter")
    model = litert.Interpreter(model_content=data, num_threads=threads)
    (given,), (made,) = model.get_input_details(), model.get_output_details()
    model.resize_tensor_input(given["index"], x.shape, strict=True)
    model.allocate_tensors()

    def call() -> np.ndarray:
        model.set_tensor(given["index"], x)
        model.invoke()
        return model.get_tensor(made["index"])

    return call
