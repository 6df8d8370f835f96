"""Params as dense tensors by name: `.safetensors`, and PyTorch's `.pth`."""

import io
from collections.abc import Mapping
from os import PathLike
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxprune._types import Params
from jaxprune._whole import write_whole
from jaxprune.interop._layout import Source, same_sources
from jaxprune.interop._load import tensors_of
from jaxprune.interop._optional import require


def write_safetensors(
    path: str | PathLike[str],
    params: Params,
    sources: Mapping[str, Source] | None = None,
) -> None:
    """Writes params as a `.safetensors` file of dense tensors, whole or not at all.

    `read_safetensors` and `load_into`, with the same sources, give them back, but for
    float8, which PyTorch alone reads.

    Args:
      path: the file.
      params: any pytree of arrays; dead weights are stored as the zeros that they are.
      sources: names and layouts of the tensors, as `sources_of` gives, for a file that
        PyTorch's twin of the network loads. `None` keeps our paths and layouts.

    Raises:
      ImportError: if safetensors is not installed.
      OSError: if the file cannot be written.
      ValueError: naming the leaf, if `sources` lacks it, cannot lay it out, or has one
        name for two leaves; or for a dtype that the format lacks.
    """
    tensors = _named(params, sources)
    safetensors = require("safetensors", "interop")
    save = require("safetensors.numpy", "interop").save
    try:
        data = save(tensors)
    except (safetensors.SafetensorError, TypeError, KeyError) as error:
        dtypes = sorted({str(t.dtype) for t in tensors.values()})
        raise ValueError(
            f"safetensors cannot hold these leaves, of {', '.join(dtypes)}: {error}"
        ) from error
    write_whole(path, data)


def write_torch(
    path: str | PathLike[str], params: Params, sources: Mapping[str, Source]
) -> None:
    """Writes params as the state dict of their network in PyTorch, whole or not at all.

    `torch.load(path, weights_only=True)` reads it for `load_state_dict`; `read_torch`
    and `load_into`, with the same sources, give the params back.

    Args:
      path: the file.
      params: any pytree of arrays; dead weights are stored as the zeros that they are.
      sources: names and layouts in PyTorch, as `sources_of` gives.

    Raises:
      ImportError: if PyTorch is not installed.
      OSError: if the file cannot be written.
      ValueError: naming the leaf, if `sources` lacks it, cannot lay it out, or has one
        name for two leaves; or for a dtype that PyTorch does not take.
    """
    tensors = _named(params, sources)
    torch = require("torch", "torch")
    buffer = io.BytesIO()
    torch.save({name: _to_torch(torch, name, t) for name, t in tensors.items()}, buffer)
    write_whole(path, buffer.getvalue())


def _named(
    params: Params, sources: Mapping[str, Source] | None
) -> dict[str, np.ndarray]:
    """Gives the tensors as the file has them, no two of one name."""
    sources = same_sources(params) if sources is None else sources
    taken: dict[str, str] = {}
    for path, source in sources.items():
        if source.name in taken:
            raise ValueError(
                f"{taken[source.name]} and {path} would both be written as "
                f"{source.name}; expected a name for each."
            )
        taken[source.name] = path
    return tensors_of(params, sources)


def _to_torch(torch: Any, name: str, tensor: np.ndarray) -> Any:
    try:
        if tensor.dtype == jnp.bfloat16:
            return torch.from_numpy(tensor.view(np.int16)).view(torch.bfloat16)
        return torch.from_numpy(tensor)
    except (TypeError, RuntimeError) as error:
        raise ValueError(
            f"{name} is {tensor.dtype}, which PyTorch does not take from NumPy: {error}"
        ) from error
