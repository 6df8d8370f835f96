"""Dead units: which there are, and the smaller net without them."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import PyTree

from jaxprune._masks import check_mask, map_masked
from jaxprune._paths import leaf_names
from jaxprune._types import Mask, Params
from jaxprune.units._carry import carry
from jaxprune.units._cut import Cut, cut
from jaxprune.units._layers import Layer, layers_of
from jaxprune.units._link import Link
from jaxprune.units._settle import Fate, Net, settle


class Units(NamedTuple):
    """What becomes of the units of one layer, numbered from 0.

    Attributes:
      layer: path of the kernel that makes them.
      size: how many there were.
      unread: those that go because nothing reads them.
      zero: those that go because nothing feeds them and they are 0 as read.
      folded: those that go because nothing feeds them, their constant value being
        folded into the next biases.
      stay: those that nothing feeds or nothing reads and that yet stay, by reason.
    """

    layer: str
    size: int
    unread: tuple[int, ...]
    zero: tuple[int, ...]
    folded: tuple[int, ...]
    stay: dict[str, tuple[int, ...]]

    @property
    def kept(self) -> int:
        """How many are left."""
        return self.size - len(self.unread) - len(self.zero) - len(self.folded)


class Smaller(NamedTuple):
    """What `remove_dead` gives: trees as they came, with smaller leaves.

    Attributes:
      params: the smaller params.
      mask: theirs.
      opt_state: the optimizer state for them; `None` if none was given.
      units: what went and what stayed, a layer each.
    """

    params: Params
    mask: Mask
    opt_state: Any
    units: list[Units]


def dead_units(
    params: Params, mask: PyTree, links: Sequence[Link], *, multiple: int = 1
) -> list[Units]:
    """Finds the units that `remove_dead` would remove, and those that must stay.

    Args:
      params: pruned params.
      mask: which weights are alive.
      links: as in `remove_dead`.
      multiple: as in `remove_dead`.

    Returns:
      One entry for each producer among the links, in their order.

    Raises:
      ValueError: as `remove_dead`.
    """
    layers = _layers(params, mask, links)
    return _report(layers, settle(_open(params, mask), layers, _checked(multiple)))


def remove_dead(
    params: Params,
    mask: PyTree,
    links: Sequence[Link],
    opt_state: optax.OptState | None = None,
    *,
    multiple: int = 1,
) -> Smaller:
    """Removes units that nothing feeds or nothing reads, so leaves get smaller.

    A unit goes when all its incoming or all its outgoing weights are dead, and the test
    is repeated until no unit falls. A unit without inputs is still a constant: it is
    folded into the next bias where that is exact, and stays, with the reason in
    `units`, where it is not (zero padding or LRN in between). Groups keep equal widths,
    and every layer at least one unit a group. The smaller net computes what the old one
    did but for rounding; connections of dead units that stay die in the new mask.

    Runs on the host, outside jit: shapes depend on values. Training may go on with what
    is returned and a model of the new widths.

    Args:
      params: pruned params.
      mask: which weights are alive; `None` at leaves that are never pruned.
      links: which kernel feeds which: by hand, or from `find_links`. Whatever reads a
        producer must be among them; kernels that no link has as producer keep their
        units, as the last layer must.
      opt_state: a state made for these params, such as that of `jaxprune.prune`. What
        belongs to a leaf (its path ends with the leaf's and its last axes have the
        leaf's shape) is cut like the leaf; everything else is left as it is.
      multiple: so many units, or a multiple, are left of a layer that loses any. A
        width that is odd for vector registers can cost more than a few units save.

    Returns:
      The smaller params, mask and optimizer state, and what became of the units.

    Raises:
      ValueError: if the mask does not fit the params, a link names no leaf or does not
        fit the shapes, `multiple` is less than 1, or the optimizer remembers something
        of a cut leaf in another shape, as factored statistics.

    Source:
      Han et al. 2015 (arXiv:1506.02626), section 3.5.
    """
    layers = _layers(params, mask, links)
    net = _open(params, mask)
    fates = settle(net, layers, _checked(multiple))
    cuts = _cuts({path: leaf.shape for path, leaf in net.params.items()}, layers, fates)

    def smaller(leaf: Any, path: str) -> Any:
        new = net.params[path]
        return jnp.asarray(cut(new, cuts[path]) if path in cuts else new)

    names = leaf_names(params)
    masks = {
        path: cut(net.masks[path], cuts[path]) if path in cuts else net.masks[path]
        for path in net.pruned
    }
    new_mask = map_masked(
        lambda p, m, name: jnp.asarray(masks[name]),
        params,
        mask,
        names,
        elsewhere=lambda p: None,
    )
    if opt_state is not None:
        shapes = {path: leaf.shape for path, leaf in net.params.items()}
        opt_state = carry(opt_state, shapes, cuts, masks)
    return Smaller(
        jax.tree.map(smaller, params, names),
        new_mask,
        opt_state,
        _report(layers, fates),
    )


def _layers(params: Params, mask: PyTree, links: Sequence[Link]) -> list[Layer]:
    check_mask(params, mask)
    names = jax.tree.leaves(leaf_names(params))
    shapes = [tuple(leaf.shape) for leaf in jax.tree.leaves(params)]
    return layers_of(dict(zip(names, shapes, strict=True)), links)


def _checked(multiple: int) -> int:
    if multiple < 1:
        raise ValueError(f"multiple is {multiple}, expected 1 or more units.")
    return multiple


def _open(params: Params, mask: PyTree) -> Net:
    net, pruned = Net({}, {}, frozenset()), set[str]()

    def masked(p: Any, m: Any, name: str) -> None:
        pruned.add(name)
        alive = np.array(m)
        net.masks[name] = alive
        net.params[name] = np.where(alive, np.asarray(p), np.zeros((), p.dtype))

    def whole(p: Any, name: str) -> None:
        if name not in pruned:
            net.masks[name] = np.ones(p.shape, bool)
            net.params[name] = np.array(p)

    names = leaf_names(params)
    map_masked(masked, params, mask, names, elsewhere=lambda p: None)
    jax.tree.map(whole, params, names)
    return net._replace(pruned=frozenset(pruned))


def _report(layers: Sequence[Layer], fates: Sequence[Fate]) -> list[Units]:
    numbers = lambda chosen: tuple(np.flatnonzero(chosen).tolist())
    return [
        Units(
            layer.kernel,
            layer.size,
            numbers(fate.unread),
            numbers(fate.zero),
            numbers(fate.folded),
            {reason: numbers(units) for reason, units in fate.stay.items()},
        )
        for layer, fate in zip(layers, fates, strict=True)
    ]


def _cuts(
    shapes: dict[str, tuple[int, ...]], layers: Sequence[Layer], fates: Sequence[Fate]
) -> dict[str, Cut]:
    """Gives what stays of every leaf that loses something."""
    cuts: dict[str, Cut] = {}
    for layer, fate in zip(layers, fates, strict=True):
        if not fate.gone.any():
            continue
        stay = ~fate.gone
        made = cuts.get(layer.kernel, Cut())
        cuts[layer.kernel] = made._replace(units=(layer.axis, stay))
        if layer.bias:
            # The axis of a bias is the one that is as long as there are units.
            shape = shapes[layer.bias]
            cuts[layer.bias] = Cut((shape.index(layer.size) - len(shape), stay))
        for reader in layer.readers:
            link, shape = reader.link, shapes[reader.link.consumer]
            reads, counts = (a % len(shape) - len(shape) for a in link.axes[1:])
            made = cuts.get(link.consumer, Cut())
            rows = (
                made.read[1] if made.read else np.ones(shape[reads] * link.groups, bool)
            )
            if link.groups > 1:
                rows = stay
            else:
                rows[reader.rows[fate.gone].ravel()] = False
            cuts[link.consumer] = made._replace(
                read=(reads, rows), groups=link.groups, counts=counts
            )
    return cuts
