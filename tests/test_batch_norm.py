"""BatchNorm in training against PyTorch, and where its running statistics go."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from quick import quick

from experiments.models import layers


NORM = layers.BatchNorm()


@pytest.mark.parametrize("shape", quick([(16, 5, 4, 6), (16, 6)], (16, 6)))
def test_a_batch_is_normalised_as_by_torch(shape):
    torch: Any = pytest.importorskip("torch")
    draw = np.random.default_rng(0)
    x, weights = (draw.normal(2, 3, shape).astype(np.float32) for _ in range(2))
    scale, bias, mean, variance = draw.uniform(0.5, 2, (4, 6)).astype(np.float32)
    params = {"scale": scale, "bias": bias, "mean": mean, "variance": variance}

    def value(params, x):
        return jnp.sum(weights * NORM.apply({"params": params}, x, train=True))

    out, (slopes, slope) = jax.value_and_grad(value, (0, 1))(params, x)

    first = lambda a: torch.from_numpy(np.ascontiguousarray(np.moveaxis(a, -1, 1)))
    there = first(x).requires_grad_()
    twin = torch.nn.BatchNorm2d(6) if len(shape) == 4 else torch.nn.BatchNorm1d(6)
    with torch.no_grad():
        twin.weight.copy_(torch.from_numpy(scale))
        twin.bias.copy_(torch.from_numpy(bias))
    expected = (first(weights) * twin(there)).sum()
    expected.backward()
    np.testing.assert_allclose(out, float(expected.detach()), rtol=1e-4)
    back = np.moveaxis(there.grad.numpy(), 1, -1)
    np.testing.assert_allclose(slope, back, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(slopes["scale"], twin.weight.grad, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(slopes["bias"], twin.bias.grad, rtol=1e-4, atol=1e-4)
    # What the running statistics are above the batch's.
    axes = tuple(range(x.ndim - 1))
    np.testing.assert_allclose(slopes["mean"], mean - x.mean(axes), atol=1e-5)
    np.testing.assert_allclose(slopes["variance"], variance - x.var(axes), atol=1e-4)


@pytest.mark.slow
def test_running_statistics_come_to_those_of_all_batches():
    x = jnp.zeros((32, 2, 2, 3))
    params = NORM.init(jax.random.key(0), x, train=False)["params"]
    tx = optax.sgd(optax.cosine_decay_schedule(0.1, 2000), momentum=0.9)
    true_mean, deviation = np.array([3.0, -1.0, 0.0]), np.array([2.0, 0.5, 1.0])

    def step(state, key):
        params, opt_state = state
        batch = true_mean + deviation * jax.random.normal(key, x.shape)
        # Their gradient is theirs, however small the loss.
        loss = lambda p: 1e-6 * NORM.apply({"params": p}, batch, train=True).sum()
        updates, opt_state = tx.update(jax.grad(loss)(params), opt_state)
        return (optax.apply_updates(params, updates), opt_state), None

    keys = jax.random.split(jax.random.key(1), 2000)
    (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), keys)
    # Of one batch of 128 numbers they are off by 9% and 12% of the deviation, or the
    # variance; of a hundred by 1%.
    np.testing.assert_array_less(abs(params["mean"] - true_mean) / deviation, 0.03)
    np.testing.assert_allclose(params["variance"], deviation**2, rtol=0.04)


def test_what_is_not_trained_on_goes_by_the_running_statistics():
    draw = np.random.default_rng(1)
    x = draw.normal(size=(2, 3, 3, 4)).astype(np.float32)
    scale, bias, mean, variance = draw.uniform(0.5, 2, (4, 4)).astype(np.float32)
    params = {"scale": scale, "bias": bias, "mean": mean, "variance": variance}
    out = NORM.apply({"params": params}, x, train=False)
    expected = scale * (x - mean) / np.sqrt(variance + 1e-5) + bias
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5)
