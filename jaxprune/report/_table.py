"""The counts as a table: exact for programs, as CSV; rounded for people."""

import csv
import io
import re
from collections.abc import Mapping, Sequence
from decimal import ROUND_HALF_UP, Decimal
from typing import TYPE_CHECKING, Any

from jaxprune.report._counts import Counts
from jaxprune.report._energy import Energy, LayerEnergy
from jaxprune.report._rows import LayerCount
from jaxprune.report._storage import LayerStorage, Storage


if TYPE_CHECKING:
    from rich.table import Table


# Column of `table`, what people read above it, and how a value is written.
_COLUMNS = (
    ("layer", "layer", "text"),
    ("shape", "shape", "text"),
    ("weights", "weights", "number"),
    ("kept", "kept", "number"),
    ("kept_percent", "Weights%", "percent"),
    ("flop", "FLOP", "number"),
    ("flop_kept_percent", "FLOP% by weights", "percent"),
    ("activations_percent", "Act%", "percent"),
    ("flop_needed_percent", "FLOP% by both", "percent"),
    ("dense_bytes", "bytes dense", "number"),
    ("stored_bytes", "bytes stored", "number"),
    ("index_bits", "index bits", "number"),
    ("picojoules", "pJ dense", "number"),
    ("picojoules_pruned", "pJ pruned", "number"),
)


def table(
    counts: Counts, stored: Storage | None = None, spent: Energy | None = None
) -> list[dict[str, Any]]:
    """Puts what was counted into rows, one for each layer, the total last.

    Values are exact and have no unit but the one in their column's name; FLOP are 2 for
    each multiply-add, of one example. What was not measured is `None`.

    Args:
      counts: what `count` found.
      stored: what `storage` found, for its columns.
      spent: what `energy` found, for its columns.

    Raises:
      ValueError: if the three are not of the same layers.
    """
    rows = [_count_row(row) for row in (*counts.layers, counts.total)]
    if stored is not None:
        more = [_storage_row(row) for row in (*stored.layers, stored.total)]
        rows = _beside(rows, more, "storage")
    if spent is not None:
        more = [_energy_row(row) for row in (*spent.layers, spent.total)]
        rows = _beside(rows, more, "energy")
    return rows


def to_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Writes all columns of `table`, exact; what was not measured is empty."""
    if not rows:
        raise ValueError("the table has no rows, expected those of `table`.")
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def to_markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Writes the columns that people read, rounded, as a table of Markdown.

    Weights% and Act% are what is not zero, FLOP% what is needed when dead weights are
    skipped, and when zero activations are skipped as well, which is the paper's FLOP%.
    """
    head, body, right = for_people(rows)
    rule = ["---:" if side else "---" for side in right]
    lines = [head, rule, *body]
    # An underscore within a word is plain text.
    plain = lambda cell: re.sub(r"([\\|<&*`\[\]])", r"\\\1", cell)
    escaped = [[plain(cell) for cell in line] for line in lines]
    return "".join(f"| {' | '.join(line)} |\n" for line in escaped)


def to_rich(rows: Sequence[Mapping[str, Any]], title: str | None = None) -> "Table":
    """Makes a table for the terminal, of the columns that people read.

    Raises:
      ImportError: if rich is not installed.
    """
    try:
        from rich import box
        from rich.table import Table
        from rich.text import Text
    except ImportError as error:
        raise ImportError(
            "tables for the terminal need rich; install jaxprune[report]."
        ) from error
    head, body, right = for_people(rows)
    out = Table(
        title=title,
        title_justify="left",
        show_footer=True,
        box=box.SIMPLE,
        collapse_padding=True,
        pad_edge=False,
    )
    for name, side, *cells in zip(head, right, *body, strict=True):
        # Headings break at spaces, cells never.
        width = max(len(text) for text in (*name.split(), *cells))
        out.add_column(
            Text(name),
            Text(cells[-1]),
            justify="right" if side else "left",
            min_width=width,
        )
    for line in body[:-1]:
        out.add_row(*map(Text, line))
    return out


def for_people(
    rows: Sequence[Mapping[str, Any]],
) -> tuple[list[str], list[list[str]], list[bool]]:
    """Gives headings, cells, and which columns stand on the right.

    Columns that no row has a value for are left out.
    """
    if not rows:
        raise ValueError("the table has no rows, expected those of `table`.")
    shown = [c for c in _COLUMNS if any(row.get(c[0]) is not None for row in rows)]
    body = [[_cell(row.get(key), form) for key, _, form in shown] for row in rows]
    return [name for _, name, _ in shown], body, [form != "text" for *_, form in shown]


def short(value: int | float) -> str:
    """Writes a number with three digits and K, M, B or T; halves are rounded up.

    >>> [short(n) for n in (0, 999, 1000, 235_200, 430_500, 999_999, 60_954_656)]
    ['0', '999', '1.00K', '235K', '431K', '1.00M', '61.0M']
    >>> [short(x) for x in (0.5, 9.996, 1e15)]
    ['0.50', '10.0', '1000T']
    """
    exact, scale = Decimal(value), Decimal(1)
    for unit in ("", "K", "M", "B", "T"):
        for digits in (2, 1, 0):
            if not unit and value == round(value):
                digits = 0
            step = Decimal(1).scaleb(-digits)
            shown = (exact / scale).quantize(step, ROUND_HALF_UP)
            if abs(shown) < (1000, 100, 10)[digits] or (not digits and unit == "T"):
                return f"{shown}{unit}"
        scale *= 1000
    raise AssertionError("the loop ends at T")


def _cell(value: Any, form: str) -> str:
    if value is None:
        return ""
    if form == "percent":
        return f"{value:.1f}"
    return str(value) if form == "text" else short(value)


def _count_row(row: LayerCount) -> dict[str, Any]:
    percent = lambda part, whole: None if part is None else 100 * part / max(1, whole)
    return {
        "layer": row.path,
        "kind": row.kind or None,
        "shape": "x".join(map(str, row.shape)) or None,
        "weights": row.weights,
        "kept": row.kept,
        "kept_percent": percent(row.kept, row.weights),
        "flop": row.flop,
        "flop_kept": row.flop_kept,
        "flop_kept_percent": percent(row.flop_kept, row.flop),
        "activations_percent": percent(row.activations, 1),
        "flop_needed": row.flop_needed,
        "flop_needed_percent": percent(row.flop_needed, row.flop),
        "flop_run": row.flop_run,
        "followed": row.followed,
    }


def _storage_row(row: LayerStorage) -> dict[str, Any]:
    return {
        "layer": row.path,
        "dense_bytes": row.dense_bytes,
        "stored_bytes": row.weight_bytes + row.index_bytes,
        "weight_bytes": row.weight_bytes,
        "index_bytes": row.index_bytes,
        "index_bits": row.index_bits or None,
        "fillers": row.fillers,
    }


def _energy_row(row: LayerEnergy) -> dict[str, Any]:
    return {
        "layer": row.path,
        "picojoules": row.operations + row.memory,
        "picojoules_operations": row.operations,
        "picojoules_memory": row.memory,
        "picojoules_pruned": row.operations_pruned + row.memory_pruned,
        "picojoules_operations_pruned": row.operations_pruned,
        "picojoules_memory_pruned": row.memory_pruned,
    }


def _beside(
    rows: list[dict[str, Any]], more: list[dict[str, Any]], name: str
) -> list[dict[str, Any]]:
    paths, others = [row["layer"] for row in rows], [row["layer"] for row in more]
    if paths != others:
        raise ValueError(f"the {name} is of {others}, expected {paths}.")
    return [a | b for a, b in zip(rows, more, strict=True)]
