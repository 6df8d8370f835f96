"""What dies: compared with a full sort in NumPy, and with cases worked by hand."""

import functools
import inspect
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toy
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxprune
from jaxprune._deviation import _compensated
from jaxprune._sample import sample


def magnitude_to(sparsity, **options):
    return jaxprune.to_sparsity(jaxprune.magnitude, sparsity, **options)


def masks(schedule, params, mask=None, step=0):
    """The mask after a schedule, compiled once for params of these shapes."""
    mask = jaxprune.dense_mask(params) if mask is None else mask
    return jax.jit(schedule)(params, mask, jnp.int32(step))


def row(*values, dtype=jnp.float32):
    return {"w": jnp.array([values], dtype)}


def alive(schedule, params, mask=None):
    return masks(schedule, params, mask)["w"].tolist()[0]


TEN = row(3.0, -10.0, 1.0, 7.0, -5.0, 9.0, 2.0, -8.0, 6.0, 4.0)


@functools.partial(jax.jit, static_argnums=1)
def ten_traced(sparsity, scope):
    schedule = magnitude_to(lambda step: sparsity, scope=scope)
    return schedule(TEN, jaxprune.dense_mask(TEN), 0)["w"]


def to_traced(sparsity, scope):
    return ten_traced(sparsity, scope).tolist()[0]


@pytest.mark.usefixtures("strict")
@pytest.mark.parametrize(("sparsity", "dead"), [
    (0.0, 0), (0.04, 0), (0.05, 1), (0.06, 1), (0.1, 1), (0.3, 3), (0.5, 5),
    (0.7, 7), (0.75, 8), (0.9, 9), (0.94, 9), (0.96, 9), (0.999999, 9),
])  # fmt: skip
def test_how_many_of_ten_die(sparsity, dead):
    """Halves are rounded up, and one weight stays."""
    expected = [abs(w) > dead for w in TEN["w"].tolist()[0]]
    # A constant and a traced sparsity agree, and so does a global threshold.
    assert to_traced(jnp.float32(sparsity), "leaf") == expected
    assert to_traced(jnp.float32(sparsity), "global") == expected
    if dead in (0, 3, 8):  # each constant is compiled anew
        assert alive(magnitude_to(sparsity), TEN) == expected


@pytest.mark.slow
def test_the_integer_rule_on_many_sizes():
    """As many die as Python's integers say, the sparsity read as float32."""
    schedule = lambda params, mask, s: magnitude_to(lambda step: s)(params, mask, 0)
    cut = jax.jit(schedule)
    for n in (1, 2, 3, 255, 1000):
        params = {"w": jnp.arange(1.0, n + 1).reshape(1, n)}
        mask = jaxprune.dense_mask(params)
        for s in (0.1, 1 / 3, 0.5, 0.7, 0.9, 0.995, 1.0, 1.5, -0.5):
            dead = min(toy.dead_number(min(max(s, 0), 1), n), n - 1)
            found = cut(params, mask, jnp.float32(s))["w"]
            assert int((~found).sum()) == dead, (n, s)


@pytest.mark.parametrize("sparsity", [1.0, -0.01, 1.5, float("nan"), float("inf")])
def test_constant_sparsity_outside_its_range(sparsity):
    message = re.escape(f"sparsity is {sparsity}, expected a fraction in [0, 1)")
    with pytest.raises(ValueError, match=message):
        magnitude_to(sparsity)
    with pytest.raises(ValueError, match=message):
        magnitude_to({"**": sparsity})


def test_other_errors():
    # Unwrapped, or the type checker of the test run would answer first.
    to_sparsity = inspect.unwrap(jaxprune.to_sparsity)
    with pytest.raises(ValueError, match="scope is 'layer', expected 'leaf' or 'glob"):
        to_sparsity(jaxprune.magnitude, 0.5, scope="layer")
    with pytest.raises(ValueError, match="a mapping gives sparsities to leaves"):
        magnitude_to({"**": 0.5}, scope="global")
    with pytest.raises(ValueError, match="min_keep is -1, expected at least 0"):
        magnitude_to(0.5, min_keep=-1)
    with pytest.raises(ValueError, match="min_keep is -1, expected at least 0"):
        jaxprune.by_std(0.5, min_keep=-1)
    for quality in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"quality is {quality}, expected a pos"):
            jaxprune.by_std(quality)
        with pytest.raises(ValueError, match=f"quality is {quality}, expected a pos"):
            jaxprune.by_std({"**": quality})


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize(("make", "message"), [
    (lambda: jaxprune.to_sparsity("magnitude", 0.5),
     "criterion is 'magnitude', expected a function such as jaxprune.magnitude"),
    (lambda: jaxprune.to_sparsity(0.5, jaxprune.magnitude), "criterion is 0.5, expec"),
    (lambda: magnitude_to({3: 0.5}), "sparsity got the pattern 3, expected a glob"),
    (lambda: jaxprune.by_std({3: 0.5}), "quality got the pattern 3, expected a glob"),
])  # fmt: skip
def test_arguments_of_another_kind(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"w": s}])
@pytest.mark.parametrize(("value", "shown"), [
    (jnp.array([0.5]), r"Array\(\[0.5\]"), (None, "None"), ("0.5", "'0.5'"),
])  # fmt: skip
def test_a_schedule_that_gives_no_scalar(value, shown, wrap):
    with pytest.raises(ValueError, match=f"sparsity gave {shown}.*, expected a scalar"):
        masks(magnitude_to(wrap(lambda step: value)), TEN)


@pytest.mark.parametrize("scope", ["leaf", "global"])
@pytest.mark.parametrize(("values", "sparsity", "expected"), [
    # Ties with the threshold live.
    ([1, 2, 2, 2, 3, 3], 0.5, [0, 1, 1, 1, 1, 1]),
    ([1, 1, 1, 2], 0.5, [1, 1, 1, 1]),
    ([2, -2, 2, -2], 0.9, [1, 1, 1, 1]),
    # -0 equals 0.
    ([0.0, -0.0, 1, 2], 0.25, [1, 1, 1, 1]),
    ([0.0, -0.0, 1, 2], 0.5, [0, 0, 1, 1]),
    # Infinity is largest, and a NaN is kept before anything else.
    ([np.inf, 1, -np.inf, 2], 0.5, [1, 0, 1, 0]),
    ([np.nan, 1, np.inf, 2], 0.75, [1, 0, 0, 0]),
    ([1, -np.nan, 2, 3], 0.75, [0, 1, 0, 0]),
    ([np.nan, np.nan, np.nan, 3], 0.9, [1, 1, 1, 0]),
    # Numbers next to each other.
    ([1, 1.0000001, 1.0000002, 1.0000004], 0.5, [0, 0, 1, 1]),
    ([3e38, 3.1e38, 1e-38, 2e-38], 0.5, [1, 1, 0, 0]),
])  # fmt: skip
def test_order(values, sparsity, expected, scope):
    found = alive(magnitude_to(sparsity, scope=scope), row(*values))
    assert found == [bool(x) for x in expected]


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_half_precision(dtype):
    params = row(1.0, 1.0078125, -1.015625, 2.0, dtype=dtype)
    w = np.asarray(params["w"]).astype(np.float32)
    for sparsity in (0.25, 0.5, 0.75):
        found = masks(magnitude_to(sparsity), params)["w"]
        expected = toy.cut(w, np.ones_like(w, bool), toy.dead_number(sparsity, 4))
        np.testing.assert_array_equal(found, expected)


@pytest.mark.usefixtures("untyped")
def test_scores_that_float32_cannot_tell_apart_are_tied():
    params = {"w": 2**24 + jnp.arange(4)}  # past 2**24, as float32: 0, 0, 2 and 4
    mask = {"w": jnp.ones(4, bool)}
    found = masks(magnitude_to(0.25), params, mask)["w"]
    assert found.tolist() == [True] * 4


def test_the_dead_stay_dead_and_count_as_lowest():
    mask = {"w": jnp.abs(TEN["w"]) < 5.5}  # the five largest are dead
    assert alive(magnitude_to(0.5), TEN, mask) == mask["w"].tolist()[0]
    assert alive(magnitude_to(0.2), TEN, mask) == mask["w"].tolist()[0]
    found = alive(magnitude_to(0.7), TEN, mask)
    assert found == [True, False, False, False, True, False, False, False, False, True]
    # A dead NaN and a dead infinity stay dead as well.
    params = row(np.nan, np.inf, 1.0, 2.0)
    mask = {"w": jnp.array([[False, False, True, True]])}
    assert alive(magnitude_to(0.5), params, mask) == [False, False, True, True]
    assert alive(magnitude_to(0.75), params, mask) == [False, False, False, True]


def test_pruning_twice_is_pruning_once():
    params = toy.make_params()
    for scope in ("leaf", "global"):
        schedule = magnitude_to(0.8, scope=scope)
        once = masks(schedule, params)
        chex.assert_trees_all_equal(masks(schedule, params, once), once)
        zeroed = jaxprune.apply_mask(params, once)
        chex.assert_trees_all_equal(masks(schedule, zeroed, once), once)


def test_a_constant_leaf_is_not_emptied():
    params = {"w": jnp.full((4, 4), 0.5), "v": jnp.zeros((3, 3))}
    for scope in ("leaf", "global"):
        found = masks(magnitude_to(0.9, scope=scope), params)
        assert found["v"].any()
        assert found["w"].all()


def test_one_weight_and_none():
    params = {"one": jnp.ones((1, 1)), "none": jnp.ones((0, 4)), "w": TEN["w"]}
    for scope in ("leaf", "global"):
        found = masks(magnitude_to(0.9, scope=scope), params)
        assert found["none"].shape == (0, 4)
        assert found["one"].all()
    found = masks(jaxprune.by_std(1.0), params)
    assert found["none"].shape == (0, 4)
    assert found["one"].all()


@pytest.mark.parametrize("keep", [0, 1, 3, 10, 11])
@pytest.mark.parametrize("sparsity", [0.75, 0.95])
def test_min_keep_in_a_leaf(keep, sparsity):
    found = masks(magnitude_to(sparsity, min_keep=keep), TEN)["w"]
    dead = min(toy.dead_number(sparsity, 10), 10 - min(keep, 10))
    assert int((~found).sum()) == dead
    np.testing.assert_array_equal(found, np.abs(np.asarray(TEN["w"])) > dead)


@pytest.mark.parametrize("keep", [0, 1, 3, 7, 100])
def test_min_keep_with_a_global_threshold(keep):
    params = {
        "small": jnp.array([[0.1, -0.3, 0.2, 0.3, 0.0, 0.1]]),
        "large": jnp.arange(1.0, 25.0).reshape(4, 6),
        "b": jnp.ones(3),
    }
    found = masks(magnitude_to(0.6, scope="global", min_keep=keep), params)
    assert found["b"] is None
    weights = {k: np.asarray(params[k]) for k in ("small", "large")}
    dense = {k: np.ones(w.shape, bool) for k, w in weights.items()}
    expected = toy.cut_all(weights, dense, toy.dead_number(0.6, 30), keep)
    for name in weights:
        np.testing.assert_array_equal(found[name], expected[name])
    assert int(found["small"].sum()) == min(keep, 6)


@pytest.mark.parametrize("keep", [1, 3, 4, 50])
def test_a_floor_under_a_leaf_that_is_sampled(monkeypatch, keep):
    """Three live, in rows that the sample leaves out, so that it shows none."""
    monkeypatch.setattr("jaxprune._cut.MANY", 64)
    monkeypatch.setattr("jaxprune._sample.MANY", 64)
    assert sample(jnp.arange(640).reshape(40, 16)).tolist() == [
        [*range(first, first + 16)] for first in range(0, 640, 32)
    ]
    rng = np.random.default_rng(0)
    hidden = np.abs(rng.normal(size=(40, 16), scale=0.01)).astype(np.float32)
    hidden[1, 3] = hidden[7, 0] = hidden[39, 15] = 9
    plain = np.abs(rng.normal(size=(60, 50), loc=3, scale=0.1)).astype(np.float32)
    weights = {"hidden": hidden, "plain": plain}
    found = masks(magnitude_to(0.5, scope="global", min_keep=keep), weights)
    dense = {k: np.ones(w.shape, bool) for k, w in weights.items()}
    expected = toy.cut_all(weights, dense, toy.dead_number(0.5, 3640), keep)
    for name in weights:
        np.testing.assert_array_equal(found[name], expected[name])
    assert int(found["hidden"].sum()) == max(3, keep)


@pytest.mark.parametrize(("keep", "expected"), [
    (1, [[0, 0, 1], [0, 0, 0]]),
    (2, [[0, 0, 1], [1, 0, 0]]),
    (3, [[0, 0, 1], [1, 0, 1]]),
    (4, [[1, 0, 1], [1, 0, 1]]),
    (5, [[1, 1, 1], [1, 0, 1]]),
    (6, [[1, 1, 1], [1, 1, 1]]),
    (9, [[1, 1, 1], [1, 1, 1]]),
])  # fmt: skip
def test_of_equal_weights_the_first_are_kept(keep, expected):
    w = jnp.array([[1.0, -1.0, 2.0], [2.0, 1.0, -2.0]])
    params = {"w": w, "others": jnp.full((5, 20), 9.0)}
    schedule = magnitude_to(0.9, scope="global", min_keep=keep)
    np.testing.assert_array_equal(masks(schedule, params)["w"], expected)
    # By deviation: all of them are below the threshold.
    schedule = jaxprune.by_std(100.0, min_keep=keep)
    np.testing.assert_array_equal(masks(schedule, {"w": w})["w"], expected)


@pytest.mark.parametrize("keep", range(1, 9))
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_floor_of_equal_live_weights_counts_them_one_by_one(keep, value):
    params = {"w": jnp.full((2, 6), value), "others": jnp.full((5, 20), 9.0)}
    dense = jaxprune.dense_mask(params)
    live = np.array([[0, 0, 0, 1, 1, 1], [0, 1, 1, 1, 1, 1]], bool)
    schedule = magnitude_to(0.95, scope="global", min_keep=keep)
    found = masks(schedule, params, dense | {"w": jnp.array(live)})["w"]
    np.testing.assert_array_equal(found.ravel(), live.ravel() & (live.cumsum() <= keep))


def test_min_keep_does_not_revive():
    mask = {"w": jnp.array([[True] * 2 + [False] * 8]), "big": jnp.ones((3, 40), bool)}
    params = {"w": TEN["w"] / 100, "big": jnp.full((3, 40), 9.0)}
    found = masks(magnitude_to(0.5, scope="global", min_keep=5), params, mask)
    np.testing.assert_array_equal(found["w"], mask["w"])


def test_min_keep_of_one_is_the_default():
    params = {"w": TEN["w"] / 100, "big": jnp.full((3, 40), 9.0)}
    found = masks(magnitude_to(0.5, scope="global"), params)
    assert found["w"].tolist()[0] == (jnp.abs(TEN["w"]) == 10).tolist()[0]


def test_a_sparsity_per_path():
    params = {
        "conv": {"kernel": TEN["w"]},
        "fc": {"kernel": TEN["w"], "bias": jnp.ones(3)},
        "head": {"kernel": TEN["w"]},
    }
    schedule = magnitude_to(
        {
            re.compile("conv/.*"): 0.2,
            "fc/*": optax.constant_schedule(0.7),
            "*/kernel": 0.1,  # the first match wins
        }
    )
    found = masks(schedule, params)
    dead = {k: int((~m).sum()) for k, m in toy.by_name(found).items()}
    assert dead == {"conv/kernel": 2, "fc/kernel": 7, "head/kernel": 1}
    found = masks(magnitude_to({"fc/*": 0.5}), params)
    dead = {k: int((~m).sum()) for k, m in toy.by_name(found).items()}
    assert dead == {"conv/kernel": 0, "fc/kernel": 5, "head/kernel": 0}
    # A bias is no prunable leaf, so a key for it is an error.
    for make, what in ((magnitude_to, "sparsity"), (jaxprune.by_std, "quality")):
        for key in ("fc/bias", "fc8/kernel"):
            message = (
                f"{what} has a value for '{key}', which matches no prunable leaf; "
                "these are prunable: conv/kernel, fc/kernel, head/kernel"
            )
            with pytest.raises(ValueError, match=message):
                masks(make({"fc/kernel": 0.5, key: 0.5}), params)


def test_a_schedule_as_sparsity():
    schedule = magnitude_to(optax.linear_schedule(0.0, 1.0, 10))
    for step in range(12):
        found = masks(schedule, TEN, step=step)["w"]
        assert int((~found).sum()) == min(step, 9)


WEIGHTS = st.lists(
    st.one_of(
        st.floats(width=32, allow_subnormal=False),
        st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.5]),
    ),
    min_size=12,
    max_size=12,
)
ALIVE = st.lists(st.booleans(), min_size=12, max_size=12)


@jax.jit
def _both_scopes(params, mask, sparsity):
    return tuple(
        jaxprune.to_sparsity(
            jaxprune.magnitude, lambda step: sparsity, scope=scope, min_keep=2
        )(params, mask, 0)
        for scope in ("leaf", "global")
    )


@settings(max_examples=60, deadline=None)
@given(WEIGHTS, ALIVE, st.floats(0, 1, width=32))
def test_any_weights_mask_and_sparsity(weights, mask, sparsity):
    w = np.array(weights, np.float32)
    m = np.array(mask)
    weights = {"a": w[:4].reshape(2, 2), "b": w[4:].reshape(2, 4)}
    mask = {"a": m[:4].reshape(2, 2), "b": m[4:].reshape(2, 4)}
    by_leaf, over_all = _both_scopes(weights, mask, np.float32(sparsity))
    for name, x in weights.items():
        dead = toy.dead_number(sparsity, x.size)
        expected = toy.cut(x, mask[name], dead, keep=2)
        np.testing.assert_array_equal(by_leaf[name], expected)
    expected = toy.cut_all(weights, mask, toy.dead_number(sparsity, 12), keep=2)
    for name in weights:
        np.testing.assert_array_equal(over_all[name], expected[name])


# By standard deviation.


def test_layer_std_is_numpys():
    params = toy.make_params()
    rng = np.random.default_rng(0)
    mask = jax.tree.map(
        lambda p: jnp.asarray(rng.random(p.shape) < 0.4) if p.ndim == 2 else None,
        params,
    )
    std = jaxprune.layer_std(params, mask)
    assert std["fc1"]["bias"] is None
    for name, found in toy.by_name(std).items():
        w, m = toy.by_name(params)[name], toy.by_name(mask)[name]
        np.testing.assert_allclose(found, np.std(w[m].astype(np.float64)), rtol=1e-6)
        assert found.dtype == np.float32
        assert found.shape == ()


def test_layer_std_of_a_large_leaf_off_centre():
    """A mean far from 0, where the difference of two sums would lose the digits."""
    w = np.random.default_rng(0).normal(100, 1, (700, 900)).astype(np.float32)
    std = jaxprune.layer_std({"w": jnp.asarray(w)}, {"w": jnp.ones(w.shape, bool)})
    np.testing.assert_allclose(std["w"], np.std(w.astype(np.float64)), rtol=1e-6)


def test_complex_weights():
    w = np.array([[3 + 4j, 1j, -1 - 1j, 2, -5j]], np.complex64)
    params, mask = {"w": jnp.asarray(w)}, {"w": jnp.array([[True] * 4 + [False]])}
    np.testing.assert_allclose(
        jaxprune.layer_std(params, mask)["w"], np.std(w[:, :4]), rtol=1e-6
    )
    # Magnitudes 5, 1, 1.4, 2 and a deviation of 2.4.
    expected = [True, False, False, True, False]
    assert alive(jaxprune.by_std(0.8), params, mask) == expected
    assert alive(magnitude_to(0.6), params, mask) == expected
    found = jaxprune.to_quality(params, mask, {"w": 0.6})
    assert alive(jaxprune.by_std(found), params, mask) == expected


def test_layer_std_of_nothing_alive():
    std = jaxprune.layer_std({"w": jnp.ones((2, 2))}, {"w": jnp.zeros((2, 2), bool)})
    assert float(std["w"]) == 0


@pytest.mark.usefixtures("strict")
@pytest.mark.parametrize("quality", [0.3, 1.0, 1.7])
def test_by_std_against_numpy(quality):
    params = toy.make_params()
    mask = jaxprune.dense_mask(params)
    schedule = jaxprune.by_std(quality, min_keep=0)
    for _ in range(2):  # the second time the deviation is of live weights
        found = masks(schedule, params, mask)
        for name, new in toy.by_name(found).items():
            w, m = toy.by_name(params)[name], toy.by_name(mask)[name]
            threshold = quality * np.std(w[m].astype(np.float64))
            unclear = np.isclose(np.abs(w), threshold, rtol=1e-6, atol=0)
            expected = m & (np.abs(w) >= threshold)
            np.testing.assert_array_equal(new[~unclear], expected[~unclear])
            assert new.sum() < m.sum()
        mask = found


def test_by_std_worked_by_hand():
    # Deviation 2 about a mean of 0: a weight at the threshold lives.
    params = row(2.0, -2.0, 1.0, -1.0, 3.0, -3.0, 2.0, -2.0)
    std = np.sqrt(36 / 8)
    np.testing.assert_allclose(
        jaxprune.layer_std(params, jaxprune.dense_mask(params))["w"], std, rtol=1e-6
    )
    expected = [True, True, False, False, True, True, True, True]
    assert alive(jaxprune.by_std(0.9), params) == expected
    fixed = {"w": jnp.float32(2.0)}
    assert alive(jaxprune.by_std(1.0, std=fixed), params) == expected
    assert alive(jaxprune.by_std(1.0, std={"w": 2.0}), params) == expected


def test_frozen_deviations_cut_at_the_dense_threshold():
    params = toy.make_params()
    dense = jaxprune.dense_mask(params)
    std = jaxprune.layer_std(params, dense)
    once = masks(jaxprune.by_std(0.5, std=std), params)
    chex.assert_trees_all_equal(once, masks(jaxprune.by_std(0.5), params))
    # Frozen, a second round changes nothing; recomputed over the live, it does.
    twice = masks(jaxprune.by_std(0.5, std=std), params, once)
    chex.assert_trees_all_equal(twice, once)
    recomputed = masks(jaxprune.by_std(0.5), params, once)
    assert jaxprune.sparsity(recomputed) > jaxprune.sparsity(once)
    # Deviations kept in a checkpoint come back as NumPy's.
    as_numpy = jax.device_get(std)
    again = masks(jaxprune.by_std(0.5, std=as_numpy), params)
    chex.assert_trees_all_equal(again, once)


def test_a_quality_per_path():
    params = {"a": TEN["w"], "b": TEN["w"], "c": TEN["w"]}
    found = masks(jaxprune.by_std({"a": 0.5, "[ab]": 1.0}), params)
    alone = {q: masks(jaxprune.by_std(q), TEN)["w"] for q in (0.5, 1.0)}
    np.testing.assert_array_equal(found["a"], alone[0.5])
    np.testing.assert_array_equal(found["b"], alone[1.0])
    assert found["c"].all()


def test_by_std_and_what_is_not_finite():
    params = {"nan": row(np.nan, 1.0, 2.0)["w"], "w": TEN["w"]}
    found = masks(jaxprune.by_std(1.0), params)
    assert found["nan"].all()  # no deviation, and nothing in it dies
    assert not found["w"].all()
    # A dead NaN is not seen.
    mask = {"nan": jnp.array([[False, True, True]]), "w": found["w"]}
    assert not masks(jaxprune.by_std(5.0, min_keep=0), params, mask)["nan"].any()


def test_by_std_of_a_constant_leaf():
    params = {"w": jnp.full((3, 3), 0.25), "zero": jnp.zeros((3, 3))}
    found = masks(jaxprune.by_std(2.0), params)
    assert found["w"].all()
    assert found["zero"].all()


def test_prune_now_returns_pruned_params_and_their_mask():
    params = toy.make_params()
    pruned, mask = jaxprune.prune_now(params, magnitude_to(0.9))
    chex.assert_trees_all_equal(mask, masks(magnitude_to(0.9), params))
    chex.assert_trees_all_equal(pruned, jaxprune.apply_mask(params, mask))
    pruned, mask = jaxprune.prune_now(
        params,
        magnitude_to(0.9),
        lambda p: jaxprune.dense_mask(p, jaxprune.where("fc2/kernel")),
    )
    assert set(toy.by_name(mask)) == {"fc2/kernel"}
    linear = magnitude_to(optax.linear_schedule(0.0, 1.0, 10))
    assert jaxprune.sparsity(jaxprune.prune_now(TEN, linear, step=3)[1]) == 0.3
    with pytest.raises(ValueError, match="the mask of w has shape"):
        jaxprune.prune_now(TEN, linear, {"w": jnp.ones((2, 2), bool)})


@pytest.mark.parametrize(
    "std", [1.0, {"w": None}, {"w": jnp.ones(3)}, {"v": jnp.float32(1)}]
)
def test_deviations_that_do_not_fit_are_refused(std):
    params = {"w": jnp.ones((2, 2))}
    mask = jaxprune.dense_mask(params)
    with pytest.raises(ValueError, match=r"jaxprune\.layer_std\(params, mask\)"):
        jaxprune.by_std(1.0, std=std)(params, mask, 0)


@pytest.mark.parametrize("cpu", [True, False])
@pytest.mark.parametrize("rows", [20, 9000])
def test_a_deviation_has_a_gradient(monkeypatch, cpu, rows):
    monkeypatch.setattr("jaxprune._deviation.on_cpu", lambda: cpu)
    w = np.random.default_rng(0).normal(size=(rows, 60)).astype(np.float32)
    mask = {"w": jnp.abs(w) > 0.1}
    std = jax.jit(jax.value_and_grad(lambda p: jaxprune.layer_std(p, mask)["w"]))
    value, grad = std({"w": w})
    live = w[np.abs(w) > 0.1].astype(np.float64)
    np.testing.assert_allclose(value, live.std(), rtol=1e-6)
    expected = np.where(mask["w"], (w - live.mean()) / (live.size * live.std()), 0)
    np.testing.assert_allclose(grad["w"], expected, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("shape", [(2002,), (2, 1001), (7, 2, 143)])
def test_what_rounding_loses_of_a_sum_is_added_again(shape):
    """Beside 2**24 a float32 has no room for a one."""
    terms = np.ones(shape, np.float32)
    terms.flat[0] = 2.0**24
    assert jax.jit(_compensated)(terms) == np.float32(terms.sum(dtype=np.float64))
