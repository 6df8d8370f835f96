import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toy

import jaxprune
from jaxprune._paths import leaf_name


PARAMS = toy.make_params()
MASK = jaxprune.prune_now(PARAMS, jaxprune.to_sparsity(jaxprune.magnitude, 0.5))[1]


def is_fc1(tree):
    return jax.tree_util.tree_map_with_path(
        lambda path, _: "fc1" in leaf_name(path), tree
    )


def labels(tree):
    return jax.tree.map(lambda first: "a" if first else "b", is_fc1(tree))


# The inner optimizer, and how many of its leaves are moments of the two kernels.
INNERS = {
    "momentum": (lambda: optax.sgd(0.1, 0.9), 2),
    "adam": (lambda: optax.adam(0.1), 4),
    "amsgrad": (lambda: optax.amsgrad(0.1), 6),
    "lion": (lambda: optax.lion(0.1), 2),
    "rmsprop": (lambda: optax.rmsprop(0.1, momentum=0.9), 4),
    "adafactor": (lambda: optax.adafactor(0.1, min_dim_size_to_factor=8), 0),
    "adafactor, not factored": (lambda: optax.adafactor(0.1), 2),
    "lbfgs": (lambda: optax.lbfgs(linesearch=None), 4),
    "masked": (lambda: optax.masked(optax.adam(0.1), is_fc1), 2),
    "partition": (
        lambda: optax.partition({"a": optax.adam(0.1), "b": optax.lion(0.1)}, labels),
        3,
    ),
    "muon": (lambda: optax.contrib.muon(0.1), 2),
    "sm3": (lambda: optax.chain(optax.scale_by_sm3(), optax.trace(0.9)), 4),
    "inject_hyperparams": (
        lambda: optax.inject_hyperparams(optax.adamw)(learning_rate=0.1),
        4,
    ),
    "apply_if_finite": (lambda: optax.apply_if_finite(optax.adam(0.1), 2), 4),
    "MultiSteps": (
        lambda: optax.MultiSteps(optax.adam(0.1), 2).gradient_transformation(),
        6,
    ),
    "schedule_free": (lambda: optax.contrib.schedule_free_sgd(0.1), 2),
}


@pytest.mark.parametrize("inner", INNERS)
def test_moments_of_dead_weights_are_zeroed_and_nothing_else(inner):
    make, expected = INNERS[inner]
    state = jax.tree.map(
        lambda x: x + jnp.ones_like(x), jax.jit(make().init)(PARAMS)
    )  # so that nothing is zero by itself
    reset = jax.jit(jaxprune.reset_moments)(state, PARAMS, MASK)
    chex.assert_trees_all_equal_structs(reset, state)
    chex.assert_trees_all_equal_shapes_and_dtypes(reset, state)
    changed = 0
    pairs = zip(
        jax.tree_util.tree_leaves_with_path(state), jax.tree.leaves(reset), strict=True
    )
    masks = toy.by_name(MASK)
    for (path, before), after in pairs:
        if np.array_equal(before, after):
            continue
        changed += 1
        name = next(n for n in masks if leaf_name(path).endswith("/" + n))
        np.testing.assert_array_equal(after, np.where(masks[name], before, 0))
    assert changed == expected


def test_schedule_free_evaluation_params_are_zero_after_a_reset():
    """Its copy z lives on; the params alone are zero without it."""
    inner = optax.contrib.schedule_free_sgd(0.1)
    tx = jaxprune.prune(inner, jaxprune.hold, MASK)
    params = PARAMS
    state = tx.init(params)

    @jax.jit
    def step(params, state, batch, reset):
        updates, state = tx.update(jax.grad(toy.loss)(params, batch), state, params)
        params = optax.apply_updates(params, updates)
        clean = jaxprune.reset_moments(state.inner_state, params, state.mask)
        keep = lambda a, b: jnp.where(reset, a, b)
        inner_state = jax.tree.map(keep, clean, state.inner_state)
        return params, state._replace(inner_state=inner_state)

    for reset in (False, True):
        for batch in toy.batches(2):
            params, state = step(params, state, batch, reset)
        toy.assert_dead_are_zero(params, MASK)
        found = optax.contrib.schedule_free_eval_params(state.inner_state, params)
        if reset:
            toy.assert_dead_are_zero(found, MASK)
        else:
            with pytest.raises(AssertionError):
                toy.assert_dead_are_zero(found, MASK)


@pytest.mark.parametrize("dead_is_short", [True, False])
def test_a_path_that_ends_like_another(dead_is_short):
    """The moments of "a/kernel" are not those of "kernel", pruned or not."""
    params = {"kernel": jnp.ones((2, 2)), "a": {"kernel": jnp.ones((2, 2))}}
    dead = jnp.zeros((2, 2), bool)
    mask = {
        "kernel": dead if dead_is_short else None,
        "a": {"kernel": None if dead_is_short else dead},
    }
    state = optax.trace(0.9).init(params)
    state = jax.tree.map(lambda x: x + 1, state)
    trace = jaxprune.reset_moments(state, params, mask).trace
    assert trace["kernel"].any() != dead_is_short
    assert trace["a"]["kernel"].any() == dead_is_short


@pytest.mark.parametrize("dead_is_short", [True, False])
def test_a_layer_named_as_a_field_of_the_state(dead_is_short):
    """Adam's moments of "kernel" lie at mu, kernel, as "kernel" of a layer mu does."""
    params = {"kernel": jnp.ones((2, 2)), "mu": {"kernel": jnp.ones((2, 2))}}
    mask = jax.tree.map(lambda p: jnp.ones((2, 2), bool), params)
    if dead_is_short:
        mask["kernel"] = ~mask["kernel"]
    else:
        mask["mu"]["kernel"] = ~mask["mu"]["kernel"]
    state = jax.tree.map(lambda x: x + 1, optax.adam(0.1).init(params))
    adam = jaxprune.reset_moments(state, params, mask)[0]
    for moments in (adam.mu, adam.nu):
        assert moments["kernel"].any() != dead_is_short
        assert moments["mu"]["kernel"].any() == dead_is_short


def test_a_key_that_holds_a_slash():
    """The moments of "a/kernel" are not those of "kernel" in "a"."""
    params = {"a/kernel": jnp.ones((2, 2)), "a": {"kernel": jnp.ones((2, 2))}}
    dead = jnp.zeros((2, 2), bool)
    mask = {"a/kernel": dead, "a": {"kernel": ~dead}}
    state = jax.tree.map(lambda x: x + 1, optax.trace(0.9).init(params))
    trace = jaxprune.reset_moments(state, params, mask).trace
    assert not trace["a/kernel"].any()
    assert trace["a"]["kernel"].all()


def test_params_that_are_one_array():
    params = jnp.ones((2, 2))
    mask = jnp.array([[True, False], [False, True]])
    state = jax.tree.map(lambda x: x + 1, optax.adam(0.1).init(params))
    adam = jaxprune.reset_moments(state, params, mask)[0]
    np.testing.assert_array_equal(adam.mu, np.eye(2))
    assert int(adam.count) == 1


def test_lists():
    params = [jnp.ones((2, 2)), jnp.ones(2), jnp.ones((2, 2))]
    mask = [jnp.zeros((2, 2), bool), None, jnp.ones((2, 2), bool)]
    state = jax.tree.map(lambda x: x + 1, optax.adam(0.1).init(params))
    mu = jaxprune.reset_moments(state, params, mask)[0].mu
    assert [bool(m.any()) for m in mu] == [False, True, True]


def test_a_nan_moment_is_zeroed():
    state = optax.trace(0.9).init(PARAMS)
    state = jax.tree.map(lambda x: x * jnp.nan, state)
    trace = jaxprune.reset_moments(state, PARAMS, MASK).trace
    toy.assert_dead_are_zero(trace, MASK)
