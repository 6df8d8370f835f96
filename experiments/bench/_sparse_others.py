"""The sides of the sparse benchmark that SciPy and PyTorch run.

Each is given what suits it: sparse products have their batch last, convolutions their
channels first, and rows of the dense layer after them are in that order too.
"""

import importlib
import warnings
from typing import Any

import numpy as np
from scipy.sparse import csr_array

from experiments.bench._sparse_nets import Case, Conv, Dense, Net
from experiments.bench._sparse_sides import Maker, Side


def scipy_csr(net: Net, case: Case, threads: int) -> Maker:
    """Dense layers as SciPy's CSR matrices, on one thread, whatever it may use.

    Raises:
      ValueError: if the case has a convolution.
    """
    if any(isinstance(op, Conv) for op in case.ops):
        raise ValueError("SciPy has no convolution")
    steps, nbytes = [], 0
    for op in case.ops:
        kernel, bias = leaves(net, case, op)
        matrix = csr_array(kernel.T)
        parts = (matrix.data, matrix.indices, matrix.indptr, bias)
        nbytes += sum(part.nbytes for part in parts)
        steps.append((matrix, bias, op.relu))

    def make(x: np.ndarray) -> Side:
        given = np.ascontiguousarray(x.reshape(len(x), -1).T)
        given = given[:, 0] if len(x) == 1 else given  # a vector is faster

        def call() -> np.ndarray:
            y = given
            for matrix, bias, relu in steps:
                y = matrix @ y
                y += bias if y.ndim == 1 else bias[:, None]
                if relu:
                    np.maximum(y, 0, out=y)
            return y

        return Side(call, lambda: call().T.reshape(len(x), -1), nbytes)

    return make


def torch_dense(net: Net, case: Case, threads: int) -> Maker:
    """PyTorch, layer after layer."""
    return _torch(net, case, threads, csr=False)


def torch_csr(net: Net, case: Case, threads: int) -> Maker:
    """PyTorch with the weights of dense layers as CSR tensors.

    Raises:
      ValueError: if the case has no dense layer.
    """
    if not any(isinstance(op, Dense) for op in case.ops):
        raise ValueError("PyTorch has no sparse convolution")
    return _torch(net, case, threads, csr=True)


def _torch(net: Net, case: Case, threads: int, csr: bool) -> Maker:
    torch: Any = importlib.import_module("torch")  # an extra, so not typed
    torch.set_num_threads(threads)
    steps, nbytes = [], 0
    for op in case.ops:
        kernel, bias = (torch.from_numpy(a) for a in leaves(net, case, op))
        order = (3, 2, 0, 1) if isinstance(op, Conv) else (1, 0)
        kernel = kernel.permute(*order).contiguous()
        parts = [kernel]
        if csr and isinstance(op, Dense):
            kernel, parts = _as_csr(torch, kernel)
            bias = bias[:, None]
        nbytes += sum(part.nbytes for part in (*parts, bias))
        steps.append((op, kernel, bias))

    def make(x: np.ndarray) -> Side:
        given = torch.from_numpy(channels_first(x))
        if csr and isinstance(case.ops[0], Dense):
            given = given.flatten(1).T.contiguous()

        def call() -> Any:
            y = given
            with torch.inference_mode():
                for op, kernel, bias in steps:
                    y = _step(torch, op, kernel, bias, y, csr)
            return y

        def output() -> np.ndarray:
            y = call().numpy()
            return channels_last(y) if y.ndim == 4 else (y.T if csr else y)

        return Side(call, output, nbytes)

    return make


def _as_csr(torch: Any, kernel: Any) -> tuple[Any, list[Any]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that CSR is in beta
        wide = kernel.to_sparse_csr()
        # MKL takes indices of 32 bits as they are.
        rows, columns = wide.crow_indices().int(), wide.col_indices().int()
        made = torch.sparse_csr_tensor(rows, columns, wide.values(), kernel.shape)
    return made, [rows, columns, made.values()]


def _step(torch: Any, op: Any, kernel: Any, bias: Any, y: Any, csr: bool) -> Any:
    """Runs a layer; with `csr` what a dense one gives has its batch last."""
    functional = torch.nn.functional
    if isinstance(op, Conv):
        y = functional.conv2d(y, kernel, bias, op.stride, op.padding, 1, op.groups)
    elif not csr:
        y = functional.linear(y.flatten(1), kernel, bias)
    else:
        y = y.flatten(1).T if y.ndim == 4 else y
        if y.shape[1] == 1:  # a vector is faster
            y = torch.mv(kernel, y[:, 0])[:, None] + bias
        else:
            y = torch.mm(kernel, y) + bias
    y = functional.relu(y) if op.relu else y
    if isinstance(op, Conv) and op.lrn:
        y = functional.local_response_norm(y, 5, 1e-4, 0.75, 1.0)
    if isinstance(op, Conv) and op.pool:
        y = functional.max_pool2d(y, *op.pool, ceil_mode=True)
    return y


def leaves(net: Net, case: Case, op: Conv | Dense) -> tuple[np.ndarray, np.ndarray]:
    """Gives kernel and bias of a layer; rows that read a feature map channels first."""
    kernel, bias = (net.params[op.name][leaf] for leaf in ("kernel", "bias"))
    if isinstance(op, Dense) and len(case.shape) == 3 and op.name in net.flatten:
        channels, height, width = net.flatten[op.name]
        maps = kernel.reshape(height, width, channels, -1)
        kernel = maps.transpose(2, 0, 1, 3).reshape(kernel.shape)
    return kernel, bias


def channels_first(x: np.ndarray) -> np.ndarray:
    """From (batch, height, width, channels); vectors stay."""
    return np.ascontiguousarray(x.transpose(0, 3, 1, 2)) if x.ndim == 4 else x


def channels_last(x: np.ndarray) -> np.ndarray:
    """Back from what `channels_first` gives."""
    return x.transpose(0, 2, 3, 1) if x.ndim == 4 else x
