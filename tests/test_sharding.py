"""Eight devices: the mask does not depend on how the params are laid out."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toy
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from quick import LONG

import jaxprune


pytestmark = pytest.mark.skipif(
    jax.device_count() < 8, reason="needs 8 devices, virtual or not"
)

SPECS = {"rows": P("x", None), "columns": P(None, "y"), "both": P("x", "y")}
SHAPES = {"fc1": (32, 16), "conv": (3, 2, 8, 16)}
LARGE = {"large": (512, 512)}  # here the search starts from a sample
KEY = jax.random.key(3)
GLOBAL = jaxprune.to_sparsity(jaxprune.magnitude, 0.9, scope="global")
SCHEDULES = {
    "saliency": jaxprune.to_sparsity(jaxprune.saliency, 0.7),
    "random": jaxprune.to_sparsity(jaxprune.random(KEY), 0.5, scope="global"),
    "floor": jaxprune.to_sparsity(jaxprune.magnitude, 0.99, scope="global", min_keep=3),
}
MORE_SCHEDULES = {
    "leaf": jaxprune.to_sparsity(jaxprune.magnitude, 0.9),
    "global": GLOBAL,
    "high floor": jaxprune.to_sparsity(
        jaxprune.magnitude, 0.99, scope="global", min_keep=40
    ),
    "every": jaxprune.every(2, jaxprune.to_sparsity(jaxprune.magnitude, 0.5)),
}


FAST = [("explicit", "both"), ("auto", "rows")]
EVERY = [(kind, layout) for kind in ("explicit", "auto") for layout in SPECS]


def layouts(*fast):
    """All kinds and layouts; those that are not `fast` are slow, or even long."""
    marks = {both: [] if both in fast else [pytest.mark.slow] for both in FAST}
    return [
        pytest.param(both, id="-".join(both), marks=marks.get(both, LONG))
        for both in EVERY
    ]


on_one = pytest.mark.parametrize("place", layouts(FAST[0]), indirect=True)


@pytest.fixture(params=layouts(*FAST))
def place(request):
    """A function from shapes to shardings, on a mesh that is in force."""
    kind, layout = request.param
    kind = {"explicit": AxisType.Explicit, "auto": AxisType.Auto}[kind]
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(kind, kind))
    with jax.set_mesh(mesh):
        yield lambda shapes: shardings(mesh, SPECS[layout], shapes)


def values(seed, shapes=SHAPES):
    """Params or gradients on the host, with ties among them."""
    rng = np.random.default_rng(seed)
    tree = {
        name: rng.normal(size=shape).astype(np.float32)
        for name, shape in shapes.items()
    }
    if "conv" in tree:
        tree["conv"] = np.round(tree["conv"], 1) / 100
    tree["bias"] = rng.normal(size=16).astype(np.float32)
    return tree


def shardings(mesh, spec, shapes):
    def at_leaf(shape):
        lead = (None,) * (len(shape) - 2)
        return NamedSharding(mesh, P(*lead, *spec) if len(shape) > 1 else P())

    return {name: at_leaf(leaf.shape) for name, leaf in values(0, shapes).items()}


def one_device_mesh():
    kinds = (AxisType.Auto,)
    return jax.make_mesh((1,), ("x",), devices=jax.devices()[:1], axis_types=kinds)


def one_device(tree):
    return jax.device_put(tree, NamedSharding(one_device_mesh(), P()))


def run(schedules, params, grads):
    """The masks of several schedules, in one compilation."""
    mask = jaxprune.dense_mask(params)

    @jax.jit
    def masks(params, mask, grads):
        step = jnp.int32(4)
        return {
            name: schedule(params, mask, step, grads=grads)
            for name, schedule in schedules.items()
        }

    return masks(params, mask, grads)


def check_same(schedules, where, shapes):
    params, grads = values(0, shapes), values(1, shapes)
    sharded = run(
        schedules, jax.device_put(params, where), jax.device_put(grads, where)
    )
    with jax.set_mesh(one_device_mesh()):
        alone = run(schedules, one_device(params), one_device(grads))
    for name, masks in sharded.items():
        for leaf in shapes:
            mask = masks[leaf]
            assert mask.sharding.is_equivalent_to(where[leaf], mask.ndim), (name, leaf)
        assert jaxprune.sparsity(alone[name]) > 0.4
    chex.assert_trees_all_equal(jax.device_get(sharded), jax.device_get(alone))


def test_same_mask_bit_for_bit(place):
    check_same(SCHEDULES, place(SHAPES), SHAPES)


@pytest.mark.slow
@pytest.mark.long
def test_same_mask_bit_for_bit_with_more_schedules(place):
    check_same(MORE_SCHEDULES, place(SHAPES), SHAPES)


@on_one
def test_same_mask_of_a_large_leaf(place):
    check_same({"global": GLOBAL}, place(LARGE), LARGE)


@pytest.mark.slow
def test_by_std_differs_at_the_threshold_at_most(place):
    where = place(SHAPES)
    params = values(0)
    schedule = jaxprune.by_std(0.7)
    sharded = run({"std": schedule}, jax.device_put(params, where), params)["std"]
    alone = jaxprune.prune_now(params, schedule)[1]
    mask = jaxprune.dense_mask(params)
    std = jaxprune.layer_std(jax.tree.map(jnp.asarray, params), mask)
    for name in SHAPES:
        differ = np.asarray(sharded[name]) != np.asarray(alone[name])
        weights = np.abs(params[name][differ])
        np.testing.assert_allclose(weights, 0.7 * float(std[name]), rtol=1e-6)


def types(tree):
    return jax.tree.map(lambda x: str(jax.typeof(x)), tree)


@pytest.mark.slow
@on_one
def test_init_update_and_jitted_forms_agree(place):
    where = place(SHAPES)
    params = jax.device_put(values(0), where)
    grads = jax.device_put(values(1), where)
    cut = jaxprune.to_sparsity(jaxprune.magnitude, 0.5, scope="global")
    tx = jaxprune.prune(optax.adam(0.1), jaxprune.every(2, cut))

    eager = tx.init(params)
    jitted = jax.jit(tx.init)(params)
    chex.assert_trees_all_equal(types(eager), types(jitted))
    updates, after = tx.update(grads, eager, params)
    updates_jit, after_jit = jax.jit(tx.update)(grads, jitted, params)
    chex.assert_trees_all_equal(types(eager), types(after), types(after_jit))
    chex.assert_trees_all_equal(types(updates), types(params), types(updates_jit))
    for state in (eager, after, after_jit):
        for name in SHAPES:
            mask = state.mask[name]
            assert mask.sharding.is_equivalent_to(where[name], mask.ndim)
    chex.assert_trees_all_equal(after.mask, after_jit.mask)
    assert jaxprune.sparsity(after.mask) == pytest.approx(0.5, abs=0.02)  # ties live


@pytest.mark.slow
def test_training_is_that_of_one_device(place):
    """Two steps of a model on a mesh: same masks, one trace, exact zeros."""
    like = place({"kernel": (1, 1)})
    where = {"fc1": like, "fc2": like}
    cut = jaxprune.to_sparsity(jaxprune.magnitude, 0.75)
    tx = jaxprune.prune(optax.adam(0.01), cut)

    def train(params, grads):
        @jax.jit
        @chex.assert_max_traces(n=1)
        def step(params, opt_state, grads):
            updates, opt_state = tx.update(grads, opt_state, params)
            return optax.apply_updates(params, updates), opt_state

        chex.clear_trace_counter()
        opt_state = jax.jit(tx.init)(params)
        for _ in range(2):
            params, opt_state = step(params, opt_state, grads)
            toy.assert_dead_are_zero(params, opt_state.mask)
        return jax.device_get(params), jax.device_get(opt_state.mask)

    start, slope = jax.device_get((toy.make_params(), toy.make_params(1)))
    with jax.set_mesh(one_device_mesh()):
        alone, mask = train(one_device(start), one_device(slope))
    sharded, sharded_mask = train(
        jax.device_put(start, where), jax.device_put(slope, where)
    )
    chex.assert_trees_all_equal(sharded_mask, mask)
    chex.assert_trees_all_close(sharded, alone, rtol=1e-6)


@pytest.mark.parametrize("split", [False, True])
def test_shard_map(split):
    """A leaf is what one device holds: the whole of it, or a part on its own."""
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    tx = jaxprune.prune(optax.sgd(0.1), SCHEDULES["saliency"])
    params = {"w": values(0)["fc1"]}
    batch = np.random.default_rng(1).normal(size=(16, 32)).astype(np.float32)

    def step(params, batch):
        def loss(params):
            out = jnp.mean(jnp.square(batch[:, : len(params["w"])] @ params["w"]))
            return out if split else jax.lax.pmean(out, "x")

        grads = jax.grad(loss)(params)
        updates, state = tx.update(grads, tx.init(params), params)
        return optax.apply_updates(params, updates), state.mask

    specs = (P("x"), P()) if split else (P(), P("x"))
    parts = jax.shard_map(
        step, mesh=mesh, in_specs=specs, out_specs=specs[0], check_vma=not split
    )
    pruned, mask = jax.jit(parts)(params, batch)
    toy.assert_dead_are_zero(pruned, mask)
    for rows in np.split(np.arange(32), 8 if split else 1):
        one = {"w": params["w"][rows]}
        grad = batch[:, : len(rows)].T @ (batch[:, : len(rows)] @ one["w"])
        score = np.abs(one["w"] * grad)
        dead = toy.dead_number(0.7, score.size)
        alive = toy.cut(score, np.full(score.shape, True), dead)
        np.testing.assert_array_equal(np.asarray(mask["w"])[rows], alive)


def test_recipe_for_the_shardings_of_the_state():
    """The README's recipe: masks and moments are made where their params are."""
    tx = jaxprune.prune(optax.adam(0.01), jaxprune.hold)
    make_params = toy.make_params
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(AxisType.Auto,) * 2)
    specs = {"kernel": P("x", "y"), "bias": P()}
    specs = {"fc1": specs, "fc2": specs}

    param_shardings = jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)
    shapes = jax.eval_shape(tx.init, jax.eval_shape(make_params))
    state_shardings = optax.tree.map_params(
        tx,
        lambda leaf, sharding: None if leaf is None else sharding,
        shapes,
        param_shardings,
        transform_non_params=lambda leaf: NamedSharding(mesh, P()),
        is_leaf=lambda leaf: leaf is None,
    )
    params = jax.jit(make_params, out_shardings=param_shardings)()
    opt_state = jax.jit(tx.init, out_shardings=state_shardings)(params)

    assert opt_state.step.sharding.is_fully_replicated
    for name in ("fc1", "fc2"):
        kernel = params[name]["kernel"]
        adam = opt_state.inner_state[0]
        for like in (opt_state.mask, adam.mu, adam.nu):
            assert like[name]["kernel"].sharding == kernel.sharding
        assert opt_state.mask[name]["bias"] is None
        assert kernel.addressable_shards[0].data.shape == (4, 8)


def test_random_does_not_depend_on_the_other_leaves():
    params = one_device({"fc1": jnp.ones((8, 8)), "fc2": jnp.ones((8, 8))})
    draw = jaxprune.random(KEY)
    mask = jaxprune.dense_mask(params)
    both = draw(params, mask, jnp.int32(5))
    only = draw({"fc2": params["fc2"]}, {"fc2": mask["fc2"]}, jnp.int32(5))
    np.testing.assert_array_equal(both["fc2"], only["fc2"])
    assert not np.array_equal(both["fc1"], both["fc2"])
