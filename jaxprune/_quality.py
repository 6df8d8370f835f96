"""From sparsities to the paper's quality parameters."""

import glob
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import PyTree

from jaxprune._checks import check_fraction
from jaxprune._counts import dead_number
from jaxprune._deviation import layer_std
from jaxprune._masks import map_masked
from jaxprune._paths import leaf_names, lookup
from jaxprune._types import Mask, Params


def to_quality(
    params: Params,
    mask: Mask,
    sparsities: Mapping[Any, float],
    *,
    std: PyTree | None = None,
) -> dict[str, float]:
    """Gives the quality parameters with which `by_std` prunes to given sparsities.

    With these params and this mask, `by_std(to_quality(params, mask, s))` kills the
    weights that `to_sparsity(magnitude, s)` kills. A threshold lies halfway between
    the largest weight to die and the smallest to live; of weights so close that float32
    has no number between them, one may fall on the other side.

    >>> import jax.numpy as jnp
    >>> params = {"w": jnp.array([[1.0, -2.0, 3.0, -6.0]])}
    >>> found = to_quality(params, {"w": jnp.ones((1, 4), bool)}, {"w": 0.5})
    >>> round(found["w"], 4)  # 2.5 over a deviation of 3.3912
    0.7372

    Args:
      params: trained params.
      mask: what is alive.
      sparsities: dead fractions in [0, 1) by glob or regular expression, as
        `to_sparsity` takes them, such as those of a `Solution`.
      std: as `by_std` is given it; the default is that of the live weights.

    Returns:
      Quality by path; none for a leaf of which nothing dies.

    Raises:
      ValueError: if `sparsities` is no mapping, a pattern matches no prunable leaf, a
        sparsity is outside [0, 1) or the mask does not fit.
    """
    if not isinstance(sparsities, Mapping):
        raise ValueError(
            f"sparsities is {sparsities!r}, expected a mapping from patterns, such as "
            "{'**': 0.5}."
        )
    std = layer_std(params, mask) if std is None else std
    leaves: list[tuple[str, Any, Any, Any]] = []
    map_masked(
        lambda w, m, sigma, name: leaves.append((name, w, m, sigma)),
        params, mask, std, leaf_names(params), elsewhere=lambda w: None,
    )  # fmt: skip
    found = {}
    shares = lookup(sparsities, [name for name, *_ in leaves], "sparsities")
    for (name, w, m, sigma), share in zip(leaves, shares, strict=True):
        if share is None:
            continue
        check_fraction(f"the sparsity of {name}", share)
        threshold = _threshold(np.asarray(w), np.asarray(m), share)
        if threshold is not None and float(sigma) > 0:
            found[glob.escape(name)] = float(threshold) / float(sigma)
    return found


def _threshold(w: np.ndarray, m: np.ndarray, share: float) -> float | None:
    """Gives a number between the magnitudes that die and those that live."""
    dead = dead_number(share, m.size) - np.count_nonzero(~m)
    live = w[m] if np.iscomplexobj(w) else w[m].astype(np.float64)  # |-128|
    magnitudes = np.sort(np.abs(live).astype(np.float64))
    if dead <= 0 or not magnitudes.size:
        return None
    least = magnitudes[dead]  # that lives; those tied with it live too
    below = magnitudes[: np.searchsorted(magnitudes, least)]
    return (below[-1] + least) / 2 if below.size else None
