import zlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy

import jaxprune


PARAMS = toy.make_params()
GRADS = toy.make_params(1)
MASK = jaxprune.dense_mask(PARAMS)


@pytest.mark.usefixtures("strict")
def test_magnitude():
    scores = jaxprune.magnitude(PARAMS, MASK, 0, grads=GRADS)
    assert scores["fc1"]["bias"] is None
    for name, score in toy.by_name(scores).items():
        np.testing.assert_array_equal(score, np.abs(toy.by_name(PARAMS)[name]))


@pytest.mark.usefixtures("strict")
def test_saliency():
    scores = jaxprune.saliency(PARAMS, MASK, 0, grads=GRADS, other=None)
    assert scores["fc1"]["bias"] is None
    for name, score in toy.by_name(scores).items():
        w, g = toy.by_name(PARAMS)[name], toy.by_name(GRADS)[name]
        np.testing.assert_array_equal(score, np.abs(w * g))


def test_saliency_is_the_first_order_change_of_the_loss():
    """As PyTorch's gradients tell it."""
    torch = pytest.importorskip("torch")
    x, y = toy.batches(1)[0]
    tensors = {
        name: torch.tensor(np.array(p), requires_grad=True)
        for name, p in toy.by_name(PARAMS).items()
    }
    h = torch.tanh(torch.tensor(x) @ tensors["fc1/kernel"] + tensors["fc1/bias"])
    out = h @ tensors["fc2/kernel"] + tensors["fc2/bias"]
    (out - torch.tensor(y)).square().mean().backward()
    grads = jax.grad(toy.loss)(PARAMS, (x, y))
    scores = toy.by_name(jaxprune.saliency(PARAMS, MASK, 0, grads=grads))
    for name in ("fc1/kernel", "fc2/kernel"):
        w = tensors[name]
        expected = (w * w.grad).abs().detach().numpy()
        np.testing.assert_allclose(scores[name], expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_saliency_of_half_precision_neither_overflows_nor_vanishes(dtype):
    params = {"w": jnp.array([[3e4, 1e-4]], dtype)}
    grads = {"w": jnp.array([[3e4, 1e-4]], dtype)}
    mask = jaxprune.dense_mask(params)
    scores = jaxprune.saliency(params, mask, 0, grads=grads)["w"]
    assert scores.dtype == jnp.float32
    expected = np.asarray(params["w"]).astype(np.float32) ** 2
    np.testing.assert_array_equal(scores, expected)


def test_saliency_of_complex_weights():
    params, grads = {"w": jnp.array([3 + 4j, 2])}, {"w": jnp.array([2j, -1 + 1j])}
    found = jaxprune.saliency(params, {"w": jnp.array([True, True])}, 0, grads=grads)
    np.testing.assert_allclose(found["w"], [10, 8**0.5], rtol=1e-6)


def test_saliency_without_gradients_fails_by_name():
    with pytest.raises(TypeError, match="grads"):
        jaxprune.prune_now(PARAMS, jaxprune.to_sparsity(jaxprune.saliency, 0.5))


def draws(key=0, step=0, params=PARAMS, mask=MASK):
    return jaxprune.random(jax.random.key(key))(params, mask, step)


def test_random_is_uniform():
    params = {"w": jnp.zeros((100, 100))}
    u = np.asarray(draws(params=params, mask=jaxprune.dense_mask(params))["w"])
    assert u.min() >= 0
    assert u.max() < 1
    counts = np.histogram(u, 10, (0, 1))[0]
    # Ten equal bins of 10,000 draws: five standard deviations are 150.
    assert np.abs(counts - 1000).max() < 150


def test_random_depends_on_key_step_and_path_alone():
    reference = draws()
    assert reference["fc1"]["bias"] is None
    chex.assert_trees_all_equal(draws(), reference)
    chex.assert_trees_all_equal(draws(step=jnp.int32(0)), reference)
    chex.assert_trees_all_equal(draws(params=GRADS), reference)
    alone = {"fc2": PARAMS["fc2"]}
    found = draws(params=alone, mask={"fc2": MASK["fc2"]})
    chex.assert_trees_all_equal(found["fc2"], reference["fc2"])
    for other in (draws(key=1), draws(step=1)):
        assert not np.array_equal(other["fc1"]["kernel"], reference["fc1"]["kernel"])
    assert not np.array_equal(reference["fc1"]["kernel"], reference["fc2"]["kernel"])


def scrambled(x):
    """The finalizer of MurmurHash3, fmix32, on Python's integers."""
    x = (x ^ x >> 16) * 0x85EBCA6B % 2**32
    x = (x ^ x >> 13) * 0xC2B2AE35 % 2**32
    return x ^ x >> 16


def test_random_by_its_definition():
    """The same in every process, as on several hosts it must be."""
    key = jax.random.fold_in(jax.random.key(7), 5)
    key = jax.random.fold_in(key, zlib.crc32(b"fc/kernel"))
    rows, columns, start = jax.random.bits(key, (3,)).tolist()

    def expected(row, column):
        x = scrambled(start ^ (row + rows) % 2**32)
        return (scrambled(x ^ (column + columns) % 2**32) >> 8) / 2**24

    params = {"fc": {"kernel": jnp.zeros((3, 4))}}
    found = draws(7, 5, params, jaxprune.dense_mask(params))["fc"]["kernel"]
    every = [[expected(row, column) for column in range(4)] for row in range(3)]
    np.testing.assert_array_equal(found, np.float32(every))


def test_random_takes_an_old_key():
    old = jaxprune.random(jax.random.PRNGKey(0))(PARAMS, MASK, 0)
    chex.assert_trees_all_equal(old, draws())


def test_random_prunes_to_a_sparsity_and_keeps_the_dead_dead():
    criterion = jaxprune.random(jax.random.key(0))
    mask = MASK
    for step, sparsity in enumerate((0.25, 0.5)):
        before = mask
        _, mask = jaxprune.prune_now(
            PARAMS, jaxprune.to_sparsity(criterion, sparsity), mask, step=step
        )
        assert jaxprune.sparsity(mask) == sparsity
        toy.assert_shrinks(before, mask)


def test_a_criterion_of_ones_own():
    def nearest(params, mask, step, *, target, **extra):
        f = lambda w, m: jnp.abs(w - target)
        return jaxprune.map_masked(f, params, mask, elsewhere=lambda w: None)

    assert isinstance(nearest, jaxprune.Criterion)
    params = {"w": jnp.arange(8.0).reshape(2, 4)}
    _, mask = jaxprune.prune_now(
        params, jaxprune.to_sparsity(nearest, 0.25), target=jnp.float32(2.2)
    )
    expected = [[True, True, False, False], [True, True, True, True]]
    np.testing.assert_array_equal(mask["w"], expected)
