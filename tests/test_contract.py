"""Every inner optimizer by every wrapper: what `prune` promises, and where it cannot.

The live weights are compared with two references made of optax alone: the inner
optimizer inside the same wrapper on masked gradients, its params set to zero where the
mask is dead after each step; and the inner optimizer on a smaller problem, whose
parameters are vectors of the live weights and which knows of no others.
"""

from itertools import cycle
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toy
from quick import LONG

import jaxprune
from jaxprune._paths import leaf_name


STEPS = 8
LR = 0.02

INNERS = {
    "sgd": lambda learning_rate: optax.sgd(learning_rate),
    "momentum": lambda learning_rate: optax.sgd(learning_rate, 0.9),
    "nesterov": lambda learning_rate: optax.sgd(learning_rate, 0.9, nesterov=True),
    "adam": lambda learning_rate: optax.adam(learning_rate),
    "adamw": lambda learning_rate: optax.adamw(learning_rate, weight_decay=0.1),
    "lion": lambda learning_rate: optax.lion(learning_rate, weight_decay=0.1),
    "lamb": lambda learning_rate: optax.lamb(learning_rate, weight_decay=0.1),
    "adafactor": lambda learning_rate: optax.adafactor(
        learning_rate, min_dim_size_to_factor=8, weight_decay_rate=0.01
    ),
    "rmsprop": lambda learning_rate: optax.rmsprop(learning_rate, momentum=0.9),
    "noisy_sgd": lambda learning_rate: optax.noisy_sgd(learning_rate, key=0),
    "lbfgs": lambda learning_rate: optax.lbfgs(learning_rate, linesearch=None),
    "adabelief": lambda learning_rate: optax.adabelief(learning_rate),
    "yogi": lambda learning_rate: optax.yogi(learning_rate),
    "muon": lambda learning_rate: optax.contrib.muon(learning_rate),
    "sam": lambda learning_rate: optax.contrib.sam(
        optax.sgd(learning_rate, 0.9), optax.sgd(0.05), sync_period=2
    ),
    "schedule_free": lambda learning_rate: optax.contrib.schedule_free_sgd(
        learning_rate
    ),
}


def first(tree):
    return jax.tree_util.tree_map_with_path(
        lambda path, _: "fc1" in leaf_name(path), tree
    )


def rest(tree):
    return jax.tree.map(lambda is_first: not is_first, first(tree))


def labels(tree):
    return jax.tree.map(lambda is_first: "first" if is_first else "rest", first(tree))


# `wrap` is `prune` with its schedule, or the reference that stands in for it.
WRAPPERS = {
    "bare": lambda wrap, make: wrap(make(LR)),
    "chain(clip, prune)": lambda wrap, make: optax.chain(
        optax.clip_by_global_norm(0.5), wrap(make(LR))
    ),
    "prune(chain(clip, .))": lambda wrap, make: wrap(
        optax.chain(optax.clip_by_global_norm(0.5), make(LR))
    ),
    "MultiSteps(prune)": lambda wrap, make: optax.MultiSteps(
        wrap(make(LR)), 2
    ).gradient_transformation(),
    "prune(MultiSteps)": lambda wrap, make: wrap(
        optax.MultiSteps(make(LR), 2).gradient_transformation()
    ),
    "partition(prune, sgd)": lambda wrap, make: optax.partition(
        {"first": wrap(make(LR)), "rest": optax.sgd(LR)}, labels
    ),
    "partition(prune, prune)": lambda wrap, make: optax.partition(
        {"first": wrap(make(LR)), "rest": wrap(optax.adam(LR))}, labels
    ),
    "prune(partition)": lambda wrap, make: wrap(
        optax.partition({"first": make(LR), "rest": optax.adam(LR)}, labels)
    ),
    "masked(prune)": lambda wrap, make: optax.chain(
        optax.masked(optax.sgd(LR), rest), optax.masked(wrap(make(LR)), first)
    ),
    "apply_if_finite(prune)": lambda wrap, make: optax.apply_if_finite(
        wrap(make(LR)), 3
    ),
    "prune(apply_if_finite)": lambda wrap, make: wrap(
        optax.apply_if_finite(make(LR), 3)
    ),
    "prune(inject_hyperparams)": lambda wrap, make: wrap(
        optax.inject_hyperparams(make)(learning_rate=LR)
    ),
}

SPARSITY = optax.linear_schedule(0.3, 0.9, 5)
SCHEDULE = jaxprune.every(
    2, jaxprune.to_sparsity(jaxprune.magnitude, SPARSITY), begin=1
)


def pruned(inner):
    return jaxprune.prune(inner, SCHEDULE)


class Step(NamedTuple):
    params: Any
    mask: Any
    made: int  # updates that `prune` had made


def states(opt_state):
    is_state = lambda x: isinstance(x, jaxprune.PruneState)
    return [x for x in jax.tree.leaves(opt_state, is_leaf=is_state) if is_state(x)]


def data(wrapper):
    batches = toy.batches(STEPS)
    if "finite" in wrapper:
        batches[4][0][0, 0] = np.nan
    return batches


def run(tx, batches, params):
    @jax.jit
    @chex.assert_max_traces(n=1)
    def step(params, opt_state, batch):
        grads = jax.grad(toy.loss)(params, batch)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    chex.clear_trace_counter()
    opt_state = tx.init(params)
    steps = []
    for batch in batches:
        params, opt_state = step(params, opt_state, batch)
        counts = {int(state.step) for state in states(opt_state)}
        assert len(counts) == 1
        steps.append(Step(params, jaxprune.get_mask(opt_state), counts.pop()))
    jaxprune.verify(params, opt_state)
    return steps


def run_reference(wrapper, make, batches, params, steps):
    # What the mask was at each update that prune made, by name of the leaf.
    masks = {step.made: toy.by_name(step.mask) for step in steps}
    updates_made = max(masks)
    masks = {
        name: jnp.stack([masks[i + 1][name] for i in range(updates_made)])
        for name in masks[1]
    }

    def wrap(inner):
        inner = optax.with_extra_args_support(inner)

        def init(params):
            return jnp.zeros([], jnp.int32), inner.init(params)

        def update(grads, state, params=None, **extra):
            count, state = state

            def live(path, g):
                if leaf_name(path) not in masks:
                    return g
                return jnp.where(masks[leaf_name(path)][count], g, 0)

            grads = jax.tree_util.tree_map_with_path(live, grads)
            updates, state = inner.update(grads, state, params, **extra)
            return updates, (count + 1, state)

        return optax.GradientTransformationExtraArgs(init, update)

    tx = WRAPPERS[wrapper](wrap, make)

    @jax.jit
    def step(params, opt_state, batch, mask):
        grads = jax.grad(toy.loss)(params, batch)
        updates, opt_state = tx.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
        project = lambda p, m: p if m is None else jnp.where(m, p, 0)
        return jax.tree.map(project, params, mask), opt_state

    opt_state = jax.jit(tx.init)(params)
    for batch, ours in zip(batches, steps, strict=True):
        params, opt_state = step(params, opt_state, batch, ours.mask)
        yield params


def assert_same_live_weights(ours, reference):
    chex.assert_trees_all_close(ours, reference, rtol=1e-4, atol=1e-5)


def table():
    """The whole table; off a diagonal that has every row and every column: long."""
    diagonal = set(zip(INNERS, cycle(WRAPPERS), strict=False))
    for inner in INNERS:
        for wrapper in WRAPPERS:
            marks = [] if (inner, wrapper) in diagonal else LONG
            yield pytest.param(inner, wrapper, marks=marks, id=f"{wrapper}-{inner}")


@pytest.mark.parametrize(("inner", "wrapper"), [*table()])
def test_contract(inner, wrapper):
    make = INNERS[inner]
    tx = WRAPPERS[wrapper](pruned, make)
    params = toy.make_params()
    batches = data(wrapper)
    steps = run(tx, batches, params)

    before = Step(params, jax.tree.map(jnp.ones_like, steps[0].mask), 0)
    changes = 0
    for after in steps:
        toy.assert_dead_are_zero(after.params, after.mask)
        toy.assert_shrinks(before.mask, after.mask)
        chex.assert_tree_all_finite(after.params)
        weights, alive = toy.by_name(before.params), toy.by_name(before.mask)
        for name, new in toy.by_name(after.mask).items():
            if after.made > before.made and before.made % 2:
                dead = toy.dead_number(SPARSITY(before.made), new.size)
                expected = toy.cut(weights[name], alive[name], dead)
                assert new.sum() == new.size - dead
                changes += 1
            else:
                expected = alive[name]
            np.testing.assert_array_equal(new, expected)
        before = after
    assert changes >= 2

    references = run_reference(wrapper, make, batches, params, steps)
    for after, reference in zip(steps, references, strict=True):
        assert_same_live_weights(after.params, reference)


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_init_accepts_shapes(wrapper):
    tx = WRAPPERS[wrapper](pruned, INNERS["adam"])
    params = toy.make_params()
    shapes = jax.eval_shape(lambda p: p, params)
    made = jax.eval_shape(tx.init, shapes)
    chex.assert_trees_all_equal_shapes_and_dtypes(made, tx.init(params))


def test_init_runs_on_shapes_alone():
    shapes = jax.eval_shape(toy.make_params)
    mask = jaxprune.get_mask(pruned(optax.adam(LR)).init(shapes))
    assert jaxprune.sparsity(mask) == 0.0


ELEMENTWISE = {"sgd", "momentum", "adam", "lamb", "lbfgs", "sam"}
ALSO_ELEMENTWISE = {"nesterov", "adamw", "lion", "rmsprop", "adabelief", "yogi"}


@pytest.mark.parametrize(
    "inner",
    [
        *sorted(ELEMENTWISE),
        *(pytest.param(i, marks=LONG) for i in sorted(ALSO_ELEMENTWISE)),
    ],
)
def test_like_the_inner_optimizer_on_the_live_weights_alone(inner):
    params = toy.make_params()
    rng = np.random.default_rng(2)
    mask = jax.tree.map(
        lambda p: jnp.asarray(rng.random(p.shape) < 0.3) if p.ndim == 2 else None,
        params,
    )
    batches = toy.batches(5)
    tx = jaxprune.prune(INNERS[inner](LR), jaxprune.hold, mask)
    # The first gradients are taken where dead weights are not yet zero.
    start = jaxprune.apply_mask(params, mask)
    ours = run(tx, batches, start)[-1].params

    names = toy.by_name(mask)

    def expand(small):
        def at_leaf(path, p):
            name = leaf_name(path)
            if name not in names:
                return small[name]
            return jnp.zeros_like(p).at[np.nonzero(names[name])].set(small[name])

        return jax.tree_util.tree_map_with_path(at_leaf, params)

    small = {
        name: jnp.asarray(p[names[name]] if name in names else p)
        for name, p in toy.by_name(params).items()
    }
    tx = INNERS[inner](LR)

    @jax.jit
    def step(small, opt_state, batch):
        grads = jax.grad(lambda s: toy.loss(expand(s), batch))(small)
        updates, opt_state = tx.update(grads, opt_state, small)
        return optax.apply_updates(small, updates), opt_state

    opt_state = tx.init(small)
    for batch in batches:
        small, opt_state = step(small, opt_state, batch)
    assert_same_live_weights(ours, expand(small))


@pytest.mark.slow
@pytest.mark.long  # compiles the zoom line search
def test_line_search_gets_its_extra_arguments():
    params = toy.make_params()
    batch = toy.batches(1)[0]
    tx = pruned(optax.lbfgs())
    value_fn = lambda p: toy.loss(p, batch)

    @jax.jit
    def step(params, opt_state):
        value, grads = jax.value_and_grad(value_fn)(params)
        updates, opt_state = tx.update(
            grads, opt_state, params, value=value, grad=grads, value_fn=value_fn
        )
        return optax.apply_updates(params, updates), opt_state, value

    opt_state = tx.init(params)
    values = []
    for _ in range(5):
        params, opt_state, value = step(params, opt_state)
        values.append(float(value))
        toy.assert_dead_are_zero(params, jaxprune.get_mask(opt_state))
    assert np.isfinite(values).all()
    assert float(value_fn(params)) < values[0]


def train(tx, steps=4, params=None):
    params = toy.make_params() if params is None else params
    opt_state = tx.init(params)

    @jax.jit
    def step(params, opt_state, batch):
        grads = jax.grad(toy.loss)(params, batch)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    for batch in toy.batches(steps):
        params, opt_state = step(params, opt_state, batch)
    return params, opt_state


@pytest.mark.parametrize(("wrapper", "count"), [("MultiSteps(prune)", 2),
                                                ("prune(MultiSteps)", 4)])  # fmt: skip
def test_what_a_step_is_with_multi_steps(wrapper, count):
    tx = WRAPPERS[wrapper](pruned, INNERS["adam"])
    _, opt_state = train(tx, steps=4)
    assert int(optax.tree.get(opt_state, "PruneState").step) == count


# The wrong orders, which the README's rules of composition forbid.

CUT = jaxprune.to_sparsity(jaxprune.magnitude, 0.5)

WRONG = {
    "chain(prune, scale)": (
        lambda: optax.chain(jaxprune.prune(optax.adam(LR), CUT), optax.scale(0.5)),
        "fc1/kernel",
    ),
    "chain(prune, add_decayed_weights)": (
        lambda: optax.chain(
            jaxprune.prune(optax.scale_by_adam(), CUT),
            optax.add_decayed_weights(0.1),
            optax.scale_by_learning_rate(LR),
        ),
        "fc1/kernel",
    ),
    "chain(prune, freeze)": (
        lambda: optax.chain(
            jaxprune.prune(optax.adam(LR), CUT),
            optax.masked(optax.set_to_zero(), rest),
        ),
        "fc2/kernel",
    ),
}


@pytest.mark.parametrize("order", WRONG)
def test_wrong_order_is_told_by_verify(order):
    make, leaf = WRONG[order]
    params, opt_state = train(make())
    with pytest.raises(ValueError, match=rf"^{leaf} has \d+ dead weights .* last"):
        jaxprune.verify(params, opt_state)


@pytest.mark.parametrize("order", WRONG)
@pytest.mark.xfail(raises=AssertionError, strict=True, reason="prune must come last")
def test_wrong_order_keeps_dead_weights_at_zero(order):
    params, opt_state = train(WRONG[order][0]())
    toy.assert_dead_are_zero(params, jaxprune.get_mask(opt_state))


@pytest.mark.parametrize("outer", ["partition", "masked"])
def test_fixed_mask_in_a_part_is_refused(outer):
    params = toy.make_params()
    tx = jaxprune.prune(optax.adam(LR), CUT, jaxprune.dense_mask(params))
    if outer == "partition":
        tx = optax.partition({"first": tx, "rest": optax.sgd(LR)}, labels)
    else:
        tx = optax.masked(tx, first)
    with pytest.raises(ValueError, match="give `prune` a function of params"):
        tx.init(params)


def test_mask_function_in_a_part():
    chosen = lambda part: jaxprune.dense_mask(part, jaxprune.where("fc1/*"))
    tx = jaxprune.prune(optax.adam(LR), CUT, chosen)
    tx = optax.partition({"first": tx, "rest": optax.sgd(LR)}, labels)
    params, opt_state = train(tx)
    mask = jaxprune.get_mask(opt_state)
    assert set(toy.by_name(mask)) == {"fc1/kernel", "fc1/bias"}
    toy.assert_dead_are_zero(params, mask)


def test_inject_hyperparams_outside_takes_callables_for_schedules():
    tx = optax.inject_hyperparams(jaxprune.prune)
    with pytest.raises(Exception):  # noqa: B017, PT011
        train(tx(inner=optax.adam(LR), schedule=CUT))


def test_inject_hyperparams_outside_with_static_arguments():
    make = lambda learning_rate, schedule: jaxprune.prune(
        optax.adam(learning_rate), schedule
    )
    tx = optax.inject_hyperparams(make, static_args=("schedule",))
    params, opt_state = train(tx(learning_rate=LR, schedule=CUT))
    jaxprune.verify(params, opt_state)


def test_sparsity_turned_by_hand():
    """A hyperparameter of the schedule travels as an extra argument."""

    def schedule(params, mask, step, *, target, **extra):
        cut = jaxprune.to_sparsity(jaxprune.magnitude, lambda step: target)
        return cut(params, mask, step, **extra)

    tx = jaxprune.prune(optax.adam(LR), schedule)
    params = toy.make_params()
    opt_state = tx.init(params)

    @jax.jit
    @chex.assert_max_traces(n=1)
    def step(params, opt_state, target):
        updates, opt_state = tx.update(params, opt_state, params, target=target)
        return optax.apply_updates(params, updates), opt_state

    chex.clear_trace_counter()
    for target in (0.25, 0.5, 0.75):
        params, opt_state = step(params, opt_state, jnp.float32(target))
        assert jaxprune.sparsity(jaxprune.get_mask(opt_state)) == target


def test_lookahead_prunes_the_fast_weights_only():
    tx = optax.lookahead(jaxprune.prune(optax.sgd(LR), CUT), 3, 0.5)
    params = optax.LookaheadParams.init_synced(toy.make_params())
    opt_state = tx.init(params)
    for sync, batch in zip((False, False, True), toy.batches(3), strict=True):
        grads = jax.grad(toy.loss)(params.fast, batch)
        updates, opt_state = tx.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
        mask = jaxprune.get_mask(opt_state)
        copies = [params.slow]
        if sync:
            copies.append(params.fast)
        else:
            toy.assert_dead_are_zero(params.fast, mask)
        for weights in copies:
            with pytest.raises(ValueError, match="dead weights that are not zero"):
                jaxprune.verify(weights, opt_state)
            toy.assert_dead_are_zero(jaxprune.apply_mask(weights, mask), mask)
