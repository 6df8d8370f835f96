import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy

import jaxprune


PARAMS = toy.make_params()
RNG = np.random.default_rng(0)
MASK = jax.tree.map(
    lambda p: jnp.asarray(RNG.random(p.shape) < 0.5) if p.ndim == 2 else None, PARAMS
)
PENALTIES = {
    "l1": (jaxprune.l1, np.abs, np.sign),
    "l2": (jaxprune.l2, lambda w: w**2 / 2, lambda w: w),
}


@pytest.mark.usefixtures("strict")
@pytest.mark.parametrize("name", PENALTIES)
def test_value_and_gradient_against_numpy(name):
    penalty, value, slope = PENALTIES[name]
    found, grads = jax.jit(jax.value_and_grad(penalty))(PARAMS, MASK)
    masks, expected = toy.by_name(MASK), 0.0
    for leaf, w in toy.by_name(PARAMS).items():
        g = toy.by_name(grads)[leaf]
        if leaf in masks:
            expected += value(w[masks[leaf]].astype(np.float64)).sum()
            np.testing.assert_allclose(g, np.where(masks[leaf], slope(w), 0))
        else:
            assert not g.any()
    assert found.shape == ()
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_l2_is_pytorchs_weight_decay():
    torch = pytest.importorskip("torch")
    w = torch.tensor(np.array(PARAMS["fc1"]["kernel"]), requires_grad=True)
    rate, decay = 0.1, 0.01
    optimizer = torch.optim.SGD([w], lr=rate, weight_decay=decay)
    w.grad = torch.zeros_like(w)
    optimizer.step()
    params = {"w": PARAMS["fc1"]["kernel"]}
    mask = jaxprune.dense_mask(params)
    grads = jax.grad(lambda p: decay * jaxprune.l2(p, mask))(params)
    found = params["w"] - rate * grads["w"]
    np.testing.assert_allclose(found, w.detach().numpy(), rtol=1e-6)


@pytest.mark.parametrize("name", PENALTIES)
@pytest.mark.parametrize("dead", [np.nan, np.inf])
def test_the_dead_do_not_count(name, dead):
    params = {"w": jnp.array([[1.0, dead]]), "b": jnp.array([dead])}
    mask = {"w": jnp.array([[True, False]]), "b": None}
    value, grads = jax.value_and_grad(PENALTIES[name][0])(params, mask)
    assert float(value) == (1.0 if name == "l1" else 0.5)
    np.testing.assert_array_equal(grads["b"], [0.0])
    np.testing.assert_array_equal(grads["w"], [[1.0, 0.0]])


@pytest.mark.parametrize("name", PENALTIES)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_is_summed_in_float32(name, dtype):
    params = {"w": jnp.full((300, 300), 2.0, dtype)}
    mask = jaxprune.dense_mask(params)
    penalty = PENALTIES[name][0]
    assert float(penalty(params, mask)) == 180_000.0
    assert jax.grad(penalty)(params, mask)["w"].dtype == dtype


def test_nothing_to_penalize():
    assert float(jaxprune.l1({"b": jnp.ones(3)}, {"b": None})) == 0.0


def test_numpy_params():
    params = {"w": np.ones((2, 2), np.float32)}
    assert float(jaxprune.l1(params, jaxprune.dense_mask(params))) == 4.0


def test_the_least_integer_has_a_magnitude_too():
    params, mask = {"w": np.array([-128, 127], np.int8)}, {"w": np.ones(2, bool)}
    assert float(jaxprune.l1(params, mask)) == 255.0
    assert float(jaxprune.l2(params, mask)) == (128**2 + 127**2) / 2


def test_complex_weights_count_by_magnitude():
    params = {"w": jnp.array([[3 + 4j, 0.1j], [1, 0]])}
    mask = jaxprune.dense_mask(params)
    value, grads = jax.value_and_grad(jaxprune.l1)(params, mask)
    np.testing.assert_allclose(value, 6.1, rtol=1e-6)
    np.testing.assert_allclose(grads["w"], [[0.6 - 0.8j, -1j], [1, 0]], rtol=1e-6)
    value, grads = jax.value_and_grad(jaxprune.l2)(params, mask)
    np.testing.assert_allclose(value, 13.005, rtol=1e-6)
    np.testing.assert_allclose(grads["w"], [[3 - 4j, -0.1j], [1, 0]], rtol=1e-6)
