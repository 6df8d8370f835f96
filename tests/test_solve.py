"""Solving: against all combinations, on instances small enough to try them."""

import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy import make_params

import jaxprune
from jaxprune import Costs, Curve, Scan
from jaxprune._knapsack import plan, take


def instance(seed, leaves=4, levels=4):
    """A scan with curves that rise, fall and have no shape; whole costs that fall."""
    draw = np.random.default_rng(seed)
    shares = np.array([0.0, 0.3, 0.6, 0.9])[:levels]
    names = [f"fc{i}" for i in range(leaves)]
    curves = {
        name: Curve(
            shares, np.append(1.0, 1 + draw.normal(0.2, 0.5, levels - 1)).clip(0.1)
        )
        for name in names
    }
    costs = {
        name: Curve(shares, np.sort(draw.integers(1, 500, levels))[::-1].astype(float))
        for name in names
    }
    scan = Scan(1.0, dict.fromkeys(names, 0.0), curves, dict.fromkeys(names, 10))
    return scan, Costs(costs, 37.0)


def by_brute_force(scan, costs):
    """(cost, added loss, added logarithm, sparsities) of every combination."""
    lists = [
        [
            (cost, value - scan.value, math.log(value / scan.value), share)
            for share, value, cost in zip(
                *curve, costs.curves[name].values, strict=True
            )
        ]
        for name, curve in scan.curves.items()
    ]
    return [
        (
            costs.fixed + sum(c for c, *_ in picks),
            sum(v for _, v, *_ in picks),
            sum(l for *_, l, _ in picks),
            tuple(s for *_, s in picks),
        )
        for picks in itertools.product(*lists)
    ]


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10**6), st.floats(0, 1))
def test_against_all_combinations(seed, share):
    scan, costs = instance(seed)
    every = by_brute_force(scan, costs)
    low, high = min(c for c, *_ in every), max(c for c, *_ in every)
    total = low + share * (high - low)
    for additive, column in (("value", 1), ("log", 2)):
        added: Any = min(row[column] for row in every if row[0] <= total)
        found = jaxprune.solve(scan, costs, total=total, between=0, additive=additive)
        expected = 1 + added if additive == "value" else math.exp(added)
        assert found.value == pytest.approx(expected, rel=1e-9)
        assert found.total <= total + 1e-9
        shares = tuple(found.sparsities.get(name, 0.0) for name in scan.curves)
        (row,) = [row for row in every if row[3] == shares]
        assert row[0] == pytest.approx(found.total)
        assert row[column] == pytest.approx(added, abs=1e-9)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10**6), st.floats(0, 1))
def test_the_most_pruning_within_a_loss_against_all_combinations(seed, share):
    scan, costs = instance(seed)
    every = by_brute_force(scan, costs)
    low, high = min(v for _, v, *_ in every), max(v for _, v, *_ in every)
    allowed = low + share * (high - low)
    least = min(row[0] for row in every if row[1] <= allowed + 1e-12)
    found = jaxprune.solve(scan, costs, value=1 + allowed, between=0)
    assert found.total == pytest.approx(least)
    assert found.value <= 1 + allowed + 1e-9


@pytest.mark.parametrize("scale", [1e-7, 1.0, 1e9])
@pytest.mark.parametrize("seed", range(5))
def test_costs_that_are_no_whole_numbers_are_met_within_the_rounding(seed, scale):
    scan, whole = instance(seed)
    costs = Costs(
        {
            p: Curve(c.sparsities, (c.values + 1 / 3) * scale)
            for p, c in whole.curves.items()
        },
        whole.fixed * scale,
    )
    every = by_brute_force(scan, costs)
    room = max(c for c, *_ in every) - min(c for c, *_ in every)
    total = min(c for c, *_ in every) + room / 3
    slack = 4 * room / 3 / 20_000
    found = jaxprune.solve(scan, costs, total=total, between=0)
    assert found.total <= total
    assert found.value <= 1 + min(v for c, v, *_ in every if c <= total - slack) + 1e-9
    back = jaxprune.solve(scan, costs, value=found.value, between=0)
    assert back.total <= found.total + slack


def test_rounded_costs_stay_within_the_total(monkeypatch):
    monkeypatch.setattr("jaxprune._knapsack.BUCKETS", 10)
    third = lambda c: Curve(c.sparsities, c.values + 1 / 3)
    for seed in range(20):
        scan, whole = instance(seed)
        costs = Costs({path: third(c) for path, c in whole.curves.items()}, whole.fixed)
        every = by_brute_force(scan, costs)
        total = (max(c for c, *_ in every) + min(c for c, *_ in every)) / 2
        assert jaxprune.solve(scan, costs, total=total, between=0).total <= total


def test_what_costs_just_the_room_is_taken():
    """Whichever way the room over its 20,000th part is rounded."""
    losses = [np.array([1.0, 0.0])]
    for room in np.random.default_rng(0).random(100).tolist():
        found = plan(losses, [np.array([0.0, room])], room)
        assert take(found, len(found.best) - 1) == [1]
    found = plan(losses, [np.array([0.0, 0.3])], 0.0)
    assert take(found, len(found.best) - 1) == [0]


def alike(losses, costs, leaves=1):
    """A scan and costs of equal leaves: what each level adds, and what it costs."""
    shares = np.arange(len(losses)) / len(losses)
    names = [f"fc{i}" for i in range(leaves)]
    curves = dict.fromkeys(names, Curve(shares, np.array(losses)))
    scan = Scan(0.0, dict.fromkeys(names, 0.0), curves, dict.fromkeys(names, 10))
    return scan, Costs(dict.fromkeys(names, Curve(shares, np.array(costs))))


def test_small_costs_beside_large_ones_are_told_apart():
    """Units of the whole would not tell 1.1 from 1.3, nor hold three times 1.5."""
    few = alike([0.0, 1.0, 2.0, 9.0], [1e6, 1.3, 1.1, 0.0])
    assert jaxprune.solve(*few, value=2, between=0).total == pytest.approx(1.1)
    thrice = alike([0.0, 1.0, 9.0], [10_000.0, 1.5, 0.0], leaves=3)
    assert jaxprune.solve(*thrice, value=3, between=0).total == pytest.approx(4.5)


def test_a_total_a_hair_below_the_least_is_the_least():
    least = alike([0.0, 1.0], [1.0, 0.1], leaves=3)
    total = math.nextafter(math.fsum([0.1] * 3), 0)
    assert jaxprune.solve(*least, total=total).total == pytest.approx(0.3)


def test_between_levels_curves_are_straight():
    """Minimise a^2 + 4 b^2 with a + b = 1 on straight pieces of a tenth: a = 0.8."""
    levels = np.arange(11) / 10
    curves = {"a": Curve(levels, levels**2), "b": Curve(levels, 4 * levels**2)}
    scan = Scan(0.0, {"a": 0.0, "b": 0.0}, curves, {"a": 1000, "b": 1000})
    found = jaxprune.solve(scan, total=1000, between=9)
    assert found.sparsities == pytest.approx({"a": 0.8, "b": 0.2})
    assert found.value == pytest.approx(0.8)
    # 0.75 of the smallest lies within pieces: 0.56 + 0.5 x 0.15 and so on.
    found = jaxprune.solve(scan, total=1030, between=9)
    assert found.total <= 1030
    assert found.value == pytest.approx(np.interp(0.77, levels, levels**2) + 0.16)


def test_all_of_a_total_is_spent_though_less_would_lose_less():
    """The least is at a half; 80 of 100 are what a fifth leaves, on a straight line."""
    curve = Curve(np.array([0.0, 0.5, 0.9]), np.array([1.0, 0.75, 1.5]))
    scan = Scan(1.0, {"a": 0.0}, {"a": curve}, {"a": 100})
    for exactly, expected in ((False, (0.5, 0.75, 50)), (True, (0.2, 0.9, 80))):
        found = jaxprune.solve(scan, total=80, exactly=exactly, between=1)
        assert (found.sparsities["a"], *found[1:]) == pytest.approx(expected)
    # Where less sparsity costs no more, none of the rest is spent on it.
    costs = Costs({"a": Curve(curve.sparsities, np.array([100.0, 100.0, 50.0]))})
    found = jaxprune.solve(scan, costs, total=120, exactly=True, between=1)
    assert (found.sparsities["a"], *found[1:]) == pytest.approx((0.5, 0.75, 100))


def test_values_that_are_not_finite_are_never_chosen():
    levels = np.array([0.0, 0.5, 0.9])
    curves = {
        "a": Curve(levels, np.array([1.0, np.nan, 1.5])),
        "b": Curve(levels, np.array([1.0, 2.0, np.inf])),
    }
    scan = Scan(1.0, {"a": 0.0, "b": 0.0}, curves, {"a": 100, "b": 100})
    assert jaxprune.solve(scan, total=150, between=0).sparsities == {"a": 0.9}
    with pytest.raises(ValueError, match=r"total is 20, expected at least 60"):
        jaxprune.solve(scan, total=20, between=0)
    nowhere = curves | {"b": Curve(levels, np.full(3, np.nan))}
    with pytest.raises(ValueError, match=r"no value of b is finite"):
        jaxprune.solve(scan._replace(curves=nowhere), total=150)


@pytest.mark.parametrize("value", [1.0, 1.0001])
def test_a_loss_that_allows_no_pruning_leaves_all(value):
    levels, losses = np.array([0.0, 0.3, 0.9]), np.array([1.0, 1.1, 3.0])
    sizes = {f"l{n}": n for n in (235_200, 30_001, 997, 10, 64_007, 77_777)}
    curves = dict.fromkeys(sizes, Curve(levels, losses))
    scan = Scan(1.0, dict.fromkeys(sizes, 0.0), curves, sizes)
    assert jaxprune.solve(scan, value=value) == ({}, 1.0, sum(sizes.values()))
    with pytest.raises(ValueError, match=r"value is 0\.99, expected more"):
        jaxprune.solve(scan, value=0.99)


def test_a_solution_prunes_to_its_total_and_is_a_base():
    params = make_params()
    mask = jaxprune.dense_mask(params)
    evaluate = lambda p: sum(jnp.sum(jnp.square(w)) for w in jax.tree.leaves(p))
    dense = float(evaluate(params))
    scan = jaxprune.sensitivity_scan(
        lambda p: dense - evaluate(p), params, mask, [0.3, 0.6, 0.9]
    )
    found = jaxprune.solve(scan, total=200)
    schedule = jaxprune.to_sparsity(jaxprune.magnitude, found.sparsities)
    pruned, alive = jaxprune.prune_now(params, schedule, mask)
    assert sum(int(m.sum()) for m in jax.tree.leaves(alive)) == pytest.approx(
        200, abs=1
    )
    # Squares add up exactly, so the prediction is off by the straight pieces alone.
    assert found.value == pytest.approx(dense - float(evaluate(pruned)), rel=0.05)
    around = jaxprune.sensitivity_scan(
        lambda p: dense - evaluate(p), params, mask, [0.3], base=found.sparsities
    )
    assert around.value == pytest.approx(dense - float(evaluate(pruned)), rel=1e-4)


def test_quality_of_the_least_integer():
    params = {"w": jnp.array([[-128, 5], [3, 100]], jnp.int8)}
    mask = {"w": jnp.ones((2, 2), bool)}
    quality = jaxprune.to_quality(params, mask, {"w": 0.5}, std={"w": 1.0})
    assert quality == {"w": (5 + 100) / 2}


@pytest.mark.slow
def test_quality_kills_what_the_sparsity_kills():
    params = jax.tree.map(lambda w: jnp.round(w, 2), make_params())  # ties
    shares = {"fc1/kernel": 0.37, "**": 0.81}
    half = jaxprune.to_sparsity(jaxprune.magnitude, {"fc2/*": 0.5})
    for _, mask in (
        (None, jaxprune.dense_mask(params)),
        jaxprune.prune_now(params, half),
    ):
        schedule = jaxprune.to_sparsity(jaxprune.magnitude, shares)
        _, expected = jaxprune.prune_now(params, schedule, mask)
        for std in (None, jax.tree.map(lambda m: 0.3, mask)):
            quality = jaxprune.to_quality(params, mask, shares, std=std)
            by_std = jaxprune.by_std(quality, std=std)
            _, found = jaxprune.prune_now(params, by_std, mask)
            assert all(
                (a == b).all()
                for a, b in zip(
                    jax.tree.leaves(found), jax.tree.leaves(expected), strict=True
                )
            )
            assert len(quality) == 2
    assert jaxprune.to_quality(params, mask, {"**": 0.0}) == {}


@pytest.mark.parametrize(("share", "threshold"), [
    (0.2, None),  # no more than are dead already
    (0.5, 1.5),  # two more of the five; the second is tied with what lives
    (0.6, 2.5),
    (0.7, 2.5),
    (0.99, 4.5),  # one stays
])  # fmt: skip
def test_quality_by_hand(share, threshold):
    """1 2 2 3 6 alive, 9 dead: halfway between what dies and what lives."""
    params = {"w[0]": jnp.array([[-6.0, 2.0, 9.0, 1.0, -2.0, 3.0]])}
    mask = {"w[0]": jnp.array([[True, True, False, True, True, True]])}
    for sigma in (0.5, 0.0):
        std = {"w[0]": jnp.float32(sigma)}
        found = jaxprune.to_quality(params, mask, {"w*": share}, std=std)
        if threshold is None or not sigma:
            assert found == {}
        else:
            assert found == {"w[[]0]": threshold / sigma}


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize(("arguments", "message"), [
    ({"total": np.nan}, "total is nan, expected a number"),
    ({"value": np.nan}, "value is nan, expected a number"),
    ({"total": "100"}, "total is '100', expected a number"),
    ({"total": 100, "between": -1}, "between is -1, expected at least 0, an integer"),
    ({"total": 100, "between": 1.5}, "between is 1.5, expected at least 0, an integ"),
])  # fmt: skip
def test_arguments_of_another_kind(arguments, message):
    with pytest.raises(ValueError, match=message):
        jaxprune.solve(*instance(0), **arguments)


@pytest.mark.usefixtures("untyped")
def test_one_sparsity_has_no_quality_by_path():
    params = make_params()
    with pytest.raises(ValueError, match=r"sparsities is 0.5, expected a mapping"):
        jaxprune.to_quality(params, jaxprune.dense_mask(params), 0.5)


def test_bad_input():
    scan, costs = instance(0)
    with pytest.raises(ValueError, match="total is None and value is None"):
        jaxprune.solve(scan, costs)
    with pytest.raises(ValueError, match="total is 1 and value is 1"):
        jaxprune.solve(scan, costs, total=1, value=1)
    with pytest.raises(ValueError, match=r"total is 1, expected at least"):
        jaxprune.solve(scan, costs, total=1)
    with pytest.raises(ValueError, match=r"value is -9, expected more"):
        jaxprune.solve(scan, costs, value=-9)
    fewer = {p: c for p, c in costs.curves.items() if p != "fc3"}
    with pytest.raises(ValueError, match="costs has no curve for fc3"):
        jaxprune.solve(scan, Costs(fewer), total=100)
    negative = scan._replace(value=-1.0)
    with pytest.raises(ValueError, match="a loss is -1, expected positive numbers"):
        jaxprune.solve(negative, costs, total=900, additive="log")
    params = make_params()
    with pytest.raises(ValueError, match=r"fc1/kernel is 1.5, expected a fraction"):
        jaxprune.to_quality(params, jaxprune.dense_mask(params), {"**": 1.5})
