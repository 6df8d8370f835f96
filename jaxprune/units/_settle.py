"""Which units go: deadness spread from layer to layer until nothing changes.

Host code, on NumPy arrays that it changes in place.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from jaxprune.units._layers import Layer, Reader
from jaxprune.units._link import constants, obstacle


class Net(NamedTuple):
    """Params and masks by path, writable; dead weights are 0.

    Attributes:
      params: every leaf.
      masks: every leaf's, True where nothing is pruned.
      pruned: paths of the leaves that the caller's mask covers.
    """

    params: dict[str, np.ndarray]
    masks: dict[str, np.ndarray]
    pruned: frozenset[str]


class Fate(NamedTuple):
    """What becomes of the units of a layer; bool arrays of its size.

    Attributes:
      unread: nothing reads them.
      zero: nothing feeds them and what is read of them is 0.
      folded: nothing feeds them, and the next biases have taken up what they were.
      stay: the rest of those that nothing feeds or reads, by the reason they stay.
    """

    unread: np.ndarray
    zero: np.ndarray
    folded: np.ndarray
    stay: dict[str, np.ndarray]

    @property
    def gone(self) -> np.ndarray:
        return self.unread | self.zero | self.folded


def settle(net: Net, layers: Sequence[Layer], multiple: int) -> list[Fate]:
    """Cuts the connections of dead units and says which may go; removes nothing.

    What an unread unit is fed does not matter, so its inputs die; a unit that nothing
    feeds is a constant, so once the next biases have it, what reads it dies. Either may
    leave another unit without inputs or readers. On return `net` computes what it did.
    """
    fates = [_none(layer.size) for layer in layers]
    changed = True
    while changed:
        changed = False
        for layer, fate in zip(layers, fates, strict=True):
            changed |= _cut_inputs(net, layer, fate)
            changed |= _fold(net, layer, fate)
    return [_stay(net, *pair, multiple) for pair in zip(layers, fates, strict=True)]


def _none(size: int) -> Fate:
    unread, zero, folded = np.zeros((3, size), bool)
    return Fate(unread, zero, folded, {})


def _cut_inputs(net: Net, layer: Layer, fate: Fate) -> bool:
    if layer.mixed:
        return False
    unread = ~_read(net, layer) & ~fate.gone
    fate.unread[unread] = True
    np.moveaxis(net.masks[layer.kernel], layer.axis, 0)[unread] = False
    np.moveaxis(net.params[layer.kernel], layer.axis, 0)[unread] = 0
    return bool(unread.any())


def _fold(net: Net, layer: Layer, fate: Fate) -> bool:
    unfed = ~_fed(net, layer) & _read(net, layer)
    values = _values(net, layer)
    become = [constants(reader.link, values) for reader in layer.readers]
    zero, fits = unfed.copy(), unfed.copy()
    for reader, value in zip(layer.readers, become, strict=True):
        zero &= value == 0
        takes = np.isfinite(value) & (_refusal(net, reader) is None)
        fits &= (value == 0) | takes
    if not fits.any():
        return False
    for reader, value in zip(layer.readers, become, strict=True):
        _move(net, reader, fits, value)
    if not layer.mixed:
        fate.zero[zero] = True
        fate.folded[fits & ~zero] = True
    return True


def _fed(net: Net, layer: Layer) -> np.ndarray:
    inputs = np.moveaxis(net.masks[layer.kernel], layer.axis, -1)
    return np.any(inputs.reshape(-1, layer.size), axis=0)


def _read(net: Net, layer: Layer) -> np.ndarray:
    out = np.zeros(layer.size, bool)
    for reader in layer.readers:
        mask = _view(net.masks, reader)
        for units, outputs in _groups(layer.size, reader):
            live = np.asarray(mask[..., outputs].any((*range(mask.ndim - 2), -1)))
            out[units] |= live[reader.rows[units]].any(1)
    return out


def _values(net: Net, layer: Layer) -> np.ndarray:
    if not layer.bias:
        return np.zeros(layer.size)
    return net.params[layer.bias].astype(np.float64).reshape(-1)


def _refusal(net: Net, reader: Reader) -> str | None:
    """Says why the bias of a reader cannot take up a constant, if so."""
    if not reader.bias:
        return f"{reader.link.consumer} has no bias to take up a constant"
    if not net.masks[reader.bias].all():
        return f"{reader.bias}, which would take up a constant, is itself pruned"
    return None


def _move(net: Net, reader: Reader, chosen: np.ndarray, values: np.ndarray) -> None:
    """Moves what constant units contribute into the bias, and cuts them off."""
    weights, mask = _view(net.params, reader), _view(net.masks, reader)
    for units, outputs in _groups(len(chosen), reader):
        units = units[chosen[units]]
        rows = reader.rows[units]
        taken = units[values[units] != 0]
        if len(taken):
            read = weights[..., reader.rows[taken], outputs].astype(np.float64)
            read = read.sum((*range(read.ndim - 3), -2))
            bias = net.params[reader.bias].reshape(-1)
            total = bias[outputs].astype(np.float64) + values[taken] @ read
            bias[outputs] = total.astype(bias.dtype)
        weights[..., rows.ravel(), outputs] = 0
        mask[..., rows.ravel(), outputs] = False


def _view(arrays: dict[str, np.ndarray], reader: Reader) -> np.ndarray:
    """Gives a reader's array as (..., rows, units), to be written to."""
    _, reads, counts = reader.link.axes
    return np.moveaxis(arrays[reader.link.consumer], (reads, counts), (-2, -1))


def _groups(size: int, reader: Reader) -> Iterator[tuple[np.ndarray, slice]]:
    """Gives the units of each group and the outputs that read them."""
    n, width = reader.link.groups, reader.outputs // reader.link.groups
    for g in range(n):
        units = np.arange(g * size // n, (g + 1) * size // n)
        yield units, slice(g * width, (g + 1) * width)


def _stay(net: Net, layer: Layer, fate: Fate, multiple: int) -> Fate:
    """Settles which of the dead units stay all the same, and why."""
    read, fed = _read(net, layer), _fed(net, layer)
    stay: dict[str, np.ndarray] = {}

    def note(reason: str, unit: int) -> None:
        stay.setdefault(reason, np.zeros(layer.size, bool))[unit] = True

    values = _values(net, layer)
    for unit in np.flatnonzero((~read | ~fed) & ~fate.gone):
        note(_reason(net, layer, values, int(unit), bool(read[unit])), int(unit))
    gone = fate.gone.reshape(layer.blocks, -1)
    width = gone.shape[1]
    even = spare = min(int(gone.sum(1).min()), width - 1)
    while spare and (layer.size - layer.blocks * spare) % multiple:
        spare -= 1
    rank = np.cumsum(gone, axis=1)
    dropped = (gone & (rank > spare)).reshape(-1)
    for unit in map(int, np.flatnonzero(dropped)):
        last = unit % width == width - 1 and gone[unit // width].all()
        uneven = rank[unit // width, unit % width] > even
        round_ = f"widths are multiples of {multiple}"
        note(LAST if last else EQUAL if uneven else round_, unit)
    unread, zero, folded = (f & ~dropped for f in (fate.unread, fate.zero, fate.folded))
    return Fate(unread, zero, folded, stay)


LAST = "a layer keeps one unit in each group"
EQUAL = "groups keep equal widths"


def _reason(net: Net, layer: Layer, values: np.ndarray, unit: int, read: bool) -> str:
    if layer.mixed and not read:
        return layer.mixed
    if not np.isfinite(values[unit]):
        return "its bias is not finite"
    for reader in layer.readers:
        value = float(constants(reader.link, values[unit : unit + 1])[0])
        if not np.isfinite(value):
            what = obstacle(reader.link, float(values[unit]))
            if what is None:
                break
            consumer = reader.link.consumer
            return f"it is constant, and {what} lies between it and {consumer}"
    refusals = (_refusal(net, reader) for reader in layer.readers)
    return layer.mixed or next(filter(None, refusals))
