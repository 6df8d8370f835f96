"""SqueezeNet 1.0, of which the paper's first author published pruned weights.

Source:
  Iandola et al. 2016 (arXiv:1602.07360), table 1, as released for Caffe: conv1 without
  padding, pooling with Caffe's rounding, conv_final with padding 1.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import FrozenDict

from experiments.models import conv, layers
from experiments.models.network import Link, Network, Rates, drops


SQUEEZE = {2: 16, 3: 16, 4: 32, 5: 32, 6: 48, 7: 48, 8: 64, 9: 64}
"""Channels of each fire module's squeeze; either expand branch has four times them."""

POOLED = (4, 8)
"""Fire modules that are followed by pooling, as conv1 is."""


class Fire(nn.Module):
    """A 1 x 1 convolution to few channels, then 1 x 1 and 3 x 3 ones side by side.

    Params are "squeeze", "expand1" and "expand3"; the 1 x 1 branch comes first in the
    concatenation.

    Attributes:
      squeeze: channels of the first convolution; each branch has four times as many.
      dtype: of the computation; params are float32.
      widths: channels by name, "squeeze", "expand1", "expand3", where they are others.
    """

    squeeze: int
    dtype: Any = jnp.float32
    widths: Mapping[str, int] = FrozenDict()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        narrow = self.widths.get("squeeze", self.squeeze)
        x = nn.relu(_conv(narrow, 1, self.dtype, "squeeze")(x))
        branches = []
        for size in (1, 3):
            name = f"expand{size}"
            wide = self.widths.get(name, 4 * self.squeeze)
            branches.append(_conv(wide, size, self.dtype, name, padding=size // 2)(x))
        return nn.relu(jnp.concatenate(branches, axis=-1))


class SqueezeNet(nn.Module):
    """Two convolutions with eight fire modules between them; 1,248,424 parameters.

    Dropout lies before conv_final and is named after fire9, whose units it drops.

    Attributes:
      classes: channels of conv_final.
      dtype: of the computation; params are float32.
      widths: channels of layers by name, "fire2/squeeze" and so on, where they are
        others.
    """

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
        drop = drops(("fire9",), rates, rng)
        first = self.widths.get("conv1", 96)
        x = nn.relu(_conv(first, 7, self.dtype, "conv1", stride=2)(images))
        x = conv.max_pool(x, 3, 2)
        for i, squeeze in SQUEEZE.items():
            name = f"fire{i}"
            own = {
                path.removeprefix(f"{name}/"): n
                for path, n in self.widths.items()
                if path.startswith(f"{name}/")
            }
            x = Fire(squeeze, self.dtype, FrozenDict(own), name=name)(x)
            x = conv.max_pool(x, 3, 2) if i in POOLED else x
        if "fire9" in drop:
            x = layers.dropout(x, *drop["fire9"])
        x = nn.Conv(
            self.classes,
            (1, 1),
            padding=1,
            dtype=self.dtype,
            kernel_init=nn.initializers.normal(0.01),
            name="conv_final",
        )(x)
        return nn.relu(x).astype(jnp.float32).mean((1, 2))


def _conv(
    features: int, size: int, dtype: Any, name: str, stride: int = 1, padding: int = 0
) -> nn.Conv:
    return nn.Conv(
        features,
        (size, size),
        stride,
        padding,
        dtype=dtype,
        kernel_init=layers.xavier,
        name=name,
    )


def _links() -> tuple[Link, ...]:
    first = Link("conv1/kernel", "fire2/squeeze/kernel", between=("relu", "max pool"))
    links = [first]
    for i, squeeze in SQUEEZE.items():
        narrow = f"fire{i}/squeeze/kernel"
        branches = f"fire{i}/expand1/kernel", f"fire{i}/expand3/kernel"
        between = ("relu", "max pool") if i in POOLED else ("relu",)
        reader = f"fire{i + 1}/squeeze/kernel"
        if i + 1 not in SQUEEZE:
            reader, between = "conv_final/kernel", ("relu", "zero padding")
        links += [
            Link(narrow, branches[0]),
            Link(narrow, branches[1], between=("relu", "zero padding")),
            Link(branches[0], reader, between=between),
            Link(branches[1], reader, offset=4 * squeeze, between=between),
        ]
    return tuple(links)


_FIRES = tuple(
    f"fire{i}/{part}/kernel"
    for i in SQUEEZE
    for part in ("squeeze", "expand1", "expand3")
)

SQUEEZENET = Network(
    name="SqueezeNet",
    module=SqueezeNet(),
    # Nine tenths of the weights that feed the dropped units are in expand3.
    dropout={"fire9": "fire9/expand3/kernel"},
    rates={"fire9": 0.5},
    groups={"conv": ("conv1/kernel", *_FIRES, "conv_final/kernel"), "fc": ()},
    kept={},
    dense_error=None,
    pruned_error=None,
    compression=None,
    links=_links(),
    flatten={},
    input=(227, 227, 3),
    classes=1000,
    preprocessing="caffe",
)
