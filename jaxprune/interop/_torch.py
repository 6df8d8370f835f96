"""PyTorch's `.pth` and `.safetensors` as arrays by name."""

from collections.abc import Mapping
from os import PathLike
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxprune.interop._optional import require


def read_torch(
    path: str | PathLike[str], key: str | None = None
) -> dict[str, np.ndarray]:
    """Reads a state dict that `torch.save` wrote, as torchvision's `.pth` files are.

    Only tensors and plain containers are unpickled, so that a file can run no code.

    Args:
      path: the file.
      key: where the state dict lies in a checkpoint that holds more, such as
        "state_dict".

    Returns:
      Arrays by name, in PyTorch's layout.

    Raises:
      ImportError: if PyTorch is not installed.
      OSError: if the file cannot be opened.
      ValueError: if it is damaged, holds other objects, or no state dict there.
    """
    torch = require("torch", "torch")
    with open(path, "rb") as file:
        try:
            held = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:
            # A damaged pickle raises whatever it happens to ask for.
            raise ValueError(
                f"{path} is not a file of tensors that torch.load reads with "
                f"weights_only: {type(error).__name__}: {error}"
            ) from error
    if key is not None:
        if not isinstance(held, Mapping) or key not in held:
            raise ValueError(f"{path} holds {_contents(held)}, expected a key {key!r}.")
        held = held[key]
    if not isinstance(held, Mapping) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor)
        for name, value in held.items()
    ):
        raise ValueError(
            f"{path} holds {_contents(held)}, expected tensors by name; if they lie "
            "under a key, give `key`."
        )
    return {name: _to_numpy(torch, path, name, held[name]) for name in held}


def read_safetensors(path: str | PathLike[str]) -> dict[str, np.ndarray]:
    """Reads a `.safetensors` file as arrays by name, laid out as its writer had them.

    Raises:
      ImportError: if safetensors is not installed.
      OSError: if the file cannot be opened.
      ValueError: if it is damaged, or has a dtype that NumPy lacks, such as float8;
        bfloat16 is read.
    """
    safetensors = require("safetensors", "interop")
    load_file = require("safetensors.numpy", "interop").load_file
    try:
        return load_file(path)
    except (safetensors.SafetensorError, TypeError) as error:
        raise ValueError(f"{path} is not a safetensors file: {error}") from error
    except (AttributeError, KeyError) as error:
        raise ValueError(
            f"{path} has a dtype that NumPy lacks ({error}); write it in one that "
            "NumPy has, or in bfloat16."
        ) from error


def _to_numpy(torch: Any, path: Any, name: str, tensor: Any) -> np.ndarray:
    try:
        tensor = tensor.detach()
        if tensor.dtype == torch.bfloat16:
            return tensor.view(torch.int16).numpy().view(jnp.bfloat16)
        return tensor.numpy()
    except (TypeError, RuntimeError) as error:
        raise ValueError(
            f"{path}: {name} is {tensor.dtype}, {tensor.layout}, which NumPy cannot "
            f"hold: {error}"
        ) from error


def _contents(held: Any) -> str:
    if isinstance(held, Mapping):
        inside = [f"{key!r} ({type(value).__name__})" for key, value in held.items()]
        return ", ".join(inside[:8]) + (", ..." if len(inside) > 8 else "") or "nothing"
    return f"one {type(held).__name__}"
