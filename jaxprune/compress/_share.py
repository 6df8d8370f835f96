"""Sharing the weights of a whole tree: from params and mask to codes."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from jaxprune._masks import check_mask, map_masked
from jaxprune._paths import Pattern, leaf_names, lookup
from jaxprune._types import Mask, Params
from jaxprune.compress._kmeans import Init, check_settings, share_weights


def share(
    params: Params,
    mask: Mask,
    bits: int | Mapping[Pattern, int],
    *,
    init: Init = "linear",
    seed: int = 0,
) -> tuple[Params, PyTree]:
    """Makes the live weights of each pruned leaf share 2**bits values, on the host.

    Each leaf has a codebook of its own, by `share_weights`. Centroids are rounded to
    the dtype of their leaf.

    >>> params = {"w": np.float32([0, 1, 3, 8])}
    >>> params, codes = share(params, {"w": params["w"] != 0}, 1)
    >>> params["w"], codes["w"]
    (array([0., 2., 2., 8.], dtype=float32), array([0, 1, 1, 2], dtype=uint8))

    Args:
      params: trained, pruned params.
      mask: their mask; leaves that it does not cover stay as they are.
      bits: index width, for all leaves or by glob or regular expression of their paths;
        the first that matches counts, and a leaf that none matches is left alone.
      init: as in `share_weights`.
      seed: as in `share_weights`.

    Returns:
      Params whose live weights are shared and whose dead ones are zero; and codes, an
      array of unsigned integers for each shared leaf: 0 where the weight is dead, and
      one more than the number of its cluster where it is alive. `None` elsewhere.

    Raises:
      ValueError: if the mask does not fit the params or covers no leaf, if a key of
        `bits` matches no prunable leaf, if a leaf is complex, or as `share_weights`,
        naming the leaf.

    Source:
      Han et al. 2016 (arXiv:1510.00149), section 3: within a layer, never across.
    """
    check_mask(params, mask)
    for width in bits.values() if isinstance(bits, Mapping) else [bits]:
        check_settings(width, init)
    names = leaf_names(params)
    widths = _widths(params, mask, names, bits)

    def at_leaf(p: Any, m: Any, name: str) -> tuple[Any, Any]:
        width = widths.get(name)
        return (
            (p, None) if width is None else _share_leaf(p, m, name, width, init, seed)
        )

    pairs = map_masked(at_leaf, params, mask, names, elsewhere=lambda p: (p, None))
    structure = jax.tree.structure(params)
    shared, codes = zip(*structure.flatten_up_to(pairs), strict=True)
    return structure.unflatten(shared), structure.unflatten(codes)


def _widths(params: Params, mask: Mask, names: Any, bits: Any) -> dict[str, int]:
    prunable = map_masked(
        lambda p, m, name: name, params, mask, names, elsewhere=lambda p: None
    )
    prunable = jax.tree.leaves(prunable)
    if not prunable:
        raise ValueError(
            "the mask covers no leaf, expected one whose weights are to be shared; "
            "jaxprune.dense_mask(params) makes such a mask."
        )
    if not isinstance(bits, Mapping):
        bits = {"**": bits}
    found = lookup(bits, prunable, "bits")
    return {n: b for n, b in zip(prunable, found, strict=True) if b is not None}


def _share_leaf(
    p: Any, m: Any, name: str, bits: int, init: Init, seed: int
) -> tuple[Any, Any]:
    dense, alive = np.asarray(p), np.asarray(m)
    if np.iscomplexobj(dense):
        raise ValueError(f"{name} is {dense.dtype}, expected real weights.")
    codes = np.zeros(dense.shape, np.uint32)
    shared = np.zeros_like(dense)
    if alive.any():
        try:
            indices, centroids = share_weights(
                dense[alive].astype(np.float32), bits, init=init, seed=seed
            )
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        codes[alive] = indices + np.uint32(1)
        shared[alive] = centroids.astype(dense.dtype)[indices]
    codes = codes.astype(np.min_scalar_type(codes.max(initial=0)))
    return _like(p, shared), _like(p, codes)


def _like(p: Any, x: np.ndarray) -> Any:
    return jax.device_put(x, p.sharding) if isinstance(p, jax.Array) else x
