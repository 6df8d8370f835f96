"""How the pictures look: colors, shapes, and the file."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from experiments.files import whole_file


GREY, DARK = "#8a8a8a", "#4a4a4a"


class Look(NamedTuple):
    """A line's color, marker and dashes; no two lines differ by color alone."""

    color: str
    marker: str
    dashes: str = "-"


LOOKS = (
    Look("#0072b2", "o"),
    Look("#d55e00", "s"),
    Look("#009e73", "^"),
    Look("#b4609b", "D"),
    Look("#c98a00", "v"),
    Look("#4aa3df", "P"),
    Look("#222222", "X"),
    Look("#7a5230", "<"),
)
"""Colors that most people tell apart, by Okabe and Ito, some darker than theirs."""


def multiples(axes: Axes, values: Sequence[float]) -> None:
    """Labels a logarithmic axis of compressions with these, as 12x."""
    axes.set_xscale("log")
    axes.set_xticks(list(values), [f"{v:g}x" for v in values])
    axes.minorticks_off()


def plain(axes: Axes) -> None:
    """Draws a faint grid, and no frame above and on the right."""
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def save(figure: Figure, path: Path) -> None:
    """Writes a small PNG whole: 200 pixels an inch, on white, 256 colors.

    It has no transparent parts, so that its black text can be read on a dark page.
    """
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=200, format="png", facecolor="white")
    with Image.open(drawn) as image:
        # By coverage, or else rare colors, which lines have, would be merged.
        few = image.convert("RGB").quantize(
            256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE
        )
    with whole_file(path) as part:
        few.save(part, format="PNG", optimize=True)
