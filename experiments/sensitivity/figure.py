"""The picture of a scan, as the paper's figure 6: a line for each layer."""

from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator, PercentFormatter

import jaxprune
from experiments.pictures import style


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
    most = max(curve.values.max() for curve in scan.curves.values())
    high, wide = -(-panels // 2), min(panels, 2)
    size = (
        1.5 + (3.3 if wide > 1 else 4.2) * wide,
        0.6 + (2.8 if high > 1 else 3.8) * high,
    )
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(high, wide, sharex=True, sharey=True, squeeze=False)
    for axes in grid.ravel()[panels:]:
        axes.set_axis_off()
    for n, axes in enumerate(grid.ravel()[:panels]):
        mine = layers[n * lines : (n + 1) * lines]
        for (color, marker, _), layer in zip(style.LOOKS, mine, strict=False):
            sparsities, values = scan.curves[layer]
            name = layer.removesuffix("/kernel")
            axes.plot(
                sparsities,
                values,
                f"{marker}-",
                ms=4,
                lw=1.3,
                color=color,
                label=name,
            )
        axes.axhline(scan.value, color=style.GREY, lw=0.8, ls="--")
        axes.set(xlim=(0, 1.02))
        axes.xaxis.set_major_formatter(PercentFormatter(1.0))
        if least > 0:
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_minor_locator(NullLocator())
        else:  # a divergence begins at 0
            axes.set_yscale("symlog", linthresh=0.01)
            axes.set_ylim(min(0.0, least), 2 * most)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
        style.plain(axes)
        axes.legend(frameon=False, fontsize=9, loc="upper left")
        if n % wide == 0:
            axes.set_ylabel(metric)
        if n + wide >= panels:
            axes.set_xlabel("dead weights of the layer")
            axes.tick_params(labelbottom=True)
    figure.suptitle(title, fontsize=10)
    style.save(figure, path)
