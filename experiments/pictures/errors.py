"""Error over compression of the LeNets on MNIST: recipes, and what others had."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.pictures import read, style
from experiments.pictures.style import Look


LOOKS = {
    "augmented": Look("#cc79a7", "D"),
    "best": Look("#0072b2", "o"),
    "gradual": Look("#009e73", "s"),
    "paper": Look("#d55e00", "^"),
}
HALO = patheffects.withStroke(linewidth=2.5, foreground="white")
FLAGS = {"augmented": "best --augment"}


def draw(
    path: Path,
    networks: Mapping[str, Mapping[str, read.Rows]],
    published: read.Rows,
    labels: Mapping[str, Mapping[str, tuple[float, float, str]]],
) -> Figure:
    """Draws a panel a network; error bars are one sample standard deviation.

    Args:
      path: file to write.
      networks: for each network the rows of each recipe: "best" and "augmented", which
        is best with distorted digits, of `experiments.records`, the others of seeds.csv
        of a run of several seeds.
      published: method, compression and error of others, by network.
      labels: for each network and each published point, as "method at 12x", where its
        name stands: points to the right and above, and how it is aligned.
    """
    figure = Figure(figsize=(9, 4.4), layout="constrained")
    panels = figure.subplots(1, len(networks), squeeze=False)[0]
    for axes, (name, recipes) in zip(panels, networks.items(), strict=True):
        _recipes(axes, recipes)
        theirs = [row for row in published if row["network"] == name]
        for row in theirs:
            x, y = float(row["compression_weights"]), float(row["error"])
            axes.plot(x, y, "*", ms=9, color=style.DARK, ls="none", zorder=4)
            dx, dy, side = labels[name].get(
                f"{row['method']} at {x:g}x", (7.0, -3.0, "left")
            )
            axes.annotate(
                f"{row['method']} {row['year']}",
                (x, y),
                (dx, dy),
                textcoords="offset points",
                ha=side,
                fontsize=8.5,
                color=style.DARK,
                path_effects=[HALO],
            )
        axes.plot([], [], "*", ms=9, color=style.DARK, label="published by others")
        ticks = {12.0, *(float(row["compression_weights"]) for row in theirs)}
        ticks |= {
            float(r["target"][:-1]) for r in recipes["best"] if r["target"] != "dense"
        }
        # Those too close to their neighbour would overlap.
        shown = [t for t in sorted(ticks) if t not in (56.0, 108.0)]
        style.multiples(axes, shown)
        axes.set_title(name, fontsize=11)
        axes.set(xlabel="compression of the weights")
        axes.margins(x=0.12, y=0.12)
        low, high = axes.get_ylim()
        axes.set_ylim(low, high + 0.08 * (high - low))  # room for the legend
        style.plain(axes)
        axes.legend(*_last_first(axes), frameon=False, fontsize=9, loc="upper left")
    panels[0].set_ylabel("test error, % of 10,000 digits")
    style.save(figure, path)
    return figure


def _recipes(axes: Axes, recipes: Mapping[str, read.Rows]) -> None:
    dense = [row for row in recipes["best"] if row["target"] == "dense"]
    _, mean, spread = read.points(dense, "compression_weights", "error")
    axes.axhline(mean[0], color=style.GREY, lw=1, ls="--")
    axes.axhspan(
        mean[0] - spread[0], mean[0] + spread[0], color=style.GREY, alpha=0.15, lw=0
    )
    axes.annotate(
        "dense",
        (0.72, mean[0]),
        (0, -11),
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        ha="left",
        fontsize=8.5,
        color=style.DARK,
    )
    for recipe, rows in recipes.items():
        color, marker, _ = LOOKS[recipe]
        if recipe in ("best", "augmented"):
            rows = [row for row in rows if row["target"] != "dense"]
            x, mean, spread = read.points(rows, "compression_weights", "error")
        else:  # Seeds of one recipe end at compressions that differ a little.
            same = [dict(row) | {"all": "0"} for row in rows]
            _, mean, spread = read.points(same, "all", "error")
            x = read.points(same, "all", "compression_weights").mean
        axes.errorbar(
            x,
            mean,
            spread,
            fmt=f"{marker}-",
            ms=6,
            lw=1.6,
            capsize=3,
            color=color,
            label=f"--recipe {FLAGS.get(recipe, recipe)}, {read.seeds(rows)}",
            zorder=5,
        )


def _last_first(axes: Axes) -> tuple[list[Any], list[str]]:
    """Gives the legend with the points of others, drawn first there, at its end."""
    handles, names = axes.get_legend_handles_labels()
    return [*handles[1:], handles[0]], [*names[1:], names[0]]
