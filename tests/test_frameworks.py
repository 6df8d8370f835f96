"""Any pytree of arrays: linen, NNX, equinox, lists and tuples; and JAX's transforms."""

import chex
import equinox as eqx
import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toy
from flax import nnx
from quick import quick

import jaxprune


CUT = jaxprune.to_sparsity(jaxprune.magnitude, 0.75)
TX = jaxprune.prune(optax.adam(0.01), jaxprune.every(2, CUT))
BATCH = toy.batches(1)[0]

needs_nnx = pytest.mark.skipif(
    tuple(map(int, flax.__version__.split(".")[:2])) < (0, 12),
    reason="nnx.Optimizer keeps its state in another form before flax 0.12",
)


def train(tx, params, loss, steps=3):
    """Trains with plain optax, and checks the promise after each step."""

    @jax.jit
    @chex.assert_max_traces(n=1)
    def step(params, opt_state):
        updates, opt_state = tx.update(jax.grad(loss)(params), opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    chex.clear_trace_counter()
    opt_state = tx.init(params)
    for _ in range(steps):
        params, opt_state = step(params, opt_state)
        toy.assert_dead_are_zero(params, jaxprune.get_mask(opt_state))
    jaxprune.verify(params, opt_state)
    return params, opt_state


class Dense(nn.Module):
    """Two dense layers with a batch norm in between."""

    @nn.compact
    def __call__(self, x, train):
        x = nn.Dense(toy.WIDTH, name="fc1")(x)
        x = nn.BatchNorm(use_running_average=not train, name="norm")(x)
        return nn.Dense(toy.WIDTH, name="fc2")(nn.relu(x))


def test_linen_with_batch_norm():
    model = Dense()
    x, y = BATCH
    variables = model.init(jax.random.key(0), x, train=True)
    params, stats = variables["params"], variables["batch_stats"]

    @jax.jit
    def step(params, stats, opt_state):
        def loss(params):
            out, new = model.apply(
                {"params": params, "batch_stats": stats},
                x,
                train=True,
                mutable=["batch_stats"],
            )
            return jnp.mean(jnp.square(out - y)), new["batch_stats"]

        grads, stats = jax.grad(loss, has_aux=True)(params)
        updates, opt_state = TX.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), stats, opt_state

    opt_state = TX.init(params)
    old_stats = stats
    for _ in range(3):
        params, stats, opt_state = step(params, stats, opt_state)
        toy.assert_dead_are_zero(params, jaxprune.get_mask(opt_state))
    mask = jaxprune.get_mask(opt_state)
    assert set(toy.by_name(mask)) == {"fc1/kernel", "fc2/kernel"}
    assert mask["norm"] == {"bias": None, "scale": None}
    assert jaxprune.sparsity(mask) == 0.75
    assert not np.array_equal(old_stats["norm"]["mean"], stats["norm"]["mean"])
    model.apply({"params": params, "batch_stats": stats}, x, train=False)


class Net(nnx.Module):
    def __init__(self, rngs):
        self.fc1 = nnx.Linear(toy.WIDTH, toy.WIDTH, rngs=rngs)
        self.norm = nnx.BatchNorm(toy.WIDTH, rngs=rngs)
        self.fc2 = nnx.Linear(toy.WIDTH, toy.WIDTH, rngs=rngs)

    def __call__(self, x):
        return self.fc2(nnx.relu(self.norm(self.fc1(x))))


@needs_nnx
@pytest.mark.parametrize("wrapper", ["bare", "MultiSteps", "partition"])
def test_nnx_optimizer(wrapper):
    net = Net(nnx.Rngs(0))
    tx = TX
    if wrapper == "MultiSteps":
        tx = optax.MultiSteps(TX, 2).gradient_transformation()
    if wrapper == "partition":

        def labels(params):
            name = lambda path, _: "fc1" if "fc1" in str(path) else "rest"
            return jax.tree_util.tree_map_with_path(name, params)

        tx = optax.partition({"fc1": TX, "rest": TX}, labels)
    optimizer = nnx.Optimizer(net, tx, wrt=nnx.Param)
    traces = []

    @nnx.jit
    def step(net, optimizer, x, y):
        traces.append(1)
        grads = nnx.grad(lambda net: jnp.mean(jnp.square(net(x) - y)))(net)
        optimizer.update(net, grads)

    def now():
        return nnx.state(net, nnx.Param), jaxprune.get_mask(optimizer.opt_state)

    for _ in range(3):
        step(net, optimizer, *BATCH)
        toy.assert_dead_are_zero(*now())
    assert len(traces) == 1
    params, mask = now()
    assert set(toy.by_name(mask)) == {"fc1/kernel", "fc2/kernel"}
    assert all(isinstance(m, jax.Array) for m in jax.tree.leaves(mask))
    assert jaxprune.sparsity(mask) == 0.75
    pure = nnx.to_pure_dict(params)
    assert float((pure["fc1"]["kernel"] == 0).mean()) == 0.75
    jaxprune.verify(params, optimizer.opt_state)
    paths = [row.path for row in jaxprune.summarize(params, mask)]
    assert paths[:2] == ["fc1/bias", "fc1/kernel"]  # without a trailing /value
    pruned = jaxprune.apply_mask(nnx.state(Net(nnx.Rngs(1)), nnx.Param), mask)
    toy.assert_dead_are_zero(pruned, mask)


@needs_nnx
def test_nnx_rules_see_the_same_paths_at_init_and_update():
    net = Net(nnx.Rngs(0))
    seen = []

    def schedule(params, mask, step, **extra):
        seen.append(set(toy.by_name(jax.tree.map(lambda p: 0, params))))
        return jaxprune.to_sparsity(jaxprune.magnitude, {"fc1/*": 0.5})(
            params, mask, step, **extra
        )

    where = jaxprune.where("*/kernel")
    tx = jaxprune.prune(
        optax.sgd(0.1), schedule, lambda params: jaxprune.dense_mask(params, where)
    )
    optimizer = nnx.Optimizer(net, tx, wrt=nnx.Param)
    grads = nnx.grad(lambda net: jnp.sum(net(BATCH[0])))(net)
    optimizer.update(net, grads)
    assert {"fc1/kernel", "fc2/bias", "norm/scale"} < seen[0]
    mask = toy.by_name(jaxprune.get_mask(optimizer.opt_state))
    assert mask["fc1/kernel"].mean() == 0.5
    assert mask["fc2/kernel"].all()


class Equinox(eqx.Module):
    fc1: eqx.nn.Linear
    fc2: eqx.nn.Linear

    def __init__(self):
        a, b = jax.random.split(jax.random.key(0))
        self.fc1 = eqx.nn.Linear(toy.WIDTH, toy.WIDTH, use_bias=False, key=a)
        self.fc2 = eqx.nn.Linear(toy.WIDTH, toy.WIDTH, key=b)

    def __call__(self, x):
        return self.fc2(jnp.tanh(self.fc1(x)))


def equinox_loss(net):
    return jnp.mean(jnp.square(jax.vmap(net)(BATCH[0]) - BATCH[1]))


def test_equinox_module():
    net = Equinox()
    params, opt_state = train(TX, net, equinox_loss)
    mask = jaxprune.get_mask(opt_state)
    assert isinstance(params, Equinox)
    assert params.fc1.bias is None
    assert mask.fc1.bias is None
    assert mask.fc2.bias is None
    assert set(toy.by_name(mask)) == {"fc1/weight", "fc2/weight"}
    assert jaxprune.sparsity(mask) == 0.75


def test_equinox_filtered_module():
    net = eqx.nn.MLP(toy.WIDTH, toy.WIDTH, toy.WIDTH, 1, key=jax.random.key(0))
    params, static = eqx.partition(net, eqx.is_inexact_array)
    loss = lambda params: equinox_loss(eqx.combine(params, static))
    params, opt_state = train(TX, params, loss)
    mask = jaxprune.get_mask(opt_state)
    assert set(toy.by_name(mask)) == {"layers/0/weight", "layers/1/weight"}
    assert equinox_loss(eqx.combine(params, static)).shape == ()


@pytest.mark.usefixtures("untyped")
def test_equinox_functions_are_no_arrays():
    net = eqx.nn.MLP(toy.WIDTH, toy.WIDTH, toy.WIDTH, 1, key=jax.random.key(0))
    weights = jaxprune.where("layers/*/weight")
    arrays = eqx.filter(net, eqx.is_inexact_array)
    mask = jaxprune.dense_mask(net, weights)  # which asks about no function
    assert set(toy.by_name(mask)) == {"layers/0/weight", "layers/1/weight"}
    for use in (
        jaxprune.dense_mask,
        lambda net: jaxprune.dense_mask(net, jaxprune.where("**")),
        lambda net: jaxprune.describe(net, mask),
        lambda net: jaxprune.check_mask(
            {"activation": net.activation}, {"activation": np.array(True)}
        ),
        TX.init,
        lambda net: TX.update(arrays, TX.init(arrays), net),
    ):
        with pytest.raises(ValueError, match=r"^activation is of .* eqx\.filter\("):
            use(net)


def test_equinox_module_as_a_mask_is_not_called():
    net = Equinox()
    mask = jaxprune.dense_mask(net, jaxprune.where("fc2/weight"))
    assert callable(mask)
    tx = jaxprune.prune(optax.adam(0.01), CUT, mask)
    _, opt_state = train(tx, net, equinox_loss)
    found = jaxprune.get_mask(opt_state)
    assert set(toy.by_name(found)) == {"fc2/weight"}
    pruned, _ = jaxprune.prune_now(net, CUT, mask)
    toy.assert_dead_are_zero(pruned, found)
    assert pruned.fc1.weight.all()


def sum_of_squares(params):
    return sum(jnp.sum(jnp.square(p - 1)) for p in jax.tree.leaves(params))


@pytest.mark.parametrize("make", [
    lambda k, b: [k, b],
    lambda k, b: (b, (k, [k])),
    lambda k, b: {"layers": [{"w": k}, {"w": k, "b": b}]},
    lambda k, b: k,
], ids=["list", "tuple", "dict of list", "one array"])  # fmt: skip
def test_lists_and_tuples(make):
    params = toy.make_params()["fc1"]
    params = make(params["kernel"], params["bias"])
    params, opt_state = train(TX, params, sum_of_squares)
    mask = jaxprune.get_mask(opt_state)
    assert jaxprune.sparsity(mask) == 0.75
    for row in jaxprune.summarize(params, mask):
        assert row.prunable == (len(row.shape) == 2)


@pytest.mark.parametrize("dtype", quick([jnp.bfloat16, jnp.float16], jnp.bfloat16))
@pytest.mark.parametrize("make", [optax.sgd, optax.adamw], ids=["sgd", "adamw"])
def test_half_precision(dtype, make):
    tx = jaxprune.prune(make(0.01), jaxprune.every(2, CUT))
    batch = jax.tree.map(lambda x: x.astype(dtype), BATCH)
    params = toy.make_params(dtype=dtype)
    params, opt_state = train(tx, params, lambda p: toy.loss(p, batch))
    assert {p.dtype for p in jax.tree.leaves(params)} == {jnp.dtype(dtype)}
    alive = [m.sum() for m in jax.tree.leaves(jaxprune.get_mask(opt_state))]
    # Ties live, and half-precision weights tie.
    assert all(m >= toy.WIDTH**2 // 4 for m in alive)


def test_float32_masters_of_a_bfloat16_model():
    """The masters are pruned; a bfloat16 copy of them has the same zeros."""

    def loss(masters):
        params = jax.tree.map(lambda p: p.astype(jnp.bfloat16), masters)
        return toy.loss(params, BATCH).astype(jnp.float32)

    params, opt_state = train(TX, toy.make_params(), loss)
    copy = jax.tree.map(lambda p: p.astype(jnp.bfloat16), params)
    toy.assert_dead_are_zero(copy, jaxprune.get_mask(opt_state))


def update(carry, batch):
    params, opt_state = carry
    grads = jax.grad(toy.loss)(params, batch)
    updates, opt_state = TX.update(grads, opt_state, params)
    return (optax.apply_updates(params, updates), opt_state), None


def test_scan_is_the_loop():
    params = toy.make_params()
    batches = toy.batches(4)
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *batches)
    carry = (params, TX.init(params))
    (scanned, scanned_state), _ = jax.jit(lambda c: jax.lax.scan(update, c, stacked))(
        carry
    )
    step = jax.jit(update)
    for batch in batches:
        carry, _ = step(carry, batch)
    looped, looped_state = carry
    mask = jaxprune.get_mask(scanned_state)
    chex.assert_trees_all_equal(mask, jaxprune.get_mask(looped_state))
    chex.assert_trees_all_close(scanned, looped, rtol=1e-5, atol=1e-6)
    toy.assert_dead_are_zero(scanned, mask)


@pytest.mark.parametrize("scope", quick(["leaf", "global"], "global"))
def test_vmap_over_seeds(scope):
    """Each of three nets is pruned as it would be alone, the schedule's cond too."""
    cut = jaxprune.to_sparsity(jaxprune.magnitude, 0.75, scope=scope)
    tx = jaxprune.prune(optax.sgd(0.1), jaxprune.every(2, cut))
    nets = [toy.make_params(seed) for seed in range(3)]
    stacked = jax.tree.map(lambda *p: jnp.stack(p), *nets)

    def step(params, opt_state, batch):
        updates, opt_state = tx.update(
            jax.grad(toy.loss)(params, batch), opt_state, params
        )
        return optax.apply_updates(params, updates), opt_state

    opt_states = jax.vmap(tx.init)(stacked)
    many = jax.jit(jax.vmap(step, in_axes=(0, 0, None)))
    one = jax.jit(step)
    singles = [(net, tx.init(net)) for net in nets]
    for batch in toy.batches(3):
        stacked, opt_states = many(stacked, opt_states, batch)
        singles = [one(*single, batch) for single in singles]
    mask = opt_states.mask
    toy.assert_dead_are_zero(stacked, mask)
    for i, (params, opt_state) in enumerate(singles):
        at_i = lambda tree, i=i: jax.tree.map(lambda x: x[i], tree)
        chex.assert_trees_all_equal(at_i(mask), opt_state.mask)
        chex.assert_trees_all_close(at_i(stacked), params, rtol=1e-5, atol=1e-6)


def test_donation_leaves_a_given_mask_alone():
    params = toy.make_params()
    given = jaxprune.dense_mask(params)
    tx = jaxprune.prune(optax.adam(0.01), CUT, given)
    opt_state = tx.init(params)

    def step(params, opt_state):
        (params, opt_state), _ = update((params, opt_state), BATCH)
        return params, opt_state

    step = jax.jit(step, donate_argnums=(0, 1))
    old = opt_state.mask
    for _ in range(2):
        params, opt_state = step(params, opt_state)
    assert old["fc1"]["kernel"].is_deleted()
    assert jaxprune.sparsity(given) == 0.0  # still there, and as it was
    toy.assert_dead_are_zero(params, opt_state.mask)


@pytest.mark.parametrize("number", [2, 2.0, 2j, True])
def test_a_python_number_is_never_pruned(number):
    params = {"w": toy.make_params()["fc1"]["kernel"], "scale": number}
    opt_state = TX.init(params)
    assert opt_state.mask["scale"] is None
    assert jaxprune.dense_mask(params, jaxprune.where("**"))["scale"] is None
    grads = jax.tree.map(jnp.ones_like, params)
    updates, opt_state = TX.update(grads, opt_state, params)
    pruned = optax.apply_updates(params, updates)
    toy.assert_dead_are_zero(pruned, opt_state.mask)
    assert jaxprune.summarize(params, opt_state.mask)[0].size == 1
    with pytest.raises(ValueError, match=r"^scale is .*, a number, expected None"):
        jaxprune.check_mask(params, {**opt_state.mask, "scale": np.array(True)})


def test_numpy_masks_and_params():
    params = jax.tree.map(np.asarray, toy.make_params())
    mask = jax.tree.map(lambda p: p > 0 if p.ndim == 2 else None, params)
    pruned, after = jaxprune.prune_now(params, jaxprune.hold, mask)
    chex.assert_trees_all_equal(after, mask)
    toy.assert_dead_are_zero(pruned, mask)
    opt_state = jaxprune.prune(optax.sgd(1.0), jaxprune.hold, mask).init(params)
    assert all(isinstance(m, jax.Array) for m in jax.tree.leaves(opt_state.mask))
