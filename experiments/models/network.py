"""What an experiment knows of a network: its module, its tables and its links.

A network's module takes float images (batch, height, width, channels), already
preprocessed, and gives float32 logits (batch, classes):

    images = preprocess(pixels, network.preprocessing)
    params = network.module.init(key, images)["params"]
    logits = network.module.apply({"params": params}, images)
    logits = network.module.apply({"params": params}, images, {"fc6": 0.5}, rng)

`rates` maps a dropout's name to its rate, a number or a traced scalar, and `rng` is the
key for the draws; without rates nothing is dropped, and without `rng` BatchNorm goes by
its running statistics: the network evaluates. Params are float32; `dtype`, an attribute
of every module, is that of the computation:

    module = network.module.clone(dtype=jnp.bfloat16)

So is `widths`, the number of units of layers that are not as wide as in the paper, by
name; `resized` makes a network of the widths that given params have.

Which kernel does a dropout rate follow? Equation 2 of the paper lowers the rate of
layer i by the square root of the connections left in layer i, and equation 1 counts
those as C_i = N_i N_(i-1): the weights between the units of layer i and the layer
before it. Dropout acts on the N_i units, so its rate follows the kernel that feeds the
units it drops, not the one that reads them. A dropout is named after that layer.

Source:
  Han et al. 2015 (arXiv:1506.02626), section 3.2.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
from flax.core import FrozenDict

from jaxprune.units import Link as Link


Rates = Mapping[str, jax.Array | float]


class Network(NamedTuple):
    """A network with what an experiment and its table need to know of it.

    What the paper does not have is `None`, or missing from `kept`.

    Attributes:
      name: as in the paper.
      module: the flax module.
      dropout: path of the kernel that each dropout rate follows, by dropout name.
      rates: dropout rates of dense training, by dropout name.
      groups: kernel paths of the convolutional and of the dense layers.
      kept: percent of each kernel's weights that the paper keeps, by kernel path.
      dense_error: the paper's test error before pruning, top-1, in percent.
      pruned_error: the paper's test error after pruning, top-1, in percent.
      compression: the paper's ratio of parameters before to after.
      links: which kernel feeds which.
      flatten: (channels, height, width) of the feature maps that a dense kernel reads,
        by kernel path. Here its rows run over height, width, channels; in files of
        Caffe and PyTorch over channels, height, width.
      dense_top5: the paper's top-5 error before pruning, in percent.
      pruned_top5: the paper's top-5 error after pruning, in percent.
      input: (height, width, channels) of an image.
      classes: number of logits.
      preprocessing: from pixels to input, a kind that `preprocess` knows.
      sparse_layers: what runs in place of a layer that folds its kernel, by name, as
        `jaxprune.sparse.lift` takes it.
    """

    name: str
    module: nn.Module
    dropout: Mapping[str, str]
    rates: Mapping[str, float]
    groups: Mapping[str, tuple[str, ...]]
    kept: Mapping[str, float]
    dense_error: float | None
    pruned_error: float | None
    compression: float | None
    links: tuple[Link, ...]
    flatten: Mapping[str, tuple[int, int, int]]
    dense_top5: float | None = None
    pruned_top5: float | None = None
    input: tuple[int, int, int] = (28, 28, 1)
    classes: int = 10
    preprocessing: str = "unit"
    sparse_layers: Mapping[str, Callable[..., Any]] = FrozenDict()


def drops(
    names: tuple[str, ...], rates: Rates | None, rng: jax.Array | None
) -> dict[str, tuple[jax.Array | float, jax.Array]]:
    """Gives the rate and the key of each dropout that has a rate.

    Args:
      names: all dropouts of the network, in the order of the draws.
      rates: rates by dropout name; `None` or empty for none.
      rng: key, needed if there are rates.

    Raises:
      ValueError: if a name in `rates` is no dropout, or `rng` is missing.
    """
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


def resized(network: Network, params: Any) -> Network:
    """Gives a network of the widths that params have, as after removing units.

    Args:
      network: what the params are of, but for the widths.
      params: params or their shapes.

    Returns:
      The network with its module, the offsets of its links and `flatten` made to fit.
    """
    shapes = {
        jax.tree_util.keystr(key, simple=True, separator="/"): leaf.shape
        for key, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
    units = {link.producer: shapes[link.producer][-1] for link in network.links}
    links, flatten = [], dict(network.flatten)
    for link in network.links:
        before = {
            other.producer
            for other in network.links
            if other.consumer == link.consumer and other.offset < link.offset
        }
        links.append(link._replace(offset=sum(units[path] for path in before)))
        if link.consumer in flatten:
            _, height, width = flatten[link.consumer]
            flatten[link.consumer] = (units[link.producer], height, width)
    widths = {path.rpartition("/")[0]: n for path, n in units.items()}
    return network._replace(
        module=network.module.clone(widths=widths), links=tuple(links), flatten=flatten
    )
