"""Training shared weights: an optax wrapper that moves whole clusters."""

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, PyTree

from jaxprune._masks import map_masked
from jaxprune._paths import leaf_names
from jaxprune._types import Params


class TieState(NamedTuple):
    """What `tie` carries from one update to the next.

    Attributes:
      codes: cluster of each weight, as `share` gives it: 0 for a dead one.
      members: for each shared leaf, int32 counts of the weights in each cluster, the
        dead first. Its shape tells how many clusters there are.
      inner_state: the state of the wrapped optimizer, which sees centroids.
    """

    codes: PyTree
    members: PyTree
    inner_state: optax.OptState


def tie(
    inner: optax.GradientTransformation,
    codes: PyTree | Callable[[Params], PyTree],
) -> optax.GradientTransformationExtraArgs:
    """Trains the centroids of shared weights, so that clusters stay together.

    `inner` is given one vector of centroids in the place of each shared leaf, with the
    sum of the gradients of its members as their gradient, and what it answers for a
    centroid is added to every member. So after `optax.apply_updates` the members of a
    cluster are equal, bit for bit, and dead weights are what they were, zero. Moments
    are kept for a centroid, not for a weight.

    Wrap it in `prune(tie(adam(...), codes), hold, mask)` to have one optimizer state
    that says what is dead and what is shared. Weights that `prune` kills later leave
    their cluster.

    Args:
      inner: any optax transformation whose updates are added to the params.
      codes: what `share` returned beside the params; or, inside `optax.partition` or
        `optax.masked`, a function of params that picks it, outside `jax.jit`.

    Returns:
      A transformation whose state is a `TieState`. Extra arguments of `update` reach
      `inner`.

    Raises:
      ValueError: when `update` is called without params, or the codes do not fit them.

    Source:
      Han et al. 2016 (arXiv:1510.00149), section 3.3: the gradient of a centroid is the
      sum of those of its weights.
    """
    inner = optax.with_extra_args_support(inner)

    def init_fn(params: Params) -> TieState:
        # An equinox module that serves as codes is callable, but it is no leaf.
        is_function = callable(codes) and jax.tree_util.all_leaves([codes])
        given: Any = cast(Any, codes)(params) if is_function else codes
        _check_codes(params, given)
        members = map_masked(
            lambda p, c: _count(c), params, given, elsewhere=lambda p: None
        )
        # A copy, so that donating the optimizer state leaves the caller's codes alone.
        given = jax.tree.map(lambda c: jnp.array(c, copy=True), given)
        return TieState(given, members, inner.init(_centroids(params, given, members)))

    def update_fn(
        updates: PyTree,
        state: TieState,
        params: Params | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, TieState]:
        if params is None:
            raise ValueError(
                "tie: params is None, expected the parameters that the updates will "
                "be added to; call update(grads, state, params)."
            )
        _check_codes(params, state.codes)
        sums = map_masked(_sum, updates, state.codes, state.members)
        centroids = _centroids(params, state.codes, state.members)
        moves, inner_state = inner.update(
            sums, state.inner_state, centroids, **extra_args
        )
        updates = _broadcast(updates, moves, state.codes)
        return updates, TieState(state.codes, state.members, inner_state)

    return optax.GradientTransformationExtraArgs(init_fn, cast(Any, update_fn))


def _count(c: Any) -> Array:
    return jnp.asarray(np.bincount(np.asarray(c).ravel()), jnp.int32)


def _sum(g: Array, c: Array, members: Array) -> Array:
    # In 16 bits a sum of thousands would stop to grow.
    wide = jnp.promote_types(g.dtype, jnp.float32)
    sums = jnp.zeros(members.shape, wide).at[c].add(g.astype(wide))
    return sums[1:].astype(g.dtype)


def _centroids(params: Params, codes: PyTree, members: PyTree) -> PyTree:
    """Reads the centroids from the params, which hold nothing else."""

    def at_leaf(p: Array, c: Array, n: Array) -> Array:
        # Members that died since are zero, so the one furthest from it is alive.
        zero = jnp.zeros(n.shape, p.dtype)
        high, low = zero.at[c].max(p), zero.at[c].min(p)
        return jnp.where(high > -low, high, low)[1:]

    return map_masked(at_leaf, params, codes, members)


def _broadcast(like: PyTree, moves: PyTree, codes: PyTree) -> PyTree:
    def at_leaf(_: Array, c: Array, move: Array) -> Array:
        return jnp.concatenate([jnp.zeros(1, move.dtype), move])[c]

    spread = map_masked(at_leaf, like, codes, moves, elsewhere=lambda _: None)
    # Leaves that are not shared take the inner update as it came.
    return jax.tree.map(
        lambda u, s: u if s is None else s, moves, spread, is_leaf=lambda x: x is None
    )


def _check_codes(params: Params, codes: PyTree) -> None:
    """Checks static facts only, so it may be called while tracing."""
    try:
        problems = map_masked(
            _problem, params, codes, leaf_names(params), elsewhere=lambda p: None
        )
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"the codes have structure {jax.tree.structure(codes)}, expected that of "
            f"the params, {jax.tree.structure(params)}, with None at leaves that are "
            "not shared; make them with jaxprune.compress.share, and inside "
            "optax.partition or optax.masked give `tie` a function of params."
        ) from error
    for problem in jax.tree.leaves(problems):
        raise ValueError(problem)


def _problem(p: Any, c: Any, name: str) -> str | None:
    if not jnp.issubdtype(getattr(c, "dtype", bool), jnp.unsignedinteger):
        found = getattr(c, "dtype", type(c).__name__)
        return f"the codes of {name} are {found}, expected unsigned integers."
    if c.shape != p.shape:
        return f"the codes of {name} have shape {c.shape}, expected {p.shape}."
    return None
