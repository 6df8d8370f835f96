"""Networks of which every layer runs without its dead weights, convolutions too.

This is to check that pruned networks compute the same so, with weights as real pruning
leaves them. A convolution is the sparse product of its patches, which on a CPU takes
several times as long as the dense convolution: `jaxprune.sparse.sparsify` chooses none.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import jaxprune
from jaxprune import sparse


def all_sparse(params: Any, mask: Any) -> Any:
    """Makes every kernel sparse, that of a convolution as (rows * columns * in, out).

    Args:
      params: of a network of `nn.Conv` and `nn.Dense` alone.
      mask: True where alive; leaves that it does not cover stay as they are.

    Returns:
      What the function of `all_sparse_apply` takes.
    """

    def at_leaf(leaf: Any, alive: Any) -> Any:
        shape = (-1, leaf.shape[-1])
        return sparse.to_kernel(
            np.asarray(leaf).reshape(shape), np.asarray(alive).reshape(shape)
        )

    return jaxprune.map_masked(at_leaf, params, mask)


def all_sparse_apply(module: nn.Module) -> Callable[[Any, Any], Any]:
    """Gives the function of an unchanged module for params of `all_sparse`.

    Each `nn.Conv` and `nn.Dense` is intercepted and its product replaced.

    Returns:
      `apply(params, x)`. It raises ValueError, while traced, at a convolution that has
      groups or dilation.
    """

    def replaced(next_fun: Any, args: Any, kwargs: Any, context: Any) -> Any:
        layer = context.module
        if context.method_name != "__call__" or not isinstance(
            layer, (nn.Conv, nn.Dense)
        ):
            return next_fun(*args, **kwargs)
        (x,), leaves = args, layer.variables["params"]
        if isinstance(layer, nn.Conv):
            x = patches(layer, x)
        y = sparse.product(x, leaves["kernel"])
        return y + leaves["bias"] if layer.use_bias else y

    def apply(params: Any, x: Any) -> Any:
        with nn.intercept_methods(replaced):
            return module.apply({"params": params}, x)

    return apply


def patches(layer: nn.Conv, x: jax.Array) -> jax.Array:
    """Gives what each position of a convolution sees.

    Args:
      layer: a convolution over rows and columns.
      x: (batch, height, width, in).

    Returns:
      (batch, height, width, rows * columns * in) of the output, in the order of the
      kernel's leading axes.

    Raises:
      ValueError: if it has groups or dilation.
    """
    dilations = (layer.kernel_dilation, layer.input_dilation)
    if layer.feature_group_count != 1 or any(
        np.any(np.array(d) != 1) for d in dilations
    ):
        raise ValueError(
            f"{layer.name} has {layer.feature_group_count} groups and dilations "
            f"{dilations}, expected none."
        )
    size = tuple(np.atleast_1d(layer.kernel_size).tolist())
    steps = np.broadcast_to(layer.strides or 1, 2)
    padding = layer.padding
    if isinstance(padding, str):
        borders = lax.padtype_to_pads(x.shape[1:3], size, tuple(steps), padding)
    else:
        sides: Any = [padding] * 2 if isinstance(padding, int) else padding
        borders = [(p, p) if isinstance(p, int) else tuple(p) for p in sides]
    x = jnp.pad(x, ((0, 0), *borders, (0, 0)))
    height, width = (
        (n - k) // s + 1 for n, k, s in zip(x.shape[1:3], size, steps, strict=True)
    )
    down, across = (int(s) for s in steps)
    seen = [
        x[:, i : i + down * height : down, j : j + across * width : across]
        for i in range(size[0])
        for j in range(size[1])
    ]
    return jnp.concatenate(seen, axis=-1)
