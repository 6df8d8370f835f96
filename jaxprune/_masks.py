"""Masks: making them, applying them, checking them."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from jaxprune._checks import check_function, is_array
from jaxprune._paths import leaf_name, leaf_names
from jaxprune._scope import Rules, by_rank
from jaxprune._types import Mask, Params


def map_masked(
    f: Callable[..., Any],
    params: PyTree,
    mask: PyTree,
    *rest: PyTree,
    elsewhere: Callable[[Any], Any] = lambda p: p,
) -> PyTree:
    """Maps `f(p, m, *r)` over the leaves that the mask covers.

    The one place that knows what `None` in a mask means. `params` comes first because
    JAX gives the `None` of a later tree as a value, and refuses it in the first.

    >>> map_masked(lambda p, m: p * m, {"w": 3, "b": 2}, {"w": 0, "b": None})
    {'b': 2, 'w': 0}

    Args:
      f: takes a leaf of `params`, of `mask`, and of each of `rest`.
      params: gives the structure of the result.
      mask: `None` at leaves, or whole subtrees, that are never pruned.
      *rest: further trees of the structure of `params`; `None` counts as a leaf.
      elsewhere: what stands at leaves that the mask does not cover, given `p`.
    """

    def at_leaf(p: Any, m: Any, *r: Any) -> Any:
        return elsewhere(p) if m is None else f(p, m, *r)

    def spread(m: Any, p: Any) -> Any:
        whole = m is None or hasattr(p, "get_value")
        return jax.tree.map(lambda _: m, p) if whole else m

    # One None may stand for a subtree, as after `optax.masked` of a prefix, and a plain
    # array for the mask of an NNX variable.
    mask = jax.tree.map(spread, mask, params, is_leaf=lambda m: m is None)
    return jax.tree.map(at_leaf, params, mask, *rest)


def dense_mask(params: Params, where: Callable[[str, Any], bool] | None = None) -> Mask:
    """Makes the mask that keeps everything, and settles what may ever be pruned.

    A prunable leaf becomes an all-True array of its shape and sharding, any other leaf
    `None`. `where` is given the leaf's path, names joined by "/", and the leaf, array
    or `jax.ShapeDtypeStruct`; the default takes floating-point and complex leaves of
    two or more dimensions, so kernels and embeddings but neither biases nor scales of a
    norm.

    >>> dense_mask({"w": jnp.zeros((1, 2)), "b": jnp.zeros(2)})
    {'b': None, 'w': Array([[ True,  True]], dtype=bool)}

    Args:
      params: any pytree of arrays. A Python number in it is never pruned.
      where: a function of (path, leaf), for instance `jaxprune.where("**/kernel")`.

    Raises:
      ValueError: if `params` has leaves and `where` chose none of them, or if one of
        the rules of `jaxprune.where` matches no leaf, or if it is asked about a leaf
        that is no array, such as a function in an equinox module; or if `where` is
        no function.
    """
    return _choose(params, where, lambda p: jnp.ones_like(p, dtype=bool))


def mask_from_zeros(
    params: Params, where: Callable[[str, Any], bool] | None = None
) -> Mask:
    """Makes the mask of weights that were pruned elsewhere: what is not zero lives.

    >>> mask_from_zeros({"w": jnp.array([[0.0, -0.0, 2.0]])})
    {'w': Array([[False, False,  True]], dtype=bool)}

    Args:
      params: weights whose dead ones are zero. A live weight that happens to be zero
        cannot be told from a dead one.
      where: as in `dense_mask`.

    Raises:
      ValueError: as `dense_mask`.
    """
    return _choose(params, where, lambda p: p != 0)


def _choose(params: Params, where: Any, make: Callable[[Any], Any]) -> Mask:
    where = by_rank if where is None else where
    check_function("where", where, "jaxprune.where('**/kernel')")
    names = [leaf_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    # A tree without leaves passes: optax.tree.map_params gives `init` a placeholder.
    if names and isinstance(where, Rules):
        where.check(names)

    def at_leaf(path: Any, p: Any) -> Any:
        name = leaf_name(path)
        return make(p) if where(name, p) and is_array(name, p) else None

    mask = jax.tree_util.tree_map_with_path(at_leaf, params)
    if names and not jax.tree.leaves(mask):
        raise ValueError(
            "no leaf may be pruned: `where` chose none of "
            f"{', '.join(names) or 'the one array'}; the default chooses "
            "floating-point and complex leaves of two or more dimensions."
        )
    return mask


def apply_mask(params: Params, mask: PyTree) -> Params:
    """Sets dead weights to +0; live weights and unpruned leaves pass unchanged.

    Selects rather than multiplies, so a dead NaN becomes 0, no -0 is left for an
    exporter to trip on, and no dtype is promoted. Idempotent. Use it on copies of the
    params that the optimizer does not own: moving averages, restored weights.

    >>> apply_mask({"w": jnp.array([1.0, -2.0])}, {"w": jnp.array([True, False])})
    {'w': Array([1., 0.], dtype=float32)}

    Raises:
      ValueError: as `check_mask`.
    """
    check_mask(params, mask)
    return map_masked(lambda p, m: jnp.where(m, p, jnp.zeros_like(p)), params, mask)


def sparsity(mask: Mask) -> float:
    """Counts dead / prunable, exactly, on the host.

    >>> sparsity({"w": jnp.array([True, False, False, False]), "b": None})
    0.75

    Raises:
      ValueError: if the mask covers no weight.
    """
    leaves = [np.asarray(m) for m in jax.tree.leaves(mask)]
    total = sum(m.size for m in leaves)
    if not total:
        raise ValueError("the mask covers no weight, so it has no sparsity.")
    return sum(m.size - int(np.count_nonzero(m)) for m in leaves) / total


def check_mask(params: Params, mask: PyTree) -> None:
    """Checks that a mask fits params: structure, shapes and dtype.

    Looks at static facts only, so it may be called while tracing.

    Raises:
      ValueError: naming the leaf, what was found and what was expected.
    """
    covered: list[tuple[Any, Any, str]] = []
    try:
        map_masked(lambda *leaf: covered.append(leaf), params, mask, leaf_names(params))
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"the mask has structure {jax.tree.structure(mask)}, expected that of the "
            f"params, {jax.tree.structure(params)}, with None at unpruned leaves; make "
            "the mask with jaxprune.dense_mask(params), and inside optax.partition or "
            "optax.masked give `prune` a function of params."
        ) from error
    for p, m, name in covered:
        if getattr(m, "dtype", None) != np.bool_:
            found = getattr(m, "dtype", type(m).__name__)
            raise ValueError(
                f"the mask of {name} is {found}, expected an array of bool."
            )
        if not is_array(name, p):
            raise ValueError(f"{name} is {p!r}, a number, expected None as its mask.")
        if m.shape != p.shape:
            raise ValueError(
                f"the mask of {name} has shape {m.shape}, expected {p.shape}."
            )
