import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.cluster.vq import kmeans2

from jaxprune.compress import share, share_weights
from jaxprune.compress._cells import SORT_UP_TO, cells, nearest, ordered_bits


INITS = ["linear", "density", "random", "optimal"]
FLOATS = st.floats(-1e3, 1e3, width=32)


def normal(n, seed=0):
    return np.random.default_rng(seed).standard_normal(n).astype(np.float32)


def squares(values, codebook):
    error = values - codebook.centroids[codebook.indices].astype(np.float64)
    return float(np.sum(error**2))


def brute_force(values, clusters):
    """Least sum of squares over all cuttings of the line, in O(n^2 clusters)."""
    x = np.sort(values.astype(np.float64))
    cost = lambda i, j: float(np.sum((x[i:j] - x[i:j].mean()) ** 2))
    best = [0.0] + [cost(0, j) for j in range(1, x.size + 1)]
    for _ in range(clusters - 1):
        best = [0.0] + [
            min(best[i] + (cost(i, j) if i < j else 0.0) for i in range(j + 1))
            for j in range(1, x.size + 1)
        ]
    return best[-1]


@pytest.mark.parametrize("bits", [1, 2, 3])
@pytest.mark.parametrize("seed", range(3))
def test_optimal_is_the_brute_force_optimum(bits, seed):
    values = normal(30, seed)
    found = squares(values, share_weights(values, bits, init="optimal"))
    assert found == pytest.approx(brute_force(values, 2**bits), rel=1e-5)


@settings(deadline=None, max_examples=30)
@given(hnp.arrays(np.float32, st.integers(1, 12), elements=FLOATS), st.integers(1, 2))
def test_optimal_with_ties_and_few_values(values, bits):
    codebook = share_weights(values, bits, init="optimal")
    scale = max(1.0, float(np.abs(values).max()) ** 2)
    assert squares(values, codebook) <= brute_force(values, 2**bits) + 1e-6 * scale


def test_linear_is_scipys_lloyd_from_the_same_start():
    values = normal(5000)
    start = np.linspace(values.min(), values.max(), 16)
    theirs, labels = kmeans2(
        values.astype(np.float64), start, iter=1000, minit="matrix"
    )
    ours = share_weights(values, 4)
    np.testing.assert_allclose(ours.centroids, theirs, rtol=1e-6)
    np.testing.assert_array_equal(ours.indices, labels)


@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("size", [7, 3000, SORT_UP_TO + 1])
def test_each_value_has_its_nearest_centroid_and_centroids_ascend(init, size):
    values = normal(size)
    codebook = share_weights(values, 3, init=init)
    assert codebook.centroids.dtype == np.float32
    assert np.all(np.diff(codebook.centroids) > 0)
    assert set(codebook.indices) == set(range(codebook.centroids.size))
    distance = np.abs(values[:, None] - codebook.centroids.astype(np.float64))
    mine = np.take_along_axis(distance, codebook.indices[:, None].astype(int), 1)[:, 0]
    # Centroids moved once more after the members were chosen.
    assert np.mean(mine - distance.min(axis=1)) < 1e-3
    for k, centroid in enumerate(codebook.centroids):
        members = values[codebook.indices == k].astype(np.float64)
        assert centroid == pytest.approx(members.mean(), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("size", [3000, SORT_UP_TO + 1])
def test_no_start_beats_the_optimum(size):
    values = normal(size)
    best = squares(values, share_weights(values, 4, init="optimal"))
    for init in INITS[:3]:
        assert squares(values, share_weights(values, 4, init=init)) >= best * (1 - 1e-4)


def test_the_grid_gives_what_sorting_gives():
    """Above 2**18 values cells replace the sort; both end in the same clusters."""
    values = normal(SORT_UP_TO + 1000)
    many = share_weights(values, 5, init="density")
    few = share_weights(values[:SORT_UP_TO], 5, init="density")
    assert not cells(values).exact
    assert cells(values[:SORT_UP_TO]).exact
    np.testing.assert_allclose(many.centroids, few.centroids, atol=0.02)
    ratio = squares(values, many) / squares(values[:SORT_UP_TO], few)
    assert ratio == pytest.approx(1, abs=0.02)


def test_few_distinct_values_are_kept_exactly():
    values = np.float32([3, 1, 1, -7.25, 3])
    for init in INITS:
        codebook = share_weights(values, 2, init=init)
        np.testing.assert_array_equal(codebook.centroids, np.float32([-7.25, 1, 3]))
        np.testing.assert_array_equal(codebook.indices, [2, 1, 1, 0, 2])


def test_sixteen_bits_need_wide_indices():
    values = normal(100_000)
    codebook = share_weights(values, 16, init="density")
    assert codebook.indices.dtype == np.uint16
    assert 40_000 < codebook.centroids.size <= 2**16
    assert squares(values, codebook) < 1e-7 * values.size


def test_an_outlier_does_not_cost_resolution():
    values = np.append(normal(SORT_UP_TO), np.float32(1e30))
    codebook = share_weights(values, 6, init="density")
    assert codebook.centroids[-1] == np.float32(1e30)
    assert squares(values[:-1], codebook._replace(indices=codebook.indices[:-1])) < (
        0.01 * values.size
    )


def test_random_start_depends_on_the_seed_alone():
    values = normal(3000)
    one, again = (share_weights(values, 4, init="random", seed=1) for _ in range(2))
    np.testing.assert_array_equal(one.centroids, again.centroids)
    other = share_weights(values, 4, init="random", seed=2)
    assert not np.array_equal(one.centroids, other.centroids)


@settings(deadline=None)
@given(
    hnp.arrays(np.float32, st.integers(1, 40), elements=st.floats(width=32)),
    hnp.arrays(np.float64, st.integers(0, 9), elements=st.floats(-1e3, 1e3)),
)
def test_nearest_is_searchsorted(values, boundaries):
    values = values[~np.isnan(values)]
    boundaries = np.sort(boundaries)
    with np.errstate(invalid="ignore", over="ignore"):
        index, count, _ = nearest(values, boundaries)
    expected = np.searchsorted(boundaries, values, side="right")
    np.testing.assert_array_equal(index, expected)
    np.testing.assert_array_equal(
        count, np.bincount(expected, minlength=boundaries.size + 1)
    )


@given(hnp.arrays(np.float32, 2, elements=st.floats(width=32, allow_nan=False)))
def test_ordered_bits_order_like_floats(pair):
    a, b = ordered_bits(pair).tolist()
    if pair[0] != pair[1]:  # -0 and 0 are equal, but differ in bits
        assert (a < b) == (pair[0] < pair[1])


@pytest.mark.parametrize(
    ("bits", "init", "message"),
    [
        (0, "linear", "bits is 0, expected an integer from 1 to 16"),
        (17, "linear", "bits is 17, expected an integer from 1 to 16"),
        (2.5, "linear", "bits is 2.5, expected an integer from 1 to 16"),
        (2, "kmeans++", r"init is 'kmeans\+\+', expected one of linear, density, rand"),
    ],
)
def test_settings_out_of_range(bits, init, message):
    params, mask = {"w": normal(3)}, {"w": np.ones(3, bool)}
    unchecked = vars(share_weights)["__wrapped__"]  # by jaxtyping
    with pytest.raises(ValueError, match=message):
        unchecked(normal(3), bits, init=init)
    unchecked = vars(share)["__wrapped__"]
    for widths in (bits, {"w": bits}):
        with pytest.raises(ValueError, match=message):
            unchecked(params, mask, widths, init=init)


@pytest.mark.usefixtures("untyped")
def test_bits_may_be_an_integer_of_any_kind():
    params, mask = {"w": normal(99)}, {"w": np.ones(99, bool)}
    expected = share(params, mask, 3)[0]["w"]
    for bits in (np.int64(3), jnp.int32(3)):
        np.testing.assert_array_equal(share(params, mask, bits)[0]["w"], expected)


def test_a_mask_that_covers_nothing_is_named():
    with pytest.raises(ValueError, match="the mask covers no leaf, expected one"):
        share({"w": normal(3), "b": normal(2)}, {"w": None, "b": None}, 4)


def test_values_that_cannot_be_shared():
    with pytest.raises(ValueError, match="there are no values"):
        share_weights(normal(0), 3)
    with pytest.raises(ValueError, match=r"1 of 2 values are not finite.* nan"):
        share_weights(np.float32([1, np.nan]), 3)
    with pytest.raises(ValueError, match="overflows float32"):
        share_weights(np.array([1.0, 1e300]), 3)


@pytest.mark.slow
def test_a_hundred_million_weights_are_shared_as_a_tenth_of_them():
    values = normal(10_000_000)
    once, often = share_weights(values, 8), share_weights(np.tile(values, 10), 8)
    np.testing.assert_array_equal(often.centroids, once.centroids)
    np.testing.assert_array_equal(often.indices.reshape(10, -1), [once.indices] * 10)
