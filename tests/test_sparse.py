"""The sparse product against SciPy and NumPy, and models run with it."""

import logging

import flax.linen as nn
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from quick import quick
from scipy.sparse import csr_array

import jaxprune
from experiments.models import LENET5
from jaxprune import sparse


RNG = np.random.default_rng(0)


def pruned(rows, columns, keep=0.1, skewed=False):
    chance = RNG.permutation(np.geomspace(1e-3, 1, columns)) if skewed else keep
    mask = RNG.random((rows, columns)) < chance
    return RNG.standard_normal((rows, columns)).astype(np.float32), mask


def thinned(params, keep):
    some = lambda p: jnp.asarray(RNG.random(p.shape) < keep)
    return jax.tree.map(lambda p: some(p) if p.ndim > 1 else None, params)


def close(a, b, relative=1e-5):
    a, b = np.asarray(a), np.asarray(b)
    assert a.shape == b.shape
    assert abs(a - b).max() <= relative * abs(b).max()


CASES = {
    "even": pruned(300, 200),
    "skewed": pruned(3000, 200, skewed=True),
    "tall": pruned(40, 2500),
    "full": pruned(20, 30, keep=2),
    "one output": pruned(50, 1),
    "nothing alive": pruned(50, 20, keep=0),
    "beyond 16 bits": pruned(70_000, 3, keep=0.01),
}


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("case", quick(CASES, "even", "skewed", "nothing alive"))
def test_product_is_scipys(case, axis):
    w, mask = CASES[case]
    kernel = sparse.to_kernel(w.T if axis else w, mask.T if axis else mask, axis=axis)
    for lead in ((), (1,), (5,), (18,)) if axis else ((), (3,), (18,)):
        x = RNG.standard_normal((*lead, w.shape[0])).astype(np.float32)
        want = x.astype(np.float64) @ csr_array(np.where(mask, w, 0).astype(float))
        close(jax.jit(sparse.product)(jnp.asarray(x), kernel), want)
    np.testing.assert_array_equal(
        sparse.to_dense(kernel if axis == 0 else kernel.T), np.where(mask, w, 0)
    )


def test_indices_are_as_narrow_as_they_can_be():
    of = lambda case: sparse.to_kernel(*CASES[case]).places.dtype
    assert (of("even"), of("beyond 16 bits")) == (jnp.uint16, jnp.uint32)


@pytest.mark.slow
def test_more_outputs_than_16_bits_count():
    w, mask = pruned(3, 70_000, keep=0.3)
    kernel = sparse.to_kernel(w, mask)
    assert kernel.places.dtype == jnp.uint32
    x = RNG.standard_normal((1, 3)).astype(np.float32)
    close(sparse.product(jnp.asarray(x), kernel), x @ np.where(mask, w, 0))


def test_long_outputs_are_cut():
    skewed = sparse.to_kernel(*CASES["skewed"])
    assert skewed.owner is not None
    assert skewed.values.size < 1.5 * CASES["skewed"][1].sum()
    assert sparse.to_kernel(*CASES["even"]).owner is None


@pytest.mark.parametrize(("values", "bits"), [("float16", 10), ("int8", 7)])
def test_narrow_values_are_near(values, bits):
    w, mask = CASES["even"]
    kernel = sparse.to_kernel(w, mask, values=values)
    assert kernel.nbytes < 0.9 * sparse.to_kernel(w, mask).nbytes
    step = abs(np.where(mask, w, 0)).max(axis=0) / 2**bits
    assert (abs(sparse.to_dense(kernel) - np.where(mask, w, 0)) <= 0.51 * step).all()


@pytest.mark.parametrize("values", ["float16", "int8"])
def test_dead_weights_do_not_widen_narrow_values(values):
    w, mask = CASES["even"][0].copy(), CASES["even"][1].copy()
    mask[:, 3] = False  # an output of which nothing lives
    w[~mask] = 1e6
    kernel = sparse.to_kernel(w, mask, values=values)
    step = abs(np.where(mask, w, 0)).max(axis=0) / 2**7
    assert (abs(sparse.to_dense(kernel) - np.where(mask, w, 0)) <= 0.51 * step).all()


@pytest.mark.slow
def test_grad_vmap_and_scan():
    w, mask = CASES["skewed"]
    kernel, dense = sparse.to_kernel(w, mask), np.where(mask, w, 0)
    x = jnp.asarray(RNG.standard_normal((4, w.shape[0])), jnp.float32)
    grad = jax.grad(lambda x: (sparse.product(x, kernel) ** 2).sum())(x)
    close(grad, 2 * (np.asarray(x) @ dense) @ dense.T)
    close(jax.vmap(lambda x: sparse.product(x, kernel))(x), np.asarray(x) @ dense)


def test_exports_for_every_platform_and_runs_from_the_file():
    w, mask = CASES["even"]
    kernel = sparse.to_kernel(w, mask)
    x = jnp.ones((2, 300))
    run = jax.jit(lambda x: sparse.product(x, kernel))
    exported = jax.export.export(run, platforms=("cpu", "cuda", "tpu"))(x)
    again = jax.export.deserialize(exported.serialize())
    close(again.call(x), np.ones((2, 300)) @ np.where(mask, w, 0))


def test_bfloat16_inputs_are_summed_in_float32():
    w, mask = CASES["even"]
    y = sparse.product(jnp.ones(300, jnp.bfloat16), sparse.to_kernel(w, mask))
    assert y.dtype == jnp.bfloat16
    close(y.astype(jnp.float32), np.where(mask, w, 0).sum(0), 2**-8)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda w, m: sparse.to_kernel(w, m.T), "mask"),
        (lambda w, m: sparse.to_kernel(w, m, values="int4"), "'int4'"),
        (lambda w, m: sparse.to_kernel(w, m, axis=2), "axis is 2"),
        (lambda w, m: sparse.to_kernel(1e6 * w, m, values="float16"), "float16"),
        (lambda w, m: sparse.product(jnp.ones(5), sparse.to_kernel(w, m)), "300 last"),
        (lambda w, m: sparse.product(jnp.arange(300), sparse.to_kernel(w, m)), "int32"),
        (lambda w, m: sparse.sparsify({"w": w}, {"w": m}, batch=0), "batch is 0"),
    ],
)
def test_bad_arguments_are_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        wrong(*CASES["even"])


def everything(_, leaf):
    return leaf.ndim == 2


@pytest.mark.parametrize(
    "values", ["float32", pytest.param("int8", marks=pytest.mark.slow)]
)
def test_an_unchanged_linen_model_runs(values):
    model = LENET5.module
    x = jnp.asarray(RNG.random((3, 28, 28, 1)), jnp.float32)
    params = model.init(jax.random.key(0), x)["params"]
    mask = thinned(params, 0.1)
    small = sparse.sparsify(params, mask, where=everything, values=values, fast=False)
    assert isinstance(small["fc1"]["kernel"], sparse.SparseKernel)
    assert not isinstance(small["conv2"]["kernel"], sparse.SparseKernel)
    apply = lambda p, x: model.apply({"params": p}, x)
    got = jax.jit(sparse.lift(apply))(small, x)
    close(got, apply(sparse.densify(small), x))
    want = apply(jaxprune.apply_mask(params, mask), x)
    close(got, want, {"float32": 1e-5, "int8": 0.02}[values])


@pytest.mark.slow
def test_an_unchanged_nnx_model_runs_and_has_gradients():
    model = nnx.Sequential(
        nnx.Linear(12, 8, rngs=nnx.Rngs(0)),
        jax.nn.relu,
        nnx.Linear(8, 4, rngs=nnx.Rngs(1)),
    )
    graph, state = nnx.split(model)
    params = nnx.to_pure_dict(state)
    mask = thinned(params, 0.5)
    small = sparse.sparsify(params, mask, where=everything, fast=False)

    def apply(params, x):
        state = nnx.state(model)
        nnx.replace_by_pure_dict(state, params)
        return nnx.merge(graph, state)(x)

    x = jnp.asarray(RNG.standard_normal((3, 12)), jnp.float32)
    dense = jaxprune.apply_mask(params, mask)
    close(sparse.lift(apply)(small, x), apply(dense, x))
    grad = lambda f, p: jax.grad(lambda x: f(p, x).sum())(x)
    close(grad(sparse.lift(apply), small), grad(apply, dense))


def test_products_of_either_side_and_transposed():
    w, mask = pruned(6, 4, keep=0.5)
    dense = jnp.where(mask, w, 0)
    x, z = jnp.asarray(RNG.random((2, 6))), jnp.asarray(RNG.random((4, 3)))
    x, z = x.astype(jnp.float32), z.astype(jnp.float32)
    for axis, f in (
        (0, lambda w: x @ w),
        (0, lambda w: jax.jit(lambda w: w.T @ x.T)(w)),
        (1, lambda w: w @ z),
        (1, lambda w: z.T @ w.T),
        (0, lambda w: jnp.einsum("bi,io->bo", x, w)),
    ):
        close(sparse.lift(f)(sparse.to_kernel(w, mask, axis=axis)), f(dense))


@pytest.mark.parametrize("dtype", ["int32", "uint8", "bool", "bfloat16", "complex64"])
def test_inputs_of_another_dtype_than_the_weights(dtype):
    w, mask = pruned(6, 4, keep=0.5)
    dense, kernel = np.where(mask, w, 0), sparse.to_kernel(w, mask)
    x = (jnp.arange(12.0).reshape(2, 6) % 4 + 0.3).astype(dtype)
    x = x * 1j if dtype == "complex64" else x
    wide = np.asarray(x).astype(np.complex128) @ dense
    for f in (lambda w: x @ w, lambda w: (w.T @ x.T).T):
        got = sparse.lift(f)(kernel)
        assert got.dtype == f(jnp.asarray(dense)).dtype
        close(got, wide if dtype == "complex64" else wide.real)
    close(sparse.lift(lambda w: x @ w + jnp.ones(4))(kernel), got + 1)


def test_what_has_no_sparse_form_is_right_and_said(caplog):
    w, mask = pruned(6, 4, keep=0.5)
    kernel, dense = sparse.to_kernel(w, mask), np.where(mask, w, 0)
    for f in (lambda w: (w**2).sum(), lambda w: w @ jnp.ones(4), lambda w: w.T @ w):
        caplog.clear()
        with caplog.at_level(logging.WARNING, "jaxprune.sparse"):
            close(sparse.lift(f)(kernel), f(dense))
        assert "written out dense: (" in caplog.text


def test_what_would_be_slower_stays_dense():
    masks = {"fc7": (4096, 0.04), "fc8": (1000, 0.23), "small": (10, 0.08)}
    params, alive = {}, {}
    for name, (outputs, keep) in masks.items():
        params[name], alive[name] = pruned(4096, outputs, keep)
    small = sparse.sparsify(params, alive, costs=sparse.Costs(), fast=False)
    found = {name: isinstance(p, sparse.SparseKernel) for name, p in small.items()}
    assert found == {"fc7": True, "fc8": False, "small": False}
    assert 10 * small["fc7"].nbytes < params["fc7"].nbytes


def test_a_leaf_that_is_no_matrix_cannot_be_chosen():
    with pytest.raises(ValueError, match="conv has shape"):
        sparse.sparsify(
            {"conv": jnp.ones((3, 3, 2, 2))},
            {"conv": jnp.ones((3, 3, 2, 2), bool)},
            where=lambda *_: True,
        )
    with pytest.raises(ValueError, match=r"w has shape \(3, 2\) and dtype bfloat16"):
        sparse.sparsify(
            {"w": jnp.ones((3, 2), jnp.bfloat16)},
            {"w": jnp.ones((3, 2), bool)},
            where=lambda *_: True,
        )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"mask": {"w": np.ones((1, 4), bool), "b": None}}, r"\(1, 4\), .* \(6, 4\)"),
        ({"where": jaxprune.where("fc*/kernel")}, r"'fc.*' matches no leaf.* b, w"),
        ({"where": lambda name, _: name == "b"}, "b is chosen by `where` but not cov"),
        ({"values": "bf16"}, "values is 'bf16', expected one of float32"),
        ({"axis": 2}, "axis is 2, expected 0 or 1"),
    ],
)
def test_sparsify_names_what_does_not_fit(given, message):
    """Of a matrix so small that it stays dense, so that nothing else would object."""
    params = {"w": np.ones((6, 4), np.float32), "b": np.ones((2, 2), np.float32)}
    mask = {"w": np.ones((6, 4), bool), "b": None}
    with pytest.raises(ValueError, match=message):
        sparse.sparsify(params, **{"mask": mask, **given})


def test_dead_weights_and_uncovered_leaves():
    params = {"w": jnp.array([[1.0, 2.0]]), "b": jnp.array([3.0])}
    mask = {"w": jnp.array([[True, False]]), "b": None}
    for where in (None, jaxprune.where("**")):  # which takes the bias along
        out = sparse.sparsify(params, mask, where=where)
        dense = sparse.to_dense(out["w"]) if where else out["w"]
        np.testing.assert_array_equal(dense, [[1, 0]])
        assert out["b"] is params["b"]


def test_a_module_of_ones_own_runs():
    class Own(nn.Module):
        @nn.compact
        def __call__(self, x):
            w = self.param("w", nn.initializers.ones, (6, 4))
            return nn.relu(x @ w)

    w, mask = pruned(6, 4, keep=0.5)
    apply = lambda p, x: Own().apply({"params": p}, x)
    got = sparse.lift(apply)({"w": sparse.to_kernel(w, mask)}, jnp.ones((2, 6)))
    close(got, np.maximum(np.ones((2, 6)) @ np.where(mask, w, 0), 0))


def test_an_empty_matrix_stays_dense():
    params = {"w": jnp.ones((3, 0))}
    mask = jaxprune.dense_mask(params)
    assert isinstance(sparse.sparsify(params, mask)["w"], jax.Array)
    with pytest.raises(ValueError, match="if they hold any weights"):
        sparse.sparsify(params, mask, where=lambda *_: True)
