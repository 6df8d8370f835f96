"""The table of a compressed file: a row of JSON for each leaf, read with distrust."""

import json
import math
import zlib
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxprune.compress._huffman import CorruptError
from jaxprune.compress._leaf import PARTS, Leaf


LARGEST = 1 << 26  # bytes, when inflated

_DTYPES = {
    np.dtype(dtype).name: np.dtype(dtype)
    for dtype in (
        *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32"),
        *("uint64", "float16", "float32", "float64", "complex64", jnp.bfloat16),
    )
}  # fmt: skip


class Row(NamedTuple):
    """A leaf's row of the table.

    Attributes:
      name: its path.
      leaf: what is needed to decode it.
      crc: of its bytes.
      start: its first byte in the file.
      size: its bytes.
    """

    name: str
    leaf: Leaf
    crc: int
    start: int
    size: int


def check_dtype(name: str, dtype: np.dtype) -> None:
    """Raises ValueError, naming the leaf, for a dtype that a file does not hold."""
    if dtype.name not in _DTYPES:
        raise ValueError(f"{name} is {dtype}, expected one of {', '.join(_DTYPES)}.")


def deflate(rows: list[dict[str, Any]]) -> bytes:
    """Writes rows."""
    text = json.dumps(rows, separators=(",", ":"), ensure_ascii=False)
    return zlib.compress(text.encode(), 9)


def inflate(packed: bytes) -> Any:
    """Reads what `deflate` wrote, but never more than 64 MiB.

    Raises:
      CorruptError: if that cannot be read.
    """
    unpack = zlib.decompressobj()
    try:
        text = unpack.decompress(packed, LARGEST)
        if not unpack.eof or unpack.unused_data:
            raise CorruptError("its table is not whole")
        return json.loads(text)
    except (zlib.error, ValueError, RecursionError) as error:
        raise CorruptError(f"its table cannot be read: {error}") from error


def make_row(name: str, leaf: Leaf, crc: int) -> dict[str, Any]:
    """Tells what has to be known of a leaf, and the CRC-32 of its bytes."""
    row: dict[str, Any] = {
        "name": name,
        "dtype": leaf.dtype.name,
        "shape": leaf.shape,
        "parts": leaf.parts,
    }
    if leaf.alive is not None:
        row |= {
            field: getattr(leaf, field)
            for field in ("alive", "fillers", "gap_bits", "clusters", "coder")
        }
    return row | {"crc": crc}


def read_rows(table: Any, start: int) -> Iterable[Row]:
    """Reads rows, whose leaves lie one after the other from byte `start`.

    Raises:
      CorruptError: naming the leaf, if a row is not as `make_row` makes it.
    """
    if not isinstance(table, list):
        raise CorruptError("its table is not a list")
    for i, row in enumerate(table):
        try:
            name = str(row["name"])
        except (TypeError, KeyError) as error:
            raise CorruptError(f"row {i} of its table has no name") from error
        try:
            leaf, crc = _leaf(row), _number(row["crc"])
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            raise CorruptError(f"{name}: its row of the table says {row}") from error
        size = sum(leaf.parts.values())
        yield Row(name, leaf, crc, start, size)
        start += size


def _leaf(row: dict[str, Any]) -> Leaf:
    parts = {part: _number(size) for part, size in row["parts"].items()}
    shape = tuple(_number(n) for n in row["shape"])
    if not set(parts) <= set(PARTS) or math.prod(shape) >= 1 << 48:
        raise ValueError
    leaf = Leaf(shape, _DTYPES[row["dtype"]], parts)
    if "alive" not in row:
        return leaf
    if row["coder"] not in ("range", "huffman"):
        raise ValueError
    alive, fillers, bits, clusters = (
        _number(row[field]) for field in ("alive", "fillers", "gap_bits", "clusters")
    )
    if not 1 <= bits <= 16 or clusters > 1 << 16:
        raise ValueError
    return leaf._replace(
        alive=alive,
        fillers=fillers,
        gap_bits=bits,
        clusters=clusters,
        coder=row["coder"],
    )


def _number(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 48:
        raise ValueError
    return value
