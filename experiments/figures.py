"""Pictures of a run, as PNG."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, PercentFormatter

from experiments.files import whole_file


_BLUE, _RED, _GREY = "#1f5fa8", "#c0392b", "#8a8a8a"


def curves(
    path: Path, log: Path, phases: Sequence[tuple[int, str]], title: str
) -> None:
    """Draws loss, training error and sparsity over steps, one above the other.

    Args:
      path: file to write.
      log: metrics.jsonl of the run.
      phases: first step and name of each part of the run.
      title: stands above.
    """
    lines = [json.loads(text) for text in log.read_text().splitlines()]
    read = [line for line in lines if "loss" in line]
    held = [line for line in lines if "held_out_error" in line]
    steps = [line["step"] for line in read]
    figure = Figure(figsize=(8, 7), layout="constrained")
    loss, error, sparsity = figure.subplots(3, 1, sharex=True)
    loss.plot(steps, [line["loss"] for line in read], color=_BLUE)
    loss.set(ylabel="loss with penalty", yscale="log")
    loss.yaxis.set_major_formatter(FuncFormatter(_plain))
    loss.yaxis.set_minor_formatter(FuncFormatter(_plain))
    error.plot(
        steps, [line["train_error"] for line in read], color=_BLUE, label="training"
    )
    if held:
        error.plot(
            [line["step"] for line in held],
            [line["held_out_error"] for line in held],
            color=_RED,
            label="held-out",
        )
        error.legend(frameon=False)
    error.set(ylabel="error, % of digits")
    error.set_ylim(0, 1.15 * _typical(read + held))
    sparsity.plot(
        steps, [line["sparsity"] for line in read], color=_BLUE, drawstyle="steps-pre"
    )
    sparsity.set(ylabel="sparsity", xlabel="step", ylim=(0, 1.02))
    sparsity.yaxis.set_major_formatter(PercentFormatter(1.0))
    for axes in (loss, error, sparsity):
        axes.grid(alpha=0.25)
        for begin, _ in phases[1:]:
            axes.axvline(begin, color=_GREY, lw=0.8, ls="--")
    sparsity.set_xlim(0, max(steps))
    for begin, name in phases:
        label = loss.annotate(
            f" {name}",
            (begin, 1.0),
            xycoords=("data", "axes fraction"),
            va="bottom",
            fontsize=8,
            color=_GREY,
        )
        label.set_in_layout(False)
    loss.set_title(" ", fontsize=8)  # room for the names of the phases
    figure.suptitle(title)
    save(figure, path)


def _plain(value: float, _: int) -> str:
    """Labels a tick of a logarithmic axis, at 1, 2 and 5 of each decade only."""
    first = f"{value:.0e}"[0]
    return f"{value:g}" if first in "125" else ""


def _typical(lines: Sequence[dict[str, Any]]) -> float:
    """Gives the error that the axis should reach: the first lines may be far above."""
    errors = [line.get("train_error", line.get("held_out_error", 0)) for line in lines]
    later = errors[len(errors) // 20 :]
    return max([*later, 0.5])


def histograms(
    path: Path, before: Any, after: Any, mask: Any, titles: tuple[str, str]
) -> None:
    """Draws the weights of each pruned layer, before and after, live ones only.

    Args:
      path: file to write.
      before: params before pruning.
      after: params after pruning.
      mask: which weights of `after` live; all of `before` are shown.
      titles: what stands above the two columns.
    """
    rows = _pruned_layers(before, after, mask)
    figure = Figure(figsize=(9.5, 2.1 * len(rows) + 0.5), layout="constrained")
    grid = figure.subplots(len(rows), 2, squeeze=False)
    for (name, dense, live), (left, right) in zip(rows, grid, strict=True):
        spread = np.quantile(np.abs(np.concatenate([dense, live])), 0.999)
        bins = np.linspace(-spread, spread, 101)
        for axes, weights in ((left, dense), (right, live)):
            axes.margins(y=0.2)
            axes.hist(np.clip(weights, -spread, spread), bins, color=_BLUE)
            axes.set_xlim(-spread, spread)
            axes.grid(alpha=0.25)
            axes.annotate(
                f"{len(weights):,} weights",
                (0.98, 0.95),
                xycoords="axes fraction",
                ha="right",
                va="top",
                fontsize=8,
            )
        left.set_ylabel(f"{name}\nweights per bin")
    for axes, title in zip(grid[0], titles, strict=True):
        axes.set_title(title, fontsize=10)
    for axes in grid[-1]:
        axes.set_xlabel("weight")
    save(figure, path)


def _pruned_layers(
    before: Any, after: Any, mask: Any
) -> list[tuple[str, np.ndarray, np.ndarray]]:
    rows = []
    masks = {
        jax.tree_util.keystr(key, simple=True, separator="/"): np.asarray(m)
        for key, m in jax.tree_util.tree_leaves_with_path(mask)
    }
    for (key, old), new in zip(
        jax.tree_util.tree_leaves_with_path(before), jax.tree.leaves(after), strict=True
    ):
        name = jax.tree_util.keystr(key, simple=True, separator="/")
        if name in masks:
            live = np.asarray(new)[masks[name]]
            rows.append((name.split("/")[0], np.asarray(old).ravel(), live))
    return rows


def bands(path: Path, mask: np.ndarray, title: str) -> None:
    """Draws the mask of a first layer as the paper's figure 4: a band per image row.

    Args:
      path: file to write.
      mask: (784, units), True where a weight lives.
      title: stands above.
    """
    pixels, units = mask.shape
    side = round(pixels**0.5)
    figure = Figure(figsize=(13, 5.4), layout="constrained")
    axes = figure.subplots()
    rows, columns = np.nonzero(mask.T)
    axes.scatter(columns, rows, s=0.6, marker="s", linewidths=0, color=_BLUE)
    for x in range(side, pixels, side):
        axes.axvline(x - 0.5, color=_GREY, lw=0.4)
    axes.set(xlim=(-0.5, pixels - 0.5), ylim=(units - 0.5, -0.5))
    axes.set_xticks([side * r + side / 2 - 0.5 for r in range(0, side, 3)])
    axes.set_xticklabels([str(r + 1) for r in range(0, side, 3)])
    axes.tick_params(axis="x", length=0)
    axes.set_xlabel(f"row of the image, {side} pixels in each band")
    axes.set_ylabel("unit of the layer")
    axes.set_title(title, fontsize=11)
    save(figure, path)


def attention(path: Path, mask: np.ndarray, title: str) -> None:
    """Draws how many weights of a first layer look at each pixel.

    Args:
      path: file to write.
      mask: (784, units), True where a weight lives.
      title: stands above.
    """
    side = round(mask.shape[0] ** 0.5)
    figure = Figure(figsize=(5.2, 4.4), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(mask.sum(1).reshape(side, side), cmap="viridis", vmin=0)
    figure.colorbar(image, ax=axes, label="live weights")
    axes.set(xlabel="column of the image", ylabel="row of the image")
    axes.set_title(title, fontsize=10)
    save(figure, path)


def save(figure: Figure, path: Path) -> None:
    """Writes a picture whole."""
    with whole_file(path) as part:
        figure.savefig(part, dpi=130, format="png")
