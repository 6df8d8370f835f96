import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toy

import jaxprune


PARAMS = {"w": jnp.arange(1.0, 11.0).reshape(2, 5), "b": jnp.ones(5)}
MASK = jaxprune.dense_mask(PARAMS)


def kill_one(params, mask, step, **extra):
    """Kills the first weight that is alive: each call shows."""

    def at_leaf(p, m):
        flat = m.ravel()
        return flat.at[jnp.argmax(flat)].set(False).reshape(m.shape)

    return jaxprune.map_masked(at_leaf, params, mask, elsewhere=lambda p: None)


def kill_all(params, mask, step, **extra):
    return jax.tree.map(jnp.zeros_like, mask)


def deaths(schedule, steps):
    """How many weights are dead after each step."""

    @jax.jit
    @chex.assert_max_traces(n=1)
    def run(mask, step):
        return schedule(PARAMS, mask, step, grads=PARAMS)

    chex.clear_trace_counter()
    mask, dead = MASK, []
    for step in range(steps):
        mask = run(mask, jnp.int32(step))
        dead.append(int((~mask["w"]).sum()))
    return dead


@pytest.mark.usefixtures("strict")
@pytest.mark.parametrize(("schedule", "expected"), [
    (jaxprune.hold, [0, 0, 0, 0, 0, 0, 0]),
    (jaxprune.once(0, kill_one), [1, 1, 1, 1, 1, 1, 1]),
    (jaxprune.once(3, kill_one), [0, 0, 0, 1, 1, 1, 1]),
    (jaxprune.every(1, kill_one), [1, 2, 3, 4, 5, 6, 7]),
    (jaxprune.every(2, kill_one), [1, 1, 2, 2, 3, 3, 4]),
    (jaxprune.every(2, kill_one, begin=3), [0, 0, 0, 1, 1, 2, 2]),
    (jaxprune.every(2, kill_one, begin=1, end=3), [0, 1, 1, 2, 2, 2, 2]),
    (jaxprune.every(2, kill_one, begin=1, end=4), [0, 1, 1, 2, 2, 2, 2]),
    (jaxprune.every(3, kill_one, begin=2, end=2), [0, 0, 1, 1, 1, 1, 1]),
    (jaxprune.every(3, kill_one, end=np.inf), [1, 1, 1, 2, 2, 2, 3]),
    (jaxprune.every(3, kill_one, end=10**10), [1, 1, 1, 2, 2, 2, 3]),
    (jaxprune.then((10**10, kill_one)), [1, 2, 3, 4, 5, 6, 7]),
    (jaxprune.then((5, jaxprune.hold), (np.inf, kill_one)), [0, 0, 0, 0, 0, 1, 2]),
    (jaxprune.every(2, jaxprune.every(3, kill_one)), [1, 1, 1, 1, 1, 1, 2]),
    (jaxprune.then((3, kill_one)), [1, 2, 3, 3, 3, 3, 3]),
    (jaxprune.then((2, jaxprune.hold), (4, kill_one)), [0, 0, 1, 2, 2, 2, 2]),
    (jaxprune.then((2, kill_one), (3, jaxprune.hold), (5, kill_one)),
     [1, 2, 2, 3, 4, 4, 4]),
    # Each schedule sees the step itself, not the time since it began.
    (jaxprune.then((2, jaxprune.hold), (7, jaxprune.every(3, kill_one))),
     [0, 0, 0, 1, 1, 1, 2]),
    (jaxprune.then((1, kill_one), (6, jaxprune.once(5, kill_all))),
     [1, 1, 1, 1, 1, 10, 10]),
    (jaxprune.then((3, jaxprune.every(2, kill_one)), (7, jaxprune.once(4, kill_all))),
     [1, 1, 2, 2, 10, 10, 10]),
    (jaxprune.then((1, jaxprune.hold), (6, jaxprune.then(
        (3, kill_one), (5, jaxprune.hold), (9, jaxprune.every(2, kill_one))))),
     [0, 1, 2, 2, 2, 2, 2]),
])  # fmt: skip
def test_when(schedule, expected):
    assert isinstance(schedule, jaxprune.MaskSchedule)
    assert deaths(schedule, 7) == expected


def test_python_steps_do_as_well():
    schedule = jaxprune.every(2, kill_one, begin=1)
    assert int((~schedule(PARAMS, MASK, 0)["w"]).sum()) == 0
    assert int((~schedule(PARAMS, MASK, 3)["w"]).sum()) == 1
    schedule = jaxprune.then((2, kill_one))
    assert int((~schedule(PARAMS, MASK, 1)["w"]).sum()) == 1


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize("three", [3.0, np.int64(3), np.float32(3), jnp.int32(3)])
def test_whole_steps_of_any_type(three):
    for schedule, expected in (
        (jaxprune.once(three, kill_one), [0, 0, 0, 1, 1]),
        (jaxprune.every(1, kill_one, begin=three, end=three), [0, 0, 0, 1, 1]),
        (jaxprune.then((three, kill_one)), [1, 2, 3, 3, 3]),
    ):
        assert deaths(schedule, 5) == expected


def test_extra_arguments_reach_the_schedule_inside():
    def by_extra(params, mask, step, *, kill, grads, **extra):
        return jax.tree.map(lambda m: m & ~kill, mask)

    for schedule in (
        jaxprune.every(1, by_extra),
        jaxprune.once(0, by_extra),
        jaxprune.then((5, by_extra)),
    ):
        mask = schedule(PARAMS, MASK, 0, kill=jnp.array(True), grads=PARAMS)
        assert not mask["w"].any()


def test_zhu_and_gupta():
    """Equation 1 of arXiv:1710.01878 by hand: s = 0.9 - 0.9 (1 - (t - 2) / 6)^3."""
    schedule = jaxprune.every(
        2,
        jaxprune.to_sparsity(
            jaxprune.magnitude, optax.polynomial_schedule(0.0, 0.9, 3, 6, 2)
        ),
    )
    params = {"w": jnp.asarray(np.random.default_rng(0).normal(size=(40, 50)))}
    params = jax.tree.map(lambda p: p.astype(jnp.float32), params)
    run = jax.jit(schedule)
    mask = jaxprune.dense_mask(params)
    for step in range(11):
        mask = run(params, mask, jnp.int32(step))
        t = min(max(step // 2 * 2, 2), 8)
        sparsity = 0.9 - 0.9 * (1 - (t - 2) / 6) ** 3
        assert jaxprune.sparsity(mask) == pytest.approx(sparsity, abs=0.6 / 2000)


def test_schedules_of_steps_trained():
    """`prune` counts from 0, and the mask of a step is taken before its update."""
    cut = jaxprune.to_sparsity(jaxprune.magnitude, 0.5)
    tx = jaxprune.prune(optax.sgd(0.0), jaxprune.once(1, cut))
    params, opt_state = PARAMS, tx.init(PARAMS)
    sparsities = []
    for _ in range(3):
        updates, opt_state = tx.update(params, opt_state, params)
        params = optax.apply_updates(params, updates)
        sparsities.append(jaxprune.sparsity(opt_state.mask))
        toy.assert_dead_are_zero(params, opt_state.mask)
    assert sparsities == [0.0, 0.5, 0.5]


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize(("make", "message"), [
    (lambda: jaxprune.once(-1, kill_one), "step is -1, expected at least 0"),
    (lambda: jaxprune.every(0, kill_one), "period is 0, expected at least 1"),
    (lambda: jaxprune.every(1, kill_one, begin=-2), "begin is -2, expected at least 0"),
    (lambda: jaxprune.once(2.5, kill_one), "step is 2.5, .* a whole number of steps"),
    (lambda: jaxprune.once(kill_one, 3), "step is <function kill_one"),
    (lambda: jaxprune.every(5, kill_one, begin=2.5), "begin is 2.5, .* whole number"),
    (lambda: jaxprune.every(5, kill_one, begin=np.nan), "begin is nan, .* whole"),
    (lambda: jaxprune.every(5, kill_one, end=np.nan), "end is nan, .* whole number"),
    (lambda: jaxprune.then((np.nan, kill_one)), "until is nan, .* a whole number"),
    (lambda: jaxprune.then((kill_one, 5)), "until is <function kill_one"),
    (lambda: jaxprune.then(5, kill_one), r"then\(\) got 5, expected pairs of a step"),
    (lambda: jaxprune.every(1, kill_one, begin=5, end=4), "end is 4, expected at "
                                                          "least begin, 5"),
    (lambda: jaxprune.then(), r"then\(\) got the steps \[\], expected at least one"),
    (lambda: jaxprune.then((0, kill_one)), r"the steps \[0\]"),
    (lambda: jaxprune.then((5, kill_one), (5, kill_one)), r"\[5, 5\].*increasing"),
    (lambda: jaxprune.once(2**31, kill_one), "step is 2147483648, expected at most"),
    (lambda: jaxprune.every(1, kill_one, begin=10**10), "begin is .*expected at most"),
    (lambda: jaxprune.every(2**31, kill_one), "period is 2147483648, expected at mos"),
])  # fmt: skip
def test_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()
