"""The points of a scan, in memory and in a file from which a scan goes on."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, TypeAlias

import jax
import numpy as np
from jaxtyping import PyTree

from jaxprune._paths import leaf_names
from jaxprune._types import Mask, Params
from jaxprune._whole import write_whole


class Point(NamedTuple):
    """One measurement of a scan.

    Attributes:
      leaf: path of the leaf that is not at its base; "" where all are.
      dead: how many of its weights are dead; 0 where all are at their base.
      value: the metric.
    """

    leaf: str
    dead: int
    value: float


Known: TypeAlias = dict[tuple[str, int], float]  # values by leaf and dead


def begin(path: Path, about: str) -> Known:
    """Makes the file of a scan, or reads the points of one that was interrupted.

    The file is a line of JSON for what the scan is of, and one for each point. A last
    line that a kill cut off is dropped.

    Args:
      path: the file.
      about: what `fingerprint` gives.

    Raises:
      ValueError: if the file is that of another scan, or of something else.
    """
    known = _read(path, about) if path.exists() else {}
    lines = [{"scan": about}, *([*key, value] for key, value in known.items())]
    write_whole(path, "".join(json.dumps(line) + "\n" for line in lines).encode())
    return known


def append(path: Path, point: Point) -> None:
    """Adds a point to a file that `begin` made."""
    with path.open("a") as file:
        file.write(json.dumps(list(point)) + "\n")


def fingerprint(
    params: Params,
    mask: Mask,
    scores: PyTree,
    base: Mapping[str, int],
    *,
    retrained: bool,
) -> str:
    """Gives a string that tells a scan from one of other params, scores or base."""
    digest = hashlib.sha256(json.dumps([dict(base), retrained]).encode())
    for tree in (params, mask, scores):
        pairs = zip(
            jax.tree.leaves(leaf_names(tree)), jax.tree.leaves(tree), strict=True
        )
        for name, leaf in pairs:
            array = np.asarray(leaf)
            digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _read(path: Path, about: str) -> Known:
    lines = []
    try:
        head, *lines = path.read_text().splitlines()
        fits = json.loads(head)["scan"] == about
    except (ValueError, TypeError, KeyError):
        fits = False
    if not fits:
        raise ValueError(
            f"{path} does not hold points of this scan: other params, mask, base or "
            "scores by the criterion, retraining where there was none, or another file "
            "altogether; choose another file, or delete it."
        )
    known: Known = {}
    for text in lines:
        try:
            leaf, dead, value = json.loads(text)
        except ValueError:
            break
        known[leaf, dead] = value
    return known
