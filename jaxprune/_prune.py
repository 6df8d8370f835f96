"""The optax wrapper: prunes weights while an inner optimizer trains the rest."""

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, ArrayLike, PyTree

from jaxprune._checks import check_arrays, check_schedule
from jaxprune._masks import apply_mask, check_mask, dense_mask, map_masked
from jaxprune._paths import leaf_names
from jaxprune._scope import Rules
from jaxprune._types import Mask, MaskSchedule, Params, Step


_LARGE = 2**20  # weights, whose copies take longer than waiting for gradients


class PruneState(NamedTuple):
    """What `prune` carries from one update to the next.

    Find it in any optimizer state with `optax.tree.get(opt_state, "PruneState")`, or
    its mask alone with `get_mask`.

    Attributes:
      step: updates made so far, an int32 scalar, saturating.
      mask: which weights are alive after the last update.
      inner_state: the wrapped optimizer's own state, untouched.
    """

    step: Step
    mask: Mask
    inner_state: optax.OptState


def prune(
    inner: optax.GradientTransformation,
    schedule: MaskSchedule,
    mask: PyTree | Callable[[Params], Mask] | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Prunes weights while `inner` trains the rest.

    Each update asks `schedule` for the mask, hides the gradients of dead weights from
    `inner`, and returns minus the value of every dead weight, so that
    `optax.apply_updates` leaves exactly +0 there whatever `inner` does: momentum,
    weight decay and noise included. Place it last in an `optax.chain`; wrap the inner
    optimizer, not this one, in `optax.inject_hyperparams`.

    Updates come in the wider of the parameter's dtype and the inner update's, for minus
    the parameter must be exact. A NaN weight stays NaN when it dies (NaN - NaN).

    Args:
      inner: any optax transformation whose updates are added to the params.
      schedule: gives the mask at each step. It sees params before this update and, as
        `grads`, the unmasked gradients.
      mask: the first mask, a function that makes it from params, or the rules of
        `jaxprune.where` for `dense_mask`, which is the default. Pass a function or
        rules inside `optax.partition` or `optax.masked`, where only a part of the
        params is seen.

    Returns:
      A transformation whose state is a `PruneState`. Extra arguments of `update` reach
      both `schedule` and `inner`.

    Raises:
      ValueError: if `inner` is no transformation or `schedule` no function; when
        `update` is called without params, the mask or the gradients do not fit them, an
        extra argument is named as what a schedule is given anyway, or the schedule
        gives back something else than such a mask.

    Source:
      Han et al. 2015 (arXiv:1506.02626), section 3. The update that cancels the
      parameter is the device of `optax.keep_params_nonnegative`.
    """
    if not (hasattr(inner, "init") and hasattr(inner, "update")):
        raise ValueError(
            f"inner is {inner!r}, expected an optax transformation such as "
            "optax.adam(1e-3)."
        )
    check_schedule(schedule)
    inner = optax.with_extra_args_support(inner)

    def init_fn(params: Params) -> PruneState:
        return PruneState(
            step=jnp.zeros([], jnp.int32),
            mask=_first_mask(params, mask),
            inner_state=inner.init(params),
        )

    def update_fn(
        updates: PyTree,
        state: PruneState,
        params: Params | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, PruneState]:
        if params is None:
            raise ValueError(
                "prune: params is None, expected the parameters that the updates will "
                "be added to; call update(grads, state, params)."
            )
        if taken := {"grads", "mask", "step"} & extra_args.keys():
            raise ValueError(
                f"prune: update got {' and '.join(sorted(taken))}, which a schedule is "
                "given anyway, expected extra arguments of other names."
            )
        check_mask(params, state.mask)
        _check_grads(updates, state.mask, params)
        # The schedule sees raw gradients (they tell what a dead weight would be worth),
        # the inner optimizer masked ones (clipping and moments are of live weights).
        extra = {**extra_args, "grads": updates}
        step = _after(updates, state.step)
        new_mask = schedule(params, state.mask, step, **extra)
        _check_new_mask(params, state.mask, new_mask)
        live_grads = map_masked(
            lambda g, m: jnp.where(m, g, jnp.zeros_like(g)), updates, new_mask
        )
        updates, inner_state = inner.update(
            live_grads, state.inner_state, params, **extra_args
        )
        updates = map_masked(_live_or_cancel, updates, new_mask, params)
        step = jnp.asarray(optax.safe_increment(state.step))
        return updates, PruneState(step, new_mask, inner_state)

    return optax.GradientTransformationExtraArgs(init_fn, cast(Any, update_fn))


def _check_grads(grads: Any, mask: Mask, params: Params) -> None:
    covered: list[tuple[Any, Any, Any, str]] = []
    try:
        map_masked(
            lambda *leaf: covered.append(leaf), grads, mask, params, leaf_names(grads)
        )
    except (ValueError, TypeError) as error:
        check_arrays(params)
        found, expected = (set(jax.tree.leaves(leaf_names(t))) for t in (grads, params))
        differ = ", ".join(sorted(found ^ expected)) or "containers of some type"
        raise ValueError(
            f"prune: the gradients have structure {jax.tree.structure(grads)}, "
            f"expected that of the params, {jax.tree.structure(params)}; in one of "
            f"them only: {differ}."
        ) from error
    for g, _, p, name in covered:
        if np.shape(g) != np.shape(p):
            raise ValueError(
                f"prune: the gradient of {name} has shape {np.shape(g)}, expected that "
                f"of the parameter, {np.shape(p)}."
            )


def _after(grads: PyTree, step: Step) -> Step:
    # The step, in such a way that a schedule's loop waits for the backward pass. When
    # the loop may come before it, XLA copies every matrix that both read, at each step:
    # 83 MB for AlexNet's dense layers, 2% of its step; small ones take less time than
    # waiting. Seen on one CPU device; on several, a number of each leaf would have to
    # be sent around, and a GPU's queue would wait for it.
    small = sum(jnp.size(g) for g in jax.tree.leaves(grads)) < _LARGE
    if small or jax.default_backend() != "cpu" or jax.device_count() > 1:
        return step
    firsts = [
        jnp.asarray(g[(0,) * g.ndim], jnp.float32)
        for g in jax.tree.leaves(grads)
        if isinstance(g, jax.Array) and jnp.issubdtype(g.dtype, jnp.floating) and g.size
    ]
    if not firsts:
        return step
    bits = jax.lax.bitcast_convert_type(jnp.stack(firsts), jnp.int32)
    # None is ever positive, which XLA does not see.
    return step + jnp.sum(jnp.minimum(bits, 0) > 0, dtype=jnp.int32)


def _live_or_cancel(u: ArrayLike, m: Array, p: ArrayLike) -> Array:
    # x + (-x) is +0 for every finite x, if -x is not rounded on its way there.
    u, p = jnp.asarray(u), jnp.asarray(p)  # NumPy's float64 in the dtype that JAX has
    dtype = jnp.promote_types(u.dtype, p.dtype)
    return jnp.where(m, u.astype(dtype), -p.astype(dtype))


def _check_new_mask(params: Params, mask: Mask, new_mask: Any) -> None:
    advice = (
        "prune: the schedule did not return a mask of the structure that it was given; "
        "is it a criterion, to be wrapped in jaxprune.to_sparsity? "
    )
    found, expected = (jax.tree.structure(m) for m in (new_mask, mask))
    if found != expected:
        raise ValueError(f"{advice}It returned {found}, expected {expected}.")
    try:
        check_mask(params, new_mask)
    except ValueError as error:
        raise ValueError(f"{advice}In what it returned, {error}") from error


def _first_mask(params: Params, mask: Any) -> Mask:
    if mask is None or isinstance(mask, Rules):
        return dense_mask(params, mask)
    # An equinox module that serves as a mask is callable, but it is no leaf.
    if callable(mask) and jax.tree_util.all_leaves([mask]):
        mask = mask(params)
    check_mask(params, mask)
    # A copy, so that donating the optimizer state leaves the caller's mask alone; with
    # a None for each leaf, where one may have stood for a whole subtree.
    return map_masked(
        lambda p, m: jnp.array(m, copy=True), params, mask, elsewhere=lambda p: None
    )


def prune_now(
    params: Params,
    schedule: MaskSchedule,
    mask: PyTree | Callable[[Params], Mask] | None = None,
    *,
    step: int = 0,
    **extra: Any,
) -> tuple[Params, Mask]:
    """Prunes trained params in one shot, with no optimizer.

    Args:
      params: trained params.
      schedule: for instance `to_sparsity(magnitude, 0.9)`.
      mask: as in `prune`: what is alive before; the default is `dense_mask`.
      step: what the schedule is told the step is.
      **extra: what the schedule or its criterion asks for, such as `grads`.

    Returns:
      Pruned params, and the mask.

    Raises:
      ValueError: if the mask does not fit the params or `schedule` is no function.
    """
    check_schedule(schedule)

    @jax.jit
    def run(params: Params, mask: Mask, extra: Any) -> tuple[Params, Mask]:
        mask = schedule(params, mask, jnp.asarray(step, jnp.int32), **extra)
        return apply_mask(params, mask), mask

    return run(params, _first_mask(params, mask), extra)
