"""Where the bytes of a compressed file go."""

import math
import os
from collections.abc import Sequence
from os import PathLike
from typing import NamedTuple

from jaxprune.compress import _file
from jaxprune.compress._save import located
from jaxprune.compress._table import Row


class LayerSize(NamedTuple):
    """What one leaf takes in a file, or all of them together.

    Attributes:
      path: the leaf's path, names joined by "/".
      weights: size of the array.
      alive: live weights; all of them where there is no mask.
      clusters: distinct values in the codebook, 0 if there is none.
      gap_bits: bits of a gap before they are coded; 0 where positions are coded as a
        map, or there is no mask.
      fillers: gaps that lead to no weight.
      dense_bytes: taken by the array as it is.
      code_bytes: taken by the codes of live weights.
      index_bytes: taken by their positions, fillers among them.
      codebook_bytes: taken by shared values.
      book_bytes: taken by the lengths of Huffman codes.
      value_bytes: taken by values that are not shared.
    """

    path: str
    weights: int
    alive: int
    clusters: int
    gap_bits: int
    fillers: int
    dense_bytes: int
    code_bytes: int
    index_bytes: int
    codebook_bytes: int
    book_bytes: int
    value_bytes: int

    @property
    def bytes(self) -> int:
        """Taken by all of it."""
        return sum(self[7:])

    @property
    def code_bits(self) -> float:
        """Bits of the code of a live weight, on average."""
        return 8 * self.code_bytes / max(self.alive, 1)

    @property
    def index_bits(self) -> float:
        """Bits of the position of a live weight, on average, fillers included."""
        return 8 * self.index_bytes / max(self.alive, 1)


class Sizes(NamedTuple):
    """What `sizes` found.

    `header_bytes`, `graph_bytes` and those of `total` make up `file_bytes`.

    Attributes:
      layers: a row for each leaf, in the order of the file.
      total: their sum; its `gap_bits` and `clusters` are 0.
      header_bytes: taken by the header, its padding, and the table of leaves.
      file_bytes: size of the file.
      graph_bytes: taken by the program, if there is one, and its checksum.
    """

    layers: tuple[LayerSize, ...]
    total: LayerSize
    header_bytes: int
    file_bytes: int
    graph_bytes: int = 0


def sizes(path: str | PathLike[str]) -> Sizes:
    """Accounts for every byte of a file that `save` wrote.

    Only its table is read, so damage in a leaf is not seen.

    Raises:
      CorruptError: if the file is no such file, or its header or table is damaged.
      OSError: if it cannot be opened.

    Source:
      Han et al. 2016 (arXiv:1510.00149), tables 2 to 5: bits of a weight and of an
      index before and after coding.
    """
    with open(path, "rb") as file, located(str(path)):
        size = os.fstat(file.fileno()).st_size
        contents = _file.read_contents(file, size)
    layers = tuple(_layer(row) for row in contents.rows)
    header = contents.header + contents.table
    return Sizes(layers, _sum(layers), header, size, contents.graph)


def _layer(row: Row) -> LayerSize:
    leaf, weights = row.leaf, math.prod(row.leaf.shape)
    part = lambda *names: sum(leaf.parts.get(name, 0) for name in names)
    return LayerSize(
        path=row.name,
        weights=weights,
        alive=leaf.alive if leaf.positions else weights,
        clusters=leaf.clusters,
        gap_bits=leaf.positions.gap_bits if leaf.positions else 0,
        fillers=leaf.positions.fillers if leaf.positions else 0,
        dense_bytes=weights * leaf.dtype.itemsize,
        code_bytes=part("codes"),
        index_bytes=part("gaps", "map"),
        codebook_bytes=part("codebook"),
        book_bytes=part("gap book", "code book"),
        value_bytes=part("values"),
    )


def _sum(layers: Sequence[LayerSize]) -> LayerSize:
    columns = list(zip(*(row[1:] for row in layers), strict=True)) or [()] * 11
    total = LayerSize("total", *(sum(column) for column in columns))
    return total._replace(clusters=0, gap_bits=0)
