"""Weights before pruning and after retraining, as the paper's figure 7."""

import csv
import io
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from experiments import files
from experiments.pictures import read, style


COLUMNS = ("layer", "when", "low", "high", "weights")
_BINS = 81


def write(path: Path, layers: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    """Writes histograms as a table.

    Args:
      path: CSV to write.
      layers: by name, the weights before pruning, and the live ones after retraining.
        Bins reach to the 99.9% quantile of their size; the outer two hold the rest.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for layer, (before, after) in layers.items():
        spread = np.quantile(np.abs(np.concatenate([before, after])), 0.999)
        edges = np.linspace(-spread, spread, _BINS + 1)
        for when, weights in (("before", before), ("after", after)):
            counts, _ = np.histogram(np.clip(weights, -spread, spread), edges)
            for low, high, count in zip(edges, edges[1:], counts, strict=False):
                writer.writerow((layer, when, f"{low:.6f}", f"{high:.6f}", count))
    files.write_text(path, text.getvalue())


def draw(path: Path, rows: read.Rows, title: str) -> Figure:
    """Draws a row a layer: all weights before on the left, live ones on the right."""
    layers = list(dict.fromkeys(row["layer"] for row in rows))
    figure = Figure(figsize=(8, 1.4 + 1.6 * len(layers)), layout="constrained")
    grid = figure.subplots(len(layers), 2, sharex="row", squeeze=False)
    sides = ("before", "all {:,} weights"), ("after", "{:,} live weights")
    for layer, panels in zip(layers, grid, strict=True):
        for axes, (when, which), look in zip(panels, sides, style.LOOKS, strict=False):
            mine = [r for r in rows if (r["layer"], r["when"]) == (layer, when)]
            edges = [*(float(r["low"]) for r in mine), float(mine[-1]["high"])]
            counts = [int(r["weights"]) for r in mine]
            axes.stairs(counts, edges, fill=True, color=look.color)
            axes.set_ylim(0, 1.3 * max(counts))
            axes.annotate(
                which.format(sum(counts)),
                (0.99, 0.97),
                xycoords="axes fraction",
                ha="right",
                va="top",
                fontsize=9,
            )
            axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,.0f}"))
            style.plain(axes)
        panels[0].set_ylabel(f"{layer}\nin a bin")
    grid[0][0].set_title("before pruning", fontsize=10)
    grid[0][1].set_title("pruned and retrained", fontsize=10)
    figure.supxlabel("weight (the outermost bins hold all beyond)", fontsize=10)
    figure.suptitle(title, fontsize=11)
    style.save(figure, path)
    return figure
