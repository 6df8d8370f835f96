"""Storage, energy and GPS-UP: by a plain encoder, by hand, by published numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import paper_nets
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxprune import report


def encode(alive, bits):
    """Pairs (dead weights before it, whether it lives), one for each stored entry."""
    stored, run = [], 0
    for live in alive:
        if live:
            stored.append((run, True))
            run = 0
        elif run == 2**bits - 1:
            stored.append((run, False))
            run = 0
        else:
            run += 1
    while stored and not stored[-1][1]:
        stored.pop()  # nothing follows
    return stored


def decode(stored, size):
    out = []
    for run, live in stored:
        out += [False] * run + [live]
    return out + [False] * (size - len(out))


@settings(deadline=None)
@given(st.lists(st.booleans() | st.just(False), max_size=200), st.integers(1, 4))
def test_fillers_are_those_of_a_plain_encoder(alive, bits):
    from jaxprune.report._storage import fillers

    stored = encode(alive, bits)
    assert decode(stored, len(alive)) == alive
    assert fillers(np.array(alive, bool), bits) == len(stored) - sum(alive)


def spread_mask(shape, percent):
    """So many weights alive, as evenly spaced as can be."""
    size = int(np.prod(shape))
    ticks = np.arange(1, size + 1) * round(size * percent / 100) // size
    return np.diff(ticks, prepend=0).astype(bool).reshape(shape)


def paper(name):
    *rows, _ = paper_nets.table(name)
    params = paper_nets.params(name)
    mask = {
        layer: {
            "kernel": spread_mask(params[layer]["kernel"].shape, float(kept)),
            "bias": None,
        }
        for layer, *_, kept, _ in rows
    }
    shares = {f"{layer}/kernel": float(act) / 100 for layer, _, _, act, *_ in rows}
    x = jax.ShapeDtypeStruct((1, *paper_nets.INPUTS[name]), jnp.float32)
    counts = report.count(paper_nets.apply(name), params, mask, x, activations=shares)
    return counts, params, mask


def test_storage_of_alexnet_as_published():
    """240 MB dense; 27 MB pruned, without indices; an index adds 15.6% in fc layers."""
    counts, params, mask = paper("AlexNet")
    found = report.storage(counts, params, mask)
    dense = found.total.dense_bytes + found.others_bytes
    assert dense == 4 * 60_965_224
    assert found.total.fillers == 0  # evenly spaced
    assert found.total.weight_bytes / 1e6 == pytest.approx(27, abs=0.5)
    rows = {row.path.split("/")[0]: row for row in found.layers}
    assert [rows[f"fc{i}"].index_bits for i in (1, 2, 3)] == [5, 5, 5]
    assert [rows[f"conv{i}"].index_bits for i in (2, 3, 4, 5)] == [8, 8, 8, 8]
    fc = rows["fc1"]
    assert round(100 * fc.index_bytes / fc.weight_bytes, 1) == 15.6
    # 84% of 40 bits would be more than 32.
    assert rows["conv1"].index_bits == rows["conv1"].index_bytes == 0
    assert rows["conv1"].weight_bytes == rows["conv1"].dense_bytes == 4 * 34_848


def dense_layer(mask, **kwargs):
    shape = mask.shape
    w = jax.ShapeDtypeStruct(shape, jnp.float32)
    x = jax.ShapeDtypeStruct((1, shape[0]), jnp.float32)
    counts = report.count(lambda w, x: x @ w, w, mask, x, **kwargs)
    return counts, report.storage(counts, w, mask)


def test_storage_with_fillers_by_hand():
    """Live at 0, 33 and 98 of 100: runs of 0, 32 and 64; an index tells 31."""
    mask = np.zeros((10, 10), bool)
    mask.ravel()[[0, 33, 98]] = True
    _, found = dense_layer(mask)
    (row,) = found.layers
    # 32 dead are 31, a filler, 0; 64 dead are 31, a filler, 31, a filler, 0.
    assert (row.fillers, row.entries, row.index_bits) == (3, 6, 5)
    assert (row.weight_bytes, row.index_bytes) == (24, 4)  # 30 bits
    assert found.total._replace(path=row.path, index_bits=5) == row
    _, nothing = dense_layer(np.zeros((10, 10), bool))
    assert nothing.total.weight_bytes == nothing.total.index_bytes == 0


def test_indices_that_save_nothing_are_left_out():
    """Half of 100 bytes alive, with as many bytes of indices: as much as dense."""
    mask = np.tile([True, False], (10, 5))
    counts, _ = dense_layer(mask)
    w = jax.ShapeDtypeStruct((10, 10), jnp.float32)
    for bits, stored in ((8, (100, 0, 100, 0)), (7, (50, 7, 50, 44))):
        sizes = {"conv": 8, "fc": bits}
        found = report.storage(counts, w, mask, weight_bits=8, index_bits=sizes)
        (row,) = found.layers
        assert stored == (
            row.entries, row.index_bits, row.weight_bytes, row.index_bytes
        )  # fmt: skip


def test_energy_of_dram_as_in_the_paper():
    """1G connections at 20 Hz, each from DRAM: 12.8 W."""
    w = jax.ShapeDtypeStruct((31_250, 32_000), jnp.float32)
    x = jax.ShapeDtypeStruct((1, 31_250), jnp.float32)
    counts = report.count(lambda w, x: x @ w, w, None, x)
    stored = report.storage(counts, w, None)
    found = report.energy(counts, stored, cache_bytes=1_000_000)
    assert found.weights_in == found.weights_in_pruned == "DRAM"
    activations = 5.0 * (31_250 + 32_000)
    assert 20 * (found.total.memory - activations) * 1e-12 == pytest.approx(12.8)
    batched = report.energy(counts, stored, cache_bytes=1_000_000, batch=64)
    assert batched.total.memory == pytest.approx(640e9 / 64 + activations)


def test_energy_by_hand():
    """10 x 10, half of it alive: 200 FLOP and 400 bytes dense."""
    mask = np.tile([True, False], (10, 5))
    counts, stored = dense_layer(mask)
    (row,) = stored.layers
    assert (row.weight_bytes, row.index_bytes) == (200, 32)  # 250 bits
    found = report.energy(counts, stored, cache_bytes=312)  # 232 and 80: just enough
    (layer,) = found.layers
    assert (found.weights_in, found.weights_in_pruned) == ("DRAM", "SRAM")
    assert layer.operations == pytest.approx(100 * 4.6)
    assert layer.operations_pruned == pytest.approx(50 * 4.6)
    # Dense, 80 bytes of activations have the cache to themselves; pruned, they share.
    assert layer.memory == pytest.approx(100 * 640 + 20 * 5)
    assert layer.memory_pruned == pytest.approx(58 * 5 + 20 * 5)
    tight = report.energy(counts, stored, cache_bytes=300)
    assert tight.total.memory_pruned == pytest.approx(58 * 5 + 20 * 640)


def test_zero_activations_save_operations_not_traffic():
    counts, params, mask = paper("LeNet-300-100")
    stored = report.storage(counts, params, mask)
    found = report.energy(counts, stored, cache_bytes=2**20)
    assert found.total.operations_pruned == pytest.approx(
        4.6 / 2 * sum(row.flop_needed for row in counts.layers)
    )
    assert found.weights_in == "DRAM"
    assert found.weights_in_pruned == "SRAM"
    biases = 410 * 5
    rows = sum(row.memory_pruned for row in found.layers)
    assert found.total.memory_pruned == pytest.approx(rows + biases)


# Microseconds and watts on a Titan X, batch 1: Han et al. 2016, tables 8 and 9.
TITAN_X = {
    "AlexNet FC6": ((541.5, 157), (134.8, 181), (4.02, 1.15, 3.48)),
    "VGG FC6": ((1467.8, 166), (167.0, 189), (8.79, 1.14, 7.72)),
}


@pytest.mark.parametrize("layer", TITAN_X)
def test_gps_up_of_published_measurements(layer):
    before, after, expected = TITAN_X[layer]
    found = report.gps_up(tuple(map(float, before)), tuple(map(float, after)))
    rounded = [round(x, 2) for x in (found.speedup, found.powerup, found.greenup)]
    assert rounded == list(expected)
    assert found.category == "green: faster, more power"
    assert found.edp_ratio == pytest.approx(found.greenup * found.speedup)


@pytest.mark.parametrize(
    ("after", "category"),
    [
        ((1.0, 5.0), "green: faster, less power"),
        ((1.0, 10.0), "green: faster, same power"),
        ((1.0, 15.0), "green: faster, more power"),
        ((2.0, 5.0), "green: not faster, less power"),
        ((3.0, 5.0), "green: not faster, less power"),
        ((3.0, 15.0), "red: slower, more power"),
        ((3.0, 10.0), "red: slower, same power"),
        ((3.0, 9.0), "red: slower, less power"),
        ((2.0, 15.0), "red: not slower, more power"),
        ((1.0, 25.0), "red: not slower, more power"),
        ((2.0, 10.0), "neutral: the same energy"),
        ((1.0, 20.0), "neutral: the same energy"),
    ],
)
def test_categories(after, category):
    assert report.gps_up((2.0, 10.0), after).category == category


def test_bad_input():
    mask = np.tile([True, False], (10, 5))
    counts, stored = dense_layer(mask)
    w = jnp.zeros((10, 10))
    with pytest.raises(ValueError, match=r"keeps 100 weights of .*, expected the 50"):
        report.storage(counts, w, ~np.zeros((10, 10), bool))
    with pytest.raises(ValueError, match="fc is 0, expected at least 1 bit"):
        report.storage(counts, w, mask, index_bits={"conv": 8, "fc": 0})
    with pytest.raises(ValueError, match="cache_bytes is -1, expected 0 or more"):
        report.energy(counts, stored, cache_bytes=-1)
    with pytest.raises(ValueError, match="batch is 0, expected at least 1"):
        report.energy(counts, stored, cache_bytes=0, batch=0)
    other = stored._replace(layers=(stored.layers[0]._replace(path="b"),))
    with pytest.raises(ValueError, match=r"storage is of the layers \['b'\], expected"):
        report.energy(counts, other, cache_bytes=0)
    with pytest.raises(ValueError, match=r"after is \(0.0, 1.0\), expected a time"):
        report.gps_up((1.0, 1.0), (0.0, 1.0))
