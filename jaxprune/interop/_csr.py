"""A folder of SciPy's sparse matrices, one `.npz` for each pruned layer.

A leaf "fc1/kernel" is the file `fc1.kernel.npz`, which `scipy.sparse.load_npz` opens:
rows are inputs and columns outputs, so that `x @ matrix` is the layer. The leading axes
of a convolution, (height, width, in), are made one. Leaves that no mask covers, such as
biases, are `.npy` files beside them. float16 and bfloat16, which SciPy lacks in sparse
matrices, are widened to float32, exactly.
"""

import io
import math
import os
import shutil
import zipfile
import zlib
from os import PathLike
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune._masks import mask_from_zeros
from jaxprune._paths import leaf_name
from jaxprune._types import Mask, Params
from jaxprune.compress._save import named_leaves
from jaxprune.interop._optional import require


def write_csr(
    folder: str | PathLike[str], params: Params, mask: Mask | None = None
) -> None:
    """Writes each pruned leaf as a SciPy CSR matrix in a new folder, all or none.

    Args:
      folder: made by this; it may not exist.
      params: any pytree of arrays. Dead weights are zero.
      mask: their mask; live weights that are zero are stored too. `None` takes the
        leaves of two dimensions and more, and all their weights but zeros.

    Raises:
      FileExistsError: if `folder` exists.
      OSError: if it cannot be written.
      ValueError: naming the leaf, if the mask does not fit, a dead weight is not zero,
        or two leaves would be one file.
    """
    sparse = require("scipy.sparse", "interop")
    folder = Path(folder)
    if folder.exists():
        raise FileExistsError(f"{folder} exists, expected a folder to be made.")
    if mask is None:
        mask = mask_from_zeros(params)
    files: dict[str, bytes] = {}
    for name, p, m in named_leaves(params, mask):
        data, p = io.BytesIO(), _widened(p)
        if m is None:
            np.save(data, p, allow_pickle=False)
        else:
            sparse.save_npz(data, _to_csr(sparse, p, m))
        file = _stem(name) + (".npy" if m is None else ".npz")
        if file in files:
            raise ValueError(f"{name} and another leaf would both be {file}.")
        files[file] = data.getvalue()
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir(parents=True)
        for file, content in files.items():
            (part / file).write_bytes(content)
        os.rename(part, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def read_csr(folder: str | PathLike[str], params_like: Params) -> tuple[Params, Mask]:
    """Reads what `write_csr` wrote.

    Args:
      folder: the folder.
      params_like: params or their shapes, which say what shape each matrix has here.

    Returns:
      Params of NumPy arrays with the dtypes of `params_like`, and their mask.

    Raises:
      OSError: if the file of a leaf cannot be opened.
      ValueError: naming the file, if it is damaged or of another shape.
    """
    sparse = require("scipy.sparse", "interop")
    leaves, structure = jax.tree_util.tree_flatten_with_path(params_like)
    params, mask = [], []
    for key, like in leaves:
        path = Path(folder) / f"{_stem(leaf_name(key))}.npz"
        dense = not path.exists()
        path = path.with_suffix(".npy") if dense else path
        try:
            held = np.load(path, allow_pickle=False) if dense else sparse.load_npz(path)
            if not dense:
                held.check_format()
        except (
            ValueError,
            KeyError,
            EOFError,
            zipfile.BadZipFile,
            zlib.error,
        ) as error:
            raise ValueError(f"{path} is damaged: {error}") from error
        expected = like.shape if dense else _two(like.shape)
        if held.shape != expected:
            raise ValueError(f"{path} has shape {held.shape}, expected {expected}.")
        values = held if dense else held.toarray()
        params.append(values.reshape(like.shape).astype(like.dtype))
        mask.append(None if dense else _alive(held).reshape(like.shape))
    return structure.unflatten(params), structure.unflatten(mask)


def _to_csr(sparse: Any, p: np.ndarray, alive: np.ndarray) -> Any:
    shape = _two(p.shape)
    p, alive = p.reshape(shape), alive.reshape(shape)
    starts = np.concatenate([[0], np.cumsum(alive.sum(1))])
    return sparse.csr_matrix((p[alive], np.nonzero(alive)[1], starts), shape)


def _alive(matrix: Any) -> np.ndarray:
    alive = np.zeros(matrix.shape, bool)
    rows = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
    alive[rows, matrix.indices] = True
    return alive


def _two(shape: tuple[int, ...]) -> tuple[int, int]:
    return math.prod(shape[:-1]), math.prod(shape[-1:])


def _widened(p: np.ndarray) -> np.ndarray:
    narrow = jnp.issubdtype(p.dtype, jnp.floating) and p.dtype.itemsize < 4
    return p.astype(np.float32) if narrow else p


def _stem(name: str) -> str:
    return name.replace("/", ".")
