"""Costs of leaves, for the solver: against counts of the network pruned so."""

import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy import cut, dead_number

import jaxprune
from jaxprune import report


LEVELS = [0.3, 0.8, 0.97]
CACHE = 20_000


def apply(params, x):
    x = jax.lax.conv_general_dilated(
        x, params["conv"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    x = jax.nn.relu(x + params["bias"]).reshape(x.shape[0], -1)
    return x @ params["fc"] @ params["head"]


@pytest.fixture(scope="module")
def problem():
    rng = np.random.default_rng(0)
    normal = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    params = {
        "conv": normal(3, 3, 2, 8), "bias": normal(8), "fc": normal(6 * 6 * 8, 40),
        "head": normal(40, 5),
    }  # fmt: skip
    mask = jaxprune.dense_mask(params, jaxprune.where("conv", "fc"))
    scan = jaxprune.sensitivity_scan(lambda p: jnp.sum(p["bias"]), params, mask, LEVELS)
    return params, mask, scan


def pruned(params, mask, shares):
    masks = {
        path: cut(params[path], mask[path], dead_number(share, params[path].size))
        for path, share in shares.items()
    }
    return mask | masks


def whole(params, mask, what, weights_in=None):
    """The cost of the network, by the functions of the report alone."""
    x = jax.ShapeDtypeStruct((1, 6, 6, 2), jnp.float32)
    counts = report.count(apply, params, mask, x, activations={"conv": 0.5, "fc": 1.0})
    stored = report.storage(counts, params, mask)
    if what == "flop":
        return counts.total.flop_needed
    if what == "bytes":
        total = stored.total
        return total.weight_bytes + total.index_bytes + stored.others_bytes
    spent = report.energy(counts, stored, cache_bytes=CACHE)
    assert spent.weights_in_pruned == weights_in
    return spent.total.operations_pruned + spent.total.memory_pruned


@pytest.mark.parametrize("what", ["flop", "bytes", "energy"])
def test_against_the_network_pruned_leaf_by_leaf(problem, what):
    params, mask, scan = problem
    x = jax.ShapeDtypeStruct((1, 6, 6, 2), jnp.float32)
    counts = report.count(apply, params, mask, x, activations={"conv": 0.5, "fc": 1.0})
    found = report.costs(scan, counts, params, mask, what, cache_bytes=CACHE)
    assert list(found.curves) == ["conv", "fc"]
    total = lambda at: (
        found.fixed + sum(np.interp(at[p], *found.curves[p]) for p in found.curves)
    )
    dense = whole(params, mask, what, "DRAM")
    assert total({"conv": 0.0, "fc": 0.0}) == pytest.approx(dense)
    for path in found.curves:
        for share in scan.curves[path].sparsities:
            at = {"conv": 0.0, "fc": 0.0, path: share}
            if what == "energy" and path == "fc" and share > 0.5:
                continue  # fits into the cache: below
            expected = whole(params, pruned(params, mask, {path: share}), what, "DRAM")
            assert total(at) == pytest.approx(expected, abs=1.5)
    both = {"conv": LEVELS[0], "fc": LEVELS[0]}
    both = {p: found.curves[p].sparsities[1] for p in both}
    expected = whole(params, pruned(params, mask, both), what, "DRAM")
    assert total(both) == pytest.approx(expected, abs=1.5)


def test_energy_of_weights_that_fit_into_the_cache(problem):
    params, mask, scan = problem
    x = jax.ShapeDtypeStruct((1, 6, 6, 2), jnp.float32)
    counts = report.count(apply, params, mask, x, activations={"conv": 0.5, "fc": 1.0})
    found = report.costs(
        scan, counts, params, mask, "energy", cache_bytes=CACHE, weights_in="SRAM"
    )
    at = {p: found.curves[p].sparsities[2] for p in found.curves}
    expected = whole(params, pruned(params, mask, at), "energy", "SRAM")
    total = found.fixed + sum(found.curves[p].values[2] for p in found.curves)
    assert total == pytest.approx(expected, rel=1e-9)


def test_a_solution_for_bytes_is_stored_in_so_many(problem):
    params, mask, scan = problem
    x = jax.ShapeDtypeStruct((1, 6, 6, 2), jnp.float32)
    counts = report.count(apply, params, mask, x)
    costs = report.costs(scan, counts, params, mask, "bytes")
    rising = {
        p: jaxprune.Curve(c.sparsities, c.sparsities**2) for p, c in scan.curves.items()
    }
    found = jaxprune.solve(
        scan._replace(value=0.0, curves=rising), costs, total=24_000, exactly=True
    )
    assert found.total == pytest.approx(24_000, abs=1)
    stored = whole(params, pruned(params, mask, found.sparsities), "bytes")
    # Between levels fillers are not quite on a straight line.
    assert stored == pytest.approx(24_000, rel=0.05)


def test_bad_input(problem):
    params, mask, scan = problem
    x = jax.ShapeDtypeStruct((1, 6, 6, 2), jnp.float32)
    counts = report.count(apply, params, mask, x)
    # Unwrapped, or the type checker of the test run would answer first.
    costs: Any = inspect.unwrap(report.costs)
    with pytest.raises(ValueError, match="what is 'time', expected 'flop'"):
        costs(scan, counts, params, mask, "time")
    fewer = counts._replace(layers=counts.layers[1:])
    with pytest.raises(ValueError, match="counts has no row for conv, expected one"):
        report.costs(scan, fewer, params, mask, "flop")
