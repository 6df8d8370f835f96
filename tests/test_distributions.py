"""How a sparsity is shared out: by hand, by SciPy's root finder, by pruning with it."""

import fnmatch
import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import brentq

import jaxprune


SHAPES = {
    "conv1": (5, 5, 1, 20),
    "conv2": (5, 5, 20, 50),
    "fc1": (800, 500),
    "fc2": (500, 10),
}


def network(shapes=SHAPES):
    """Shapes of params and a mask of them; biases are never pruned."""
    struct = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)
    params = {
        name: {"kernel": struct(*shape), "bias": struct(shape[-1])}
        for name, shape in shapes.items()
    }
    mask = {
        name: {"kernel": np.ones(shape, bool), "bias": None}
        for name, shape in shapes.items()
    }
    return params, mask


WEIGHTS = {
    "uniform": lambda shape: 1.0,
    "erdos_renyi": lambda shape: (shape[-2] + shape[-1]) / (shape[-2] * shape[-1]),
    "erdos_renyi_kernel": lambda shape: sum(shape) / math.prod(shape),
}


def by_root(name, sparsity, dense=()):
    """Densities min(1, c w), with the c that gives the total, found by bisection."""
    weight = WEIGHTS[name]
    sizes = {n: math.prod(shape) for n, shape in SHAPES.items()}
    kept = (1 - sparsity) * sum(sizes.values()) - sum(sizes[n] for n in dense)
    free = [n for n in SHAPES if n not in dense]
    density = lambda c, n: min(1.0, c * weight(SHAPES[n]))
    excess = lambda c: sum(sizes[n] * density(c, n) for n in free) - kept
    c = brentq(excess, 0, 1e6, xtol=1e-12, rtol=1e-14)
    return {f"{n}/kernel": 1 - density(c, n) for n in free if density(c, n) < 1 - 1e-12}


@pytest.mark.parametrize("dense", [(), ("conv1", "fc2")])
@pytest.mark.parametrize("sparsity", [0.3, 0.9, 0.98])
@pytest.mark.parametrize("name", WEIGHTS)
def test_against_a_root_finder(name, sparsity, dense):
    params, mask = network()
    found = getattr(jaxprune, name)(
        params, mask, sparsity, dense=[f"{n}/*" for n in dense]
    )
    assert found == pytest.approx(by_root(name, sparsity, dense), rel=1e-9)


def test_erdos_renyi_by_hand():
    """Two layers, 2 x 2 and 4 x 8, of 36 weights, 18 of them dead.

    The layers would get c x 4 and c x 12 weights, so c = 18 / 16, of which the first
    has room for 4 only; the other keeps 14 of 32.
    """
    params, mask = network({"a": (2, 2), "b": (4, 8)})
    found = jaxprune.erdos_renyi(params, mask, 0.5)
    assert found == pytest.approx({"b/kernel": 18 / 32})


def test_the_kernel_counts_or_does_not():
    """3 x 3 x 2 x 4: ER gives 6 / 8 in both forms of the layer, ERK 12 / 72."""
    shapes = {"a": (3, 3, 2, 4), "b": (60, 60)}
    params, mask = network(shapes)
    er = jaxprune.erdos_renyi(params, mask, 0.9)
    erk = jaxprune.erdos_renyi_kernel(params, mask, 0.9)
    ratio = lambda d: (1 - d["a/kernel"]) / (1 - d["b/kernel"])
    assert "a/kernel" not in er  # its density would be 22.5 times that of b
    assert ratio(erk) == pytest.approx((12 / 72) / (120 / 3600))
    pytorch = network({"a": (4, 2, 3, 3), "b": (60, 60)})
    assert jaxprune.erdos_renyi(*pytorch, 0.9, channels=(0, 1)) == er
    assert jaxprune.erdos_renyi_kernel(*pytorch, 0.9) == pytest.approx(erk)


@pytest.mark.parametrize("name", WEIGHTS)
def test_pruning_by_it_reaches_the_total(name):
    shapes = {"a": (3, 3, 2, 8), "b[0]": (40, 30), "c": (30, 10)}
    params, mask = network(shapes)
    params = jax.tree.map(
        lambda p: jnp.asarray(np.random.default_rng(0).normal(size=p.shape)), params
    )
    spread = getattr(jaxprune, name)(params, mask, 0.8, dense=["c/*"])
    schedule = jaxprune.to_sparsity(jaxprune.magnitude, spread)
    _, pruned = jaxprune.prune_now(params, schedule, jax.tree.map(jnp.asarray, mask))
    rows = {r.path: r for r in jaxprune.summarize(params, pruned) if r.prunable}
    assert rows["c/kernel"].alive == 300
    total = sum(r.size for r in rows.values())
    assert sum(r.alive for r in rows.values()) == pytest.approx(0.2 * total, abs=2)
    for key, value in spread.items():
        (path,) = [p for p in rows if fnmatch.fnmatchcase(p, key)]
        assert rows[path].alive == pytest.approx((1 - value) * rows[path].size, abs=1)


def test_nothing_to_prune_is_nothing():
    params, mask = network()
    assert jaxprune.uniform(params, mask, 0.0) == {}
    assert jaxprune.erdos_renyi_kernel(params, mask, 0.0) == {}
    assert jaxprune.uniform(params, mask, 0.0, dense=["**"]) == {}


@pytest.mark.parametrize("name", WEIGHTS)
def test_a_leaf_without_weights_has_no_sparsity(name):
    params, mask = network({"a": (0, 4), "b": (8, 8)})
    found = getattr(jaxprune, name)(params, mask, 0.75)
    assert found == pytest.approx({"b/kernel": 0.75})


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize("name", WEIGHTS)
def test_arguments_of_another_kind(name):
    spread = functools.partial(getattr(jaxprune, name), *network())
    with pytest.raises(ValueError, match=r"sparsity is 'x', expected a fraction in"):
        spread("x")
    for dense in ("fc*/*", re.compile("fc")):
        with pytest.raises(ValueError, match=r"dense is the pattern 'fc.*a sequence"):
            spread(0.5, dense=dense)
    with pytest.raises(ValueError, match="dense got the pattern 3, expected a glob"):
        spread(0.5, dense=[3])


def test_bad_input():
    params, mask = network()
    with pytest.raises(ValueError, match=r"sparsity is 1.0, expected a fraction in"):
        jaxprune.uniform(params, mask, 1.0)
    with pytest.raises(ValueError, match=r"dense has .*fc9.*matches no prunable leaf"):
        jaxprune.uniform(params, mask, 0.5, dense=["fc9/*"])
    with pytest.raises(ValueError, match=r"fewer dead than the 500 weights outside"):
        jaxprune.uniform(params, mask, 0.5, dense=["fc*/*", "conv2/*"])
    squares = network({"a": (2, 2), "b": (2, 2)})  # as many dead as there are
    with pytest.raises(ValueError, match=r"fewer dead than the 4 weights outside"):
        jaxprune.uniform(*squares, 0.5, dense=["a/*"])
    one = {"w": jnp.ones(10)}, {"w": jnp.ones(10, bool)}, 0.5
    message = r"has shape \(10,\), expected one with the axes"
    for channels in ((-2, -1), (0, 1)):
        with pytest.raises(ValueError, match=message):
            jaxprune.erdos_renyi(*one, channels=channels)
