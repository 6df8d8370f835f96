"""LeNet-300-100 and LeNet-5 as Han et al. trained them, in flax.linen.

Both take float images (batch, 28, 28, 1) and return logits (batch, 10):

    params = LENET5.module.init(key, images)["params"]
    logits = LENET5.module.apply({"params": params}, images)
    logits = LENET5.module.apply({"params": params}, images, {"fc1": 0.5}, rng)

`rates` maps a dropout's name to its rate, a number or a traced scalar, and `rng` is the
key for the draws; without rates the network evaluates.

Params are float32 and named as in the paper's tables: "fc1/kernel" and so on.
Kernels begin as Caffe's "xavier", biases at 0. A flatten runs over height, width,
channels, where Caffe's runs over channels, height, width: it makes no difference to
a network trained here, but Caffe's fc1 rows must be permuted before they fit.

Which kernel does a dropout rate follow? Equation 2 of the paper lowers the rate of
layer i by the square root of the connections left in layer i, and equation 1 counts
those as C_i = N_i N_(i-1): the weights between the units of layer i and the layer
before it. Dropout acts on the N_i units, so its rate follows the kernel that feeds the
units it drops, not the one that reads them. A dropout is named after that layer.

Source:
  Han et al. 2015 (arXiv:1506.02626), sections 3.2 and 4.1, tables 1, 2 and 3.
"""

from collections.abc import Mapping
from typing import NamedTuple

import flax.linen as nn
import jax

from experiments.models import layers


Rates = Mapping[str, jax.Array | float]


class Network(NamedTuple):
    """A network with what an experiment and its table need to know of it.

    Attributes:
      name: as in the paper.
      module: the flax module.
      dropout: path of the kernel that each dropout rate follows, by dropout name.
      rates: dropout rates of dense training, by dropout name.
      groups: kernel paths of the convolutional and of the dense layers.
      kept: percent of each kernel's weights that the paper keeps, by kernel path.
      dense_error: the paper's test error before pruning, in percent.
      pruned_error: the paper's test error after pruning, in percent.
      compression: the paper's ratio of parameters before to after.
    """

    name: str
    module: nn.Module
    dropout: Mapping[str, str]
    rates: Mapping[str, float]
    groups: Mapping[str, tuple[str, ...]]
    kept: Mapping[str, float]
    dense_error: float
    pruned_error: float
    compression: float


class LeNet300(nn.Module):
    """LeNet-300-100: 784-300-100-10 with ReLU; 266,610 parameters.

    Dropout lies between the layers, after the ReLU of fc1 and of fc2.
    """

    @nn.compact
    def __call__(
        self,
        images: jax.Array,
        rates: Rates | None = None,
        rng: jax.Array | None = None,
    ) -> jax.Array:
        """Gives logits (batch, 10); `rates` and `rng` as the module says."""
        drops = _drops(("fc1", "fc2"), rates, rng)
        x = images.reshape(images.shape[0], -1)
        for name, units in (("fc1", 300), ("fc2", 100)):
            x = nn.relu(nn.Dense(units, kernel_init=layers.xavier, name=name)(x))
            if name in drops:
                x = layers.dropout(x, *drops[name])
        return nn.Dense(10, kernel_init=layers.xavier, name="fc3")(x)


class LeNet5(nn.Module):
    """Caffe's LeNet-5: two convolutions, two dense layers; 431,080 parameters.

    Caffe's has one ReLU, after fc1; each convolution is followed by its pooling
    alone. Dropout lies before the last layer.
    """

    @nn.compact
    def __call__(
        self,
        images: jax.Array,
        rates: Rates | None = None,
        rng: jax.Array | None = None,
    ) -> jax.Array:
        """Gives logits (batch, 10); `rates` and `rng` as the module says."""
        drops = _drops(("fc1",), rates, rng)
        x = layers.ConvPool(20, 5, name="conv1")(images)
        x = layers.ConvPool(50, 5, name="conv2")(x)
        x = x.reshape(x.shape[0], -1)
        x = nn.relu(nn.Dense(500, kernel_init=layers.xavier, name="fc1")(x))
        if "fc1" in drops:
            x = layers.dropout(x, *drops["fc1"])
        return nn.Dense(10, kernel_init=layers.xavier, name="fc2")(x)


def _drops(
    names: tuple[str, ...], rates: Rates | None, rng: jax.Array | None
) -> dict[str, tuple[jax.Array | float, jax.Array]]:
    """Gives the rate and the key of each dropout that has a rate."""
    if not rates:
        return {}
    if unknown := set(rates) - set(names):
        raise ValueError(
            f"rates names {sorted(unknown)}, but this network's dropouts are "
            f"{list(names)}: name the layer whose units are dropped."
        )
    if rng is None:
        raise ValueError(
            f"rates has {sorted(rates)} but rng is None: pass a key, or no rates to "
            "evaluate."
        )
    keys = dict(zip(names, jax.random.split(rng, len(names)), strict=True))
    return {name: (rate, keys[name]) for name, rate in rates.items()}


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
)
