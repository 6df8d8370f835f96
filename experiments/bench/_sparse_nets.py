"""What is run sparse: networks pruned at random to the densities of the paper.

Each is a list of layers beside its JAX function, so that other frameworks can build it.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.models import (
    ALEXNET,
    LENET5,
    LENET300,
    VGG16,
    VGG16_CAFFE,
    AlexNet,
    LeNet5,
    Network,
    conv,
    layers,
)
from experiments.models.vgg import BLOCKS


class Conv(NamedTuple):
    """A convolution and what follows it, in this order: bias, ReLU, LRN, pooling.

    Attributes:
      name: of its params.
      stride: distance between positions.
      padding: zeros on each side.
      groups: of channels.
      relu: whether ReLU follows.
      lrn: whether LRN follows.
      pool: size and stride of the pooling that follows, which rounds as Caffe's.
    """

    name: str
    stride: int = 1
    padding: int = 0
    groups: int = 1
    relu: bool = True
    lrn: bool = False
    pool: tuple[int, int] | None = None


class Dense(NamedTuple):
    """A dense layer and whether ReLU follows; it flattens what it is given."""

    name: str
    relu: bool = True


Op = Conv | Dense


class Case(NamedTuple):
    """A layer or a network that is timed.

    Attributes:
      layer: its name, or "whole".
      names: of the layers it has.
      apply: of params (of these layers) and a batch, as JAX runs it.
      ops: the same, layer by layer.
      shape: of one input: (units,) or (height, width, channels).
      sparse_layers: what `jaxprune.sparse.lift` has to be told of `apply`.
    """

    layer: str
    names: tuple[str, ...]
    apply: Callable[[Any, Any], Any]
    ops: tuple[Op, ...]
    shape: tuple[int, ...]
    sparse_layers: Mapping[str, Callable[..., Any]] = {}


class Net(NamedTuple):
    """A network with random params, what of it is timed, and how dense it is.

    Attributes:
      name: as in the table.
      params: kernel and bias by layer; dead weights are zero.
      mask: True where alive; `None` at biases.
      cases: every layer, then the whole.
      flatten: (channels, height, width) that a dense layer reads, by layer.
    """

    name: str
    params: dict[str, dict[str, np.ndarray]]
    mask: dict[str, dict[str, np.ndarray | None]]
    cases: tuple[Case, ...]
    flatten: dict[str, tuple[int, int, int]]

    def density(self, case: Case) -> float:
        """Gives the share of the weights of a case that live."""
        masks = [self.mask[name]["kernel"] for name in case.names]
        sizes = [m.size for m in masks if m is not None]
        return sum(int(m.sum()) for m in masks if m is not None) / sum(sizes)


NETWORKS: dict[str, tuple[str, Network, bool]] = {
    "lenet300": ("LeNet-300-100", LENET300, False),
    "lenet5": ("LeNet-5", LENET5, False),
    "alexnet-fc": ("AlexNet fc", ALEXNET, True),
    "vgg16-fc": ("VGG-16 fc", VGG16_CAFFE, True),
    "alexnet": ("AlexNet", ALEXNET, False),
    "vgg16": ("VGG-16", VGG16_CAFFE, False),
}
"""Name in tables, the network, and whether its dense layers alone are run."""


def ops_of(network: Network) -> tuple[Op, ...]:
    """Lists the layers of a network in the order they run in."""
    ops: list[Op] = []
    if isinstance(network.module, LeNet5):
        ops += [Conv(f"conv{i}", relu=False, pool=(2, 2)) for i in (1, 2)]
    elif isinstance(network.module, AlexNet):
        for i, c in enumerate(network.module.convs, 1):
            pool = (3, 2) if c.pool else None
            spec = (c.stride, c.padding, c.groups, True, c.lrn, pool)
            ops.append(Conv(f"conv{i}", *spec))
    elif isinstance(network.module, VGG16):
        for block, (_, count) in enumerate(BLOCKS, 1):
            for i in range(1, count + 1):
                pool = (2, 2) if i == count else None
                ops.append(Conv(f"conv{block}_{i}", padding=1, pool=pool))
    dense = [path.partition("/")[0] for path in network.groups["fc"]]
    ops += [Dense(name, name != dense[-1]) for name in dense]
    return tuple(ops)


def make_net(title: str, network: Network, dense_only: bool, seed: int = 0) -> Net:
    """Draws params of a network, and which of them live, to the paper's densities."""
    shapes = jax.eval_shape(
        network.module.init, jax.random.key(0), jnp.zeros((1, *network.input))
    )["params"]
    ops = [op for op in ops_of(network) if isinstance(op, Dense) or not dense_only]
    draw = np.random.default_rng(seed)
    params, mask = {}, {}
    for op in ops:
        shape = shapes[op.name]["kernel"].shape
        density = np.float32(network.kept[f"{op.name}/kernel"] / 100)
        alive = draw.random(shape, np.float32) < density
        kernel = draw.standard_normal(shape, np.float32)
        kernel *= np.sqrt(2 / density / np.prod(shape[:-1]), dtype=np.float32)
        kernel *= alive
        bias = draw.standard_normal(shape[-1:], np.float32) / 10
        params[op.name] = {"kernel": kernel, "bias": bias}
        mask[op.name] = {"kernel": alive, "bias": None}
    shape = network.input
    if dense_only:
        shape = params[ops[0].name]["kernel"].shape[:1]

    def whole(params: Any, x: Any) -> Any:
        return network.module.apply({"params": params}, x)

    folds = {} if dense_only else network.sparse_layers
    cases = list(_layers(ops, params, shape, folds))
    names = tuple(op.name for op in ops)
    apply = _stack(tuple(ops)) if dense_only else whole
    cases.append(Case("whole", names, apply, tuple(ops), shape, folds))
    flatten = {p.partition("/")[0]: chw for p, chw in network.flatten.items()}
    return Net(title, params, mask, tuple(cases), {} if dense_only else flatten)


def _layers(ops: list[Op], params: Any, shape: tuple[int, ...], folds: Any) -> Any:
    """Makes the case of each layer, at the size it has in the network.

    A layer ends with its bias, but for LeNet-5's convolutions, which are fused with
    their pooling.
    """
    x = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    for op in ops:
        if isinstance(op, Dense):
            alone = op._replace(relu=False)
            entry = params[op.name]["kernel"].shape[:1]
        else:
            pool = None if op.relu else op.pool
            alone = op._replace(relu=False, lrn=False, pool=pool)
            entry = x.shape[1:]
        told = folds if isinstance(op, Conv) else {}
        yield Case(op.name, (op.name,), _stack((alone,)), (alone,), entry, told)
        x = jax.eval_shape(_stack((op,)), params, x)


def _stack(ops: tuple[Op, ...]) -> Callable[[Any, Any], Any]:
    """Makes the function that runs layers, in the ways the networks run them."""

    def apply(params: Any, x: Any) -> Any:
        for op in ops:
            x = _run(op, params[op.name], x)
        return x

    return apply


def _run(op: Op, leaves: Any, x: Any) -> Any:
    kernel, bias = leaves["kernel"], leaves["bias"]
    if isinstance(op, Dense):
        x = x.reshape(x.shape[0], -1) @ kernel + bias
        return jax.nn.relu(x) if op.relu else x
    if op.pool and not op.relu:
        return layers.conv_pool(x, kernel, bias)
    x = conv.grouped_conv(
        x,
        kernel,
        (op.stride,) * 2,
        ((op.padding,) * 2,) * 2,
        feature_group_count=op.groups,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    x = x + bias
    x = jax.nn.relu(x) if op.relu else x
    x = conv.lrn(x) if op.lrn else x
    return conv.max_pool(x, *op.pool) if op.pool else x
