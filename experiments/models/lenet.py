"""LeNet-300-100 and LeNet-5 as Han et al. trained them, in flax.linen.

Both take float images (batch, 28, 28, 1) and return logits (batch, 10), as
`experiments.models.network` says.

Params are named as in the paper's tables: "fc1/kernel" and so on. Kernels begin as
Caffe's "xavier", biases at 0. A flatten runs over height, width, channels, where
Caffe's runs over channels, height, width: it makes no difference to a network trained
here, but Caffe's fc1 rows must be permuted before they fit.

Source:
  Han et al. 2015 (arXiv:1506.02626), section 4.1, tables 1, 2 and 3.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import FrozenDict

from experiments.models import layers
from experiments.models.network import Link, Network, Rates, drops


class LeNet300(nn.Module):
    """LeNet-300-100: 784-300-100-10 with ReLU; 266,610 parameters.

    Dropout lies between the layers, after the ReLU of fc1 and of fc2.

    Attributes:
      dtype: of the computation; params are float32.
      widths: units of fc1 and fc2 by name, where they are not 300 and 100.
    """

    dtype: Any = jnp.float32
    widths: Mapping[str, int] = FrozenDict()

    @nn.compact
    def __call__(
        self,
        images: jax.Array,
        rates: Rates | None = None,
        rng: jax.Array | None = None,
    ) -> jax.Array:
        """Gives logits (batch, 10); `rates` and `rng` as `network` says."""
        drop = drops(("fc1", "fc2"), rates, rng)
        x = images.reshape(images.shape[0], -1)
        for name, units in (("fc1", 300), ("fc2", 100)):
            units = self.widths.get(name, units)
            x = nn.relu(_dense(units, self.dtype, name)(x))
            if name in drop:
                x = layers.dropout(x, *drop[name])
        return _dense(10, self.dtype, "fc3")(x).astype(jnp.float32)


class LeNet5(nn.Module):
    """Caffe's LeNet-5: two convolutions, two dense layers; 431,080 parameters.

    Caffe's has one ReLU, after fc1; each convolution is followed by its pooling
    alone. Dropout lies before the last layer.

    Attributes:
      dtype: of the computation; params are float32.
      widths: units of conv1, conv2 and fc1 by name, where they are not 20, 50 and 500.
    """

    dtype: Any = jnp.float32
    widths: Mapping[str, int] = FrozenDict()

    @nn.compact
    def __call__(
        self,
        images: jax.Array,
        rates: Rates | None = None,
        rng: jax.Array | None = None,
    ) -> jax.Array:
        """Gives logits (batch, 10); `rates` and `rng` as `network` says."""
        drop = drops(("fc1",), rates, rng)
        x = images
        for name, units in (("conv1", 20), ("conv2", 50)):
            units = self.widths.get(name, units)
            x = layers.ConvPool(units, 5, dtype=self.dtype, name=name)(x)
        x = x.reshape(x.shape[0], -1)
        x = nn.relu(_dense(self.widths.get("fc1", 500), self.dtype, "fc1")(x))
        if "fc1" in drop:
            x = layers.dropout(x, *drop["fc1"])
        return _dense(10, self.dtype, "fc2")(x).astype(jnp.float32)


def _dense(units: int, dtype: Any, name: str) -> nn.Dense:
    return nn.Dense(units, dtype=dtype, kernel_init=layers.xavier, name=name)


LENET300 = Network(
    name="LeNet-300-100",
    module=LeNet300(),
    dropout={"fc1": "fc1/kernel", "fc2": "fc2/kernel"},
    rates={"fc1": 0.2, "fc2": 0.2},
    groups={"conv": (), "fc": ("fc1/kernel", "fc2/kernel", "fc3/kernel")},
    kept={"fc1/kernel": 8, "fc2/kernel": 9, "fc3/kernel": 26},
    dense_error=1.64,
    pruned_error=1.59,
    compression=12,
    links=(Link("fc1/kernel", "fc2/kernel"), Link("fc2/kernel", "fc3/kernel")),
    flatten={"fc1/kernel": (1, 28, 28)},
)

LENET5 = Network(
    name="LeNet-5",
    module=LeNet5(),
    dropout={"fc1": "fc1/kernel"},
    rates={"fc1": 0.5},
    groups={
        "conv": ("conv1/kernel", "conv2/kernel"),
        "fc": ("fc1/kernel", "fc2/kernel"),
    },
    kept={"conv1/kernel": 66, "conv2/kernel": 12, "fc1/kernel": 8, "fc2/kernel": 19},
    dense_error=0.80,
    pruned_error=0.77,
    compression=12,
    links=(
        Link("conv1/kernel", "conv2/kernel", between=("max pool",)),
        Link("conv2/kernel", "fc1/kernel", fan=16, between=("max pool",)),
        Link("fc1/kernel", "fc2/kernel"),
    ),
    flatten={"fc1/kernel": (50, 4, 4)},
    sparse_layers={"conv_pool": layers.sparse_conv_pool},
)
