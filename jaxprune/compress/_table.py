"""The table of a compressed file: a row of JSON for each leaf, read with distrust."""

import json
import math
import zlib
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxprune.compress._codebook import MOST
from jaxprune.compress._huffman import CorruptError
from jaxprune.compress._index import MAX_BITS
from jaxprune.compress._leaf import PARTS, Leaf
from jaxprune.compress._positions import LARGEST_MAP, MOST_LAGS, Positions


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
      about: CRC-32 of the row without `crc`.
      crc: the CRC-32 that its bytes carry on to.
      start: its first byte in the file.
      size: its bytes.
    """

    name: str
    leaf: Leaf
    about: int
    crc: int
    start: int
    size: int


def check_dtype(name: str, dtype: np.dtype) -> None:
    """Raises ValueError, naming the leaf, for a dtype that a file does not hold."""
    if dtype.name not in _DTYPES:
        raise ValueError(f"{name} is {dtype}, expected one of {', '.join(_DTYPES)}.")


def deflate(rows: list[dict[str, Any]]) -> bytes:
    """Writes rows."""
    return zlib.compress(_json(rows), 9)


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


def make_row(name: str, leaf: Leaf, parts: Iterable[bytes]) -> dict[str, Any]:
    """Tells what has to be known of a leaf, and the CRC-32 of that and its bytes."""
    row: dict[str, Any] = {
        "name": name,
        "dtype": leaf.dtype.name,
        "shape": leaf.shape,
        "parts": leaf.parts,
    }
    if leaf.positions is not None:
        row |= {"alive": leaf.alive, "clusters": leaf.clusters, "coder": leaf.coder}
        fields = (
            ("gap_bits", "fillers") if leaf.positions.gap_bits else ("turned", "lags")
        )
        row |= {field: getattr(leaf.positions, field) for field in fields}
        row |= {"beside": leaf.beside} if leaf.beside else {}
    crc = _crc(row)
    for part in parts:
        crc = zlib.crc32(part, crc)
    return row | {"crc": crc}


def _crc(row: dict[str, Any]) -> int:
    return zlib.crc32(_json(row))


def _json(value: Any) -> bytes:
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    return text.encode("utf-8", "surrogatepass")


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
            crc = _number(row.pop("crc"))
            leaf, about = _leaf(row), _crc(row)
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            raise CorruptError(f"{name}: its row of the table says {row}") from error
        size = sum(leaf.parts.values())
        yield Row(name, leaf, about, crc, start, size)
        start += size


def _leaf(row: dict[str, Any]) -> Leaf:
    parts = {part: _number(size) for part, size in row["parts"].items()}
    shape = tuple(_number(n) for n in row["shape"])
    # Of a shape with a 0 in it, the rest must be fit for NumPy as well.
    if len(shape) > 32 or math.prod(max(n, 1) for n in shape) >= 1 << 48:
        raise ValueError
    if not set(parts) <= set(PARTS):
        raise ValueError
    leaf = Leaf(shape, _DTYPES[row["dtype"]], parts)
    if "alive" not in row:
        return leaf
    alive, clusters = _number(row["alive"]), _number(row["clusters"])
    if row["coder"] not in ("range", "huffman") or clusters > MOST:
        raise ValueError
    if "gap_bits" in row:
        positions = Positions(_number(row["gap_bits"]), _number(row["fillers"]))
        if not 1 <= positions.gap_bits <= MAX_BITS:
            raise ValueError
    else:
        positions = Positions(0, 0, row["turned"], _lags(row["lags"], shape))
        if type(row["turned"]) is not bool:
            raise ValueError
    leaf = Leaf(shape, leaf.dtype, parts, positions, alive, clusters, row["coder"])
    return (
        leaf._replace(beside=_lags(row["beside"], shape)) if "beside" in row else leaf
    )


def _lags(value: Any, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Reads the lags of a leaf that is small enough to have any."""
    lags = tuple(_number(lag) for lag in value)
    if 0 in lags or len(lags) > MOST_LAGS or sorted(set(lags)) != list(lags):
        raise ValueError
    if not shape or math.prod(shape) > LARGEST_MAP:
        raise ValueError
    return lags


def _number(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 48:
        raise ValueError
    return value
