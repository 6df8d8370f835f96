"""What each layer bears, as the paper's figure 6: digits' networks and SqueezeNet."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator, PercentFormatter

import jaxprune
from experiments.models import SQUEEZENET
from experiments.pictures import read, style


def scan_of(rows: read.Rows) -> jaxprune.Scan:
    """Makes a scan, without its sizes, of the table that an experiment wrote."""
    found: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        point = float(row["sparsity"]), float(row["value"])
        found.setdefault(row["layer"], []).append(point)
    curves = {
        layer: jaxprune.Curve(*np.array(sorted(points)).T)
        for layer, points in found.items()
    }
    first = rows[0]
    value = float(first["value"]) - float(first["change"])
    base = {layer: float(curve.sparsities[0]) for layer, curve in curves.items()}
    return jaxprune.Scan(value, base, curves, {})


def draw(path: Path, lines: Mapping[str, read.Rows], grid: read.Rows) -> Figure:
    """Draws a panel of lines for each small network, and one of tiles for SqueezeNet.

    Args:
      path: file to write.
      lines: scans of networks of few layers, by title.
      grid: scan of SqueezeNet, each layer at as many levels.
    """
    figure = Figure(figsize=(9.6, 4.6), layout="constrained")
    panels = figure.subplots(1, len(lines) + 1, width_ratios=[1.0] * len(lines) + [1.1])
    for axes, (title, rows) in zip(panels, lines.items(), strict=False):
        _curves(axes, rows)
        axes.set_title(title, fontsize=10)
    panels[0].set_ylabel("cross-entropy, one layer pruned")
    _tiles(figure, panels[-1], grid)
    style.save(figure, path)
    return figure


def _curves(axes: Axes, rows: read.Rows) -> None:
    scan = scan_of(rows)
    for (layer, curve), look in zip(scan.curves.items(), style.LOOKS, strict=False):
        axes.plot(
            curve.sparsities,
            curve.values,
            f"{look.marker}-",
            ms=4,
            lw=1.4,
            color=look.color,
            label=layer.removesuffix("/kernel"),
        )
    axes.axhline(scan.value, color=style.GREY, lw=0.8, ls="--")
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set(xlabel="dead weights of the layer", xlim=(0, 1.02))
    style.plain(axes)
    axes.legend(frameon=False, fontsize=9, loc="upper left")


def _tiles(figure: Figure, axes: Axes, rows: read.Rows) -> None:
    scan = scan_of(rows)
    layers = SQUEEZENET.groups["conv"]
    added = np.stack([scan.curves[path].values[1:] - scan.value for path in layers])
    # The levels leave each layer the same shares of its own live weights.
    alive = 1 - scan.curves[layers[0]].sparsities
    shares = [f"{100 * (1 - a / alive[0]):.0f}%" for a in alive[1:]]
    image = axes.imshow(
        np.maximum(added, 1e-3),
        aspect="auto",
        cmap="viridis",
        norm=LogNorm(1e-3, max(added.max(), 1.0)),
    )
    bar = figure.colorbar(image, ax=axes, label="divergence of the answers")
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    bar.ax.minorticks_off()
    names = [layer.removesuffix("/kernel") for layer in layers]
    axes.set_yticks(range(len(layers)), names, fontsize=7.5)
    axes.set_xticks(range(len(shares)), shares)
    axes.tick_params(length=0)
    axes.set(xlabel="of the layer's live weights pruned")
    axes.set_title("SqueezeNet, published weights", fontsize=10)
