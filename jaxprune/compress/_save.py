"""Saving pruned params as one small file, and loading them."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune._masks import check_mask, map_masked
from jaxprune._paths import leaf_name, leaf_names, nested
from jaxprune._types import Mask, Params
from jaxprune._whole import whole_file
from jaxprune.compress import _file
from jaxprune.compress._huffman import CorruptError
from jaxprune.compress._leaf import decode_leaf, encode_leaf
from jaxprune.compress._streams import Coder
from jaxprune.compress._table import LARGEST, check_dtype


def save(
    path: str | PathLike[str],
    params: Params,
    mask: Mask | None = None,
    *,
    coder: Coder = "range",
    graph: bytes | None = None,
) -> None:
    """Writes params and their mask as one file, whole or not at all.

    Live weights that share values, as after `share`, take a codebook and a code each;
    others, and leaves that the mask does not cover, are stored as they are. Nothing is
    rounded: `load` gives back the same bits. Positions of live weights are coded as
    gaps, of as many bits in each leaf as make it smallest, or by the range coder as a
    map, if that is smaller.

    Args:
      path: the file, written under another name first and then renamed.
      params: any pytree of arrays. Dead weights are zero.
      mask: their mask; `None` where nothing is pruned.
      coder: "range", an adaptive range coder, which needs the package constriction to
        write and to read; or "huffman", canonical Huffman codes, which need NumPy
        alone and take 1 to 10% more.
      graph: what `jax.export` serialized of a function of a dict of the leaves by
        path, and inputs; at most 64 MiB. `read_graph` gives it back.

    Raises:
      ImportError: if constriction is needed and not installed.
      OSError: if the file cannot be written.
      ValueError: naming the leaf, if the mask does not fit, a dead weight is not zero,
        two leaves have one path, or a leaf is no array of a dtype that the file can
        hold.

    Source:
      Han et al. 2016 (arXiv:1510.00149), sections 2 to 4.
    """
    if coder not in ("range", "huffman"):
        raise ValueError(f'coder is {coder!r}, expected "range" or "huffman".')
    if graph is not None and not 0 < len(graph) <= LARGEST:
        raise ValueError(f"graph has {len(graph):,} bytes, expected 1 to {LARGEST:,}.")
    leaves = []
    for name, p, m in named_leaves(params, mask):
        leaves.append((name, *encode_leaf(p, m, coder)))
    with whole_file(path) as part, open(part, "wb") as file:
        file.writelines(_file.compose(leaves, graph))


def load(
    path: str | PathLike[str], params_like: Params | None = None
) -> tuple[Params, Mask]:
    """Reads what `save` wrote, leaf by leaf.

    Args:
      path: the file.
      params_like: params, or their shapes, whose structure the result has; leaves that
        are JAX arrays there become such, with their sharding. `None` gives nested
        dicts, one for each part of a path, of NumPy arrays.

    Returns:
      The params, bit for bit as they were saved, with +0 for dead weights; and their
      mask, `None` where nothing is pruned.

    Raises:
      CorruptError: naming file and leaf, if it is damaged or no such file.
      ImportError: if constriction is needed and not installed.
      OSError: if the file cannot be opened.
      ValueError: if it holds other leaves than `params_like`, or of another shape or
        dtype; without `params_like`, if one path lies below another, as "a/b" below
        "a", for which there are no nested dicts.
    """
    with open(path, "rb") as file:
        with located(str(path)):
            contents = _file.read_contents(file, os.fstat(file.fileno()).st_size)
        wanted = None if params_like is None else _wanted(path, contents, params_like)
        leaves = {}
        for row in contents.rows:
            with located(f"{path}: {row.name}"):
                p, m = decode_leaf(row.leaf, _file.read_leaf(file, row))
            like = wanted[row.name] if wanted else None
            leaves[row.name] = (_like(like, p), None if m is None else _like(like, m))
        with located(str(path)):
            _file.read_graph(file, contents)  # only to see that it is whole
    if wanted is None:
        return _nested(path, leaves, 0), _nested(path, leaves, 1)
    structure = jax.tree.structure(params_like)
    params, mask = zip(*(leaves[name] for name in wanted), strict=True)
    return structure.unflatten(params), structure.unflatten(mask)


def load_flat(
    path: str | PathLike[str],
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Reads what `save` wrote as params and mask by path; one may lie below another.

    Raises:
      CorruptError, ImportError, OSError: as `load`.
    """
    with open(path, "rb") as file, located(str(path)):
        contents = _file.read_contents(file, os.fstat(file.fileno()).st_size)
    leaves = ((row.name, row.leaf) for row in contents.rows)
    return load(
        path, {name: jax.ShapeDtypeStruct(p.shape, p.dtype) for name, p in leaves}
    )


def read_graph(path: str | PathLike[str]) -> bytes | None:
    """Reads the `graph` that `save` was given; `None` if it was given none.

    Raises:
      CorruptError: naming the file, if it is damaged or no file of `save`.
      OSError: if the file cannot be opened.
    """
    with open(path, "rb") as file, located(str(path)):
        contents = _file.read_contents(file, os.fstat(file.fileno()).st_size)
        return _file.read_graph(file, contents)


def named_leaves(
    params: Params, mask: Mask | None
) -> Iterator[tuple[str, np.ndarray, np.ndarray | None]]:
    """Gives the leaves as NumPy arrays in tree order, after all have been checked."""
    masks: dict[str, Any] = {}
    if mask is not None:
        check_mask(params, mask)
        note = lambda p, m, name: masks.__setitem__(name, m)
        map_masked(note, params, mask, leaf_names(params), elsewhere=lambda p: None)
    named = {}
    for key, p in jax.tree_util.tree_leaves_with_path(params):
        name = leaf_name(key)
        if name in named:
            raise ValueError(f"two leaves have the path {name}, expected one each.")
        _check_array(name, p)
        named[name] = p
    for name, p in named.items():
        m = masks.get(name)
        p, m = np.asarray(p), None if m is None else np.asarray(m)
        if m is not None and (wrong := np.count_nonzero(p[~m])):
            raise ValueError(
                f"{wrong:,} dead weights of {name} are not zero; use "
                "jaxprune.apply_mask(params, mask)."
            )
        yield name, p, m


def _check_array(name: str, p: Any) -> None:
    leave_out = "leave it out, for instance by nnx.state(model, nnx.Param)"
    if not isinstance(p, np.ndarray | np.generic | jax.Array):
        raise ValueError(
            f"{name} is a {type(p).__name__}, expected an array; make it one, or "
            f"{leave_out}."
        )
    if jnp.issubdtype(p.dtype, jax.dtypes.prng_key):
        raise ValueError(
            f"{name} holds random keys, {p.dtype}, expected numbers; {leave_out}."
        )
    check_dtype(name, np.dtype(p.dtype))


@contextmanager
def located(where: str) -> Iterator[None]:
    """Says where in which file an error is, and makes one error of all."""
    try:
        yield
    except CorruptError as error:
        raise CorruptError(f"{where}: {error}.") from error
    except MemoryError as error:
        raise CorruptError(f"{where}: there is no memory for it: {error}.") from error


def _wanted(path: Any, contents: _file.Contents, params_like: Params) -> dict[str, Any]:
    """Compares a file with the params that it is to be loaded into."""
    leaves = jax.tree_util.tree_leaves_with_path(params_like)
    wanted = {leaf_name(key): like for key, like in leaves}
    found = {row.name: row.leaf for row in contents.rows}
    if missing := sorted(wanted.keys() ^ found.keys()):
        name = missing[0]
        where = "the file" if name in found else "params_like"
        raise ValueError(
            f"{path}: {name} is in {where} alone; expected the same leaves in both."
        )
    for name, like in wanted.items():
        leaf = found[name]
        if leaf.shape != like.shape or leaf.dtype != like.dtype:
            raise ValueError(
                f"{path}: {name} is {leaf.dtype} {leaf.shape}, expected {like.dtype} "
                f"{like.shape}."
            )
    return wanted


def _like(like: Any, x: np.ndarray) -> Any:
    if isinstance(like, jax.Array):
        return jax.device_put(x, like.sharding)
    sharding = getattr(like, "sharding", None)
    return x if sharding is None else jax.device_put(x, sharding)


def _nested(path: Any, leaves: dict[str, tuple[Any, Any]], which: int) -> Any:
    if list(leaves) == [""]:  # an array by itself
        return leaves[""][which]
    try:
        return nested({name: pair[which] for name, pair in leaves.items()})
    except ValueError as error:
        raise ValueError(f"{path}: {error}; give params_like.") from error
