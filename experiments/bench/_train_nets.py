"""What `train_step` trains, how many operations that is, and the device's peak."""

import time
from typing import Any

import jax
import jax.numpy as jnp

import jaxprune.report
from experiments.models import (
    ALEXNET,
    ALEXNET_TORCHVISION,
    VGG16_TORCHVISION,
    Network,
)


NETWORKS: dict[str, Network] = {
    "vgg16": VGG16_TORCHVISION,
    "alexnet": ALEXNET,
    "alexnet-torchvision": ALEXNET_TORCHVISION,
}
SMALL_SIDES = {"vgg16": 32, "alexnet": 67, "alexnet-torchvision": 63}


def network_of(name: str, dtype: str, side: int | None, small: bool) -> Network:
    """Gives a network in its dtype and for images of a side; small: of few units."""
    network = NETWORKS[name]
    module: Any = network.module.clone(dtype=jnp.dtype(dtype))
    side = side or (SMALL_SIDES[name] if small else network.input[0])
    if small:
        module = module.clone(classes=20)
        if name == "vgg16":
            module = module.clone(units=32)
        else:
            few = tuple(layer._replace(units=32) for layer in module.hidden)
            module = module.clone(hidden=few)
        network = network._replace(classes=20)
    return network._replace(module=module, input=(side, side, 3))


def train_flop(network: Network) -> tuple[int, int]:
    """Counts the operations of training on one image, and the prunable weights.

    A layer's two gradients cost what its forward pass does; the first layer needs only
    that of its weights.
    """
    x = jax.ShapeDtypeStruct((1, *network.input), jnp.float32)
    module = network.module
    shapes = jax.eval_shape(module.init, jax.random.key(0), x)["params"]
    apply = lambda params, x: module.apply({"params": params}, x)
    counts = jaxprune.report.count(apply, shapes, None, x)
    flop = 3 * counts.total.flop - counts.layers[0].flop
    return flop, counts.total.weights


def matrix_peak(dtype: str, small: bool) -> float:
    """Measures the rate of a large square matrix product, in operations a second."""
    size, products = (256, 2) if small else (8192, 10)
    if not small and jax.default_backend() == "cpu":
        size, products = 2048, 2
    keys = jax.random.split(jax.random.key(0))
    a, b = (jax.random.normal(key, (size, size), jnp.dtype(dtype)) for key in keys)
    product = jax.jit(jnp.matmul)
    best = float("inf")
    jax.block_until_ready(product(a, b))
    for _ in range(5):
        start = time.perf_counter()
        jax.block_until_ready([product(a, b) for _ in range(products)])
        best = min(best, time.perf_counter() - start)
    return products * 2 * size**3 / best
