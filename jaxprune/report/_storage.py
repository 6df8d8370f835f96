"""Bytes that live weights take with the relative indices of their places."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import PyTree

from jaxprune._masks import check_mask, map_masked
from jaxprune._paths import leaf_names
from jaxprune.report._counts import Counts


INDEX_BITS = {"conv": 8, "fc": 5}


class LayerStorage(NamedTuple):
    """What one leaf takes, or all rows together.

    Attributes:
      path: the leaf's path, names joined by "/".
      dense_bytes: taken by all its weights without any index.
      entries: weights stored: the live ones and the fillers, or all in a dense leaf.
      fillers: zeros stored because a gap is longer than an index can tell.
      index_bits: bits of an index; 0 where the leaf is stored dense, because nothing in
        it is pruned or because that takes no more.
      weight_bytes: taken by the entries.
      index_bytes: taken by their indices.
    """

    path: str
    dense_bytes: int
    entries: int
    fillers: int
    index_bits: int
    weight_bytes: int
    index_bytes: int


class Storage(NamedTuple):
    """What `storage` found.

    Attributes:
      layers: a row for each row of the counts, in their order.
      total: the sum of these rows; its `index_bits` is 0.
      others_bytes: taken by all other leaves, such as biases, stored dense.
    """

    layers: tuple[LayerStorage, ...]
    total: LayerStorage
    others_bytes: int


def storage(
    counts: Counts,
    params: PyTree,
    mask: PyTree | None,
    *,
    weight_bits: int = 32,
    index_bits: Mapping[str, int] = INDEX_BITS,
) -> Storage:
    """Counts the bytes of a pruned network whose weights know where they stand.

    With each live weight goes the number of dead ones since the live weight before it,
    in the leaf as it lies in memory, row by row. If these are more than the bits of an
    index can tell, 2**bits - 1, a zero is stored in between. Weights and indices of a
    leaf are two streams, each filled up to a whole byte. Nothing is coded further.

    Args:
      counts: what `count` found for the same params and mask.
      params: the params, or their shapes.
      mask: their mask; `None`, for all or at a leaf, where nothing is pruned.
      weight_bits: bits of a stored weight.
      index_bits: bits of an index for each kind of layer, "conv" and "fc".

    Raises:
      ValueError: if the mask does not fit, is not the one of `counts`, or a number of
        bits is not positive.

    Source:
      Han et al. 2015 (arXiv:1506.02626), section 5: 5 bits for fully connected layers
      and 8 for convolutions. Han et al. 2016 (arXiv:1510.00149), section 2, figure 2.
    """
    for name, bits in {"weight_bits": weight_bits, **index_bits}.items():
        if bits < 1:
            raise ValueError(f"{name} is {bits}, expected at least 1 bit.")
    masks: dict[str, Any] = {}
    if mask is not None:
        check_mask(params, mask)
        note = lambda p, m, name: masks.__setitem__(name, np.asarray(m))
        map_masked(note, params, mask, leaf_names(params), elsewhere=lambda p: None)
    rows = []
    for layer in counts.layers:
        alive = masks.get(layer.path)
        kept = layer.weights if alive is None else int(np.count_nonzero(alive))
        if kept != layer.kept:
            raise ValueError(
                f"the mask keeps {kept} weights of {layer.path}, expected the "
                f"{layer.kept} that were counted; count with the same mask."
            )
        dense = _bytes(layer.weights, weight_bits)
        row = LayerStorage(layer.path, dense, layer.weights, 0, 0, dense, 0)
        if alive is not None and kept < layer.weights:
            bits = index_bits[layer.kind]
            more = fillers(alive, bits)
            sizes = (_bytes(kept + more, weight_bits), _bytes(kept + more, bits))
            if sum(sizes) < dense:
                row = LayerStorage(layer.path, dense, kept + more, more, bits, *sizes)
        rows.append(row)
    columns = list(zip(*(row[1:] for row in rows), strict=True)) or [()] * 6
    dense, entries, more, _, weight_bytes, index_bytes = map(sum, columns)
    total = LayerStorage("total", dense, entries, more, 0, weight_bytes, index_bytes)
    return Storage(tuple(rows), total, _bytes(counts.others, weight_bits))


def fillers(alive: np.ndarray, bits: int) -> int:
    """Counts the zeros that must be stored between live weights far apart.

    >>> mask = np.zeros(16, bool)
    >>> mask[[1, 4, 15]] = True
    >>> fillers(mask, 3)
    1
    """
    places = np.flatnonzero(alive)
    gaps = np.diff(places, prepend=-1)
    return int(((gaps - 1) >> bits).sum())


def _bytes(entries: int, bits: int) -> int:
    return -(-entries * bits // 8)
