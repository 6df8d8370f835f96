import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toy

import jaxprune
from jaxprune import compress


INNERS = {
    "momentum": lambda: optax.sgd(0.05, 0.9),
    "adamw": lambda: optax.adamw(0.02, weight_decay=0.1),
}
CUT = jaxprune.to_sparsity(jaxprune.magnitude, 0.6)


def pruned_and_shared(bits=3, seed=0, dtype=jnp.float32):
    params, mask = jaxprune.prune_now(toy.make_params(seed, dtype), CUT)
    params, codes = compress.share(params, mask, bits)
    return params, mask, codes


def train(tx, params, steps=6, loss=toy.loss):
    opt_state = tx.init(params)

    @jax.jit
    def step(params, opt_state, batch):
        grads = jax.grad(loss)(params, batch)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    for batch in toy.batches(steps):
        params, opt_state = step(params, opt_state, batch)
    return params, opt_state


def assert_tied(params, codes):
    params = toy.by_name(params)
    for name, code in toy.by_name(codes).items():
        for k in range(code.max() + 1):
            members = params[name][code == k]
            bits = np.unique(members.view(f"u{members.itemsize}"))
            assert bits.size <= 1 if k else not bits.any(), (name, k, bits)


def test_share_gives_each_leaf_its_own_codebook():
    params, mask = jaxprune.prune_now(toy.make_params(), CUT)
    shared, codes = compress.share(params, mask, {"fc1/*": 2, "**/kernel": 3})
    assert codes["fc1"]["bias"] is None
    for name, most in ("fc1", 4), ("fc2", 8):
        before = np.asarray(params[name]["kernel"])
        after = np.asarray(shared[name]["kernel"])
        alive = np.asarray(mask[name]["kernel"])
        one = compress.share_weights(before[alive], int(np.log2(most)))
        np.testing.assert_array_equal(after[alive], one.centroids[one.indices])
        assert not after[~alive].any()
        assert np.unique(after[alive]).size <= most
        np.testing.assert_array_equal(np.asarray(codes[name]["kernel"]) > 0, alive)
    assert isinstance(shared["fc1"]["kernel"], jax.Array)
    chex.assert_trees_all_equal(shared["fc1"]["bias"], params["fc1"]["bias"])


def test_complex_weights_are_not_shared():
    params = {"w": jnp.ones((2, 3), jnp.complex64)}
    with pytest.raises(ValueError, match="w is complex64, expected real weights"):
        compress.share(params, jaxprune.dense_mask(params), 2)


def test_share_leaves_alone_what_no_pattern_matches():
    params, mask = jaxprune.prune_now(toy.make_params(), CUT)
    shared, codes = compress.share(params, mask, {"fc1/kernel": 2})
    assert codes["fc2"]["kernel"] is None
    chex.assert_trees_all_equal(shared["fc2"], params["fc2"])
    with pytest.raises(ValueError, match=r"bits has a value for 'conv\*'"):
        compress.share(params, mask, {"conv*": 8})


def test_share_names_the_leaf_and_bears_an_empty_one():
    params = {"a": jnp.array([[jnp.inf, 1.0]]), "b": jnp.ones((1, 2))}
    mask = jaxprune.dense_mask(params)
    with pytest.raises(ValueError, match="a: 1 of 2 values are not finite"):
        compress.share(params, mask, 2)
    mask = jax.tree.map(jnp.zeros_like, mask)
    shared, codes = compress.share(params, mask, 2)
    assert not np.asarray(shared["a"]).any()
    assert not np.asarray(codes["b"]).any()


@pytest.mark.parametrize("inner", INNERS)
def test_tied_training_is_training_of_the_centroids(inner):
    """Against optax on a smaller problem whose parameters are the centroids."""
    params, mask, codes = pruned_and_shared()
    expected = {}
    for name in "fc1", "fc2":
        code, w = np.asarray(codes[name]["kernel"]), np.asarray(params[name]["kernel"])
        values = [w[code == k][0] for k in range(1, code.max() + 1)]
        expected[name] = {"kernel": jnp.array(values), "bias": params[name]["bias"]}

    def expand(small):
        table = lambda c: jnp.concatenate([jnp.zeros(1), c])
        return {
            name: {
                "kernel": table(small[name]["kernel"])[codes[name]["kernel"]],
                "bias": small[name]["bias"],
            }
            for name in small
        }

    expected, _ = train(
        INNERS[inner](), expected, loss=lambda small, b: toy.loss(expand(small), b)
    )
    tx = jaxprune.prune(compress.tie(INNERS[inner](), codes), jaxprune.hold, mask)
    found, opt_state = train(tx, params)
    chex.assert_trees_all_close(found, expand(expected), rtol=1e-4, atol=1e-6)
    assert not np.allclose(found["fc1"]["kernel"], params["fc1"]["kernel"])
    assert_tied(found, codes)
    toy.assert_dead_are_zero(found, mask)
    jaxprune.verify(found, opt_state)


def test_members_stay_equal_bit_for_bit_in_bfloat16_without_prune():
    params, mask, codes = pruned_and_shared(dtype=jnp.bfloat16)
    found, _ = train(compress.tie(optax.sgd(0.05), codes), params, steps=10)
    assert_tied(found, codes)
    toy.assert_dead_are_zero(found, mask)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_gradients_of_a_large_cluster_are_all_added(dtype):
    params = {"w": jnp.ones((100, 100), dtype)}
    codes = {"w": jnp.ones((100, 100), jnp.uint8)}
    grads = {"w": jnp.full((100, 100), 1 / 128, dtype)}
    tx = compress.tie(optax.sgd(1.0), codes)
    updates, _ = tx.update(grads, tx.init(params), params)
    assert updates["w"].dtype == dtype
    exact = np.asarray(-10_000 / 128).astype(dtype)
    np.testing.assert_array_equal(updates["w"], np.full((100, 100), exact))


def test_awkward_sizes_stay_tied():
    """Vector lanes and remainders of a compiled loop round alike."""
    rng = np.random.default_rng(0)
    params = {"w": jnp.asarray(rng.normal(size=(1237, 3)), jnp.float32)}
    shared, codes = compress.share(params, jaxprune.dense_mask(params), 2)
    loss = lambda p, b: jnp.sum(jnp.sin(3 * p["w"]) * jnp.arange(3.0))
    tx = compress.tie(optax.chain(optax.clip(0.3), optax.adam(0.01)), codes)
    found, _ = train(tx, shared, steps=10, loss=loss)
    assert_tied(found, codes)


def test_moments_are_of_centroids():
    params, _, codes = pruned_and_shared(bits=2)
    state = compress.tie(optax.adam(0.1), codes).init(params)
    assert state.inner_state[0].mu["fc1"]["kernel"].shape == (4,)
    assert state.inner_state[0].mu["fc1"]["bias"].shape == (toy.WIDTH,)
    total = sum(int(n.sum()) for n in jax.tree.leaves(state.members))
    assert total == 2 * toy.WIDTH**2


def test_weights_that_die_later_leave_their_cluster():
    params, mask, codes = pruned_and_shared()
    later = jaxprune.once(2, jaxprune.to_sparsity(jaxprune.magnitude, 0.8))
    tx = jaxprune.prune(compress.tie(optax.sgd(0.05, 0.9), codes), later, mask)
    found, opt_state = train(tx, params)
    alive = jaxprune.get_mask(opt_state)
    toy.assert_dead_are_zero(found, alive)
    assert jaxprune.sparsity(alive) > jaxprune.sparsity(mask)
    left = jax.tree.map(lambda m, c: jnp.where(m, c, 0).astype(c.dtype), alive, codes)
    assert_tied(found, left)


def test_inside_partition_with_a_function_of_params():
    params, _, codes = pruned_and_shared()
    label = lambda params: {"fc1": "tied", "fc2": "rest"}

    def pick(params):
        of_fc1 = {"fc1": codes["fc1"], "fc2": None}
        return jax.tree.map(lambda c: c, of_fc1, is_leaf=lambda c: c is None)

    tx = optax.partition(
        {"tied": compress.tie(optax.sgd(0.05), pick), "rest": optax.sgd(0.0)}, label
    )
    found, _ = train(tx, params)
    assert_tied({"fc1": found["fc1"]}, {"fc1": codes["fc1"]})
    chex.assert_trees_all_equal(found["fc2"], params["fc2"])


def test_strict_promotion(strict):
    params, mask, codes = pruned_and_shared()
    # optax's moments are not strict themselves.
    tx = jaxprune.prune(compress.tie(optax.sgd(0.02), codes), jaxprune.hold, mask)
    grads = jax.tree.map(jnp.ones_like, params)
    updates, _ = tx.update(grads, tx.init(params), params)
    assert_tied(optax.apply_updates(params, updates), codes)


def test_codes_that_do_not_fit():
    params, _, codes = pruned_and_shared()
    tx = compress.tie(optax.sgd(0.1), codes)
    state = tx.init(params)
    with pytest.raises(ValueError, match="params is None"):
        tx.update(params, state)
    wrong = {**codes, "fc1": {"kernel": jnp.zeros((3, 3), jnp.uint8), "bias": None}}
    with pytest.raises(ValueError, match=r"codes of fc1/kernel have shape \(3, 3\)"):
        compress.tie(optax.sgd(0.1), wrong).init(params)
    wrong = {**codes, "fc1": {"kernel": params["fc1"]["kernel"], "bias": None}}
    with pytest.raises(ValueError, match="codes of fc1/kernel are float32"):
        compress.tie(optax.sgd(0.1), wrong).init(params)
    with pytest.raises(ValueError, match="expected that of the params"):
        compress.tie(optax.sgd(0.1), {"fc1": 3}).init(params)
