"""Tables of a compressed network: what each layer takes, beside the paper's."""

import csv
import io
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from experiments import files
from experiments.models import Network
from jaxprune.compress import LayerSize, Sizes


class Paper(NamedTuple):
    """A row of the paper: bits of a weight and of an index, coded; share of 32 bits."""

    code_bits: float
    index_bits: float
    percent: float


PAPER: dict[str, dict[str, Paper]] = {
    "LeNet-300-100": {
        "fc1/kernel": Paper(4.4, 3.7, 2.32),
        "fc2/kernel": Paper(4.4, 4.3, 3.04),
        "fc3/kernel": Paper(4.3, 3.2, 12.70),
        "total": Paper(5.1, 3.7, 2.49),
    },
    "LeNet-5": {
        "conv1/kernel": Paper(7.2, 1.5, 67.45),
        "conv2/kernel": Paper(7.2, 3.9, 5.28),
        "fc1/kernel": Paper(4.5, 4.5, 2.45),
        "fc2/kernel": Paper(5.2, 3.7, 6.13),
        "total": Paper(4.1, 4.4, 2.55),
    },
}
"""Columns PQH of Han et al. 2016 (arXiv:1510.00149), tables 2 and 3."""

ERRORS = {"LeNet-300-100": (1.58, 27), "LeNet-5": (0.74, 44)}
"""Error in percent and size in KB of the same paper's table 1."""

COLUMNS = (
    *("seed", "judged_on", "bits", "bias_bits", "pruned_error", "error", "file_bytes"),
    *("dense_bytes", "ratio", "alive", "code_bytes", "index_bytes"),
    *("codebook_bytes", "book_bytes", "value_bytes", "header_bytes", "train_seconds"),
)

_LAYER = (
    *("path", "weights", "alive", "clusters", "gap_bits", "fillers", "dense_bytes"),
    *("code_bytes", "index_bytes", "codebook_bytes", "book_bytes", "value_bytes"),
    *("bytes", "code_bits", "index_bits"),
)
_PAPER = ("paper_code_bits", "paper_index_bits", "percent", "paper_percent")


def row(found: Sizes) -> dict[str, Any]:
    """Gives what a whole file takes."""
    total = found.total
    return {
        "file_bytes": found.file_bytes,
        "dense_bytes": total.dense_bytes,
        "ratio": round(total.dense_bytes / found.file_bytes, 2),
        "alive": total.alive,
        "code_bytes": total.code_bytes,
        "index_bytes": total.index_bytes,
        "codebook_bytes": total.codebook_bytes,
        "book_bytes": total.book_bytes,
        "value_bytes": total.value_bytes,
        "header_bytes": found.header_bytes,
    }


def write_layers(path: Path, found: Sizes, network: Network) -> None:
    """Writes what each layer takes as CSV; header and total make up the file."""
    paper = PAPER[network.name]
    lines: list[dict[str, Any]] = []
    for layer in (*found.layers, found.total):
        known = paper.get(layer.path)
        line = {name: getattr(layer, name) for name in _LAYER}
        line |= {name: round(line[name], 3) for name in ("code_bits", "index_bits")}
        line["percent"] = round(_percent(layer), 3)
        if known:
            line |= dict(
                zip(("paper_code_bits", "paper_index_bits"), known, strict=False)
            )
            line["paper_percent"] = known.percent
        lines.append(line)
    lines.append({"path": "header and table", "bytes": found.header_bytes})
    lines.append({"path": "file", "bytes": found.file_bytes})
    _write(path, lines, (*_LAYER, *_PAPER))


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Writes the table of seeds."""
    _write(path, rows, COLUMNS)


def show(found: Sizes, about: dict[str, Any], network: Network) -> None:
    """Prints what each layer takes, beside the paper's bits and shares."""
    paper = PAPER[network.name]
    table = Table(title=f"{network.name}, seed {about['seed']}", title_justify="left")
    table.add_column("layer")
    for name in ("alive", "code", "paper", "index", "paper", "bytes", "of", "paper"):
        table.add_column(name, justify="right")
    for layer in (*found.layers, found.total):
        if layer is found.total:
            table.add_section()
        known = paper.get(layer.path)
        coded = layer.gap_bits or layer is found.total
        table.add_row(
            layer.path,
            f"{layer.alive:,}",
            f"{layer.code_bits:.2f}" if coded else "",
            f"{known.code_bits:g}" if known else "",
            f"{layer.index_bits:.2f}" if coded else "",
            f"{known.index_bits:g}" if known else "",
            f"{layer.bytes:,}",
            f"{_percent(layer):.2f}%",
            f"{known.percent:g}%" if known else "",
        )
    for name, size in (
        ("header, table", found.header_bytes),
        ("file", found.file_bytes),
    ):
        table.add_row(name, "", "", "", "", "", f"{size:,}", "", "")
    Console().print(table)


def show_rows(rows: Sequence[dict[str, Any]], network: Network, folder: Path) -> None:
    """Prints a row for each seed, mean and sample standard deviation."""
    error, kilobytes = ERRORS[network.name]
    table = Table(title=f"{network.name}, {rows[0]['judged_on']}", title_justify="left")
    for name in ("seed", "error, pruned", "compressed", "bytes", "ratio"):
        table.add_column(name, justify="right")
    names = ("pruned_error", "error", "file_bytes", "ratio")
    forms = ("{:.3f}%", "{:.3f}%", "{:,.0f}", "{:.1f}x")
    add = lambda label, values: table.add_row(
        label, *(form.format(value) for form, value in zip(forms, values, strict=True))
    )
    for line in rows:
        add(str(line["seed"]), [line[name] for name in names])
    if len(rows) > 1:
        table.add_section()
        for label, of in (("mean", statistics.mean), ("sd", statistics.stdev)):
            add(label, [of(line[name] for line in rows) for name in names])
    console = Console()
    console.print(table)
    console.print(
        f"The paper: {error}% in {kilobytes} KB, on the test digits of all of MNIST. "
        f"Files and tables: {folder}",
        soft_wrap=True,
        highlight=False,
    )


def _percent(layer: LayerSize) -> float:
    return 100 * layer.bytes / max(layer.dense_bytes, 1)


def _write(path: Path, lines: Sequence[dict[str, Any]], columns: Sequence[str]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    files.write_text(path, text.getvalue())
