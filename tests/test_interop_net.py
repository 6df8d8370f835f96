"""The compressed .net format, against bytes and positions worked out by hand."""

import os
import struct
from pathlib import Path

import chex
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxprune
from jaxprune import interop


# A convolution of 2 outputs and 3 inputs, 3 x 3, and a dense layer of 2 x 3 weights.
SHAPES = {"conv": (2, 3, 3, 3), "fc": (2, 3)}
CONV_BOOK = [0.0, 0.5, -1.0] + [float(i) for i in range(3, 256)]
FC_BOOK = [0.0] + [i / 4 for i in range(1, 16)]
# conv: 2 at 0, 255 at 3; 1 at 3 + 36 = 39, after two fillers (at 19 and 35); 9 at 53.
CONV = [(2, 0), (255, 2), (0, 15), (0, 15), (1, 3), (9, 13)]
# fc: 15 at 1, 3 at 2, 1 at 5.
FC = [(15, 1), (3, 0), (1, 2)]


def tiny():
    """The file, byte for byte as the format's description has it."""
    floats = lambda values: struct.pack(f"<{len(values)}f", *values)
    return b"".join(
        [
            struct.pack("<2I", 6, 3),
            floats(CONV_BOOK) + floats([7.0, -7.0]),
            bytes([2, 255, 0, 0, 1, 9]),
            bytes([0x20, 0xFF, 0xD3]),
            floats(FC_BOOK) + floats([0.25, 0.75]),
            bytes([0x3F, 0x01]),  # three codes and half a byte of padding
            bytes([0x01, 0x02]),
        ]
    )


def slow_decode(data, shapes):
    """The same in plain Python: one entry, one bit field at a time."""
    counts = struct.unpack_from(f"<{len(shapes)}I", data)
    at = 4 * len(shapes)
    tensors = {}

    def half_bytes(n):
        nonlocal at
        found = [(data[at + i // 2] >> (4 * (i % 2))) % 16 for i in range(n)]
        at += (n + 1) // 2
        return found

    for count, (name, shape) in zip(counts, shapes.items(), strict=True):
        conv = len(shape) == 4
        book = struct.unpack_from(f"<{256 if conv else 16}f", data, at)
        at += 4 * len(book)
        bias = struct.unpack_from(f"<{shape[0]}f", data, at)
        tensors[f"{name}.bias"] = np.array(bias, np.float32)
        at += 4 * shape[0]
        if conv:
            codes = list(data[at : at + count])
            at += count
        else:
            codes = half_bytes(count)
        weight = [0.0] * int(np.prod(shape))
        position = -1
        for code, gap in zip(codes, half_bytes(count), strict=True):
            position += gap + 1
            weight[position] = book[code]
        tensors[f"{name}.weight"] = np.array(weight, np.float32).reshape(shape)
    assert at == len(data)
    return tensors


def test_positions_and_values_worked_by_hand(tmp_path):
    path = tmp_path / "tiny.net"
    path.write_bytes(tiny())
    tensors = interop.read_net(path, SHAPES)
    weight = np.zeros(54, np.float32)
    weight[[0, 3, 39, 53]] = [-1.0, 255.0, 0.5, 9.0]
    chex.assert_trees_all_equal(
        tensors,
        {
            "conv.weight": weight.reshape(2, 3, 3, 3),
            "conv.bias": np.array([7, -7], np.float32),
            "fc.weight": np.array([[0, 3.75, 0.75], [0, 0, 0.25]], np.float32),
            "fc.bias": np.array([0.25, 0.75], np.float32),
        },
    )
    assert {t.dtype for t in tensors.values()} == {np.dtype("float32")}


def test_written_back_byte_for_byte(tmp_path):
    layers = interop.decode_net(tiny(), SHAPES)
    assert interop.encode_net(layers) == tiny()
    interop.write_net(tmp_path / "tiny.net", layers)
    assert (tmp_path / "tiny.net").read_bytes() == tiny()
    assert os.listdir(tmp_path) == ["tiny.net"]


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.sampled_from([0, 0, 0, 1, 5, 255]), min_size=54, max_size=54),
    st.lists(st.integers(0, 15), min_size=6, max_size=6),
    st.integers(0, 54),
)
def test_any_codes_survive(conv, fc, dead):
    conv = [0] * dead + conv[dead:]  # a long gap now and then
    layers = {
        "conv": interop.NetLayer(
            np.array(CONV_BOOK, np.float32),
            np.array(conv, np.uint8).reshape(SHAPES["conv"]),
            np.zeros(2, np.float32),
        ),
        "fc": interop.NetLayer(
            np.array(FC_BOOK, np.float32),
            np.array(fc, np.uint8).reshape(SHAPES["fc"]),
            np.ones(2, np.float32),
        ),
    }
    data = interop.encode_net(layers)
    chex.assert_trees_all_equal(interop.decode_net(data, SHAPES), layers)
    tensors = interop.net_tensors(layers)
    chex.assert_trees_all_equal(tensors, slow_decode(data, SHAPES))


@pytest.mark.parametrize("gap", range(80))
def test_fillers_for_every_gap(gap):
    codes = np.zeros((1, 81), np.uint8)
    codes[0, gap] = 1
    layer = interop.NetLayer(
        np.array(FC_BOOK, np.float32), codes, np.zeros(1, np.float32)
    )
    data = interop.encode_net({"fc": layer})
    assert struct.unpack_from("<I", data) == (gap // 16 + 1,)
    chex.assert_trees_all_equal(interop.decode_net(data, {"fc": (1, 81)})["fc"], layer)


def test_truncated_anywhere(tmp_path):
    data = tiny()
    for length in range(len(data)):
        with pytest.raises(ValueError, match=r"^short\.net (has|ends at)"):
            interop.decode_net(data[:length], SHAPES, origin="short.net")
    with pytest.raises(ValueError, match="in layer fc, which ends at byte 1125"):
        interop.decode_net(data[:-1], SHAPES)
    with pytest.raises(ValueError, match="in layer conv"):
        interop.decode_net(data[:40], SHAPES)
    with pytest.raises(
        ValueError, match="has 1126 bytes, but its last layer ends at byte 1125"
    ):
        interop.decode_net(data + b"\0", SHAPES)
    with pytest.raises(FileNotFoundError):
        interop.read_net(tmp_path / "none.net", SHAPES)


def test_every_flipped_byte_is_decoded_or_refused():
    data = tiny()
    refused = []
    for at in range(len(data)):
        flipped = bytearray(data)
        flipped[at] ^= 0xFF
        try:
            layers = interop.decode_net(bytes(flipped), SHAPES, origin="bad.net")
        except ValueError as error:
            refused.append(str(error))
        else:
            assert layers["conv"].codes.shape == SHAPES["conv"]
    assert all(message.startswith("bad.net") for message in refused)
    assert len(refused) >= 16  # the counts, the codebooks' zeros, gaps and padding


@pytest.mark.parametrize(
    ("at", "value", "message"),
    [
        (0, struct.pack("<I", 55), "layer conv claims 55 entries, but its weight"),
        (4, struct.pack("<I", 2**32 - 1), "layer fc claims 4294967295 entries"),
        (8, struct.pack("<f", 1.0), r"layer conv has a codebook that begins with 1\.0"),
        (12, struct.pack("<f", np.nan), "layer conv has values that are not finite"),
        (1032, struct.pack("<f", np.inf), "layer conv has values that are not finite"),
        (1048, b"\xf3", "layer conv has an entry at position 55, beyond its weight"),
        (-3, b"\x11", "layer fc has 1 where its last byte is padded"),
        (-1, b"\x12", "layer fc has 1 where its last byte is padded"),
    ],
)
def test_lies(at, value, message):
    data = bytearray(tiny())
    at %= len(data)
    data[at : at + len(value)] = value
    with pytest.raises(ValueError, match=f"^bad.net: {message}"):
        interop.decode_net(bytes(data), SHAPES, origin="bad.net")


def test_shapes_must_be_of_layers():
    with pytest.raises(ValueError, match=r"layer fc has shape \(2,\), expected"):
        interop.decode_net(tiny(), {"conv": (2, 3, 3, 3), "fc": (2,)})
    with pytest.raises(ValueError, match=r"layer fc has shape \(0, 3\), expected"):
        interop.decode_net(tiny(), {"conv": (2, 3, 3, 3), "fc": (0, 3)})


def test_nothing_is_written_of_what_cannot_be(tmp_path):
    layers = interop.decode_net(tiny(), SHAPES)
    path = tmp_path / "kept.net"
    path.write_bytes(b"before")
    conv, fc = layers["conv"], layers["fc"]
    for bad, message in (
        (conv._replace(codebook=conv.codebook[:16]), r"codebook is float32 \(16,\)"),
        (
            fc._replace(bias=fc.bias[:1]),
            r"bias is float32 \(1,\), expected float32 \(2",
        ),
        (fc._replace(codes=fc.codes.astype(int)), "codes is int64"),
        (fc._replace(codes=fc.codes + np.uint8(9)), "largest code is 24"),
        (fc._replace(codebook=fc.codebook + np.float32(1)), "codebook begins with 1"),
        (
            fc._replace(bias=fc.bias * np.float32(np.nan)),
            "bias has values that are not",
        ),
    ):
        with pytest.raises(ValueError, match=f"^layer x: .*{message}"):
            interop.write_net(path, {"x": bad})
    assert path.read_bytes() == b"before"
    assert os.listdir(tmp_path) == ["kept.net"]


def test_an_entry_of_code_zero_is_a_zero():
    data = bytearray(tiny())
    data[1040] = 0  # the code of the first entry, whose gap is 0
    layers = interop.decode_net(bytes(data), SHAPES)
    assert layers["conv"].codes.flat[0] == 0
    assert layers["conv"].codes.flat[3] == 255
    again = interop.decode_net(interop.encode_net(layers), SHAPES)
    chex.assert_trees_all_equal(again, layers)


def squeezenet_shapes():
    shapes, channels = {"conv1": (96, 3, 7, 7)}, 96
    for i, squeeze in enumerate((16, 16, 32, 32, 48, 48, 64, 64), 2):
        shapes[f"fire{i}/squeeze"] = (squeeze, channels, 1, 1)
        shapes[f"fire{i}/expand1"] = (4 * squeeze, squeeze, 1, 1)
        shapes[f"fire{i}/expand3"] = (4 * squeeze, squeeze, 3, 3)
        channels = 8 * squeeze
    return {**shapes, "conv_final": (1000, channels, 1, 1)}


@pytest.mark.data
@pytest.mark.skipif("JAXPRUNE_DATA" not in os.environ, reason="JAXPRUNE_DATA not set")
def test_the_published_squeezenet():
    path = Path(os.environ["JAXPRUNE_DATA"]) / "squeezenet/compressed_SqueezeNet.net"
    shapes, data = squeezenet_shapes(), path.read_bytes()
    tensors = interop.read_net(path, shapes)
    # The slow decoder asserts that every byte is used.
    chex.assert_trees_all_equal(tensors, slow_decode(data, shapes))
    assert interop.encode_net(interop.decode_net(data, shapes)) == data

    weights = {n: jnp.asarray(t) for n, t in tensors.items() if n.endswith("weight")}
    mask = jaxprune.mask_from_zeros(weights)
    assert sum(m.size for m in mask.values()) == 1_244_448
    assert round(100 * (1 - jaxprune.sparsity(mask)), 2) == 33.42
    del shapes["conv_final"]
    with pytest.raises(ValueError, match=r"SqueezeNet\.net"):
        interop.read_net(path, shapes)
