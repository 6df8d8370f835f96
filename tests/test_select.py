"""Selection: exact against NumPy, in integers, with next to no memory."""

import fractions
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from quick import quick

import jaxprune
from jaxprune._counts import AIMS, at_least, count_upto, reduce_many, subtract
from jaxprune._select import (
    count_of,
    dead_count,
    kth_smallest,
    kth_smallest_each,
    sort_key,
)


few = settings(max_examples=60, deadline=None)
NAN = 2**31 - 1


def value(count):
    return int(count.hi) * 2**24 + int(count.lo)


def numpy_keys(x, mask):
    """The order by definition: dead, then |x| as float32, then NaN."""
    magnitude = np.abs(np.asarray(x, np.float32))
    bits = np.where(np.isnan(magnitude), NAN, magnitude.view(np.int32))
    return np.where(mask, bits, -1).astype(np.int32)


@jax.jit
def select(xs, masks, rank):
    def keys():
        return [sort_key(x, m) for x, m in zip(xs, masks, strict=True)]

    return kth_smallest(keys, rank)


def check(xs, masks, ranks):
    xs, masks = [jnp.asarray(x) for x in xs], [jnp.asarray(m) for m in masks]
    every = np.sort(
        np.concatenate(
            [numpy_keys(x, m).ravel() for x, m in zip(xs, masks, strict=True)]
        )
    )
    for rank in ranks:
        assert int(select(xs, masks, count_of(rank))) == every[rank], rank


tiny = np.float32(1e-45)
SPECIAL = [0.0, -0.0, tiny, -tiny, 1e-40, 1.0, -1.0, 3e38, np.inf, -np.inf, np.nan]
floats = st.one_of(st.sampled_from(SPECIAL), st.floats(width=32))


@few
@given(
    hnp.arrays(np.float32, (7, 9), elements=floats),
    hnp.arrays(bool, (7, 9)),
    st.integers(0, 62),
)
def test_any_float32_with_a_mask(x, mask, rank):
    check([x], [mask], [rank])


@few
@given(
    hnp.arrays(np.float32, (7, 9), elements=st.sampled_from(SPECIAL)),
    hnp.arrays(np.float32, (40,), elements=floats),
    st.integers(0, 102),
)
def test_several_leaves(x, y, rank):
    xs = [x, y, np.zeros((0, 3), np.float32)]
    check(xs, [np.ones(x.shape, bool) for x in xs], [rank])


@few
@given(
    hnp.arrays(np.uint16, (6, 11), elements=st.integers(0, 2**16 - 1)),
    st.sampled_from([jnp.bfloat16, jnp.float16]),
    st.integers(0, 65),
)
def test_half_precision_of_any_bits(bits, dtype, rank):
    x = bits.view(dtype)
    check([x], [np.ones(x.shape, bool)], [rank])


@few
@given(st.integers(0, 2**32 - 1), st.integers(0, 7), st.data())
def test_large_leaf_with_sample_and_rows(seed, kind, data):
    """Large enough for the sample and for the pass over rows."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((300, 512), dtype=np.float32)
    mask = np.ones(x.shape, bool)
    match kind:
        case 1:  # rows far apart, so that the sample of rows misleads
            x *= np.exp(rng.normal(0, 9, (300, 1))).astype(np.float32)
        case 2:  # many ties
            x = np.round(x, 1)
        case 3:  # all equal but one
            x = np.full_like(x, 0.25)
            x[7, 5] = 0.5
        case 4:  # most are dead
            mask = rng.random(x.shape) < 0.1
        case 5:  # sorted, with everything between in a few rows
            x = np.sort(np.abs(x).ravel()).reshape(x.shape)
        case 6:  # every exponent there is
            x = rng.integers(0, 2**31, x.shape, dtype=np.int32).view(np.float32)
        case 7:
            x = x.astype(jnp.bfloat16).astype(np.float32)
    size = x.size
    rank = data.draw(
        st.one_of(
            st.integers(0, size - 1),
            st.sampled_from([0, 1, size - 1]),
            st.integers(-2, 2).map(lambda i: min(max((~mask).sum() + i, 0), size - 1)),
        )
    )
    check([x], [mask], [int(rank)])


def test_passes_are_bounded(monkeypatch):
    """On keys made to mislead the interpolation, ranks at their steps included."""
    passes = []

    def counted(key, aims):
        jax.debug.callback(lambda: passes.append(1))
        return count_upto(key, aims)

    monkeypatch.setattr("jaxprune._select.count_upto", counted)
    monkeypatch.setattr("jaxprune._search.count_upto", counted)

    @jax.jit
    def select(x, alive, rank):
        return kth_smallest(lambda: [sort_key(x, alive)], rank)

    rng = np.random.default_rng(3)
    dead = rng.random((400, 400)) < 0.2
    x = rng.standard_normal((400, 400), dtype=np.float32)
    steps = np.where(x > 1, np.float32(1e-30), np.where(x < 0, np.float32(1e30), x))
    powers = np.exp2(rng.integers(-126, 127, x.shape)).astype(np.float32)
    for values in [x, x**9, steps, powers, np.sign(x)]:
        every = np.sort(numpy_keys(values, ~dead), axis=None)
        for rank in [dead.sum() - 1, dead.sum(), dead.sum() + 1, 80_000, 159_000]:
            passes.clear()
            got = select(values, ~dead, count_of(int(rank)))
            jax.effects_barrier()
            assert int(got) == every[rank]
            # Most of them on the sample and on the ends of the rows.
            assert len(passes) < 60


@pytest.mark.parametrize("shape", [(), (1,), (1, 1), (3,), (2, 1, 2)])
def test_small_shapes(shape):
    x = np.arange(np.prod(shape, dtype=int), dtype=np.float32).reshape(shape)
    check([x], [np.ones(shape, bool)], range(x.size))


def test_ends_of_large_leaves_and_a_mixed_tree():
    rng = np.random.default_rng(0)
    xs = [
        rng.standard_normal(s, dtype=np.float32)
        for s in [(5, 5, 1, 20), (5, 5, 20, 50), (800, 500), (500, 10)]
    ]
    n = sum(x.size for x in xs)
    masks = [rng.random(x.shape) < 0.8 for x in xs]
    check(xs, masks, [0, 1, n // 5, n // 2, n - 40_000, n - 2, n - 1])


def test_nothing_to_rank():
    empty = [jnp.zeros((0, 4))]
    assert int(select(empty, [jnp.ones((0, 4), bool)], count_of(0))) == NAN


def test_key_order(strict):
    x = jnp.array([0.0, -0.0, tiny, 1.0, -2.0, jnp.inf, jnp.nan, 5.0])
    keys = sort_key(x, jnp.arange(8) < 7)
    assert keys.dtype == jnp.int32
    assert keys[0] == keys[1] == 0
    assert keys[2] == 1
    assert (jnp.diff(keys[2:7]) > 0).all()
    assert keys[6] == NAN
    assert keys[7] == -1


def test_works_under_strict_promotion(strict):
    x = jax.random.normal(jax.random.key(0), (300, 512))
    mask = jnp.ones_like(x, dtype=bool)
    check([x], [mask], [100_000])


@pytest.mark.slow
def test_vmap_scan_cond_and_grad():
    x = jax.random.normal(jax.random.key(1), (4, 30, 20))
    expected = np.sort(numpy_keys(x, True).reshape(4, -1), axis=1)[:, 77]
    rank = count_of(77)

    def one(x):
        return kth_smallest(lambda: [sort_key(x, jnp.ones_like(x, dtype=bool))], rank)

    np.testing.assert_array_equal(jax.vmap(one)(x), expected)
    _, scanned = jax.lax.scan(lambda c, x: (c, one(x)), 0, x)
    np.testing.assert_array_equal(scanned, expected)
    both = jax.jit(lambda x, yes: jax.lax.cond(yes, one, lambda x: jnp.int32(0), x))
    assert both(x[0], True) == expected[0]
    assert both(x[0], False) == 0

    def loss(x):
        return jnp.sum(jnp.where(sort_key(x, x == x) >= one(x), x, 0))

    alive = numpy_keys(x[0], True) >= expected[0]
    np.testing.assert_array_equal(jax.grad(loss)(x[0]), alive)


@pytest.mark.slow
def test_costly_scores_are_computed_once():
    """Random draws are kept, not drawn anew in every pass; cheap scores are not."""
    x = jax.random.normal(jax.random.key(1), (512, 512))
    mask = jnp.ones_like(x, dtype=bool)

    def drawn(key, x):
        return jnp.abs(x) * jax.random.uniform(key, x.shape)

    @jax.jit
    def ours(key, x, mask):
        return kth_smallest(lambda: [sort_key(drawn(key, x), mask)], count_of(999))

    key = jax.random.key(2)
    expected = np.sort(numpy_keys(jax.jit(drawn)(key, x), True), axis=None)[999]
    assert int(ours(key, x, mask)) == expected


@few
@given(st.floats(0, 1, width=32), st.integers(1, 2**40), st.integers(0, 100))
def test_dead_count_is_the_integer_rule(s, total, spare):
    q = round(fractions.Fraction(float(np.float32(s))) * 2**24)
    expected = min((q * total + 2**23) >> 24, total - min(spare, total))
    most = total - min(spare, total)
    constant = dead_count(s, total, most)
    assert value(constant) == expected
    assert 0 <= int(constant.lo) < 2**24
    traced = dead_count(jnp.float32(s), total, most)
    assert value(traced) == expected


def test_dead_count_constant_and_traced():
    totals = [1, 10, 999, 2**24 + 1, 61_000_000, 2**31 + 7, 2**40 - 1]
    traced = jax.jit(lambda s: [dead_count(s, n, n - 1) for n in totals])
    for s in [0.0, 0.1, 0.3, 0.7, 0.9, 0.95, 1 - 2**-24, 1.0, -1.0, 2.0]:
        for n, count in zip(totals, traced(s), strict=True):
            q = round(fractions.Fraction(float(np.float32(min(max(s, 0), 1)))) * 2**24)
            expected = min((q * n + 2**23) >> 24, n - 1)
            assert value(count) == value(dead_count(s, n, n - 1)) == expected
    assert value(dead_count(0.7, 10, 10)) == 7


@pytest.mark.parametrize("n", [0, 1, 2**24 - 1, 2**24, 2**31, 2**40 + 3])
def test_count_of(n):
    assert value(count_of(n)) == n


@few
@given(
    st.integers(0, 2**40),
    st.lists(
        st.tuples(st.integers(0, 2**28 - 1), st.integers(0, 2**31 - 1)),
        min_size=3,
        max_size=3,
    ),
)
def test_word_arithmetic(rank, words):
    """Words of 12 bits, the low one not normalized, against Python integers."""
    parts = [tuple(jnp.full(AIMS, w, jnp.int32) for w in pair) for pair in words]
    parts.append((jnp.full(AIMS, 5, jnp.int32),))
    d = subtract(count_of(rank), parts, exact_in_int32=False)
    exact = rank - sum(hi * 4096 + lo for hi, lo in words) - 5
    assert np.sign(float(d[0])) == np.sign(exact)
    assert float(d[0]) == pytest.approx(exact, rel=1e-6)


def test_difference_is_exact_when_small():
    for count in [2**24, 2**31 - 3, 2**31, 3 * 2**31 + 12345]:
        for off in [-3, -1, 0, 1, 2]:
            hi, lo = divmod(count, 4096)
            part = (jnp.full(AIMS, hi, jnp.int32), jnp.full(AIMS, lo, jnp.int32))
            d = subtract(count_of(count + off), [part], exact_in_int32=False)
            assert float(d[0]) == off
            if count < 2**31:
                part = (jnp.full(AIMS, count, jnp.int32),)
                d = subtract(count_of(count + off), [part], exact_in_int32=True)
                assert float(d[0]) == off


@pytest.mark.slow
@pytest.mark.long
def test_more_keys_than_int32_counts():
    """2**32 keys that are never stored: the counting reads a broadcast row."""
    row = jnp.arange(2**16, dtype=jnp.int32)

    @jax.jit
    def count(row):
        key = jnp.broadcast_to(row, (2**16, 2**16))
        aims = jnp.arange(1, AIMS + 1, dtype=jnp.int32) * (2**16 // AIMS) - 1
        return subtract(
            count_of(2**31 + 1), [count_upto(key, aims)], exact_in_int32=False
        )

    exact = 2**31 + 1 - (np.arange(1, AIMS + 1) * 2**32) // AIMS
    np.testing.assert_array_equal(count(row), exact.astype(np.float32))


@pytest.mark.slow
@pytest.mark.long
def test_rank_beyond_int32():
    row = jnp.arange(2**12, dtype=jnp.float32)

    @jax.jit
    def select(row, rank):
        shape = (2**9, 2**11, 2**12)
        return kth_smallest(
            lambda: [
                sort_key(jnp.broadcast_to(row, shape), jnp.ones(shape, bool)),
            ],
            rank,
        )

    for rank in [2**31 + 2**20 - 1, 2**31 + 2**20]:
        expected = np.float32(rank >> 20).view(np.int32)
        assert int(select(row, count_of(rank))) == expected


@pytest.mark.parametrize("shape", [(2, 500), (1024, 1024)])
def test_at_least(shape):
    n = math.prod(shape)
    key = jnp.arange(n, dtype=jnp.int32).reshape(shape)
    for threshold, keep in [(0, n), (n - 1, 1), (n - 10, 10), (n - 10, 11), (n, 1)]:
        assert bool(at_least(keep, key >= threshold)) == (n - threshold >= keep)


def test_reduce_many():
    x = jnp.array([[3, 1, 2], [7, 9, 8]], jnp.int32)
    out = reduce_many((x, x, x), [1], "alm")
    np.testing.assert_array_equal(out, [[6, 24], [1, 7], [3, 9]])


def temporary_bytes(function, *args):
    analysis = jax.jit(function).lower(*args).compile().memory_analysis()
    assert analysis is not None
    return analysis.temp_size_in_bytes


@pytest.mark.parametrize(
    "shapes", quick([[(2048, 2048)], [(3, 3, 512, 512), (2048, 700)]], [(2048, 2048)])
)
def test_threshold_needs_next_to_no_memory(shapes):
    xs = [jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes]
    masks = [jax.ShapeDtypeStruct(s, bool) for s in shapes]
    rank = count_of(0)
    size = sum(x.size for x in xs)
    assert temporary_bytes(select, xs, masks, rank) < 0.1 * size

    def cut(xs, masks, rank):
        key = select(xs, masks, rank)
        return [sort_key(x, m) >= key for x, m in zip(xs, masks, strict=True)]

    assert temporary_bytes(cut, xs, masks, rank) < 0.1 * size

    def saliency(ws, gs, masks, rank):
        def keys():
            return [sort_key(w * g, m) for w, g, m in zip(ws, gs, masks, strict=True)]

        return kth_smallest(keys, rank)

    assert temporary_bytes(saliency, xs, xs, masks, rank) < 0.1 * size


@pytest.mark.skipif(jax.device_count() < 8, reason="needs 8 devices, virtual or not")
@pytest.mark.parametrize("kind", ["Explicit", "Auto"])
@pytest.mark.parametrize(
    "spec",
    quick([P("x", None), P(None, "y"), P(("x", "y"), None), P("x", "y")], P("x", "y")),
)
def test_same_key_on_a_mesh(kind, spec):
    rng = np.random.default_rng(5)
    xs = [rng.standard_normal(s, dtype=np.float32) for s in [(512, 512), (64, 80)]]
    n = sum(x.size for x in xs)
    every = np.sort(np.concatenate([numpy_keys(x, True).ravel() for x in xs]))
    axes = (getattr(AxisType, kind),) * 2
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=axes)
    with jax.set_mesh(mesh):
        put = [jax.device_put(x, NamedSharding(mesh, spec)) for x in xs]
        masks = [jnp.ones_like(x, dtype=bool) for x in put]
        for rank in [0, n * 9 // 10]:
            assert int(select(put, masks, count_of(rank))) == every[rank]


def as_on_a_gpu(monkeypatch):
    for module in ("_fold", "_counts", "_search", "_select", "_deviation"):
        monkeypatch.setattr(f"jaxprune.{module}.on_cpu", lambda: False)


@pytest.mark.parametrize("seed", range(3))
def test_the_way_of_a_gpu_on_several_leaves(monkeypatch, seed):
    """Samples and ends of rows put into one array, on the CPU that is there."""
    as_on_a_gpu(monkeypatch)
    monkeypatch.setitem(globals(), "select", jax.jit(select.__wrapped__))
    rng = np.random.default_rng(seed)
    shapes = [(300, 512), (5, 5, 300, 60), (40,), (500, 1000), (0, 3)]
    scales = np.exp(rng.normal(0, 2, len(shapes))).astype(np.float32)
    xs = [
        scale * rng.standard_normal(shape, dtype=np.float32)
        for scale, shape in zip(scales, shapes, strict=True)
    ]
    masks = [rng.random(x.shape) < 0.7 for x in xs]
    total = sum(x.size for x in xs)
    check(xs, masks, [0, total - 1, *rng.integers(0, total, 9).tolist()])
    check(xs[3:4], masks[3:4], rng.integers(0, xs[3].size, 9).tolist())


@pytest.mark.usefixtures("strict")
@pytest.mark.parametrize("seed", range(3))
def test_the_way_of_a_gpu_on_several_ranks(monkeypatch, seed):
    """Searched at once: small, sampled, and too narrow to be sampled; an empty one."""
    as_on_a_gpu(monkeypatch)
    rng = np.random.default_rng(seed)
    groups = [[(300, 512)], [(1500, 512)], [(7, 9)], [(2000, 300), (40,)]]
    groups += [[(15,) * 5], [(0, 3)], [(900, 1000)]]
    xs = [
        [rng.standard_normal(shape, dtype=np.float32) for shape in shapes]
        for shapes in groups
    ]
    xs[6][0][:] = np.round(xs[6][0])  # many are tied: no search ends on rows
    xs[1][0][rng.random((1500, 512)) < 0.3] = np.nan
    masks = [[rng.random(x.shape) < 0.7 for x in each] for each in xs]
    sizes = [sum(x.size for x in each) for each in xs]

    @jax.jit
    def select_each(xs, masks, ranks):
        build = lambda xs, masks: (
            lambda: [sort_key(x, m) for x, m in zip(xs, masks, strict=True)]
        )
        return kth_smallest_each([*map(build, xs, masks)], ranks)

    every = [
        np.sort(
            np.concatenate([numpy_keys(*k).ravel() for k in zip(x, m, strict=True)])
        )
        for x, m in zip(xs, masks, strict=True)
    ]
    for _ in range(6):
        ranks = [int(rng.integers(0, max(1, size))) for size in sizes]
        found = select_each(xs, masks, [count_of(rank) for rank in ranks])
        for key, keys, rank in zip(found, every, ranks, strict=True):
            assert int(key) == (keys[rank] if keys.size else NAN), rank


def test_the_way_of_a_gpu_with_numbers_of_64_bits(monkeypatch):
    as_on_a_gpu(monkeypatch)
    params = [jnp.ones((300, 51)).at[0].set(2.0), jnp.full((70, 80), 3.0)]
    with jax.enable_x64(True):
        schedule = jaxprune.to_sparsity(jaxprune.magnitude, 0.8, scope="global")
        few, all_of_them = jax.jit(schedule)(params, jaxprune.dense_mask(params), 0)
    # The 16,721st of 20,900 is a three; one weight of each leaf stays, the first two.
    assert np.asarray(all_of_them).all()
    assert np.argwhere(few).tolist() == [[0, 0]]


@pytest.mark.parametrize("other", [(3, 3, 3, 64), (40,), (10,), (200, 128)])
def test_a_small_leaf_makes_a_gpu_read_a_large_one_no_more_often(monkeypatch, other):
    as_on_a_gpu(monkeypatch)
    rng = np.random.default_rng(0)
    passes = []

    def count(key, aims):
        if key.shape == (1000, 1000):
            jax.debug.callback(lambda: passes.append(1))
        return count_upto(key, aims)

    monkeypatch.setattr("jaxprune._select.count_upto", count)
    xs = [rng.standard_normal(s, dtype=np.float32) for s in [(1000, 1000), other]]
    build = lambda x: lambda: [sort_key(x, jnp.ones(x.shape, bool))]

    @jax.jit
    def run(xs):
        ranks = [count_of(x.size * 9 // 10) for x in xs]
        return kth_smallest_each([build(x) for x in xs], ranks)

    for key, x in zip(run(xs), xs, strict=True):
        assert int(key) == np.sort(numpy_keys(x, True).ravel())[x.size * 9 // 10]
    jax.effects_barrier()
    assert 1 <= len(passes) <= 3
