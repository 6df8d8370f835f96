"""What is pruned and what is not, leaf by leaf, on the host."""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jaxtyping import PyTree

from jaxprune._checks import check_arrays
from jaxprune._masks import check_mask, map_masked
from jaxprune._paths import leaf_name, leaf_names
from jaxprune._prune import PruneState
from jaxprune._types import Mask, Params


class LayerReport(NamedTuple):
    """One row of a pruning table.

    Attributes:
      path: the leaf's path, names joined by "/".
      shape: the leaf's shape.
      size: number of weights.
      alive: number of live weights; equal to `size` where nothing is pruned.
      prunable: whether the mask covers the leaf.
    """

    path: str
    shape: tuple[int, ...]
    size: int
    alive: int
    prunable: bool


def summarize(params: Params, mask: PyTree) -> list[LayerReport]:
    """Counts live weights leaf by leaf, in tree order.

    Counts come from the mask, not from zeros in the params: a live weight may be zero.
    Totals cover unpruned leaves too, as published compression ratios do. Counts are
    Python integers, so a model past 2**31 weights does not wrap.

    Raises:
      ValueError: if a mask leaf and its parameter differ in shape, or a leaf is no
        array.
    """
    check_mask(params, mask)
    check_arrays(params)
    rows = map_masked(
        lambda p, m, name: _row(name, p, int(np.count_nonzero(np.asarray(m)))),
        params,
        mask,
        leaf_names(params),
        elsewhere=lambda p: _row("", p, None),
    )
    is_row = lambda x: isinstance(x, LayerReport)
    return [
        row._replace(path=leaf_name(path))
        for path, row in jax.tree_util.tree_leaves_with_path(rows, is_leaf=is_row)
    ]


def _row(name: str, p: Any, alive: int | None) -> LayerReport:
    shape = tuple(np.shape(p))
    size = math.prod(shape)
    prunable = alive is not None
    return LayerReport(name, shape, size, alive if prunable else size, prunable)


def describe(params: Params, mask: PyTree, *, min_keep: int = 1) -> str:
    """Writes `summarize` as a table: every leaf, pruned or not, and why.

    >>> params = {"w": np.ones((2, 2)), "b": np.ones(2)}
    >>> mask = {"w": np.array([[True, False], [False, False]]), "b": None}
    >>> print(describe(params, mask))
    leaf   shape  weights  alive   kept
    b      2            2      2  100.0%  never pruned: fewer than 2 dimensions
    w      2x2          4      1   25.0%  at the floor of 1 live weight
    total               6      3   50.0%  compression 2.0 on all, 4.0 on prunable

    Args:
      params: the params.
      mask: their mask.
      min_keep: the floor that the schedule was given; a leaf that reached it is noted.

    Raises:
      ValueError: as `summarize`.
    """
    rows = summarize(params, mask)
    size, alive = sum(r.size for r in rows), sum(r.alive for r in rows)
    pruned = [r for r in rows if r.prunable]
    note = f"compression {_ratio(size, alive)} on all, " + _ratio(
        sum(r.size for r in pruned), sum(r.alive for r in pruned)
    )
    table = [("leaf", "shape", "weights", "alive", "kept ", "")]
    for r in rows:
        shape = "x".join(map(str, r.shape)) or "scalar"
        table.append((r.path, shape, *_counts(r.size, r.alive), _note(r, min_keep)))
    table.append(("total", "", *_counts(size, alive), note + " on prunable"))
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = [
        f"{row[0]:<{widths[0]}}  {row[1]:<{widths[1]}}  {row[2]:>{widths[2]}}  "
        f"{row[3]:>{widths[3]}}  {row[4]:>{widths[4]}}  {row[5]}"
        for row in table
    ]
    return "\n".join(line.rstrip() for line in lines)


def _counts(size: int, alive: int) -> tuple[str, str, str]:
    return f"{size:,}", f"{alive:,}", f"{alive / max(size, 1):.1%}"


def _ratio(size: int, alive: int) -> str:
    return f"{size / alive:.1f}" if alive else "infinite"


def _note(row: LayerReport, min_keep: int) -> str:
    if not row.prunable:
        few = len(row.shape) < 2
        return "never pruned: " + (
            "fewer than 2 dimensions" if few else "left out of the mask"
        )
    if row.alive < row.size and row.alive <= min_keep:
        return f"at the floor of {min_keep} live weight{'s' * (min_keep != 1)}"
    return ""


def get_mask(opt_state: Any) -> Mask:
    """Finds the mask in an optimizer's state, as plain arrays in the params' structure.

    Looks through `chain`, `MultiSteps`, `apply_if_finite`, `masked` and the like;
    merges the parts of `optax.partition`, and of one `prune` around another; unwraps
    the variables of an `nnx.Optimizer`, whose `opt_state` it takes.

    Raises:
      ValueError: if there is no `PruneState`, or if two of them cover the same leaf.
    """
    found = list(_states(opt_state))
    if not found:
        raise ValueError(
            "the optimizer state holds no PruneState; expected that of an optimizer "
            "wrapped by jaxprune.prune."
        )
    merged, *others = (_plain(state.mask) for state in found)
    for other in others:
        merged = _merge(merged, other)
    return jax.tree.map(
        lambda m: None if _is_empty(m) else m, merged, is_leaf=_is_empty
    )


def _states(opt_state: Any) -> Iterator[PruneState]:
    is_state = lambda x: isinstance(x, PruneState)
    for x in jax.tree.leaves(opt_state, is_leaf=is_state):
        if is_state(x):
            yield x
            yield from _states(x.inner_state)


def _is_empty(x: Any) -> bool:
    return x is None or isinstance(x, optax.MaskedNode)


def _plain(mask: Any) -> Any:
    # nnx wraps each array of an optimizer's state in a variable, which is a pytree.
    is_variable = lambda x: hasattr(x, "get_value") or _is_empty(x)
    read = lambda x: x.get_value() if hasattr(x, "get_value") else x
    return jax.tree.map(read, mask, is_leaf=is_variable)


def _merge(a: Any, b: Any) -> Any:
    if _is_empty(a):
        return b
    if _is_empty(b):
        return a
    if jax.tree_util.all_leaves([a]):
        raise ValueError("two PruneStates cover the same leaf; expected at most one.")
    # One level at a time: a part may show a whole subtree of another as one MaskedNode.
    children = lambda x: jax.tree.flatten(x, is_leaf=lambda y: y is not x)
    (of_a, structure), (of_b, _) = children(a), children(b)
    return jax.tree.unflatten(structure, map(_merge, of_a, of_b))


def verify(params: Params, opt_state: Any) -> None:
    """Checks, on the host, that every dead weight is zero.

    Raises:
      ValueError: naming the first leaf with a dead weight that is not zero: something
        ran after `prune`, or the params were changed since.
    """
    mask = get_mask(opt_state)
    check_mask(params, mask)

    def strays(p: Any, m: Any, name: str) -> tuple[str, int] | None:
        p = np.asarray(p)
        count = int(np.count_nonzero(p[~np.asarray(m)]))
        return (name, count) if count else None

    bad = map_masked(strays, params, mask, leaf_names(params), elsewhere=lambda p: None)
    is_pair = lambda x: isinstance(x, tuple) and len(x) == 2 and isinstance(x[0], str)
    for name, count in jax.tree.leaves(bad, is_leaf=is_pair):
        raise ValueError(
            f"{name} has {count} dead weights that are not zero, expected none; "
            "`prune` must come last in an optax.chain, and copies of the params that "
            "the optimizer does not own need jaxprune.apply_mask."
        )
