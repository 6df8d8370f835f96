"""Scans around a solution: against every split of a total that can be tried."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy import make_params

import jaxprune


LEAVES = ["fc1/kernel", "fc2/kernel"]


@jax.jit
def evaluate(params):
    """What pruning both leaves costs is not the sum of what each of them costs."""
    a, b = (jnp.sum(jnp.square(params[name]["kernel"])) for name in ("fc1", "fc2"))
    return (20 - a) + (20 - b) + 0.5 * (20 - a) * (20 - b) + (20 - b) ** 2


def lost(params):
    """The loss by numbers of dead weights, from sorted squares."""
    left = []
    for name in ("fc1", "fc2"):
        squares = np.sort(
            np.square(np.float64(np.asarray(params[name]["kernel"])).ravel())
        )
        left.append(squares.sum() - np.append(0, np.cumsum(squares)))
    return lambda i, j: (
        (20 - left[0][i])
        + (20 - left[1][j])
        + 0.5 * (20 - left[0][i]) * (20 - left[1][j])
        + (20 - left[1][j]) ** 2
    )


@pytest.mark.parametrize("start", ["solved", "uniform"])
def test_against_every_split_of_the_total(start):
    params = make_params()
    mask = jaxprune.dense_mask(params)
    loss, total = lost(params), 180
    best = min(
        loss(i, j)
        for i, j in itertools.product(range(256), repeat=2)
        if 512 - i - j == total
    )
    scan = jaxprune.sensitivity_scan(evaluate, params, mask, [0.25, 0.5, 0.75, 0.9])
    solved = jaxprune.solve(scan, total=total)
    first = solved.sparsities if start == "solved" else {"**": 1 - total / 512}
    told = []
    found = jaxprune.refine(
        evaluate, params, mask, first, total=total, rounds=5,
        report=lambda solution, better: told.append((solution.value, better)),
    )  # fmt: skip
    dead = {n: round(s * 256) for n, s in found.sparsities.items()}
    value = loss(*(dead.get(name, 0) for name in LEAVES))
    assert found.value == pytest.approx(value, rel=1e-4)
    # The reach is halved only where nothing is better: 5 rounds come near.
    assert found.value <= best * 1.01
    assert found.total <= total + 1e-6
    uniform = loss(*[round(256 * (1 - total / 512))] * 2)
    assert found.value < uniform * 0.98
    assert len(told) == 5
    assert found.value == min(value for value, _ in told)
    assert [better for _, better in told].count(True) >= 1


def test_a_start_above_the_total_is_not_kept():
    params = make_params()
    mask = jaxprune.dense_mask(params)
    found = jaxprune.refine(
        evaluate, params, mask, {"**": 0.4}, total=280, rounds=1, reach=0.5
    )
    assert found.total <= 280 + 1e-6


def test_bad_input():
    params = make_params()
    mask = jaxprune.dense_mask(params)
    with pytest.raises(ValueError, match=r"reach is 1.0, expected a share in"):
        jaxprune.refine(evaluate, params, mask, {"**": 0.4}, total=280, reach=1.0)
