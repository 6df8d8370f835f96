import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune


@pytest.mark.parametrize(("rate", "connections", "alive", "expected"), [
    (0.5, 400, 100, 0.25),
    (0.5, 400, 400, 0.5),
    (0.5, 400, 0, 0.0),
    (0.0, 10, 5, 0.0),
    (0.2, 300 * 784, 300 * 784 * 9 // 100, 0.06),
    (0.5, 10**12, 25 * 10**10, 0.25),
])  # fmt: skip
def test_equation_2(rate, connections, alive, expected):
    """By hand: the rate times the root of the fraction that is alive."""
    assert jaxprune.adjust_dropout(rate, connections, alive) == pytest.approx(expected)


@pytest.mark.parametrize(("arguments", "message"), [
    ((1.0, 10, 5), r"rate is 1.0, expected a probability in \[0, 1\)"),
    ((-0.1, 10, 5), "rate is -0.1"),
    ((math.nan, 10, 5), "rate is nan"),
    ((0.5, 0, 0), "connections is 0, expected at least 1"),
    ((0.5, 10, 11), "alive is 11, expected a count from 0 to connections, 10"),
    ((0.5, 10, -1), "alive is -1"),
])  # fmt: skip
def test_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        jaxprune.adjust_dropout(*arguments)


@pytest.mark.usefixtures("strict")
@pytest.mark.parametrize("shape", [(40,), (8, 5), (2, 3, 4, 5)])
def test_the_traced_rule_agrees(shape):
    rng = np.random.default_rng(0)
    rate = jax.jit(jaxprune.dropout_rate)
    for share in (0.0, 0.3, 1.0):
        mask = rng.random(shape) < share
        expected = jaxprune.adjust_dropout(0.5, mask.size, int(mask.sum()))
        found = rate(jnp.float32(0.5), jnp.asarray(mask))
        assert found.shape == ()
        np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_counts_past_float32():
    """2**24 + 2 weights, all but one alive: rows are counted in integers."""
    mask = jnp.ones((2**13 + 1, 2**11), bool).at[0, 0].set(False)
    expected = jaxprune.adjust_dropout(0.5, mask.size, mask.size - 1)
    np.testing.assert_allclose(jaxprune.dropout_rate(0.5, mask), expected, rtol=1e-6)


def test_inside_a_step_it_follows_the_mask():
    @jax.jit
    def step(x, mask, key):
        rate = jaxprune.dropout_rate(0.5, mask)
        keep = jax.random.bernoulli(key, 1 - rate, x.shape)
        return jnp.where(keep, x / (1 - rate), 0)

    x, key = jnp.ones((200, 200)), jax.random.key(0)
    for alive in (1.0, 0.25, 0.0):
        mask = jnp.arange(400) < 400 * alive
        dropped = float((step(x, mask, key) == 0).mean())
        assert dropped == pytest.approx(0.5 * alive**0.5, abs=0.01)


def test_a_mask_without_connections_is_refused():
    with pytest.raises(ValueError, match=r"mask_leaf has shape \(0, 4\), expected"):
        jaxprune.dropout_rate(0.5, jnp.ones((0, 4), bool))


@pytest.mark.parametrize("rate", [-1.0, 1, math.nan, np.float32(1), jnp.array(2.0)])
def test_a_rate_out_of_range_is_refused_unless_it_is_traced(rate):
    mask = jnp.ones((2, 2), bool)
    with pytest.raises(ValueError, match=r"rate is .*, expected a probability in"):
        jaxprune.dropout_rate(rate, mask)
    with pytest.raises(ValueError, match=r"rate is .*, expected a probability in"):
        jax.eval_shape(lambda mask: jaxprune.dropout_rate(rate, mask), mask)
    jax.eval_shape(jaxprune.dropout_rate, rate, mask)


def test_a_leaf_that_is_never_pruned_keeps_its_rate():
    assert float(jaxprune.dropout_rate(0.5, None)) == 0.5
