"""The coding of the compressed `.net` files of Deep Compression's first author.

Little-endian. First the number of entries of each layer, uint32. Then for each layer
its codebook, 256 float32 for a convolution and 16 for a dense layer, of which the first
is zero; its bias, float32; a code for every entry, 8 bits for a convolution and 4 for
a dense layer; and a gap for every entry, 4 bits. Where two share a byte the first is
in the low half.

An entry's position in the flat weight, in Caffe's layout, is that of the entry before
it plus gap plus 1. A gap of more than 15 needs fillers: entries of gap 15 and code 0.
Weights at positions without an entry are zero. Names and shapes are not in the file.

Source:
  Han et al. 2016 (arXiv:1510.00149), sections 2 and 3.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np


_FAR = 16  # what a filler adds to the position


class NetLayer(NamedTuple):
    """A layer with shared weights: `codebook[codes]` is its weight, in Caffe's layout.

    Attributes:
      codebook: float32 (256,) for a convolution, (16,) for a dense layer; the first
        entry is zero.
      codes: uint8, (out, in / groups, height, width) or (out, in); 0 where the weight
        is dead.
      bias: float32 (out,).
    """

    codebook: np.ndarray
    codes: np.ndarray
    bias: np.ndarray


def decode_net(
    data: bytes, shapes: Mapping[str, Sequence[int]], *, origin: str = "the data"
) -> dict[str, NetLayer]:
    """Decodes a compressed `.net` file to codes and codebooks.

    Entries of code 0 are taken as zeros whatever their gap, as the authors' decoder
    does, although only fillers, of gap 15, have that code in their file.

    Args:
      data: the bytes of a file.
      shapes: as in `read_net`.
      origin: where `data` comes from, for messages.

    Raises:
      ValueError: naming `origin` and the layer, if a count, a position, a codebook or
        the length cannot be right. Nothing is allocated before lengths and counts
        have been compared.
    """
    kinds = {name: _kind(name, tuple(shape)) for name, shape in shapes.items()}
    start = 4 * len(kinds)
    if len(data) < start:
        raise ValueError(
            f"{origin} has {len(data)} bytes, expected {start} for the entry counts of "
            f"its {len(kinds)} layers alone; it is truncated."
        )
    counts = dict(zip(kinds, np.frombuffer(data, "<u4", len(kinds)), strict=True))
    offsets = {}
    for name, (shape, bits) in kinds.items():
        count, size = int(counts[name]), math.prod(shape)
        if count > size:
            raise ValueError(
                f"{origin}: layer {name} claims {count} entries, but its weight "
                f"{shape} has {size}; the file is damaged, or of another network."
            )
        offsets[name] = start
        start += _layer_bytes(shape, bits, count)
        if start > len(data):
            raise ValueError(
                f"{origin} ends at byte {len(data)} in layer {name}, which ends at "
                f"byte {start}; the file is truncated, or of another network."
            )
    if start != len(data):
        raise ValueError(
            f"{origin} has {len(data)} bytes, but its last layer ends at byte {start}; "
            "it is damaged, or of another network."
        )
    return {
        name: _decode_layer(
            memoryview(data)[offsets[name] :],
            *kinds[name],
            int(counts[name]),
            f"{origin}: layer {name}",
        )
        for name in kinds
    }


def encode_net(layers: Mapping[str, NetLayer]) -> bytes:
    """Encodes layers as a compressed `.net` file: the inverse of `decode_net`.

    Raises:
      ValueError: naming the layer, if a codebook, bias or code is not as `NetLayer`
        says.
    """
    counts, parts = [], []
    for name, layer in layers.items():
        codes, gaps = _entries(name, layer)
        counts.append(codes.size)
        parts += [layer.codebook.astype("<f4"), layer.bias.astype("<f4")]
        parts += [codes if layer.codes.ndim == 4 else _pack(codes), _pack(gaps)]
    return b"".join(part.tobytes() for part in [np.array(counts, "<u4"), *parts])


def _kind(name: str, shape: tuple[int, ...]) -> tuple[tuple[int, ...], int]:
    """Gives a layer's shape and the bits of its codes."""
    if len(shape) not in (2, 4) or min(shape) < 1:
        raise ValueError(
            f"layer {name} has shape {shape}, expected (out, in, height, width) or "
            "(out, in)."
        )
    return shape, 8 if len(shape) == 4 else 4


def _layer_bytes(shape: tuple[int, ...], bits: int, count: int) -> int:
    return 4 * (1 << bits) + 4 * shape[0] + (count * bits + 7) // 8 + (count + 1) // 2


def _decode_layer(
    data: memoryview, shape: tuple[int, ...], bits: int, count: int, where: str
) -> NetLayer:
    codebook = np.frombuffer(data, "<f4", 1 << bits).astype(np.float32)
    data = data[codebook.nbytes :]
    bias = np.frombuffer(data, "<f4", shape[0]).astype(np.float32)
    data = data[bias.nbytes :]
    if codebook[0] != 0:
        raise ValueError(
            f"{where} has a codebook that begins with {codebook[0]}, expected 0; the "
            "file is damaged, or of another network."
        )
    if not (np.isfinite(codebook).all() and np.isfinite(bias).all()):
        raise ValueError(
            f"{where} has values that are not finite in its codebook or bias; the file "
            "is damaged, or of another network."
        )
    if bits == 8:
        entries = np.frombuffer(data, np.uint8, count)
        data = data[count:]
    else:
        entries = _unpack(data, count, where)
        data = data[(count + 1) // 2 :]
    gaps = _unpack(data, count, where)
    positions = np.cumsum(gaps, dtype=np.int64) + np.arange(count)
    codes = np.zeros(math.prod(shape), np.uint8)
    if count and positions[-1] >= codes.size:
        raise ValueError(
            f"{where} has an entry at position {positions[-1]}, beyond its weight "
            f"{shape}; the file is damaged, or of another network."
        )
    codes[positions] = entries
    return NetLayer(codebook, codes.reshape(shape), bias)


def _entries(name: str, layer: NetLayer) -> tuple[np.ndarray, np.ndarray]:
    """Gives a layer's codes and gaps in file order, fillers among them."""
    shape, bits = _kind(name, layer.codes.shape)
    for what, array, dtype, expected in (
        ("codebook", layer.codebook, np.float32, (1 << bits,)),
        ("bias", layer.bias, np.float32, (shape[0],)),
        ("codes", layer.codes, np.uint8, shape),
    ):
        if array.dtype != dtype or array.shape != expected:
            raise ValueError(
                f"layer {name}: {what} is {array.dtype} {array.shape}, expected "
                f"{np.dtype(dtype)} {expected}."
            )
    largest = int(layer.codes.max())
    if layer.codebook[0] != 0 or largest >= 1 << bits:
        raise ValueError(
            f"layer {name}: its codebook begins with {layer.codebook[0]} and its "
            f"largest code is {largest}, expected 0 and less than {1 << bits}."
        )
    if not (np.isfinite(layer.codebook).all() and np.isfinite(layer.bias).all()):
        raise ValueError(
            f"layer {name}: its codebook or bias has values that are not finite."
        )
    flat = layer.codes.reshape(-1)
    positions = np.flatnonzero(flat)
    gaps = np.diff(positions, prepend=-1) - 1
    places = np.cumsum(gaps // _FAR + 1) - 1  # of the entries that are no fillers
    count = int(places[-1]) + 1 if positions.size else 0
    codes = np.zeros(count, np.uint8)
    codes[places] = flat[positions]
    padded = np.full(count, _FAR - 1, np.uint8)
    padded[places] = gaps % _FAR
    return codes, padded


def _pack(halves: np.ndarray) -> np.ndarray:
    """Packs values below 16 in pairs, the first in the low half of the byte."""
    pairs = np.zeros(halves.size + halves.size % 2, np.uint8)
    pairs[: halves.size] = halves
    return pairs[::2] | pairs[1::2] << 4


def _unpack(data: memoryview, count: int, where: str) -> np.ndarray:
    packed = np.frombuffer(data, np.uint8, (count + 1) // 2)
    halves = np.stack([packed & 15, packed >> 4], axis=1).reshape(-1)
    if count % 2 and halves[-1]:
        raise ValueError(
            f"{where} has {halves[-1]} where its last byte is padded, expected 0; the "
            "file is damaged, or of another network."
        )
    return halves[:count]
