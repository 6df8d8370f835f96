"""VGG-16, and a variant of it for CIFAR-10.

Source:
  Simonyan and Zisserman 2014 (arXiv:1409.1556), configuration D. Han et al. 2015
  (arXiv:1506.02626), section 4.3, table 5.
"""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import FrozenDict

from experiments.models import conv, layers
from experiments.models.network import Link, Network, Rates, drops


BLOCKS = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
"""Channels and number of the convolutions before each pooling."""


class VGG16(nn.Module):
    """Thirteen 3 x 3 convolutions and three dense layers, conv1_1 to fc8.

    Without normalisation logits grow with the input: to train from scratch, give it
    images of unit deviation (preprocessing "torchvision"). Caffe's pixels are for
    weights that were trained on them.

    Attributes:
      units: of fc6 and of fc7.
      classes: units of fc8.
      batch_norm: whether a BatchNorm follows each layer but fc8. It goes by the batch
        where there is an `rng`, which is where the network is trained.
      dtype: of the computation; params are float32.
      widths: units of layers by name, where they are not those of `BLOCKS` and `units`.
    """

    units: int = 4096
    classes: int = 1000
    batch_norm: bool = False
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
        drop = drops(("fc6", "fc7"), rates, rng)
        he = nn.initializers.he_normal()
        x = images
        for block, (features, count) in enumerate(BLOCKS, 1):
            for i in range(1, count + 1):
                name = f"conv{block}_{i}"
                x = nn.Conv(
                    self.widths.get(name, features),
                    (3, 3),
                    dtype=self.dtype,
                    kernel_init=he,
                    conv_general_dilated=conv.same_conv,
                    name=name,
                )(x)
                if self.batch_norm:
                    norm = layers.BatchNorm(self.dtype, name=f"norm{block}_{i}")
                    x = norm(x, train=rng is not None)
                # The last of a block after the pooling, to a quarter of the values: the
                # two commute.
                x = layers.relu(x) if i < count else x
            x = layers.relu(conv.max_pool(x, 2, 2))
        x = x.reshape(x.shape[0], -1)
        for name in ("fc6", "fc7"):
            units = self.widths.get(name, self.units)
            dense = nn.Dense(units, dtype=self.dtype, kernel_init=he, name=name)
            x = dense(x)
            if self.batch_norm:
                norm = layers.BatchNorm(self.dtype, name=name.replace("fc", "norm"))
                x = norm(x, train=rng is not None)
            x = layers.relu(x)
            if name in drop:
                x = layers.dropout(x, *drop[name])
        small = nn.initializers.normal(0.01)
        head = nn.Dense(self.classes, dtype=self.dtype, kernel_init=small, name="fc8")
        return head(x).astype(jnp.float32)


_CONVS = tuple(
    f"conv{block}_{i}"
    for block, (_, count) in enumerate(BLOCKS, 1)
    for i in range(1, count + 1)
)


_NORMALISED = "mixing: the params of its BatchNorm are not cut"


def _links(fan: int, normalised: bool) -> tuple[Link, ...]:
    """Gives the links of a network whose fc6 reads `fan` positions of conv5_3."""
    after = (_NORMALISED, "relu") if normalised else ("relu",)
    links = []
    for producer, consumer in pairwise(_CONVS):
        pool = ("max pool",) if consumer.endswith("_1") else ()
        between = (*after, *pool, "zero padding")
        paths = f"{producer}/kernel", f"{consumer}/kernel"
        links.append(Link(*paths, between=between))
    return (
        *links,
        Link("conv5_3/kernel", "fc6/kernel", fan, between=(*after, "max pool")),
        Link("fc6/kernel", "fc7/kernel", between=after),
        Link("fc7/kernel", "fc8/kernel", between=after),
    )


VGG16_CAFFE = Network(
    name="VGG-16",
    module=VGG16(),
    dropout={"fc6": "fc6/kernel", "fc7": "fc7/kernel"},
    rates={"fc6": 0.5, "fc7": 0.5},
    groups={
        "conv": tuple(f"{name}/kernel" for name in _CONVS),
        "fc": ("fc6/kernel", "fc7/kernel", "fc8/kernel"),
    },
    kept={
        "conv1_1/kernel": 58,
        "conv1_2/kernel": 22,
        "conv2_1/kernel": 34,
        "conv2_2/kernel": 36,
        "conv3_1/kernel": 53,
        "conv3_2/kernel": 24,
        "conv3_3/kernel": 42,
        "conv4_1/kernel": 32,
        "conv4_2/kernel": 27,
        "conv4_3/kernel": 34,
        "conv5_1/kernel": 35,
        "conv5_2/kernel": 29,
        "conv5_3/kernel": 36,
        "fc6/kernel": 4,
        "fc7/kernel": 4,
        "fc8/kernel": 23,
    },
    dense_error=31.50,
    pruned_error=31.34,
    compression=13,
    links=_links(7 * 7, normalised=False),
    flatten={"fc6/kernel": (512, 7, 7)},
    dense_top5=11.32,
    pruned_top5=10.88,
    input=(224, 224, 3),
    classes=1000,
    preprocessing="caffe",
)
"""138,357,544 parameters; fed as Caffe's weights expect."""

VGG16_TORCHVISION = VGG16_CAFFE._replace(
    name="VGG-16-torchvision", preprocessing="torchvision"
)
"""The same network, fed as torchvision's weights expect."""

VGG16_CIFAR10 = VGG16_CAFFE._replace(
    name="VGG-16-CIFAR10",
    module=VGG16(units=512, classes=10, batch_norm=True),
    kept={},
    dense_error=None,
    pruned_error=None,
    compression=None,
    links=_links(1, normalised=True),
    flatten={"fc6/kernel": (512, 1, 1)},
    dense_top5=None,
    pruned_top5=None,
    input=(32, 32, 3),
    classes=10,
    preprocessing="cifar10",
)
"""For 32 x 32 images: fc6 and fc7 of 512 units, and BatchNorm.

Thirteen layers do not start well without normalisation. GroupNorm, which does without
running statistics, left one seed of three at chance, and the others a point behind.
"""
