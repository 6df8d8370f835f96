"""AlexNet: Caffe's reference network, which the paper prunes, and two relatives.

Source:
  Krizhevsky, Sutskever and Hinton 2012; Caffe's bvlc_alexnet, whose groups and LRN
  before the pooling it has. Han et al. 2015 (arXiv:1506.02626), section 4.2, table 4;
  the fc1, fc2 and fc3 of that table are fc6, fc7 and fc8 here.
"""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import FrozenDict

from experiments.models import conv, layers
from experiments.models.network import Link, Network, Rates, drops


class Conv(NamedTuple):
    """One convolution with what follows it: ReLU, then LRN, then 3 x 3 / 2 pooling.

    Attributes:
      features: output channels.
      size: rows and columns of the kernel.
      stride: distance between its positions.
      padding: zeros on each side.
      groups: groups of channels, each convolved by itself.
      lrn: whether LRN follows.
      pool: whether pooling follows.
      std: deviation of the first weights; `None`: sqrt(2 / fan_in), He et al. 2015.
      bias: the first biases.
    """

    features: int
    size: int
    stride: int = 1
    padding: int = 1
    groups: int = 1
    lrn: bool = False
    pool: bool = False
    std: float | None = None
    bias: float = 0.0


class Dense(NamedTuple):
    """One hidden dense layer: number of units, and `std` and `bias` as in `Conv`."""

    units: int
    std: float | None = None
    bias: float = 0.0


# The first weights are those of bvlc_alexnet: without normalisation a network that
# sees 0..255 needs them small.
CAFFE = (
    Conv(96, 11, stride=4, padding=0, lrn=True, pool=True, std=0.01),
    Conv(256, 5, padding=2, groups=2, lrn=True, pool=True, std=0.01, bias=0.1),
    Conv(384, 3, std=0.01),
    Conv(384, 3, groups=2, std=0.01, bias=0.1),
    Conv(256, 3, groups=2, pool=True, std=0.01, bias=0.1),
)
TORCHVISION = (
    Conv(64, 11, stride=4, padding=2, pool=True),
    Conv(192, 5, padding=2, pool=True),
    Conv(384, 3),
    Conv(256, 3),
    Conv(256, 3, pool=True),
)
CIFAR10 = (Conv(64, 3, pool=True), Conv(192, 3, pool=True), *TORCHVISION[2:])


class AlexNet(nn.Module):
    """Five convolutions and three dense layers, conv1 to conv5 and fc6 to fc8.

    Attributes:
      convs: conv1 to conv5.
      hidden: fc6 and fc7.
      dropped: the two layers whose units are dropped.
      classes: units of fc8.
      dtype: of the computation; params are float32.
      widths: units of layers by name, where they are not those of `convs` and `hidden`.
    """

    convs: tuple[Conv, ...] = CAFFE
    hidden: tuple[Dense, ...] = (Dense(4096, 0.005, 0.1), Dense(4096, 0.005, 0.1))
    dropped: tuple[str, ...] = ("fc6", "fc7")
    classes: int = 1000
    dtype: Any = jnp.float32
    widths: Mapping[str, int] = FrozenDict()

    @nn.compact
    def __call__(
        self,
        images: jax.Array,
        rates: Rates | None = None,
        rng: jax.Array | None = None,
    ) -> jax.Array:
        """Gives logits (batch, classes); `rates` and `rng` as `network` says."""
        drop = drops(self.dropped, rates, rng)
        x = images
        for i, spec in enumerate(self.convs, 1):
            x = nn.Conv(
                self.widths.get(f"conv{i}", spec.features),
                (spec.size, spec.size),
                spec.stride,
                spec.padding,
                feature_group_count=spec.groups,
                dtype=self.dtype,
                kernel_init=_normal(spec.std),
                bias_init=nn.initializers.constant(spec.bias),
                conv_general_dilated=conv.grouped_conv,
                name=f"conv{i}",
            )(x)
            x = layers.relu(x)
            x = conv.lrn(x) if spec.lrn else x
            x = conv.max_pool(x, 3, 2) if spec.pool else x
        x = x.reshape(x.shape[0], -1)
        if "conv5" in drop:
            x = layers.dropout(x, *drop["conv5"])
        for i, (units, std, bias) in enumerate(self.hidden, 6):
            x = nn.Dense(
                self.widths.get(f"fc{i}", units),
                dtype=self.dtype,
                kernel_init=_normal(std),
                bias_init=nn.initializers.constant(bias),
                name=f"fc{i}",
            )(x)
            x = layers.relu(x)
            if f"fc{i}" in drop:
                x = layers.dropout(x, *drop[f"fc{i}"])
        head = nn.Dense(
            self.classes, dtype=self.dtype, kernel_init=_normal(0.01), name="fc8"
        )
        return head(x).astype(jnp.float32)


def _normal(std: float | None) -> nn.initializers.Initializer:
    return nn.initializers.normal(std) if std else nn.initializers.he_normal()


def _links(convs: tuple[Conv, ...], fan: int) -> tuple[Link, ...]:
    """Gives the links of a network whose fc6 reads `fan` positions of conv5."""
    links = []
    for i, (producer, consumer) in enumerate(pairwise(convs), 1):
        ops = {
            "relu": True,
            "LRN": producer.lrn,
            "max pool": producer.pool,
            "zero padding": consumer.padding > 0,
        }
        between = tuple(op for op, is_there in ops.items() if is_there)
        paths = f"conv{i}/kernel", f"conv{i + 1}/kernel"
        links.append(Link(*paths, groups=consumer.groups, between=between))
    return (
        *links,
        Link("conv5/kernel", "fc6/kernel", fan=fan, between=("relu", "max pool")),
        Link("fc6/kernel", "fc7/kernel"),
        Link("fc7/kernel", "fc8/kernel"),
    )


ALEXNET = Network(
    name="AlexNet",
    module=AlexNet(),
    dropout={"fc6": "fc6/kernel", "fc7": "fc7/kernel"},
    rates={"fc6": 0.5, "fc7": 0.5},
    groups={
        "conv": tuple(f"conv{i}/kernel" for i in range(1, 6)),
        "fc": ("fc6/kernel", "fc7/kernel", "fc8/kernel"),
    },
    kept={
        "conv1/kernel": 84,
        "conv2/kernel": 38,
        "conv3/kernel": 35,
        "conv4/kernel": 37,
        "conv5/kernel": 37,
        "fc6/kernel": 9,
        "fc7/kernel": 9,
        "fc8/kernel": 25,
    },
    dense_error=42.78,
    pruned_error=42.77,
    compression=9,
    links=_links(CAFFE, 6 * 6),
    flatten={"fc6/kernel": (256, 6, 6)},
    dense_top5=19.73,
    pruned_top5=19.67,
    input=(227, 227, 3),
    classes=1000,
    preprocessing="caffe",
)
"""Caffe's: 60,965,224 parameters."""

ALEXNET_TORCHVISION = ALEXNET._replace(
    name="AlexNet-torchvision",
    module=AlexNet(
        convs=TORCHVISION,
        hidden=(Dense(4096), Dense(4096)),
        dropped=("conv5", "fc6"),
    ),
    dropout={"conv5": "conv5/kernel", "fc6": "fc6/kernel"},
    rates={"conv5": 0.5, "fc6": 0.5},
    links=_links(TORCHVISION, 6 * 6),
    dense_error=None,
    pruned_error=None,
    compression=None,
    dense_top5=None,
    pruned_top5=None,
    input=(224, 224, 3),
    preprocessing="torchvision",
)
"""torchvision's: 61,100,840 parameters, no groups, no LRN, dropout before fc6 and fc7.

`kept` is the paper's for Caffe's network, layer by layer.
"""

ALEXNET_CIFAR10 = ALEXNET_TORCHVISION._replace(
    name="AlexNet-CIFAR10",
    module=AlexNet(
        convs=CIFAR10,
        hidden=(Dense(1024), Dense(1024)),
        dropped=("fc6", "fc7"),
        classes=10,
    ),
    dropout=ALEXNET.dropout,
    rates=ALEXNET.rates,
    kept={},
    links=_links(CIFAR10, 4 * 4),
    flatten={"fc6/kernel": (256, 4, 4)},
    input=(32, 32, 3),
    classes=10,
    preprocessing="cifar10",
)
"""For 32 x 32 images: torchvision's with small kernels in conv1 and conv2."""
