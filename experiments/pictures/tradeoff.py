"""Error over compression as the paper's figure 5, a line a way to prune."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from experiments.pictures import read, style
from experiments.pictures.style import Look


LOOKS = {
    "l1": Look("#b4609b", "v", ":"),
    "l2": Look("#0072b2", "o", ":"),
    "l1 retrained": Look("#c98a00", "^"),
    "l2 retrained": Look("#009e73", "s"),
    "l2 iterative": Look("#d55e00", "D"),
}


def draw(path: Path, rows: read.Rows, lines: Sequence[str], title: str) -> Figure:
    """Draws mean and one sample standard deviation about it; gives the figure.

    Args:
      path: file to write.
      rows: of `experiments.tradeoff`: the seeds of each `line` at each `target`, with
        their `error` and `dense_error` in percent.
      lines: which lines, in the order of the legend.
      title: stands above.
    """
    figure = Figure(figsize=(8, 4.6), layout="constrained")
    axes = figure.subplots()
    for line in lines:
        mine = [row for row in rows if row["line"] == line]
        x, mean, spread = read.points(mine, "target", "error", above="dense_error")
        color, marker, dashes = LOOKS[line]
        label = line.capitalize() + ("" if " " in line else ", not retrained")
        axes.plot(
            x, mean, dashes, marker=marker, ms=5, lw=1.6, color=color, label=label
        )
        axes.fill_between(
            x, mean - spread, mean + spread, color=color, alpha=0.13, lw=0
        )
    axes.axhline(0, color=style.DARK, lw=0.8)
    targets = sorted({float(row["target"]) for row in rows})
    style.multiples(axes, targets)
    axes.set_yscale("symlog", linthresh=1, linscale=0.7)
    axes.set_yticks([-10, -5, -2, -1, -0.5, 0, 0.5, 1, 2, 5, 10, 20, 50])
    axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    axes.minorticks_off()
    above = [float(row["error"]) - float(row["dense_error"]) for row in rows]
    axes.set_ylim(min(-0.7, 1.3 * min(above)), max(1.5, 1.3 * max(above)))
    axes.set(
        xlabel="compression of the weights",
        ylabel="error above the dense net's, points",
    )
    style.plain(axes)
    axes.legend(frameon=False, fontsize=10, loc="best")
    axes.set_title(title, fontsize=10)
    style.save(figure, path)
    return figure
