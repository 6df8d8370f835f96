"""The picture of a scan, as the paper's figure 6: a line for each layer."""

from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

import jaxprune
from experiments import figures


_LINES = 8  # in one panel, at most


def draw(path: Path, scan: jaxprune.Scan, title: str, metric: str) -> None:
    """Draws the metric over the share of weights left, for each layer pruned alone.

    Args:
      path: PNG to write.
      scan: what to draw.
      title: stands above.
      metric: stands beside the axis.
    """
    layers = list(scan.curves)
    panels = -(-len(layers) // _LINES)
    lines = -(-len(layers) // panels)
    least = min(curve.values.min() for curve in scan.curves.values())
    figure = Figure(figsize=(1.5 + 4.2 * panels, 4.6), layout="constrained")
    colors = colormaps["tab10"](range(_LINES))
    for n, axes in enumerate(np.ravel(figure.subplots(1, panels, sharey=True))):
        for color, layer in zip(
            colors, layers[n * lines : (n + 1) * lines], strict=False
        ):
            sparsities, values = scan.curves[layer]
            name = layer.removesuffix("/kernel")
            axes.plot(sparsities, values, "o-", ms=3, lw=1.2, color=color, label=name)
        axes.axhline(scan.value, color="#8a8a8a", lw=0.8, ls="--")
        axes.set(xlabel="share of the layer's weights dead", xlim=(0, 1))
        axes.xaxis.set_major_formatter(PercentFormatter(1.0))
        if least > 0:
            axes.set_yscale("log")
        else:  # a divergence begins at 0
            axes.set_yscale("symlog", linthresh=0.01)
            axes.set_ylim(bottom=min(0.0, least))
        axes.grid(alpha=0.25)
        axes.legend(frameon=False, fontsize=8)
        if n == 0:
            axes.set_ylabel(metric)
    figure.suptitle(title, fontsize=10)
    figures.save(figure, path)
