"""Coders that judge a symbol by its neighbours: what comes back, and what they gain."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxprune.compress import _beside as beside
from jaxprune.compress import _codebook as codebook
from jaxprune.compress import _map as maps
from jaxprune.compress import _numbers as numbers
from jaxprune.compress import _positions as positions
from jaxprune.compress import _range as ranges
from jaxprune.compress._huffman import CorruptError


LAGS = st.sampled_from([(), (1,), (2, 6), (1, 3, 9), (50,)])


def smooth(rows, columns, period, seed=0):
    """Noise that is like what is one and `period` rows before it."""
    noise = np.random.default_rng(seed).normal(size=(rows // period, period, columns))
    for axis in (0, 1):
        for _ in range(3):
            noise += np.roll(noise, 1, axis)
    return noise.reshape(rows, columns)


def entropy_bytes(symbols):
    p = np.unique(symbols, return_counts=True)[1] / symbols.size
    return -np.sum(p * np.log2(p)) * symbols.size / 8


@settings(max_examples=60, deadline=None)
@given(values=st.lists(st.integers(0, 2**64 - 1) | st.integers(0, 40), max_size=30))
def test_numbers_come_back(values):
    values = np.array(values, np.uint64)
    encoder = ranges.new_encoder()
    numbers.encode(encoder, values)
    decoder = ranges.new_decoder(ranges.finish(encoder))
    np.testing.assert_array_equal(numbers.decode(decoder, values.size), values)


def test_numbers_take_little_more_than_their_bits():
    values = np.random.default_rng(0).integers(0, 2**20, 4000).astype(np.uint64)
    encoder = ranges.new_encoder()
    numbers.encode(encoder, values)
    assert len(ranges.finish(encoder)) < 1.01 * 4000 * 20 / 8


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 40), st.integers(1, 20)),
    density=st.sampled_from([0, 0.05, 0.5, 0.95, 1]),
    lags=LAGS,
    seed=st.integers(0, 9),
)
def test_maps_come_back(shape, density, lags, seed):
    rng = np.random.default_rng(seed)
    alive = rng.random(shape) < density * rng.random((shape[0], 1)) * 2
    found = np.zeros(shape, bool)
    count = maps.decode(maps.encode(alive, lags), lags, found)
    assert count == alive.sum()
    np.testing.assert_array_equal(found, alive)


def test_a_map_gains_by_rows_columns_and_neighbours():
    rng = np.random.default_rng(0)
    plain = rng.random((280, 100)) < 0.1
    size = len(maps.encode(plain, ()))
    # What it spends on the number of each row is what it saves by knowing it.
    assert size < 1.1 * entropy_bytes(plain)
    chance = rng.random((280, 1)) ** 3 * rng.random(100) ** 3
    uneven = rng.random((280, 100)) < chance
    assert len(maps.encode(uneven, ())) < 0.95 * entropy_bytes(uneven)
    image = smooth(280, 100, 28) > 4
    sizes = [len(maps.encode(image, lags)) for lags in ((), (1, 28))]
    assert sizes[1] < 0.9 * sizes[0]
    assert maps.find_lags(image, 64) == (1, 28)
    # Of rows that have as many, those six apart have them at the same places.
    row, column = np.indices((240, 200))
    often = rng.choice([0.4, 1.6], (6, 200))[row % 6, column]
    chance = np.array([0.05, 0.05, 0.1, 0.5])[row % 4] * often
    assert 6 in maps.find_lags(rng.random((240, 200)) < chance, 11)


def test_the_neighbours_to_the_left_and_above_are_tried():
    tried = lambda *shape: positions.lags_of(
        np.random.default_rng(0).random(shape) < 0.5
    )
    assert (4, 12) in tried(5, 3, 4, 6)  # rows of a kernel's column, and of its row
    assert tried(50) == tried(1, 1) == tried(1 << 10, (1 << 10) + 1) == []


def test_a_map_is_turned_where_that_is_smaller():
    row, column = np.indices((40, 20))
    alive = (row * 7 + column * row % 5) % 11 < (column % 4 > 2) * 9
    for turned, mask in ((True, alive), (False, alive.T)):
        about, parts = positions.encode(np.ascontiguousarray(mask), "range")
        assert about.turned == turned
        assert len(parts["map"]) < len(maps.encode(alive, ()))


@settings(max_examples=60, deadline=None)
@given(
    clusters=st.integers(2, 70),
    density=st.sampled_from([0, 0.1, 1]),
    lags=LAGS.filter(bool),
    seed=st.integers(0, 9),
)
def test_judged_codes_come_back(clusters, density, lags, seed):
    rng = np.random.default_rng(seed)
    alive = rng.random((30, 8)) < density
    codes = rng.integers(0, clusters, alive.sum()).astype(np.uint16)
    known = (alive, lags, clusters, clusters // 2)
    data = beside.encode(codes, *known)
    np.testing.assert_array_equal(beside.decode(data, *known), codes)


def test_codes_of_smooth_kernels_gain_by_their_neighbours():
    values = smooth(280, 100, 28)
    alive = np.abs(values) > 2
    edges = np.quantile(values[alive], np.linspace(0, 1, 17)[1:-1])
    codes = np.searchsorted(edges, values[alive]).astype(np.uint16)
    data = beside.encode(codes, alive, (1, 28), 16, int((edges < 0).sum()))
    assert len(data) < 0.85 * entropy_bytes(codes)


@pytest.mark.parametrize(
    "dtype", ["float16", "bfloat16", "float32", "float64", "int8", "uint16", "bool"]
)
def test_codebooks_come_back(dtype):
    dtype = jnp.dtype(dtype)
    rng = np.random.default_rng(0)
    values = rng.choice((40 * rng.normal(size=50)).astype(dtype), 400)
    found = codebook.split(values)
    assert found is not None
    distinct, codes = found
    found = codebook.decode(codebook.encode(distinct), distinct.size, dtype)
    assert found.dtype == dtype
    assert (np.diff(found.astype(np.float64)) > 0).all()
    assert found[codes].tobytes() == values.tobytes()


def test_a_sorted_codebook_takes_two_thirds_of_its_values():
    values = np.sort(np.random.default_rng(0).normal(size=256).astype(np.float32))
    distinct = codebook.to_ordered(values)
    assert len(codebook.encode(distinct)) < 0.67 * 4 * 256


def test_values_that_nobody_shares_have_no_codebook():
    assert codebook.split(np.arange(9.0)) is None
    assert codebook.split(np.repeat(np.arange(70_000.0), 3)) is None


@pytest.mark.parametrize("shape", [(12, 10), (3, 3, 4, 5), (1, 1, 6, 7), (50,), (5, 0)])
@pytest.mark.parametrize("coder", ["range", "huffman"])
@pytest.mark.parametrize("density", [0.0, 0.1, 1.0])
def test_positions_come_back(shape, coder, density):
    alive = np.random.default_rng(0).random(shape) < density
    about, parts = positions.encode(alive, coder)
    parts = dict.fromkeys(("gap book", "gaps", "map"), b"") | parts
    found = positions.decode(about, parts, int(alive.sum()), shape, coder)
    np.testing.assert_array_equal(found, alive)


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=60).map(lambda x: x[: len(x) // 4 * 4]), lags=LAGS)
def test_other_bytes_are_decoded_or_refused(data, lags):
    known = np.ones((30, 8), bool)
    for decode in (
        lambda: maps.decode(data, lags, np.zeros((30, 8), bool)),
        lambda: beside.decode(data, known, lags or (1,), 5, 2),
        lambda: codebook.decode(data, 7, np.dtype(np.float32)),
    ):
        try:
            decode()
        except CorruptError as error:
            message = str(error)
            assert message


def test_rows_with_other_numbers_of_weights_than_they_say_are_refused():
    encoder = ranges.new_encoder()
    numbers.encode(encoder, np.uint64([5, 3]))
    with pytest.raises(CorruptError, match="a row has 5 of 4 weights"):
        maps.decode(ranges.finish(encoder), (), np.zeros((2, 4), bool))
    data = maps.encode(np.random.default_rng(0).random((20, 8)) < 0.6, (1,))
    for i in range(len(data) - 12, len(data)):  # behind the numbers
        damaged = bytearray(data)
        damaged[i] ^= 1
        with pytest.raises(CorruptError, match=r"not as many|is invalid|goes on"):
            maps.decode(bytes(damaged), (1,), np.zeros((20, 8), bool))
