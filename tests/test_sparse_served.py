"""Pruned networks say the same without their dead weights, on real images."""

import os
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune
from experiments import evaluate
from experiments.config import Data
from experiments.data import load
from experiments.models import ALEXNET, LENET5
from experiments.sparse_layers import all_sparse, all_sparse_apply
from jaxprune import sparse


class Mixed(nn.Module):
    """Convolutions of every kind of padding and stride, and a dense layer."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(5, (3, 2), 2, 1)(x))
        x = nn.relu(nn.Conv(6, (4, 3), (1, 2), "SAME")(x))
        x = nn.relu(nn.Conv(4, (2, 2), padding=((1, 0), (2, 1)), use_bias=False)(x))
        x = nn.Conv(3, (1, 1), padding="VALID")(x)
        return nn.Dense(4)(x.reshape(len(x), -1))


@pytest.mark.slow
def test_every_layer_computes_what_flax_does():
    draw = np.random.default_rng(0)
    x = draw.standard_normal((2, 13, 12, 3)).astype(np.float32)
    params = Mixed().init(jax.random.key(0), x)["params"]
    thin = lambda p: jnp.where(draw.random(p.shape) < 0.4, p, 0) if p.ndim > 1 else p
    params = jax.tree.map(thin, params)
    lean = all_sparse(params, jaxprune.mask_from_zeros(params))
    kernels = [layer["kernel"] for layer in lean.values()]
    assert all(isinstance(kernel, sparse.SparseKernel) for kernel in kernels)
    got = jax.jit(all_sparse_apply(Mixed()))(lean, x)
    want = Mixed().apply({"params": params}, x)
    assert np.ptp(want, axis=0).max() > 0.1 * abs(want).max()
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * abs(want).max())


def test_groups_are_refused():
    network = ALEXNET
    x = jax.ShapeDtypeStruct((1, *network.input), jnp.float32)
    shapes = jax.eval_shape(network.module.init, jax.random.key(0), x)["params"]
    names = ("conv1", "conv2")
    params = {
        n: jax.tree.map(lambda p: np.ones(p.shape, np.float32), shapes[n])
        for n in names
    }
    lean = all_sparse(params, jaxprune.mask_from_zeros(params))
    with pytest.raises(ValueError, match="conv2 has 2 groups"):
        jax.eval_shape(all_sparse_apply(network.module), lean, x)


@pytest.mark.slow
def test_a_pruned_lenet5_says_the_same_of_every_digit():
    """Trained for a moment, pruned to 12x, as `sparsify` chooses and all sparse."""
    digits = load(Data("mnist5k"))
    images = jnp.asarray(digits.train.images / np.float32(255))
    labels = jnp.asarray(digits.train.labels)
    module, steps, key = LENET5.module, 240, jax.random.key(0)
    params = module.init(key, images[:1])["params"]
    apply = lambda params, x: module.apply({"params": params}, x)
    sparsity = optax.polynomial_schedule(0.0, 1 - 1 / 12, 3, 120, 40)
    cut = jaxprune.to_sparsity(jaxprune.magnitude, sparsity, scope="global")
    tx = jaxprune.prune(optax.adam(2e-3), jaxprune.every(10, cut))

    def loss(params, x, y):
        logits = apply(params, x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    @jax.jit
    def step(carry, key):
        params, state = carry
        chosen = jax.random.randint(key, (64,), 0, len(labels))
        grads = jax.grad(loss)(params, images[chosen], labels[chosen])
        updates, state = tx.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), None

    carry = (params, tx.init(params))
    (params, state), _ = jax.lax.scan(step, carry, jax.random.split(key, steps))
    jaxprune.verify(params, state)
    mask = jaxprune.get_mask(state)

    x = jnp.asarray(digits.judge.images / np.float32(255))
    dense = np.asarray(jax.jit(apply)(params, x))
    assert len(dense) == 1000
    assert np.mean(dense.argmax(-1) == digits.judge.labels) > 0.9
    for where in (None, lambda _, leaf: leaf.ndim == 2):
        lean = sparse.sparsify(params, mask, batch=100, where=where)
        if where:
            assert isinstance(lean["fc1"]["kernel"], sparse.SparseKernel)
        run = jax.jit(sparse.lift(apply))
        logits = np.concatenate(
            [run(lean, x[i : i + 100]) for i in range(0, 1000, 100)]
        )
        np.testing.assert_array_equal(logits.argmax(-1), dense.argmax(-1))
        assert abs(logits - dense).max() <= 1e-5 * abs(dense).max()


def served(split):
    data = os.environ.get("JAXPRUNE_DATA")
    if not data:
        pytest.skip("JAXPRUNE_DATA is not set")
    return evaluate.run(
        evaluate.Options(
            weights=Path(data) / "squeezenet" / "compressed_SqueezeNet.net",
            network="SqueezeNet",
            data_dir=Path(data) / "tfds",
            split=split,
            batch=25,
            sparse=True,
        )
    )


@pytest.mark.slow
@pytest.mark.data
def test_the_published_squeezenet_says_the_same_of_photographs():
    found = served("validation[:50]")
    assert found["images"] == found["same_class"] == 50
    assert found["sparse_top1_percent"] == found["top1_percent"] > 40
    assert 0 < found["difference"] <= 1e-5


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.data
def test_the_published_squeezenet_says_the_same_of_all_photographs():
    found = served("validation")
    assert found["images"] == found["same_class"] == 1000
    assert abs(found["sparse_top1_percent"] - 64.7) <= 0.5
