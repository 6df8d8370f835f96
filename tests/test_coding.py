"""Gaps and entropy coders, against loops over single weights and bits."""

import heapq

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxprune.compress import _huffman as huffman
from jaxprune.compress import _index as index
from jaxprune.compress import _range as ranges


CODERS = ["huffman", "range"]
COUNTS = st.lists(st.integers(0, 60), min_size=1, max_size=40)


def symbols_of(counts, seed=0):
    symbols = np.repeat(np.arange(len(counts)), counts)
    return np.random.default_rng(seed).permutation(symbols).astype(np.uint16)


def round_trip(coder, symbols, alphabet):
    if coder == "huffman":
        lengths = huffman.code_lengths(np.bincount(symbols, minlength=alphabet))
        parts = huffman.decode(huffman.encode(symbols, lengths), lengths, symbols.size)
    else:
        encoder = ranges.new_encoder()
        ranges.encode(encoder, symbols, alphabet)
        decoder = ranges.new_decoder(ranges.finish(encoder))
        parts = ranges.decode(decoder, symbols.size, alphabet)
    return np.concatenate([np.zeros(0, np.uint16), *parts])


def optimal_bits(counts):
    """Huffman's sum: every merge adds a bit to all below it."""
    heap, total = [c for c in counts if c], 0
    heapq.heapify(heap)
    while len(heap) > 1:
        both = heapq.heappop(heap) + heapq.heappop(heap)
        total += both
        heapq.heappush(heap, both)
    return total


def written_bit_by_bit(symbols, lengths):
    """The canonical code as textbooks number it."""
    code, last, book = 0, 0, {}
    for length, symbol in sorted((n, s) for s, n in enumerate(lengths) if n):
        code <<= length - last
        book[symbol], last = f"{code:0{length}b}", length
        code += 1
    bits = "".join(book[s] for s in symbols)
    bits += "0" * (-len(bits) % 8)
    return [int(bits[i : i + 8], 2) for i in range(0, len(bits), 8)]


@pytest.mark.parametrize("coder", CODERS)
@settings(max_examples=60, deadline=None)
@given(counts=COUNTS, seed=st.integers(0, 9))
def test_symbols_come_back(coder, counts, seed):
    symbols = symbols_of(counts, seed)
    np.testing.assert_array_equal(round_trip(coder, symbols, len(counts)), symbols)


@pytest.mark.parametrize("coder", CODERS)
@pytest.mark.parametrize("alphabet", [1, 2, 300, 65_536])
def test_many_symbols_come_back(coder, alphabet):
    rng = np.random.default_rng(alphabet)
    symbols = np.minimum(rng.geometric(0.02, 200_000) - 1, alphabet - 1)
    symbols = symbols.astype(np.uint16)
    np.testing.assert_array_equal(round_trip(coder, symbols, alphabet), symbols)


@given(counts=COUNTS)
def test_huffman_is_optimal(counts):
    assert huffman.coded_bits(np.array(counts)) == optimal_bits(counts)


@settings(max_examples=60)
@given(counts=COUNTS.filter(lambda c: np.count_nonzero(c) > 1))
def test_huffman_writes_the_canonical_code(counts):
    symbols, lengths = symbols_of(counts), huffman.code_lengths(np.array(counts))
    expected = written_bit_by_bit(symbols.tolist(), lengths.tolist())
    assert huffman.encode(symbols, lengths).tolist() == expected


def test_huffman_bounds_its_codes():
    fibonacci = [1, 1]
    while len(fibonacci) < 40:
        fibonacci.append(fibonacci[-1] + fibonacci[-2])
    lengths = huffman.code_lengths(np.array(fibonacci)).astype(float)
    assert 10 < lengths.max() <= huffman.MAX_LENGTH
    assert np.sum(2.0**-lengths) == 1


def test_range_coder_comes_near_the_entropy():
    rng = np.random.default_rng(0)
    symbols = np.clip(rng.normal(32, 8, 100_000), 0, 63).astype(np.uint16)
    p = np.bincount(symbols) / symbols.size
    entropy = -np.sum(p[p > 0] * np.log2(p[p > 0])) * symbols.size / 8
    encoder = ranges.new_encoder()
    ranges.encode(encoder, symbols, 64)
    assert entropy < len(ranges.finish(encoder)) < 1.002 * entropy + 50


@pytest.mark.parametrize("lengths", [[1, 1, 1], [2, 2, 2], [21, 1], [1, 2]])
def test_lengths_that_are_no_code_are_refused(lengths):
    with pytest.raises(huffman.CorruptError, match="code"):
        list(huffman.decode(np.zeros(9, np.uint8), np.uint8(lengths), 3))


@pytest.mark.parametrize("n", [0, 1, 8, 17, 40])
def test_huffman_data_of_another_length_are_refused(n):
    with pytest.raises(huffman.CorruptError, match=r"it ends|its symbols end"):
        list(huffman.decode(np.zeros(2, np.uint8), np.uint8([1, 1]), n))


@settings(max_examples=80, deadline=None)
@given(
    alive=st.lists(st.booleans(), max_size=70).map(lambda x: np.array(x, bool)),
    bits=st.integers(1, 5),
    stretch=st.integers(1, 40),
)
def test_masks_come_back_from_gaps(alive, bits, stretch):
    mask = np.zeros(alive.size * stretch, bool)
    mask[::stretch] = alive
    symbols = index.to_symbols(index.find_gaps(mask), bits)
    assert symbols.max(initial=0) < 2**bits
    again = np.zeros_like(mask)
    parts = np.array_split(symbols, 3)
    assert index.to_mask(parts, bits, again) == alive.sum()
    np.testing.assert_array_equal(again, mask)


def test_best_bits_beats_all_others():
    alive = np.random.default_rng(0).random(20_000) < 0.07
    gaps = index.find_gaps(alive)

    def coded(bits):
        symbols = index.to_symbols(gaps, bits)
        counts = np.bincount(symbols, minlength=2**bits)
        assert (
            counts == index.count_symbols(*np.unique(gaps, return_counts=True), bits)
        ).all()
        return huffman.coded_bits(counts) + 5 * counts.size

    best = index.best_bits(gaps, lambda c: huffman.coded_bits(c) + 5 * c.size)
    least = min(coded(bits) for bits in range(1, 12))
    assert coded(best) <= (1 + index.LEEWAY) * least


def test_a_position_beyond_the_mask_is_refused():
    with pytest.raises(IndexError, match="position is 5 of 5"):
        index.to_mask([np.uint16([5])], 3, np.zeros(5, bool))
