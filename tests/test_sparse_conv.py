"""The direct sparse convolution against SciPy's and XLA's dense ones."""

import logging

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick import LONG, quick
from scipy.signal import correlate

import jaxprune
from jaxprune import sparse


pytest.importorskip("numba", reason="numba, of the extra fast, is missing")
RNG = np.random.default_rng(0)
NUMBERS = ("NHWC", "HWIO", "NHWC")


def pruned(shape, keep=0.3):
    return RNG.standard_normal(shape).astype(np.float32), RNG.random(shape) < keep


def images(*shape):
    return jnp.asarray(RNG.standard_normal(shape), jnp.float32)


def close(a, b, relative=1e-5):
    a, b = np.asarray(a), np.asarray(b)
    assert a.shape == b.shape
    assert abs(a - b).max(initial=0) <= relative * abs(b).max(initial=0)


def scipys(x, w, padding):
    """Sums SciPy's correlations of every channel."""
    x = np.pad(np.asarray(x, float), ((0, 0), *padding, (0, 0)))
    one = lambda image, o: sum(
        correlate(image[..., c], w[..., c, o].astype(float), "valid", "direct")
        for c in range(w.shape[2])
    )
    each = [[one(image, o) for o in range(w.shape[3])] for image in x]
    return np.moveaxis(np.array(each), 1, -1)


CASES = {
    "3 x 3": ((9, 11), (3, 3, 4, 37), ((1, 1), (1, 1))),
    "one output": ((5, 6), (5, 5, 2, 1), ((0, 0), (0, 0))),
    "1 x 1": ((4, 4), (1, 1, 8, 3), ((0, 0), (0, 0))),
    "uneven": ((7, 5), (2, 3, 3, 20), ((0, 2), (1, 0))),
    "as small as the window": ((3, 3), (3, 3, 2, 4), ((0, 0), (0, 0))),
    "wide": ((20, 30), (3, 3, 2, 3), ((1, 1), (1, 1))),
}


@pytest.mark.parametrize("case", quick(CASES, "3 x 3", "one output", "uneven"))
def test_convolution_is_scipys(case):
    size, shape, padding = CASES[case]
    w, mask = pruned(shape)
    conv = sparse.to_conv(w, mask)
    run = jax.jit(lambda x, conv: sparse.convolve(x, conv, padding))
    for batch in (1, 3):
        x = images(batch, *size, shape[2])
        close(run(x, conv), scipys(x, np.where(mask, w, 0), padding))
    np.testing.assert_array_equal(sparse.conv_to_dense(conv), np.where(mask, w, 0))
    assert "jaxprune_sparse_float32_uint16_conv" in run.lower(x, conv).as_text()


def windows(y, pool):
    """Takes NumPy's maxima of whole windows."""
    batch, height, width, outputs = y.shape
    rows, columns = height // pool, width // pool
    y = y[:, : pool * rows, : pool * columns]
    return y.reshape(batch, rows, pool, columns, pool, outputs).max((2, 4))


@pytest.mark.parametrize("values", quick(["float32", "int8"], "float32"))
@pytest.mark.parametrize("pool", [1, 2, 3])
def test_maxima_and_bias(pool, values):
    w, mask = pruned((3, 2, 3, 20))
    mask[..., 4] = False
    bias = jnp.asarray(RNG.standard_normal(20), jnp.float32)
    conv = sparse.to_conv(w, mask, values=values)
    padding = ((0, 2), (1, 0))
    kernel = np.asarray(sparse.conv_to_dense(conv))
    run = jax.jit(lambda *a: sparse.convolve(*a, padding, pool=pool, bias=bias))
    for batch in (1, 3):
        x = images(batch, 9, 7, 3)
        close(run(x, conv), windows(scipys(x, kernel, padding), pool) + bias)
    assert "jaxprune_sparse" in run.lower(x, conv).as_text()


@pytest.mark.parametrize("pool", [1, 2, 3])
@pytest.mark.parametrize("height", [10, 13, 18])
@pytest.mark.parametrize(
    "width", [8, 15, *(pytest.param(n, marks=LONG) for n in (10, 12))]
)
def test_results_about_as_wide_as_a_vector(width, height, pool):
    w, mask = pruned((3, 3, 2, 19))
    bias = jnp.asarray(RNG.standard_normal(19), jnp.float32)
    conv = sparse.to_conv(w, mask)
    padding = ((0, 0), (0, 0))
    run = jax.jit(lambda *a: sparse.convolve(*a, padding, pool=pool, bias=bias))
    for batch in (1, 3):
        x = images(batch, height, width, 2)
        want = windows(scipys(x, np.where(mask, w, 0), padding), pool)
        close(run(x, conv), want + bias)


def test_maxima_of_a_large_image(monkeypatch):
    monkeypatch.setattr("jaxprune.sparse._conv._POOLED", 10)
    w, mask = pruned((3, 3, 2, 5))
    x, bias, padding = images(1, 8, 9, 2), jnp.arange(5.0), ((1, 1), (1, 1))
    y = sparse.convolve(x, sparse.to_conv(w, mask), padding, pool=2, bias=bias)
    close(y, windows(scipys(x, np.where(mask, w, 0), padding), 2) + np.arange(5))


def test_a_maximum_keeps_nan():
    x = images(1, 6, 6, 1).at[0, 1, 1, 0].set(jnp.nan)
    conv = sparse.to_conv(
        np.ones((1, 1, 1, 1), np.float32), np.ones((1, 1, 1, 1), bool)
    )
    y = sparse.convolve(x, conv, ((0, 0), (0, 0)), pool=2)
    np.testing.assert_array_equal(y, windows(np.asarray(x), 2))
    assert np.isnan(y).sum() == 1


def test_a_bias_of_another_shape_is_refused():
    conv = sparse.to_conv(*pruned((3, 3, 1, 2)))
    with pytest.raises(ValueError, match=r"shape \(3,\), expected \(2,\)"):
        sparse.convolve(images(1, 4, 6, 1), conv, ((0, 0), (0, 0)), bias=jnp.ones(3))


def test_images_of_whole_numbers_are_refused():
    conv = sparse.to_conv(*pruned((3, 3, 1, 2)))
    with pytest.raises(ValueError, match="x is int32, expected floating point"):
        sparse.convolve(jnp.ones((1, 4, 6, 1), int), conv, ((0, 0), (0, 0)))


@pytest.mark.parametrize("pool", [0, 3])
def test_a_window_larger_than_the_result_is_refused(pool):
    conv = sparse.to_conv(*pruned((3, 3, 1, 2)))
    with pytest.raises(ValueError, match=f"pool is {pool}, .*2 x 4"):
        sparse.convolve(images(1, 4, 6, 1), conv, ((0, 0), (0, 0)), pool=pool)


def test_outputs_without_live_weights():
    w, mask = pruned((3, 3, 2, 4))
    mask[..., 1] = False
    none = np.zeros_like(mask)
    x, padding = images(1, 6, 6, 2), ((1, 1), (1, 1))
    want = scipys(x, np.where(mask, w, 0), padding)
    close(sparse.convolve(x, sparse.to_conv(w, mask), padding), want)
    close(sparse.convolve(x, sparse.to_conv(w, none), padding), np.zeros((1, 6, 6, 4)))


@pytest.mark.slow
@pytest.mark.parametrize("values", ["float16", "int8"])
def test_narrow_values(values):
    w, mask = pruned((3, 3, 4, 5))
    conv = sparse.to_conv(w, mask, values=values)
    x, padding = images(2, 6, 6, 4), ((1, 1), (1, 1))
    dense = np.asarray(sparse.conv_to_dense(conv))
    close(sparse.convolve(x, conv, padding), scipys(x, dense, padding))
    close(dense, np.where(mask, w, 0), {"float16": 1e-3, "int8": 5e-3}[values])


def dense_conv(x, w):
    return jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=NUMBERS)


@pytest.mark.slow
def test_gradients_and_vmap():
    w, mask = pruned((3, 3, 4, 5))
    conv, w = sparse.to_conv(w, mask), jnp.where(mask, w, 0)
    bias, same = jnp.arange(5.0), ((1, 1), (1, 1))
    f = lambda x: (sparse.convolve(x, conv, same, pool=2, bias=bias) ** 2).sum()

    def g(x):
        y = nn.max_pool(dense_conv(x, w), (2, 2), (2, 2))
        return ((y + bias) ** 2).sum()

    x = images(2, 6, 7, 4)
    close(jax.jit(jax.grad(f))(x), jax.grad(g)(x))
    close(jax.vmap(f)(x[:, None]), jax.vmap(g)(x[:, None]))
    twice = jax.tree.map(lambda a: jnp.stack([a, a]), conv)
    run = lambda c, bias: sparse.convolve(x, c, same, bias=bias)
    y = dense_conv(x, w)
    close(jax.vmap(run)(twice, jnp.eye(5)[:2]), y + jnp.eye(5)[:2, None, None, None])


class Net(nn.Module):
    """Convolutions that can be sparse, and one with a stride that cannot."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(8, (3, 3), name="conv1")(x))
        x = nn.relu(nn.Conv(6, (3, 3), padding="VALID", name="conv2")(x))
        x = nn.Conv(4, (3, 3), strides=(2, 2), name="conv3")(x)
        return nn.Dense(10, name="fc")(x.reshape(x.shape[0], -1))


@pytest.mark.slow
def test_an_unchanged_model_runs(caplog):
    x = images(2, 8, 8, 3)
    params = Net().init(jax.random.key(0), x)["params"]
    some = lambda p: jnp.asarray(RNG.random(p.shape) < 0.3) if p.ndim > 1 else None
    mask = jax.tree.map(some, params)
    run = jax.jit(sparse.lift(lambda p, x: Net().apply({"params": p}, x)))
    want = Net().apply({"params": jaxprune.apply_mask(params, mask)}, x)
    make = lambda *names: sparse.sparsify(
        params,
        mask,
        where=lambda name, _: name in [f"{layer}/kernel" for layer in names],
        convolutions=True,
    )
    some = make("conv1", "conv2", "fc")
    assert isinstance(some["conv2"]["kernel"], sparse.SparseConv)
    with caplog.at_level(logging.WARNING, "jaxprune.sparse"):
        close(run(some, x), want)
    assert not caplog.text
    assert run.lower(some, x).as_text().count("_conv(") == 2
    np.testing.assert_array_equal(
        sparse.densify(some)["conv2"]["kernel"],
        jaxprune.apply_mask(params, mask)["conv2"]["kernel"],
    )
    with caplog.at_level(logging.WARNING, "jaxprune.sparse"):
        close(run(make("conv3"), x), want)
    assert "written out dense: (3, 3, 6, 4)" in caplog.text


def two_groups(x, w):
    return jax.lax.conv_general_dilated(
        x, w, (1, 1), "SAME", dimension_numbers=NUMBERS, feature_group_count=2
    )


def two_halves(x, w):
    pairs = zip(jnp.split(x, 2, axis=-1), jnp.split(w, 2, axis=-1), strict=True)
    return jnp.concatenate([dense_conv(a, b) for a, b in pairs], axis=-1)


def test_each_group_is_a_sparse_convolution(caplog):
    w, mask = pruned((3, 3, 2, 6))
    x, dense, padding = images(2, 6, 7, 4), np.where(mask, w, 0), ((1, 1), (1, 1))
    halves = (x[..., :2], dense[..., :3]), (x[..., 2:], dense[..., 3:])
    want = np.concatenate([scipys(*half, padding) for half in halves], axis=-1)
    given = (
        {"conv": {"kernel": jnp.asarray(w)}},
        {"conv": {"kernel": jnp.asarray(mask)}},
    )
    lean = sparse.sparsify(
        *given, where=lambda *_: True, convolutions=True, groups={"conv/kernel": 2}
    )
    conv = lean["conv"]["kernel"]
    assert isinstance(conv, sparse.SparseGroups)
    assert conv.shape == w.shape
    np.testing.assert_array_equal(sparse.densify(lean)["conv"]["kernel"], dense)
    with caplog.at_level(logging.WARNING, "jaxprune.sparse"):
        for f in (two_groups, two_halves):
            close(jax.jit(sparse.lift(f))(x, conv), want)
    assert not caplog.text
    # What is split otherwise is written out.
    f = lambda w: sum(jnp.split(w, 3, axis=-1))
    with caplog.at_level(logging.WARNING, "jaxprune.sparse"):
        close(sparse.lift(f)(conv), f(jnp.asarray(dense)))
    assert "written out dense: (3, 3, 2, 6)" in caplog.text


def test_wrong_groups_are_named():
    w, mask = pruned((3, 3, 2, 6))
    make = lambda groups: sparse.sparsify(
        {"conv": w, "fc": w[0, 0]}, {"conv": mask, "fc": None}, groups=groups
    )
    with pytest.raises(ValueError, match=r"'fc', expected the path.* conv"):
        make({"fc": 2})
    with pytest.raises(ValueError, match="4 for 'conv', expected a divisor of its 6"):
        make({"conv": 4})
    with pytest.raises(ValueError, match="groups is 4, expected a divisor of 6"):
        sparse.to_groups(w, mask, 4)


@jax.jit
def split(x, w):
    """Convolves half of the channels at a time, which cannot be seen through."""
    halves = jnp.split(x, 2, axis=-1), jnp.split(w, 2, axis=2)
    return sum(map(dense_conv, *halves))


def test_a_layer_with_a_way_of_its_own_is_replaced_by_name(caplog):
    w, mask = pruned((3, 3, 4, 5))
    x = images(2, 6, 7, 4)
    apply = lambda w, x: 2 * split(x, w)
    whole = lambda x, w: sparse.convolve(x, w, ((1, 1), (1, 1)))
    want = 2 * scipys(x, np.where(mask, w, 0), ((1, 1), (1, 1)))
    conv = sparse.to_conv(w, mask)
    with caplog.at_level(logging.WARNING, "jaxprune.sparse"):
        run = jax.jit(sparse.lift(apply, layers={"split": whole}))
        close(run(conv, x), want)
        assert not caplog.text
        close(sparse.lift(apply)(conv, x), want)
        assert "written out dense" in caplog.text
    # Where the kernel is dense, so is the layer.
    never = {"split": lambda *_: pytest.fail("called")}
    close(sparse.lift(apply, layers=never)(jnp.where(mask, w, 0), x), want)


def test_a_layer_that_is_not_there_or_does_not_fit_is_refused():
    w, mask = pruned((3, 3, 4, 5))
    x = images(1, 6, 6, 4)
    conv = sparse.to_conv(w, mask)
    whole = lambda x, w: sparse.convolve(x, w, ((0, 0), (0, 0)))
    with pytest.raises(ValueError, match="'spilt', but no function of that name"):
        sparse.lift(lambda w: split(x, w), layers={"spilt": whole})(conv)
    with pytest.raises(ValueError, match=r"'split'.*\(1, 4, 4, 5\).*\(1, 6, 6, 5\)"):
        sparse.lift(lambda w: split(x, w), layers={"split": whole})(conv)


def test_the_axes_of_images_are_free():
    w, mask = pruned((3, 3, 4, 5))
    x = images(2, 4, 6, 7)
    f = lambda w: jax.lax.conv_general_dilated(
        x, w, (1, 1), "SAME", dimension_numbers=("NCHW", "HWIO", "HNWC")
    )
    close(sparse.lift(f)(sparse.to_conv(w, mask)), f(jnp.where(mask, w, 0)))


@pytest.mark.parametrize(
    "other",
    [
        {"padding": ((-1, 2), (0, 1))},
        {"lhs_dilation": (1, 2)},
        {"rhs_dilation": (2, 1)},
        {"batch_group_count": 2},
    ],
    ids=lambda other: next(iter(other)),
)
def test_another_convolution_is_that_of_xla(other):
    w, mask = pruned((3, 3, 2, 4))
    given = {"window_strides": (1, 1), "padding": ((0, 0), (0, 0)), **other}
    f = lambda x, w: jax.lax.conv_general_dilated(
        x, w, dimension_numbers=NUMBERS, **given
    )
    x = images(2, 7, 8, 2)
    want = f(x, jnp.where(mask, w, 0))
    close(sparse.lift(f)(x, sparse.to_conv(w, mask)), want)


def test_without_a_kernel_xla_convolves(monkeypatch):
    w, mask = pruned((3, 3, 4, 5))
    monkeypatch.setattr("jaxprune.sparse._conv.target", lambda *_: None)
    x = images(1, 6, 6, 4)
    want = dense_conv(x, jnp.where(mask, w, 0))
    close(sparse.convolve(x, sparse.to_conv(w, mask), ((1, 1), (1, 1))), want)


def test_only_sparse_enough_convolutions_are_taken():
    shape = (3, 3, 64, 64)
    params = {name: pruned(shape)[0] for name in "ab"}
    mask = {"a": pruned(shape, 0.05)[1], "b": pruned(shape, 0.9)[1]}
    made = sparse.sparsify(params, mask, costs=sparse.Costs(), convolutions=True)
    assert [isinstance(made[k], sparse.SparseConv) for k in "ab"] == [True, False]
    # One image of LeNet-5 takes XLA longer to begin with than to convolve.
    kernel, alive = pruned((5, 5, 1, 20), 0.66)
    for positions, batch, taken in ((576, 1, True), (576, 16, False), (None, 1, False)):
        made_of = sparse.sparsify(
            {"conv1": kernel},
            {"conv1": alive},
            batch=batch,
            costs=sparse.Costs(),
            convolutions=True,
            positions={"conv1": positions} if positions else None,
        )
        assert isinstance(made_of["conv1"], sparse.SparseConv) == taken
    for wrong, message in (
        ({"a": 0}, "positions has 0 for 'a', expected 1 or more"),
        ({"c": 1}, "positions has 'c', expected a leaf: a, b"),
    ):
        with pytest.raises(ValueError, match=message):
            sparse.sparsify(params, mask, convolutions=True, positions=wrong)
    for off in ({"convolutions": False}, {"convolutions": True, "fast": False}):
        made = sparse.sparsify(params, mask, costs=sparse.Costs(), **off)
        assert not isinstance(made["a"], sparse.SparseConv)
