"""The four networks of Han et al. 2015 as plain functions, with their printed tables.

Rows: layer, weights, FLOP, Act%, Weights%, FLOP%, as in tables 2 to 5.
"""

import jax
import jax.numpy as jnp
from jax import lax


TABLES = {
    "LeNet-300-100": """
        fc1 235K 470K 38 8 8
        fc2 30K 60K 65 9 4
        fc3 1K 2K 100 26 17
        total 266K 532K 46 8 8""",
    "LeNet-5": """
        conv1 0.5K 576K 82 66 66
        conv2 25K 3200K 72 12 10
        fc1 400K 800K 55 8 6
        fc2 5K 10K 100 19 10
        total 431K 4586K 77 8 16""",
    "AlexNet": """
        conv1 35K 211M 88 84 84
        conv2 307K 448M 52 38 33
        conv3 885K 299M 37 35 18
        conv4 663K 224M 40 37 14
        conv5 442K 150M 34 37 14
        fc1 38M 75M 36 9 3
        fc2 17M 34M 40 9 3
        fc3 4M 8M 100 25 10
        total 61M 1.5B 54 11 30""",
    "VGG-16": """
        conv1_1 2K 0.2B 53 58 58
        conv1_2 37K 3.7B 89 22 12
        conv2_1 74K 1.8B 80 34 30
        conv2_2 148K 3.7B 81 36 29
        conv3_1 295K 1.8B 68 53 43
        conv3_2 590K 3.7B 70 24 16
        conv3_3 590K 3.7B 64 42 29
        conv4_1 1M 1.8B 51 32 21
        conv4_2 2M 3.7B 45 27 14
        conv4_3 2M 3.7B 34 34 15
        conv5_1 2M 925M 32 35 12
        conv5_2 2M 925M 29 29 9
        conv5_3 2M 925M 19 36 11
        fc6 103M 206M 38 4 1
        fc7 17M 34M 42 4 2
        fc8 4M 8M 100 23 9
        total 138M 30.9B 64 7.5 21""",
}

# Name, kernel; for convolutions stride, padding, groups, pooling (size, stride).
LAYERS = {
    "LeNet-300-100": [
        ("fc1", (784, 300)),
        ("fc2", (300, 100)),
        ("fc3", (100, 10)),
    ],
    "LeNet-5": [
        ("conv1", (5, 5, 1, 20), 1, 0, 1, (2, 2)),
        ("conv2", (5, 5, 20, 50), 1, 0, 1, (2, 2)),
        ("fc1", (800, 500)),
        ("fc2", (500, 10)),
    ],
    "AlexNet": [
        ("conv1", (11, 11, 3, 96), 4, 0, 1, (3, 2)),
        ("conv2", (5, 5, 48, 256), 1, 2, 2, (3, 2)),
        ("conv3", (3, 3, 256, 384), 1, 1, 1, None),
        ("conv4", (3, 3, 192, 384), 1, 1, 2, None),
        ("conv5", (3, 3, 192, 256), 1, 1, 2, (3, 2)),
        ("fc1", (9216, 4096)),
        ("fc2", (4096, 4096)),
        ("fc3", (4096, 1000)),
    ],
    "VGG-16": [
        (f"conv{block}_{i}", (3, 3, n if i == 1 else m, m), 1, 1, 1,
         (2, 2) if i == depth else None)
        for block, n, m, depth in [
            (1, 3, 64, 2), (2, 64, 128, 2), (3, 128, 256, 3), (4, 256, 512, 3),
            (5, 512, 512, 3),
        ]
        for i in range(1, depth + 1)
    ] + [("fc6", (25088, 4096)), ("fc7", (4096, 4096)), ("fc8", (4096, 1000))],
}  # fmt: skip

INPUTS = {
    "LeNet-300-100": (28, 28, 1),
    "LeNet-5": (28, 28, 1),
    "AlexNet": (227, 227, 3),
    "VGG-16": (224, 224, 3),
}


def table(name):
    """Rows as lists of words, the total last."""
    return [line.split() for line in TABLES[name].strip().splitlines()]


def params(name):
    """Shapes of kernels and biases, as flax would name them."""
    struct = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)
    return {
        layer: {"kernel": struct(*kernel), "bias": struct(kernel[-1])}
        for layer, kernel, *_ in LAYERS[name]
    }


def apply(name):
    """The network as a function of params and images."""

    def run(params, x):
        for i, (layer, kernel, *conv) in enumerate(LAYERS[name]):
            w, b = params[layer]["kernel"], params[layer]["bias"]
            if conv:
                stride, pad, groups, pool = conv
                x = lax.conv_general_dilated(
                    x, w, (stride, stride), [(pad, pad)] * 2,
                    dimension_numbers=("NHWC", "HWIO", "NHWC"),
                    feature_group_count=groups,
                )  # fmt: skip
                x = jax.nn.relu(x + b)
                if pool:
                    size, step = pool
                    x = lax.reduce_window(
                        x, -jnp.inf, lax.max, (1, size, size, 1), (1, step, step, 1),
                        "VALID",
                    )  # fmt: skip
            else:
                assert x.size // x.shape[0] == kernel[0]
                x = x.reshape(x.shape[0], -1) @ w + b
                x = x if i == len(LAYERS[name]) - 1 else jax.nn.relu(x)
        return x

    return run
