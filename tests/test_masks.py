import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toy

import jaxprune


PARAMS = {"w": jnp.ones((2, 3)), "b": jnp.ones(3), "ids": jnp.ones((2, 2), int)}


def test_dense_mask_chooses_floats_of_rank_two():
    mask = jaxprune.dense_mask(PARAMS)
    chex.assert_trees_all_equal(mask, {"w": np.ones((2, 3), bool), "b": None,
                                       "ids": None})  # fmt: skip


def test_dense_mask_with_a_function_of_path_and_leaf():
    seen = []

    def where(path, leaf):
        seen.append((path, leaf.shape))
        return path == "b"

    mask = jaxprune.dense_mask(PARAMS, where)
    assert seen == [("b", (3,)), ("ids", (2, 2)), ("w", (2, 3))]
    chex.assert_trees_all_equal(mask, {"w": None, "b": np.ones(3, bool), "ids": None})


def test_dense_mask_of_shapes():
    mask = jaxprune.dense_mask(jax.eval_shape(lambda: PARAMS))
    chex.assert_trees_all_equal(mask, jaxprune.dense_mask(PARAMS))


def test_dense_mask_of_nothing_is_nothing():
    assert jaxprune.dense_mask({}) == {}


def test_dense_mask_refuses_to_choose_nothing():
    message = r"no leaf may be pruned: `where` chose none of b; the default chooses"
    with pytest.raises(ValueError, match=message):
        jaxprune.dense_mask({"b": jnp.ones(3)})
    with pytest.raises(ValueError, match="none of the one array; the default"):
        optax.flatten(jaxprune.prune(optax.sgd(0.1), jaxprune.hold)).init(PARAMS)
    with pytest.raises(ValueError, match="none of b, ids, w"):
        jaxprune.dense_mask(PARAMS, lambda path, leaf: False)


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize("make", [jaxprune.dense_mask, jaxprune.mask_from_zeros])
def test_a_string_chooses_nothing(make):
    message = r"where is 'w', expected a function such as jaxprune.where\('\*\*/kernel'"
    with pytest.raises(ValueError, match=message):
        make(PARAMS, "w")


def test_mask_from_zeros():
    params = {"w": jnp.array([[0.0, -0.0, 1e-45, jnp.nan, 3.0]]), "b": jnp.zeros(2)}
    mask = jaxprune.mask_from_zeros(params)
    assert mask["b"] is None
    # A denormal may be read as zero where the hardware flushes it.
    assert mask["w"].tolist()[0][:2] == [False, False]
    assert mask["w"].tolist()[0][3:] == [True, True]
    mask = jaxprune.mask_from_zeros(params, jaxprune.where("b"))
    chex.assert_trees_all_equal(mask, {"w": None, "b": np.zeros(2, bool)})
    jaxprune.verify(params, prune_state(mask))


def prune_state(mask):
    return jaxprune.PruneState(0, mask, ())


@pytest.mark.usefixtures("strict")
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_apply_mask(dtype):
    w = jnp.array([[jnp.nan, -1.0, jnp.inf, -0.0, 2.0]], dtype)
    mask = {"w": jnp.array([[False, False, False, False, True]]), "b": None}
    params = {"w": w, "b": jnp.array([-0.0], dtype)}
    pruned = jaxprune.apply_mask(params, mask)
    toy.assert_dead_are_zero(pruned, mask)
    assert pruned["w"].dtype == dtype
    assert float(pruned["w"][0, 4]) == 2.0
    assert np.signbit(np.asarray(pruned["b"]).astype(np.float32)).all()
    chex.assert_trees_all_equal(jaxprune.apply_mask(pruned, mask), pruned)


def test_apply_mask_keeps_a_live_nan_and_minus_zero():
    params = {"w": jnp.array([[jnp.nan, -0.0]])}
    out = jaxprune.apply_mask(params, jaxprune.dense_mask(params))["w"]
    assert np.isnan(out[0, 0])
    assert np.signbit(out[0, 1])


def test_map_masked():
    params, mask, third = {"w": 3, "b": 2}, {"w": 5, "b": None}, {"w": 7, "b": 11}
    f = lambda p, m, t: (p, m, t)
    assert jaxprune.map_masked(f, params, mask, third) == {"w": (3, 5, 7), "b": 2}
    out = jaxprune.map_masked(f, params, mask, third, elsewhere=lambda p: None)
    assert out == {"w": (3, 5, 7), "b": None}
    assert jaxprune.map_masked(f, {"b": None}, {"b": None}, {"b": None}) == {"b": None}


def test_none_stands_for_a_subtree_too():
    params = {"fc1": {"w": 1, "b": 2}, "fc2": {"w": 3, "b": None}}
    mask = {"fc1": None, "fc2": {"w": 5, "b": None}}
    out = jaxprune.map_masked(lambda p, m: p * m, params, mask)
    assert out == {"fc1": {"w": 1, "b": 2}, "fc2": {"w": 15, "b": None}}


@pytest.mark.parametrize(("alive", "expected"), [
    ([[False, True, True, True, True, True, True, True, True, True]], 0.1),
    ([[True] * 3 + [False] * 7], 0.7),
    ([[True]], 0.0),
    ([[False]], 1.0),
])  # fmt: skip
def test_sparsity(alive, expected):
    mask = {"w": np.array(alive), "b": None}
    assert jaxprune.sparsity(mask) == expected


def test_sparsity_counts_weights_not_leaves():
    mask = {"a": np.zeros((1, 30), bool), "b": np.ones((3, 3, 10), bool), "c": None}
    assert jaxprune.sparsity(mask) == 0.25


@pytest.mark.parametrize("mask", [{"b": None}, {}, {"w": np.ones((0, 3), bool)}])
def test_sparsity_of_nothing(mask):
    with pytest.raises(ValueError, match="covers no weight"):
        jaxprune.sparsity(mask)


def test_check_mask_names_the_leaf():
    good = jaxprune.dense_mask(PARAMS)
    jaxprune.check_mask(PARAMS, good)
    jaxprune.check_mask(PARAMS, jax.eval_shape(lambda: good))
    jaxprune.check_mask({}, {})
    cases = [
        (good["w"].astype(int), "the mask of w is int32, expected an array of bool"),
        (good["w"][:1], r"the mask of w has shape \(1, 3\), expected \(2, 3\)"),
        (True, "the mask of w is bool, expected an array of bool"),
        (good["w"].T, r"the mask of w has shape \(3, 2\), expected \(2, 3\)"),
    ]
    for leaf, message in cases:
        with pytest.raises(ValueError, match=message):
            jaxprune.check_mask(PARAMS, {**good, "w": leaf})
        with pytest.raises(ValueError, match=message):
            jaxprune.apply_mask(PARAMS, {**good, "w": leaf})


@pytest.mark.parametrize("mask", [
    {"w": jnp.ones((2, 3), bool)},
    {"w": jnp.ones((2, 3), bool), "b": None, "ids": None, "more": None},
    [jnp.ones((2, 3), bool)],
    jnp.ones((2, 3), bool),
    {"w": {"deeper": jnp.ones((2, 3), bool)}, "b": None, "ids": None},
    {"w": optax.MaskedNode(), "b": None, "ids": None},
])  # fmt: skip
def test_check_mask_shows_both_structures(mask):
    with pytest.raises(ValueError, match=r"(?s)has structure .* expected that of the "
                                         r"params.*'w'.*dense_mask"):  # fmt: skip
        jaxprune.check_mask(PARAMS, mask)


def test_a_bare_mask_for_a_tree_of_one_leaf_is_refused():
    with pytest.raises(ValueError, match="expected that of the params"):
        jaxprune.check_mask({"w": jnp.ones((2, 3))}, jnp.ones((2, 3), bool))


def test_check_mask_while_tracing():
    bad = {"w": jnp.ones((2, 2), bool), "b": None, "ids": None}
    with pytest.raises(ValueError, match="the mask of w has shape"):
        jax.eval_shape(jaxprune.apply_mask, PARAMS, bad)


@pytest.mark.parametrize(
    "use",
    [
        jaxprune.l1,
        jaxprune.l2,
        jaxprune.layer_std,
        lambda p, m: jaxprune.by_std(0.5)(p, m, 0),
        lambda p, m: jaxprune.to_sparsity(jaxprune.magnitude, 0.5)(p, m, 0),
        lambda p, m: jaxprune.reset_moments((p,), p, m),
        jaxprune.apply_mask,
    ],
)
def test_a_mask_that_would_broadcast_is_refused(use):
    params = {"w": jnp.ones((3, 4))}
    with pytest.raises(ValueError, match=r"mask of w has shape \(1, 4\)"):
        use(params, {"w": jnp.ones((1, 4), bool)})
