"""The scan: against single evaluations with NumPy's masks; going on; retraining."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy import batches, by_name, cut, dead_number, loss, make_params

import jaxprune


LEVELS = [0.25, 0.5, 0.9]
LEAVES = ["fc1/kernel", "fc2/kernel"]


@pytest.fixture
def problem():
    params = make_params()
    (batch,) = batches(1)
    return params, jaxprune.dense_mask(params), batch


def pruned_by_numpy(params, alive, shares):
    """Params with each named leaf pruned to its share by a full sort."""
    params = jax.tree.map(np.array, params)
    for name, share in shares.items():
        layer, leaf = name.split("/")
        w, m = params[layer][leaf], alive[name]
        w[~cut(w, m, dead_number(share, w.size))] = 0
    return params


def value_by_numpy(params, batch):
    wide = lambda v: np.asarray(v, np.float64)
    x, y = map(wide, batch)
    w = {k: {n: wide(v) for n, v in d.items()} for k, d in params.items()}
    h = np.tanh(x @ w["fc1"]["kernel"] + w["fc1"]["bias"])
    return np.mean((h @ w["fc2"]["kernel"] + w["fc2"]["bias"] - y) ** 2)


def test_against_one_evaluation_at_a_time(problem):
    params, mask, batch = problem
    scan = jaxprune.sensitivity_scan(lambda p: loss(p, batch), params, mask, LEVELS)
    alive = by_name(mask)
    assert scan.value == pytest.approx(value_by_numpy(params, batch), rel=1e-5)
    assert scan.base == dict.fromkeys(LEAVES, 0.0)
    assert scan.sizes == dict.fromkeys(LEAVES, 256)
    for name in LEAVES:
        curve = scan.curves[name]
        expected = [
            value_by_numpy(pruned_by_numpy(params, alive, {name: s}), batch)
            for s in [0.0, *LEVELS]
        ]
        assert curve.values == pytest.approx(np.array(expected), rel=1e-5)
        dead = [dead_number(s, 256) / 256 for s in [0.0, *LEVELS]]
        assert curve.sparsities == pytest.approx(np.array(dead), abs=1e-12)
        assert len(set(curve.values)) == 4


def test_around_a_base_from_a_mask_with_dead_weights(problem):
    params, _, batch = problem
    half = jaxprune.to_sparsity(jaxprune.magnitude, {"fc1/*": 0.5})
    _, mask = jaxprune.prune_now(params, half)
    scan = jaxprune.sensitivity_scan(
        lambda p: loss(p, batch),
        params,
        mask,
        {"fc1/kernel": [0.25, 0.75], "**": [0.125, 0.5]},
        base={"fc2/*": 0.25},
    )
    # 0.25 of fc1 is dead anyway.
    assert scan.curves["fc1/kernel"].sparsities.tolist() == [0.5, 0.75]
    assert scan.curves["fc2/kernel"].sparsities.tolist() == [0.125, 0.25, 0.5]
    alive = by_name(mask)
    for name, other in (LEAVES, LEAVES[::-1]):
        base = {"fc1/kernel": 0.5, "fc2/kernel": 0.25}
        for share, value in zip(*scan.curves[name], strict=True):
            shares = {name: share, other: base[other]}
            expected = value_by_numpy(pruned_by_numpy(params, alive, shares), batch)
            assert value == pytest.approx(expected, rel=1e-5)
    assert scan.value == scan.curves["fc2/kernel"].values[1]


def test_it_compiles_once(problem):
    params, mask, batch = problem
    traced = {"evaluate": 0, "criterion": 0}

    @jax.jit
    def evaluate(params):
        traced["evaluate"] += 1
        return loss(params, batch)

    def criterion(params, mask, step, **extra):
        traced["criterion"] += 1
        return jaxprune.magnitude(params, mask, step, **extra)

    jaxprune.sensitivity_scan(evaluate, params, mask, LEVELS, criterion)
    assert traced["evaluate"] == 1
    many = traced["criterion"]  # a schedule calls its criterion several times a trace
    jax.make_jaxpr(
        lambda p, m, s: jaxprune.to_sparsity(
            criterion, dict.fromkeys(LEAVES, lambda step: s)
        )(p, m, 0)
    )(params, mask, 0.5)
    assert many == traced["criterion"] - many > 0
    # Nor anew for other levels, around another base.
    jaxprune.sensitivity_scan(
        evaluate, params, mask, [0.3], criterion, base={"fc1/*": 0.5}
    )
    assert traced == {"evaluate": 1, "criterion": 2 * many}


def test_a_criterion_gets_what_it_asks_for(problem):
    params, mask, batch = problem
    grads = jax.grad(loss)(params, batch)
    scan = jaxprune.sensitivity_scan(
        lambda p: loss(p, batch), params, mask, [0.5], jaxprune.saliency, grads=grads
    )
    w, g = (np.asarray(t["fc1"]["kernel"]) for t in (params, grads))
    pruned = jax.tree.map(np.array, params)
    pruned["fc1"]["kernel"][~cut(w * g, np.ones_like(w, bool), 128)] = 0
    assert scan.curves["fc1/kernel"].values[1] == pytest.approx(
        value_by_numpy(pruned, batch), rel=1e-5
    )


def test_retraining_is_done_at_every_point_and_the_dead_stay_dead(problem):
    params, mask, batch = problem
    calls = []

    @jax.jit
    def step(p):
        return jax.tree.map(lambda w, g: w - 0.1 * g, p, jax.grad(loss)(p, batch))

    def retrain(p, m):
        calls.append(jax.tree.map(lambda x: x, m))
        return step(p)

    scan = jaxprune.sensitivity_scan(
        lambda p: loss(p, batch), params, mask, [0.5], retrain=retrain
    )
    assert len(calls) == 3
    assert scan.value == pytest.approx(float(loss(step(params), batch)), rel=1e-6)
    pruned = pruned_by_numpy(params, by_name(mask), {"fc1/kernel": 0.5})
    after = jax.tree.map(np.array, step(jax.tree.map(jnp.asarray, pruned)))
    after["fc1"]["kernel"][pruned["fc1"]["kernel"] == 0] = 0
    assert scan.curves["fc1/kernel"].values[1] == pytest.approx(
        value_by_numpy(after, batch), rel=1e-5
    )


def test_a_scan_goes_on_from_its_file(problem, tmp_path):
    params, mask, batch = problem
    file, calls, told = tmp_path / "points.jsonl", [], []

    def evaluate(p):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return loss(p, batch)

    def scan(levels=LEVELS, file=file):
        return jaxprune.sensitivity_scan(
            evaluate, params, mask, levels, file=file,
            report=lambda point, done, total: told.append((point.leaf, done, total)),
        )  # fmt: skip

    with pytest.raises(KeyboardInterrupt):
        scan()
    # A kill may leave half a line.
    file.write_text(file.read_text() + '["fc1/kernel", 2')
    resumed = scan()
    assert len(calls) == 4 + 4  # of 7, three were known
    assert told[:3] == [("", 1, 7), ("fc1/kernel", 2, 7), ("fc1/kernel", 3, 7)]
    assert [(done, total) for _, done, total in told[3:]] == [
        (4, 7), (5, 7), (6, 7), (7, 7)
    ]  # fmt: skip
    assert len(file.read_text().splitlines()) == 8
    whole = scan(file=None)
    again = scan()
    assert len(calls) == 8 + 7
    for other in (resumed, again):
        assert other.value == whole.value
        for name in LEAVES:
            assert (other.curves[name].values == whole.curves[name].values).all()
            sparsities = whole.curves[name].sparsities
            assert (other.curves[name].sparsities == sparsities).all()
    more = scan([*LEVELS, 0.75])
    assert len(calls) == 15 + 2
    assert len(more.curves["fc1/kernel"].values) == 5


def test_the_file_of_another_scan_is_refused(problem, tmp_path):
    params, mask, batch = problem
    file = tmp_path / "points.jsonl"
    evaluate = lambda p: loss(p, batch)
    scan = lambda p, m=mask, base=0.25, **kw: jaxprune.sensitivity_scan(
        evaluate, p, m, [0.5], file=file, base={"fc1/*": base}, **kw
    )
    scan(params)
    text = file.read_text()
    # As many are dead at the base, others.
    fc1 = {"kernel": mask["fc1"]["kernel"].at[0, 0].set(False), "bias": None}
    for args in (
        {"p": make_params(seed=1)},
        {"p": params, "m": mask | {"fc1": fc1}},
        {"p": params, "base": 0.5},
        {"p": params, "retrain": lambda p, m: p},
        {"p": params, "criterion": jaxprune.random(jax.random.key(0))},
    ):
        with pytest.raises(ValueError, match="does not hold points of this scan"):
            scan(**args)
        assert file.read_text() == text
    for other in ("what is this?\n", json.dumps([1, 2]) + "\n"):
        file.write_text(other)
        with pytest.raises(ValueError, match="does not hold points of this scan"):
            scan(params)
        assert file.read_text() == other


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize("levels", [0.5, {"**": 0.5}, "0.5"])
def test_levels_are_a_sequence(problem, levels):
    params, mask, _ = problem
    message = "levels of fc1/kernel are '?0.5'?, expected a sequence"
    with pytest.raises(ValueError, match=message):
        jaxprune.sensitivity_scan(lambda p: 0.0, params, mask, levels)


@pytest.mark.usefixtures("untyped")
def test_levels_of_a_leaf_come_in_any_order(problem):
    params, mask, _ = problem
    metric = lambda p: jnp.sum(jnp.square(p["fc1"]["kernel"]))
    scan = lambda levels: jaxprune.sensitivity_scan(metric, params, mask, levels)
    found, expected = (scan({"fc1/*": x}) for x in ({0.75, 0.5}, [0.5, 0.75]))
    np.testing.assert_equal(jax.tree.leaves(found), jax.tree.leaves(expected))


def test_a_file_by_its_name(problem, tmp_path):
    params, mask, _ = problem
    file = tmp_path / "scan.json"
    jaxprune.sensitivity_scan(lambda p: 0.0, params, mask, [], file=str(file))
    assert file.exists()


def test_bad_input(problem):
    params, mask, batch = problem
    scan = lambda *args, **kw: jaxprune.sensitivity_scan(
        lambda p: loss(p, batch), params, mask, *args, **kw
    )
    with pytest.raises(ValueError, match=r"a level is 1.0, expected a fraction in"):
        scan([0.5, 1.0])
    with pytest.raises(ValueError, match=r"base has a value for 'fc3/\*'"):
        scan([0.5], base={"fc3/*": 0.5})
    with pytest.raises(ValueError, match=r"sparsities has a value for 'fc3/\*'"):
        scan({"fc3/*": [0.5]})
    with pytest.raises(ValueError, match=r"shape \(8,\), expected one number"):
        jaxprune.sensitivity_scan(lambda p: jnp.ones(8), params, mask, [0.5])
