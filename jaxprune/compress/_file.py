"""The compressed file: safetensors with a table of leaves, and their coded bytes.

A file is laid out as safetensors says, so that any reader of that format opens it:
eight bytes that tell the length of the header; the header in JSON, filled up with
spaces to a multiple of eight; and the data. Its metadata name the version of this
layout, `{"jaxprune": "1"}`, and it has two tensors of bytes:

- `table`: what has to be known of each leaf, a JSON list compressed by zlib, and a
  CRC-32, four bytes little-endian, of all the bytes of the file before it.
- `leaves`: the leaves one after the other, in the order of the table. What a leaf is
  made of is told in `parts` of its row: names and bytes, in their order.

A file that carries its program is of version "2", and has a third tensor after these:

- `graph`: what `jax.export` serialized, compressed by zlib, and the CRC-32, four bytes
  little-endian, of these bytes and of the header before them.

A row of the table has `name`, the path of the leaf joined by "/"; `dtype` and `shape`;
`parts`; and `crc`, the CRC-32 of the row as it is without `crc`, in JSON without
blanks, and of the leaf's bytes. A leaf with a mask also has `alive`, its number of live
weights; `clusters`, the number of their distinct values, 0 if they are not shared;
`coder`; and `gap_bits` and `fillers`, or `turned` and `lags`, of their positions. The
parts:

- `values`: numbers, little-endian: of the whole array if there is no mask, of the live
  weights alone if there is one and they are not shared.
- `gaps`: for each live weight in C order, how many dead ones come before it, with
  fillers where these are more than `gap_bits` can tell (`_index.py`); or
- `map`: whether each weight is alive, row by row, the rows being those of the array
  whose leading axes are made one, or its columns, if it is `turned`; `lags` are the
  rows from a weight to its neighbours (`_map.py`).
- `codebook`: the distinct live values, ascending: by the range coder as steps
  (`_codebook.py`) where these take less, else as they are.
- `codes`: which of them each live weight has, in C order; if the row has `beside`, each
  judged by the weights so many rows before (`_beside.py`).
- `gap book`, `code book`: lengths of Huffman codes, five bits each (`_huffman.py`); the
  range coder needs none (`_range.py`).
"""

import math
import re
import zlib
from collections.abc import Iterable, Sequence
from typing import BinaryIO, NamedTuple

from jaxprune.compress import _table
from jaxprune.compress._huffman import CorruptError
from jaxprune.compress._leaf import Leaf
from jaxprune.compress._table import Row


VERSION = "1"
WITH_GRAPH = "2"
LARGEST_HEADER = 4096
DENSEST = 1 << 20  # weights in a byte: more than dead weights come to in any real file

_HEADER = (
    '{"__metadata__":{"jaxprune":"%s"},"table":{"dtype":"U8","shape":[%d],'
    '"data_offsets":[0,%d]},"leaves":{"dtype":"U8","shape":[%d],"data_offsets":[%d,%d]}}'
)
_GRAPH = ',"graph":{"dtype":"U8","shape":[%d],"data_offsets":[%d,%d]}}'
_LOOKS = re.compile(
    rb'\{"__metadata__":\{"jaxprune":"([^"]{1,9})"\},"table":\{"dtype":"U8",'
    rb'"shape":\[(\d{1,15})\].*"leaves":\{"dtype":"U8","shape":\[(\d{1,15})\]'
    rb'(?:[^{]*"graph":\{"dtype":"U8","shape":\[(\d{1,15})\])?.*',
    re.DOTALL,
)


class Contents(NamedTuple):
    """What the beginning of a file tells.

    Attributes:
      header: bytes of the header, and of the length before it.
      table: bytes of the table.
      rows: a row for each leaf.
      graph: bytes of the program, 0 if there is none.
      graph_start: its first byte in the file.
      about: CRC-32 of the header.
    """

    header: int
    table: int
    rows: tuple[Row, ...]
    graph: int
    graph_start: int
    about: int


def compose(
    leaves: Sequence[tuple[str, Leaf, list[bytes]]], graph: bytes | None = None
) -> Iterable[bytes]:
    """Gives the bytes of a file, part by part."""
    program = b"" if graph is None else zlib.compress(graph, 9)
    rows = [_table.make_row(name, leaf, parts) for name, leaf, parts in leaves]
    table = _table.deflate(rows)
    total = sum(len(part) for _, _, parts in leaves for part in parts)
    header = _header(len(table) + 4, total, len(program) + 4 if program else 0)
    crc = zlib.crc32(table, zlib.crc32(header))
    yield from (header, table, crc.to_bytes(4, "little"))
    for _, _, parts in leaves:
        yield from parts
    if program:
        yield program
        yield zlib.crc32(program, zlib.crc32(header)).to_bytes(4, "little")


def read_contents(file: BinaryIO, size: int) -> Contents:
    """Reads header and table of a file of `size` bytes, and checks them.

    Raises:
      CorruptError: if this is no such file, or it ends early.
    """
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > LARGEST_HEADER:
        raise CorruptError("it does not begin like a file that jaxprune.compress wrote")
    found = file.read(length)
    if len(found) < length:
        raise CorruptError(f"it ends at byte {size:,}, in its header; it is truncated")
    looks = _LOOKS.fullmatch(found)
    if looks is None:
        raise CorruptError("its header is not one that jaxprune.compress wrote")
    version = looks[1].decode(errors="replace")
    if version not in (VERSION, WITH_GRAPH):
        raise CorruptError(
            f"its layout is of version {version}, and this jaxprune reads {VERSION} "
            f"and {WITH_GRAPH}"
        )
    table, leaves, graph = int(looks[2]), int(looks[3]), int(looks[4] or 0)
    header = _header(table, leaves, graph)
    if header[8:] != found:
        raise CorruptError("its header is not one that jaxprune.compress wrote")
    if len(header) + table > size:
        raise CorruptError(f"it ends at byte {size:,}, in its table; it is truncated")
    packed = file.read(table)
    crc = zlib.crc32(packed[:-4], zlib.crc32(header))
    if len(packed) < 4 or crc.to_bytes(4, "little") != packed[-4:]:
        raise CorruptError("the checksum of its header and table is wrong")
    found_rows = _table.inflate(packed[:-4])
    rows = tuple(_table.read_rows(found_rows, len(header) + table))
    names = set()
    for row in rows:
        if row.name in names:
            raise CorruptError(f"{row.name} is twice in its table")
        names.add(row.name)
        if row.start + row.size > size:
            raise CorruptError(
                f"it ends at byte {size:,} in {row.name}, which goes on to byte "
                f"{row.start + row.size:,}; it is truncated"
            )
    end = rows[-1].start + rows[-1].size if rows else len(header) + table
    if end + graph > size and end == len(header) + table + leaves:
        raise CorruptError(f"it ends at byte {size:,}, in its graph; it is truncated")
    if not end + graph == size == len(header) + table + leaves + graph:
        raise CorruptError(f"it has {size:,} bytes, and its leaves end at {end:,}")
    weights = sum(math.prod(row.leaf.shape) for row in rows)
    if weights > DENSEST * size:
        raise CorruptError(f"it claims {weights:,} weights, in {size:,} bytes")
    return Contents(len(header), table, rows, graph, end, zlib.crc32(header))


def read_leaf(file: BinaryIO, row: Row) -> bytes:
    """Reads the bytes of a leaf.

    Raises:
      CorruptError: if they are not those that were written.
    """
    file.seek(row.start)
    data = file.read(row.size)
    if len(data) != row.size or zlib.crc32(data, row.about) != row.crc:
        raise CorruptError("the checksum of its bytes is wrong")
    return data


def read_graph(file: BinaryIO, contents: Contents) -> bytes | None:
    """Reads the program as it was given, or `None` if the file has none.

    Raises:
      CorruptError: if its bytes are not those that were written.
    """
    if not contents.graph:
        return None
    file.seek(contents.graph_start)
    data = file.read(contents.graph)
    crc = zlib.crc32(data[:-4], contents.about).to_bytes(4, "little")
    if len(data) != contents.graph or crc != data[-4:]:
        raise CorruptError("the checksum of its graph is wrong")
    unpack = zlib.decompressobj()
    try:
        graph = unpack.decompress(data[:-4], _table.LARGEST)
    except zlib.error as error:
        raise CorruptError(f"its graph cannot be read: {error}") from error
    if not unpack.eof or unpack.unused_data:
        raise CorruptError("its graph is not whole")
    return graph


def _header(table: int, leaves: int, graph: int = 0) -> bytes:
    version = WITH_GRAPH if graph else VERSION
    text = _HEADER % (version, table, table, leaves, table, table + leaves)
    if graph:
        end = table + leaves
        text = text[:-1] + _GRAPH % (graph, end, end + graph)
    text += " " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text.encode()
