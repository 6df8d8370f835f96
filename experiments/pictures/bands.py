"""Which pixels a first layer looks at: its mask in bands, and as an image."""

import csv
import io
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from experiments import files
from experiments.pictures import read, style


COLUMNS = ("unit", "live", "pixels")


def write(path: Path, mask: np.ndarray) -> None:
    """Writes a mask as a table: for each unit the pixels, row by row, that live.

    Args:
      path: CSV to write.
      mask: (pixels, units), True where a weight lives.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for unit, column in enumerate(mask.T):
        alive = np.flatnonzero(column)
        writer.writerow((unit, len(alive), " ".join(map(str, alive))))
    files.write_text(path, text.getvalue())


def mask_of(rows: read.Rows, pixels: int = 784) -> np.ndarray:
    """Reads what `write` wrote; gives (pixels, units)."""
    mask = np.zeros((pixels, len(rows)), bool)
    for row in rows:
        mask[[int(n) for n in row["pixels"].split()], int(row["unit"])] = True
    return mask


def draw(path: Path, mask: np.ndarray, title: str) -> Figure:
    """Draws the mask as the paper's figure 4, and how many weights read each pixel."""
    pixels, units = mask.shape
    side = round(pixels**0.5)
    figure = Figure(figsize=(9, 3.9), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(2.25, 1))
    left.imshow(mask.T, cmap="Greys", aspect="auto", interpolation="nearest")
    for x in range(side, pixels, side):
        left.axvline(x - 0.5, color="#d55e00", lw=0.3, alpha=0.6)
    rows = [1, 4, 7, 10, 13, 16, 19, 22, 25, 28]
    left.set_xticks([side * (r - 0.5) - 0.5 for r in rows], [str(r) for r in rows])
    left.tick_params(axis="x", length=0)
    left.set(xlabel="row of the image: a band of 28 pixels each", ylabel="unit")
    left.set_title("the mask: a dot for each live weight", fontsize=10)
    image = right.imshow(
        mask.sum(1).reshape(side, side),
        cmap="viridis",
        vmin=0,
        interpolation="nearest",
        extent=(0.5, side + 0.5, side + 0.5, 0.5),
    )
    figure.colorbar(image, ax=right, label="live weights", shrink=0.8)
    right.set_xticks([1, 7, 14, 21, 28])
    right.set_yticks([1, 7, 14, 21, 28])
    right.set(xlabel="column of the image", ylabel="row of the image")
    right.set_title(f"summed over {units} units", fontsize=10)
    figure.suptitle(title, fontsize=11)
    style.save(figure, path)
    return figure
