"""What a mask is worth: the pruned network beside its controls."""

from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from experiments.pictures import read, style
from experiments.pictures.style import Look


LOOKS = {
    "pruned": ("pruned, its weights kept", Look("#0072b2", "o")),
    "scratch": ("same mask, trained from scratch", Look("#009e73", "s")),
    "small dense": ("a narrower dense net", Look("#c98a00", "v")),
    "random mask": ("a random mask", Look("#d55e00", "^", "--")),
    "new weights": ("same mask, new weights", Look("#b4609b", "D", "--")),
    "shuffled": ("weights shuffled within layers", Look("#222222", "X", "--")),
}


def draw(path: Path, rows: read.Rows, title: str) -> Figure:
    """Draws mean errors; bars are one sample standard deviation where seeds are two."""
    figure = Figure(figsize=(9, 4.4), layout="constrained")
    axes = figure.subplots()
    for control, (label, (color, marker, dashes)) in LOOKS.items():
        mine = [row for row in rows if row["control"] == control]
        x, mean, spread = read.points(mine, "target", "error")
        axes.errorbar(
            x,
            mean,
            spread,
            fmt=f"{marker}{dashes}",
            ms=5,
            lw=1.6,
            capsize=3,
            color=color,
            label=label,
        )
    dense = {row["seed"]: float(row["dense_error"]) for row in rows}.values()
    axes.axhline(
        sum(dense) / len(dense), color=style.GREY, lw=1, ls="--", label="dense"
    )
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    ticks = (2, 2.5, 3, 4, 5, 6, 8, 10, 15, 20, 25, 30, 40)
    axes.set_yticks([tick for tick in ticks if low <= tick <= high])
    axes.minorticks_off()
    axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    style.multiples(axes, sorted({float(row["target"]) for row in rows}))
    axes.set(xlabel="compression of the weights", ylabel="test error, %")
    style.plain(axes)
    axes.legend(frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(1, 1))
    axes.set_title(title, fontsize=10)
    style.save(figure, path)
    return figure
