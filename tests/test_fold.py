"""Reductions without reducers, against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune._fold import fold


SHAPES = [(), (1,), (7,), (16,), (17, 33), (3, 1, 5, 40), (784, 30), (0,), (4, 0)]


@pytest.mark.parametrize("shape", SHAPES)
def test_sum_and_extremes(shape):
    x = np.random.default_rng(0).integers(-99, 99, shape, dtype=np.int32)
    assert fold(jnp.add, 0, jnp.square, jnp.asarray(x)) == np.sum(x * x)
    low = fold(jnp.minimum, 100, lambda x: x, jnp.asarray(x))
    assert low == np.min(x, initial=100)


def test_several_arrays_and_axes_that_stay():
    rng = np.random.default_rng(1)
    x, m = rng.standard_normal((5, 3, 40)), rng.random((5, 3, 40)) < 0.5
    x = x.astype(np.float32)
    total = fold(
        jnp.add,
        0,
        lambda x, m: jnp.where(m, x, 0),
        jnp.asarray(x),
        jnp.asarray(m),
        lead=2,
    )
    np.testing.assert_allclose(total, np.sum(np.where(m, x, 0), axis=2), atol=1e-5)


def test_error_grows_with_the_logarithm():
    # One after the other these sum to 2.5 parts in a thousand less.
    x = jnp.full(1 << 18, 0.1, jnp.float32)
    exact = float(np.float32(0.1)) * 2**18
    assert abs(float(fold(jnp.add, 0, lambda x: x, x)) / exact - 1) < 18 * 2**-24
    one_by_one = np.cumsum(np.asarray(x), dtype=np.float32)[-1]
    assert abs(one_by_one / exact - 1) > 1e-4


def test_has_no_reducer():
    text = jax.jit(lambda x: fold(jnp.add, 0, lambda x: x, x)).lower(jnp.ones(99))
    assert "reduce" not in text.as_text()
