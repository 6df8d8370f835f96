"""The numba kernel against SciPy and NumPy, in every transformation of JAX's."""

import logging
import re
import sys
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick import quick
from scipy.sparse import csr_array

from jaxprune import sparse
from jaxprune.sparse import _abi, _fast
from jaxprune.sparse._layout import FAST, plan


RNG = np.random.default_rng(0)
numba = pytest.importorskip("numba", reason="numba, of the extra fast, is missing")


def pruned(rows, columns, keep=0.1, skewed=False):
    chance = RNG.permutation(np.geomspace(1e-3, 1, columns)) if skewed else keep
    mask = RNG.random((rows, columns)) < chance
    return RNG.standard_normal((rows, columns)).astype(np.float32), mask


def images(*shape):
    return jnp.asarray(RNG.standard_normal(shape), jnp.float32)


def close(a, b, relative=1e-5):
    a, b = np.asarray(a), np.asarray(b)
    assert a.shape == b.shape
    assert abs(a - b).max(initial=0) <= relative * abs(b).max(initial=0)


CASES = {
    "even": pruned(300, 200),
    "skewed": pruned(3000, 200, skewed=True),
    "for threads": pruned(3000, 1200),
    "rests of vectors": pruned(90, 303),
    "one output": pruned(50, 1),
    "nothing alive": pruned(50, 20, keep=0),
    "beyond 16 bits": pruned(70_000, 3, keep=0.01),
}


def made(case, **options):
    return sparse.to_kernel(*CASES[case], fast=True, **options)


def run(x, kernel):
    return jax.jit(sparse.product)(jnp.asarray(x), kernel)


def programs(f, *args):
    return jax.jit(f).lower(*args).as_text()


@pytest.mark.parametrize("case", quick(CASES, "even", "skewed", "for threads"))
def test_product_is_scipys(case):
    w, mask = CASES[case]
    matrix = csr_array(np.where(mask, w, 0).astype(float))
    for lead in ((), (1,), (3,), (7,), (2, 9), (84,)):
        x = images(*lead, w.shape[0])
        want = np.asarray(x, float).reshape(-1, w.shape[0]) @ matrix
        close(run(x, made(case)), want.reshape(*lead, w.shape[1]))


@pytest.mark.parametrize("values", ["float32", "float16", "int8"])
def test_a_small_kernel_is_one_array_of_the_same_weights(values):
    w, mask = np.float32([[1, -2, 3]]).T, np.ones((3, 1), bool)  # an odd number
    kernel = sparse.to_kernel(w, mask, fast=True, values=values)
    scale = [] if values != "int8" else [kernel.scale]
    assert len(jax.tree.leaves(kernel)) == 1 + len(scale)
    apart = kernel.unpacked()
    assert apart.values.dtype == values
    numbers = np.float32(apart.values) * (kernel.scale if scale else 1)
    np.testing.assert_allclose(numbers, [1, -2, 3], atol=0.02)
    np.testing.assert_array_equal(apart.places, [0, 1, 2, 0])
    close(run(jnp.float32([1, 10, 100]), kernel), [281], 1e-2)
    large = sparse.to_kernel(*CASES["for threads"], fast=True, values=values)
    assert len(jax.tree.leaves(large)) == 2 + len(scale)


def test_blocks_end_with_whole_vectors_and_hold_less_padding():
    lengths = np.sort(RNG.integers(40, 90, 500))[::-1]
    found = plan(lengths, loop=FAST)
    *inner, last = found.ends
    assert inner
    assert all(end % 16 == 0 for end in inner)
    assert last == 500
    assert lengths.sum() < found.slots < plan(lengths).slots


def test_it_is_numba_that_runs():
    text = programs(sparse.product, jnp.ones(300), made("even"))
    assert "jaxprune_sparse_float32_uint16_one" in text
    text = programs(sparse.product, jnp.ones(300), sparse.to_kernel(*CASES["even"]))
    assert "jaxprune_sparse" not in text


@pytest.mark.parametrize("values", quick(["float32", "int8"], "float32"))
def test_a_bias_is_added_to_the_product(values):
    w, mask = pruned(300, 50)
    bias = jnp.asarray(RNG.standard_normal(50), jnp.float32)
    kernel = sparse.to_kernel(w, mask, fast=True, values=values)
    for x in (images(300), images(5, 300)):
        close(sparse.product(x, kernel, bias), run(x, kernel) + np.asarray(bias))
    x, twice = images(2, 300), jnp.stack([bias, 2 * bias])
    each = jax.vmap(lambda x, bias: sparse.product(x, kernel, bias))
    close(each(x, twice), run(x, kernel) + np.asarray(twice))
    with pytest.raises(ValueError, match=r"shape \(50, 1\), expected \(50,\)"):
        sparse.product(images(300), kernel, bias[:, None])


BIASES = {
    "as it is": lambda x, w, b: x @ w + b,
    "before": lambda x, w, b: b + x @ w,
    "of flax": lambda x, w, b: x @ w + b.reshape((1,) * (x.ndim - 1) + (-1,)),
    "of another dtype": lambda x, w, b: x @ w + b.astype(jnp.bfloat16),
    "spread": lambda x, w, b: jnp.broadcast_to(b, (*x.shape[:-1], 50)) + x @ w,
}
OTHERS = {
    "one for each row": lambda x, w, b: x @ w + b[:5, None],
    "of the product itself": lambda x, w, b: x @ w + x @ w,
    "a number": lambda x, w, b: x @ w + 2.0,
    "of what is read again": lambda x, w, b: jnp.cos(y := x @ w) + (y + b),
    "of something else": lambda x, w, b: jnp.sin(x @ w) + b,
}


@pytest.mark.parametrize("case", [*BIASES, *OTHERS])
def test_the_bias_of_a_lifted_function_is_the_products(case):
    f = (BIASES | OTHERS)[case]
    w, mask = pruned(300, 50)
    kernel = sparse.to_kernel(w, mask, fast=True)
    bias = jnp.asarray(RNG.standard_normal(50), jnp.float32)
    lifted = jax.jit(sparse.lift(f))
    for x in (images(5, 300), images(1, 300), images(300)):
        if x.ndim == 1 and case == "one for each row":
            continue
        close(lifted(x, kernel, bias), f(x, jnp.where(mask, w, 0), bias), 2e-5)
    x = images(5, 300)
    text = lifted.lower(x, kernel, bias).compile().as_text()
    adds = re.findall(r"= f32\[5,50\]\S* add\(", text)
    assert bool(adds) == (case in OTHERS)


@pytest.mark.slow
@pytest.mark.parametrize("values", ["float16", "int8"])
def test_narrow_values_are_those_of_the_matrix(values):
    kernel = made("even", values=values)
    for lead in ((), (5,)):
        x = images(*lead, 300)
        close(run(x, kernel), x @ np.asarray(sparse.to_dense(kernel)))


def test_the_order_of_the_axes_is_free():
    w, mask = CASES["even"]
    kernel = sparse.to_kernel(w.T, mask.T, axis=1, fast=True)
    x = images(4, 300)
    close(run(x, kernel), x @ np.where(mask, w, 0))
    close(run(x, kernel.T), x @ np.where(mask, w, 0))


@pytest.mark.parametrize("case", quick(["even", "skewed"], "even"))
def test_gradients(case):
    w, mask = CASES[case]
    kernel, dense = made(case), np.where(mask, w, 0)
    for lead in ((), (4,)):
        x = images(*lead, w.shape[0])
        grad = jax.jit(jax.grad(lambda x: (sparse.product(x, kernel) ** 2).sum()))(x)
        close(grad, 2 * (x @ dense) @ dense.T)
    y, tangent = jax.jvp(lambda x: sparse.product(x, kernel), (x,), (x,))
    close(y, x @ dense)
    close(tangent, x @ dense)


def test_vmap_makes_one_product():
    w, mask = CASES["even"]
    kernel, x = made("even"), images(3, 2, 300)
    f = jax.vmap(lambda x: sparse.product(x, kernel))
    close(f(x), x @ np.where(mask, w, 0))
    assert "while" not in programs(f, x)
    each = jax.vmap(jax.grad(lambda x: sparse.product(x, kernel).sum()))(x)
    close(each, np.broadcast_to(np.where(mask, w, 0).sum(1), x.shape))


@pytest.mark.slow
def test_vmap_over_kernels():
    w, mask = CASES["even"]
    kernels = [sparse.to_kernel(c * w, mask, fast=True) for c in (1, 2)]
    both = jax.tree.map(lambda *a: jnp.stack(a), *kernels)
    x = images(300)
    want = x @ np.where(mask, w, 0)
    close(jax.vmap(sparse.product, (None, 0))(x, both), np.stack([want, 2 * want]))


@pytest.mark.slow
def test_many_calls_at_once_and_in_loops():
    w, mask = CASES["for threads"]
    kernel, dense = made("for threads"), np.where(mask, w, 0).astype(float)
    x = images(6, 3000)
    want = np.asarray(x) @ dense

    @jax.jit
    def f(x):
        several = [sparse.product(row, kernel) for row in x]
        return jnp.stack(several), jax.lax.map(lambda r: sparse.product(r, kernel), x)

    for _ in range(20):
        several, looped = f(x)
        close(several, want)
        np.testing.assert_array_equal(several.shape, looped.shape)
        close(looped, want)


@pytest.mark.slow
def test_threads_of_python():
    kernel, x = made("for threads", values="int8"), images(3, 3000)
    want = np.asarray(x) @ np.asarray(sparse.to_dense(kernel))
    with ThreadPoolExecutor(4) as pool:  # all meet the kernel before it is compiled
        rows = [x[k % 3] for k in range(40)]
        for k, y in enumerate(pool.map(lambda row: run(row, kernel), rows)):
            close(y, want[k % 3])
    assert set(_fast._FOUND.values()) == {
        f"jaxprune_sparse_{'_'.join(key)}" for key in _fast._FOUND
    }


def test_another_platform_has_plain_xla():
    kernel = made("even")
    lowered = jax.jit(sparse.product).trace(jnp.ones(300), kernel)
    assert "jaxprune_sparse" not in lowered.lower(lowering_platforms=("tpu",)).as_text()


@pytest.fixture
def fresh(monkeypatch):
    """Forgets which kernels there are, for one test."""
    monkeypatch.setattr(_fast, "_FOUND", {})
    yield
    jax.clear_caches()


def falls_back(caplog, message):
    w, mask = CASES["even"]
    jax.clear_caches()
    x = images(300)
    with caplog.at_level(logging.WARNING, "jaxprune.sparse"):
        close(run(x, made("even")), x @ np.where(mask, w, 0))
        run(x[None], made("even"))
    assert message in caplog.text
    assert "jaxprune_sparse" not in programs(sparse.product, x, made("even"))


@pytest.mark.slow
def test_without_numba_xla_runs_and_the_log_says_so(monkeypatch, caplog, fresh):
    monkeypatch.setitem(sys.modules, "numba", None)
    falls_back(caplog, "pip install 'jaxprune[fast]'")


@pytest.mark.slow
def test_with_an_unknown_interface_xla_runs(monkeypatch, caplog, fresh):
    monkeypatch.setattr(_abi, "KNOWN", frozenset({(0, 1)}))
    falls_back(caplog, "interface for custom calls is (0, ")


def test_versions_are_read_from_the_header():
    assert _abi.version() in _abi.KNOWN
    for text in ("", "#define XLA_FFI_API_MAJOR 0", "#define XLA_FFI_API_MINOR 3"):
        with pytest.raises(ValueError, match="unknown"):
            _abi.parse(text)
    with pytest.raises(ValueError, match=r"is \(1, 0\)"):
        _abi.parse("#define XLA_FFI_API_MAJOR 1\n#define XLA_FFI_API_MINOR 0")
