import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toy
from quick import quick

import jaxprune


CUT = jaxprune.to_sparsity(jaxprune.magnitude, 0.5)
PARAMS = toy.make_params()
GRADS = toy.make_params(1)


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    """As most users run on a CPU; every other file has eight devices."""
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    monkeypatch.setattr("jaxprune._prune._LARGE", 0)


def step(tx, grads=GRADS, opt_state=None, params=PARAMS, **extra):
    opt_state = tx.init(params) if opt_state is None else opt_state
    updates, opt_state = tx.update(grads, opt_state, params, **extra)
    return optax.apply_updates(params, updates), opt_state


def test_one_step_worked_by_hand():
    params = {"w": jnp.array([[1.0, -4.0], [3.0, -2.0]]), "b": jnp.array([1.0, 2.0])}
    grads = {"w": jnp.array([[8.0, 8.0], [-8.0, 8.0]]), "b": jnp.array([4.0, -4.0])}
    tx = jaxprune.prune(optax.sgd(0.125), CUT)
    updates, state = tx.update(grads, tx.init(params), params)
    np.testing.assert_array_equal(updates["w"], [[-1.0, -1.0], [1.0, 2.0]])
    np.testing.assert_array_equal(updates["b"], [-0.5, 0.5])
    np.testing.assert_array_equal(state.mask["w"], [[False, True], [True, False]])
    assert state.mask["b"] is None
    assert int(state.step) == 1
    assert state.step.dtype == jnp.int32
    assert isinstance(state, jaxprune.PruneState)


def test_the_schedule_sees_raw_gradients_and_inner_masked_ones():
    seen = {}

    def schedule(params, mask, step, *, grads, **extra):
        seen["schedule"] = grads
        return CUT(params, mask, step)

    def spy(updates, state, params=None, **extra):
        seen["inner"] = updates
        return updates, state

    inner = optax.GradientTransformationExtraArgs(lambda p: (), spy)
    _, state = step(jaxprune.prune(inner, schedule))
    chex.assert_trees_all_equal(seen["schedule"], GRADS)
    chex.assert_trees_all_equal(seen["inner"], jaxprune.apply_mask(GRADS, state.mask))


def test_a_nan_gradient_of_a_dead_weight_is_hidden_from_inner():
    mask = jaxprune.prune_now(PARAMS, CUT)[1]
    poison = jax.tree.map(
        lambda g, m: g if m is None else jnp.where(m, g, jnp.nan), GRADS, mask
    )
    tx = jaxprune.prune(optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.1)),
                        jaxprune.hold, mask)  # fmt: skip
    params, state = step(tx, poison)
    chex.assert_tree_all_finite((params, state.inner_state))


def test_extra_arguments_reach_both():
    seen = []

    def schedule(params, mask, step, *, extra_number, **extra):
        seen.append(("schedule", extra_number, sorted(extra)))
        return mask

    def spy(updates, state, params=None, *, extra_number, **extra):
        seen.append(("inner", extra_number, sorted(extra)))
        return updates, state

    inner = optax.GradientTransformationExtraArgs(lambda p: (), spy)
    step(jaxprune.prune(inner, schedule), extra_number=7, other=8)
    assert seen == [("schedule", 7, ["grads", "other"]), ("inner", 7, ["other"])]


def test_extra_arguments_pass_an_inner_that_takes_none():
    params, _ = step(jaxprune.prune(optax.sgd(0.1), jaxprune.hold), value=1.0)
    chex.assert_tree_all_finite(params)


def test_an_inner_that_needs_the_value():
    tx = jaxprune.prune(optax.polyak_sgd(), CUT)
    params, state = step(tx, value=jnp.float32(2.0))
    toy.assert_dead_are_zero(params, state.mask)


def test_update_without_params():
    tx = jaxprune.prune(optax.sgd(0.1), CUT)
    message = r"params is None, expected the parameters .* update\(grads, state, params"
    with pytest.raises(ValueError, match=message):
        tx.update(GRADS, tx.init(PARAMS))


@pytest.mark.parametrize(("mask", "message"), [
    (jax.tree.map(lambda p: p > 0, GRADS["fc1"]),
     r"(?s)has structure .*expected that of the params"),
    ({**jaxprune.dense_mask(PARAMS),
      "fc2": {"kernel": jnp.ones((16, 4), bool), "bias": None}},
     r"the mask of fc2/kernel has shape \(16, 4\), expected \(16, 16\)"),
    ({**jaxprune.dense_mask(PARAMS),
      "fc2": {"kernel": jnp.ones((16, 16)), "bias": None}},
     "the mask of fc2/kernel is float32, expected an array of bool"),
    (lambda params: {"fc1": None}, "(?s)has structure .*make the mask with"),
    (lambda params: jaxprune.dense_mask(params, jaxprune.where("fc3/*")),
     r"the rule 'fc3/\*' matches no leaf"),
    (lambda params: jaxprune.dense_mask(params, lambda path, leaf: False),
     "no leaf may be pruned"),
])  # fmt: skip
def test_masks_that_do_not_fit(mask, message):
    tx = jaxprune.prune(optax.sgd(0.1), CUT, mask)
    with pytest.raises(ValueError, match=message):
        tx.init(PARAMS)


def test_rules_as_a_mask():
    rules = jaxprune.where("fc1/*")
    expected = jaxprune.dense_mask(PARAMS, rules)
    found = jaxprune.prune(optax.sgd(0.1), CUT, rules).init(PARAMS).mask
    chex.assert_trees_all_equal(found, expected)
    assert jaxprune.prune_now(PARAMS, CUT, rules)[1]["fc2"]["kernel"] is None


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize("make", [
    lambda s: jaxprune.prune(optax.sgd(0.1), s),
    lambda s: jaxprune.prune_now(PARAMS, s),
    lambda s: jaxprune.once(3, s),
    lambda s: jaxprune.every(3, s),
    lambda s: jaxprune.then((3, s)),
])  # fmt: skip
def test_a_number_is_no_schedule(make):
    message = r"^schedule is 0.9, expected a function such as to_sparsity\(magnitude, "
    with pytest.raises(ValueError, match=message):
        make(0.9)


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize("inner", [0.1, optax.adam, CUT])
def test_what_is_no_optimizer(inner):
    message = r"^inner is .*, expected an optax transformation such as optax.adam\("
    with pytest.raises(ValueError, match=message):
        jaxprune.prune(inner, CUT)


def test_state_of_other_params():
    """Told as such, before the schedule sees it, which is not to blame."""
    tx = jaxprune.prune(optax.sgd(0.1), jaxprune.hold)
    state = tx.init({"w": jnp.ones((2, 3))})
    message = r"^the mask of w has shape \(2, 3\), expected \(3, 2\)"
    with pytest.raises(ValueError, match=message):
        tx.update({"w": jnp.ones((3, 2))}, state, {"w": jnp.ones((3, 2))})


W, B = jnp.ones((4, 2)), jnp.ones(2)


@pytest.mark.parametrize(("grads", "message"), [
    ({"w": W}, r"gradients have structure .*, expected .*in one of them only: b\."),
    ({"w": None, "b": B}, r"in one of them only: w\."),
    ({"w": W, "b": B, "c": B}, r"in one of them only: c\."),
    ([B, W], r"in one of them only: 0, 1, b, w\."),
    ({"w": W.T, "b": B}, r"gradient of w has shape \(2, 4\), expected .* \(4, 2\)"),
    ({"w": jnp.float32(1), "b": B}, r"gradient of w has shape \(\)"),
])  # fmt: skip
def test_gradients_that_do_not_fit(grads, message):
    params = {"w": W, "b": B}
    tx = jaxprune.prune(optax.sgd(0.1), CUT)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(tx.update, grads, tx.init(params), params)


def test_one_none_for_a_subtree_and_a_schedule_of_ones_own():
    def schedule(params, mask, step, **extra):
        keep = lambda w, m: m & (w > 0)
        return jaxprune.map_masked(keep, params, mask, elsewhere=lambda w: None)

    mask = jaxprune.dense_mask(PARAMS) | {"fc1": None}
    tx = jaxprune.prune(optax.sgd(0.1), schedule, mask)
    _, state = tx.update(PARAMS, tx.init(PARAMS), PARAMS)
    assert jax.tree.leaves(state.mask["fc1"]) == []
    np.testing.assert_array_equal(
        state.mask["fc2"]["kernel"], np.asarray(PARAMS["fc2"]["kernel"]) > 0
    )


@pytest.mark.parametrize("name", ["grads", "mask", "step"])
def test_extra_arguments_of_names_that_are_taken(name):
    tx = jaxprune.prune(optax.sgd(0.1), CUT)
    state, extra = tx.init(PARAMS), {name: 3}
    with pytest.raises(ValueError, match=f"update got {name}, which a schedule is"):
        tx.update(PARAMS, state, PARAMS, **extra)


def test_heals_what_was_changed_from_outside():
    tx = jaxprune.prune(optax.adamw(0.1), jaxprune.once(0, CUT))
    params, state = step(tx)
    for stray in (PARAMS, jax.tree.map(lambda p: p + 1e30, params)):
        with pytest.raises(ValueError, match="dead weights that are not zero"):
            jaxprune.verify(stray, state)
        healed, after = step(tx, opt_state=state, params=stray)
        chex.assert_trees_all_equal(after.mask, state.mask)
        toy.assert_dead_are_zero(healed, state.mask)


def test_zero_for_any_finite_weight():
    """x + (-x) is +0: large, tiny, denormal and negative zero alike."""
    values = [3e38, -3e38, 1e-38, -1e-45, -0.0, 0.0, 1.1, -0.3]
    params = {"w": jnp.array([values], jnp.float32)}
    mask = {"w": jnp.zeros((1, len(values)), bool)}
    tx = jaxprune.prune(optax.sgd(1.0), jaxprune.hold, mask)
    pruned, _ = step(tx, params, params=params)
    toy.assert_dead_are_zero(pruned, mask)
    pruned, _ = jax.jit(lambda p: step(tx, p, params=p))(params)
    toy.assert_dead_are_zero(pruned, mask)


def test_a_nan_weight_stays_nan():
    params = {"w": jnp.array([[jnp.nan, 1.0], [2.0, 3.0]])}
    mask = {"w": jnp.array([[False, True], [True, False]])}
    grads = jax.tree.map(jnp.ones_like, params)
    pruned, state = step(
        jaxprune.prune(optax.sgd(0.5), jaxprune.hold, mask), grads, params=params
    )
    assert np.isnan(pruned["w"][0, 0])
    np.testing.assert_array_equal(pruned["w"][1], [1.5, 0.0])
    with pytest.raises(ValueError, match=r"^w has 1 dead weights that are not zero"):
        jaxprune.verify(pruned, state)
    assert jaxprune.apply_mask(params, mask)["w"][0, 0] == 0


def test_apply_if_finite_outside_keeps_nan_out_of_the_weights():
    grads = jax.tree.map(lambda g: g.at[..., 0].set(jnp.nan), GRADS)
    tx = jaxprune.prune(optax.sgd(0.5), jaxprune.every(2, CUT))
    broken, _ = step(tx, grads)
    assert np.isnan(broken["fc1"]["kernel"]).any()
    guarded = optax.apply_if_finite(tx, 3)
    kept, state = step(guarded, grads)
    chex.assert_trees_all_equal(kept, PARAMS)
    pruned, state = step(guarded, opt_state=state, params=kept)
    chex.assert_tree_all_finite(pruned)
    mask = jaxprune.get_mask(state)
    assert jaxprune.sparsity(mask) == 0.5  # the refused step was not counted
    toy.assert_dead_are_zero(pruned, mask)


@pytest.mark.parametrize(("params", "grads"), [
    (jnp.float32, jnp.bfloat16), (jnp.bfloat16, jnp.float32),
    (jnp.float16, jnp.float32), (jnp.bfloat16, jnp.bfloat16),
    (jnp.float32, jnp.float16),
])  # fmt: skip
def test_updates_come_in_the_wider_dtype(params, grads):
    wide = jnp.promote_types(params, grads)
    params, grads = toy.make_params(dtype=params), toy.make_params(1, dtype=grads)
    tx = jaxprune.prune(optax.sgd(0.1), CUT)
    updates, state = tx.update(grads, tx.init(params), params)
    assert updates["fc1"]["kernel"].dtype == wide
    pruned = optax.apply_updates(params, updates)
    assert pruned["fc1"]["kernel"].dtype == params["fc1"]["kernel"].dtype
    toy.assert_dead_are_zero(pruned, state.mask)


@pytest.mark.usefixtures("untyped")
def test_float64_of_numpy_outside_of_jit():
    """NumPy's default, which JAX reads as float32; to ask for float64 makes it warn."""
    params = {"w": np.random.default_rng(0).normal(size=(4, 4))}
    tx = jaxprune.prune(optax.sgd(0.1), CUT)
    updates, state = tx.update(params, tx.init(params), params)
    assert updates["w"].dtype == jnp.float32
    pruned = optax.apply_updates(jax.tree.map(jnp.asarray, params), updates)
    jaxprune.verify(pruned, state)


def test_leaves_outside_the_mask_get_the_inner_update_untouched():
    params, _ = step(jaxprune.prune(optax.sgd(0.1), CUT))
    plain, _ = step(optax.sgd(0.1))
    for layer in ("fc1", "fc2"):
        np.testing.assert_array_equal(params[layer]["bias"], plain[layer]["bias"])


def test_hold_from_a_dense_mask_is_the_inner_optimizer():
    params, _ = step(jaxprune.prune(optax.adam(0.1), jaxprune.hold))
    plain, _ = step(optax.adam(0.1))
    chex.assert_trees_all_equal(params, plain)


def test_a_reviving_schedule():
    """A mask may grow: the revived weight starts from zero and is trained."""

    def toggle(params, mask, step, **extra):
        flip = lambda m: jnp.where(step == 0, jnp.zeros_like(m), jnp.ones_like(m))
        return jax.tree.map(flip, mask)

    tx = jaxprune.prune(optax.sgd(0.5), toggle)
    params, state = step(tx)
    assert not params["fc1"]["kernel"].any()
    params, state = step(tx, opt_state=state, params=params)
    np.testing.assert_array_equal(params["fc1"]["kernel"], -GRADS["fc1"]["kernel"] / 2)


def test_a_given_mask_starts_dead():
    mask = jaxprune.prune_now(PARAMS, CUT)[1]
    params, state = step(jaxprune.prune(optax.adam(0.1), jaxprune.hold, mask))
    chex.assert_trees_all_equal(state.mask, mask)
    toy.assert_dead_are_zero(params, mask)


def test_the_step_saturates():
    tx = jaxprune.prune(optax.sgd(0.1), jaxprune.hold)
    state = tx.init(PARAMS)._replace(step=jnp.int32(2**31 - 1))
    assert int(step(tx, opt_state=state)[1].step) == 2**31 - 1


def test_found_in_any_state_by_name():
    tx = optax.chain(optax.clip(1.0), jaxprune.prune(optax.adam(0.1), CUT))
    state = step(tx)[1]
    chex.assert_trees_all_equal(
        optax.tree.get(state, "PruneState").mask, jaxprune.get_mask(state)
    )


@pytest.mark.usefixtures("strict")
def test_strict_promotion():
    tx = jaxprune.prune(optax.sgd(0.1, 0.9), jaxprune.every(2, CUT))
    params, state = step(tx)
    params, state = step(tx, opt_state=state, params=params)
    toy.assert_dead_are_zero(params, state.mask)


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (jaxprune.magnitude, "mask of w is float32"),
        (lambda p, m, s, **_: {"w": jnp.ones((1, 2), bool), "b": None}, "has shape"),
        (lambda p, m, s, **_: {"w": None, "b": None}, "did not return a mask"),
    ],
)
def test_a_schedule_that_returns_no_mask_is_told(schedule, message):
    params = {"w": jnp.ones((2, 2)), "b": jnp.ones(2)}
    tx = jaxprune.prune(optax.sgd(0.1), schedule)
    with pytest.raises(ValueError, match=message):
        tx.update(params, tx.init(params), params)


CUTS = {
    "magnitude": CUT,
    "global": jaxprune.to_sparsity(jaxprune.magnitude, 0.5, scope="global"),
    "saliency": jaxprune.to_sparsity(jaxprune.saliency, 0.5),
    "by_std": jaxprune.by_std(0.5),
}


@pytest.mark.parametrize(
    "inner",
    [
        pytest.param(optax.sgd(0.1, momentum=0.9), marks=pytest.mark.slow),
        optax.adam(0.1),
    ],
)
@pytest.mark.parametrize("cut", quick(CUTS, "magnitude", "global"))
@pytest.mark.parametrize("in_phases", [False, True])
def test_a_step_copies_no_matrix(cut, inner, in_phases):
    layers = ["fc0", "fc1", "fc2"]

    def loss(params, x):
        for name in layers:
            x = jnp.tanh(x @ params[name])
        return x.sum()

    def train_step(params, opt_state, x):
        updates, opt_state = tx.update(jax.grad(loss)(params, x), opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    often = jaxprune.every(100, CUTS[cut])
    phases = jaxprune.then((50, jaxprune.hold), (900, often), (910, jaxprune.hold))
    tx = jaxprune.prune(inner, phases if in_phases else often)
    params = {name: jnp.ones((512, 512)) for name in layers}
    args = params, tx.init(params), jnp.ones((8, 512))
    program = jax.jit(train_step, donate_argnums=(0, 1)).lower(*args).compile()
    _, text = str(program.as_text()).split("ENTRY")  # what runs at every step
    assert re.search(r"f32\[512,512\]\S* (dot|fusion)\(", text)
    assert not re.findall(r"\w+\[512,512\]\S* copy\(", text)


@pytest.mark.parametrize(
    "bits", [0, 1, -1, 0x7FC00000, -0x00400000, -(2**31), 2**31 - 1]
)
def test_waiting_for_gradients_leaves_the_step(bits):
    told = []

    def schedule(params, mask, step, **extra):
        told.append(step)
        return mask

    number = np.int32(bits).view(np.float32)
    grads = jax.tree.map(lambda g: jnp.full_like(g, number), GRADS)
    tx = jaxprune.prune(optax.sgd(0.1), schedule)
    tx.update(grads, tx.init(PARAMS)._replace(step=jnp.int32(7)), PARAMS)
    assert told == [7]


def test_waiting_for_gradients_of_any_kind():
    """Complex ones, none at all, a number of Python's."""
    params = {
        "w": jnp.ones((2, 2)), "complex": jnp.array([[1j]]), "number": 3.0,
        "none": jnp.ones((0, 3)),
    }  # fmt: skip
    tx = jaxprune.prune(optax.sgd(0.5), jaxprune.hold)
    updates, _ = tx.update(params, tx.init(params), params)
    halves = jax.tree.map(lambda p: -p / 2, params)
    jax.tree.map(np.testing.assert_array_equal, updates, halves)
