"""Damaged files: one clear error each, whatever is wrong, and never wrong weights."""

import json
import tracemalloc
import zlib

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from quick import LONG

from jaxprune import compress
from jaxprune.compress import _file as container
from jaxprune.compress import _table as table_code


CODERS = ["range", "huffman"]


@pytest.fixture(scope="module", params=CODERS)
def whole(request, tmp_path_factory):
    """A small file, as bytes."""
    rng = np.random.default_rng(0)
    alive = rng.random((12, 10)) < 0.3
    values = rng.choice(np.float32([-1.5, -0.25, 0.5]), alive.shape)
    # Columns that are dead or alike: positions as a map, codes by their neighbours.
    columns = (rng.random(16) < 0.5) & (rng.random((40, 16)) < 0.9)
    steps = np.float32(np.tile(rng.integers(1, 9, 16), (40, 1)))
    params = {
        "a": {"kernel": np.where(alive, values, np.float32(0))},
        "b": np.where(columns, steps, np.float32(0)),
        "bias": np.arange(4, dtype=np.float32),
        "raw": np.where(alive, rng.normal(size=alive.shape), 0),
    }
    path = tmp_path_factory.mktemp("whole") / "net"
    mask = {"a": {"kernel": alive}, "b": columns, "bias": None, "raw": alive}
    compress.save(path, params, mask, coder=request.param)
    return path.read_bytes()


@pytest.fixture
def refused(tmp_path):
    """Loads bytes, which must fail; gives the message."""

    def try_(data):
        path = tmp_path / "net"
        path.write_bytes(data)
        with pytest.raises(compress.CorruptError) as caught:
            compress.load(path)
        message = str(caught.value)
        assert message.startswith(f"{path}: ")
        assert message.endswith(".")
        return message

    return try_


def test_a_file_cut_at_any_length_is_refused(whole, refused):
    messages = [refused(whole[:n]) for n in range(len(whole))]
    assert "is truncated" in messages[-1]
    assert " raw" in messages[-1]
    assert any(" in a/kernel, which goes on to byte" in m for m in messages)
    assert any("in its table" in m for m in messages)


def test_a_file_that_goes_on_is_refused(whole, refused):
    assert "its leaves end at" in refused(whole + b"\0")


@pytest.mark.parametrize(
    ("flip", "every"),
    [
        (1, 3),
        pytest.param(1, 1, marks=pytest.mark.slow),
        pytest.param(0xFF, 1, marks=LONG),
    ],
)
def test_any_changed_byte_is_refused(whole, refused, flip, every):
    message = ""
    for i in range((len(whole) - 1) % every, len(whole), every):
        message = refused(whole[:i] + bytes([whole[i] ^ flip]) + whole[i + 1 :])
    # The last byte is one of the last leaf.
    assert "net: raw: the checksum of its bytes is wrong" in message


def test_a_file_of_another_version_says_so(whole, refused):
    newer = whole.replace(b'"jaxprune":"1"', b'"jaxprune":"7"')
    assert "its layout is of version 7, and this jaxprune reads 1 and 2" in refused(
        newer
    )


def test_files_of_other_kinds_are_refused(refused, tmp_path):
    from safetensors.numpy import save

    for data in (b"", b"\0" * 8, b"\xff" * 99, save({"w": np.ones(3)}), b"PK\3\4" * 9):
        refused(data)


def split(whole):
    """Header, table and leaves, as safetensors says."""
    start = 8 + int.from_bytes(whole[:8], "little")
    (size,) = json.loads(whole[8:start])["table"]["shape"]
    return whole[:start], whole[start : start + size], whole[start + size :]


def joined(table, leaves):
    """A file of this table, with all that is checked of header and table right."""
    header = container._header(len(table) + 4, len(leaves))
    crc = zlib.crc32(table, zlib.crc32(header)).to_bytes(4, "little")
    return header + table + crc + leaves


def with_rows(whole, change):
    """The file with another table."""
    _, table, leaves = split(whole)
    rows = json.loads(zlib.decompress(table[:-4]))
    rows = change(rows) or rows
    return joined(zlib.compress(json.dumps(rows).encode()), leaves)


def crc_of(row, data):
    text = json.dumps(row, separators=(",", ":"), ensure_ascii=False)
    return zlib.crc32(data, zlib.crc32(text.encode()))


LIES = [
    lambda rows: 7,
    lambda rows: [1],
    lambda rows: [[]],
    lambda rows: [{}],
    lambda rows: rows[:-1],
    lambda rows: rows + rows,
    lambda rows: rows[0].update(name="bias"),
    lambda rows: rows[0].update(name="bias/x"),
    lambda rows: rows[0].update(shape=[10**15]),
    lambda rows: rows[0].update(shape=[10**5] * 3),
    lambda rows: rows[0].update(shape=[1] * 99),
    lambda rows: rows[0].update(shape=[0, 10**14, 10**14]),
    lambda rows: rows[0].update(shape=[-12, -10]),
    lambda rows: rows[0].update(shape=[1.5]),
    lambda rows: rows[0].update(shape=[5]),
    lambda rows: rows[0].update(shape=None),
    lambda rows: rows[0].update(dtype="object"),
    lambda rows: rows[0].update(dtype="float64"),
    lambda rows: rows[0].update(dtype=[]),
    lambda rows: rows[0].update(parts=None),
    lambda rows: rows[0].update(parts={"gaps": 10**9}),
    lambda rows: rows[0].update(parts={"other": 1}),
    lambda rows: rows[0].update(parts={"gaps": -1}),
    lambda rows: rows[0].update(alive=10**9),
    lambda rows: rows[0].update(alive=rows[0]["alive"] + 1),
    lambda rows: rows[0].update(alive=rows[0]["alive"] - 1),
    lambda rows: rows[0].update(shape=[10, 12]),
    lambda rows: rows[2].update(name="other"),
    lambda rows: rows[2].update(dtype="int32"),
    lambda rows: rows[0].update(alive=True),
    lambda rows: rows[0].update(fillers=10**9),
    lambda rows: rows[0].update(fillers=rows[0]["fillers"] + 1),
    lambda rows: rows[0].update(gap_bits=0),
    lambda rows: rows[0].update(gap_bits=99),
    lambda rows: rows[0].update(clusters=10**9),
    lambda rows: rows[0].update(clusters=2),
    lambda rows: rows[0].update(clusters=0),
    lambda rows: rows[0].update(coder="zip"),
    lambda rows: rows[0].pop("coder") and None,
    lambda rows: rows[0].pop("dtype") and None,
    lambda rows: rows[0].update(crc=-1),
    lambda rows: rows[2].update(shape=[10**9]),
    lambda rows: rows[2].update(shape=[]),
]


@pytest.mark.parametrize("lie", LIES)
def test_a_table_that_lies_is_refused(whole, refused, lie):
    tracemalloc.start()
    refused(with_rows(whole, lie))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # Pages of zeros are not memory until they are written.
    assert peak < 2**23


def test_the_file_has_all_kinds_of_parts(whole):
    rows = json.loads(zlib.decompress(split(whole)[1][:-4]))
    by_range = rows[0]["coder"] == "range"
    assert ("map" in rows[1]["parts"]) == ("beside" in rows[1]) == by_range
    assert "gaps" in rows[0]["parts"]
    assert "values" in rows[3]["parts"]


def test_a_table_that_says_the_truth_is_read(whole, tmp_path):
    (tmp_path / "net").write_bytes(with_rows(whole, lambda rows: None))
    compress.load(tmp_path / "net")


def test_a_table_that_swells_is_refused(refused):
    table = zlib.compress(b" " * (table_code.LARGEST + 1))
    assert "its table is not whole" in refused(joined(table, b""))


def damaged(data, edits):
    """Overwrites, cuts out or puts in bytes."""
    for where, kind, new in edits:
        at = where % (len(data) + 1)
        if kind == "cut":
            data = data[:at] + data[at + len(new) :]
        else:
            data = data[:at] + new + data[at + (len(new) if kind == "over" else 0) :]
    return data


EDITS = st.lists(
    st.tuples(
        st.integers(0, 10**6),
        st.sampled_from(["over", "cut", "in"]),
        st.binary(min_size=1, max_size=9),
    ),
    min_size=1,
    max_size=4,
)


def check_file(whole, folder, data):
    path = folder / "net"
    path.write_bytes(data)
    if data == whole:
        compress.load(path)
        return
    with pytest.raises(compress.CorruptError, match="net: "):
        compress.load(path)


def loaded(folder, data):
    """Loads bytes; `None` after the error that is allowed."""
    path = folder / "net"
    path.write_bytes(data)
    try:
        return compress.load(path)
    except compress.CorruptError as error:
        message = str(error)
    assert message.startswith(f"{path}: ")
    return None


def check_leaves(whole, folder, edits):
    """Damages the leaves and makes every checksum right: nothing but the codes tell."""
    _, _, right = split(whole)
    leaves = damaged(right, edits)[: len(right)].ljust(len(right), b"\0")

    def change(rows):
        at = 0
        for row in rows:
            size = sum(row["parts"].values())
            row.pop("crc")
            row["crc"] = crc_of(row, leaves[at : at + size])
            at += size

    data = with_rows(whole, change)[: -len(leaves)] + leaves
    found = loaded(folder, data)
    if found is not None:
        params, mask = found
        assert params["a"]["kernel"].shape == mask["raw"].shape == (12, 10)
        assert not params["a"]["kernel"][~mask["a"]["kernel"]].any()


NUMBERS = st.one_of(
    st.integers(-2, 200),
    st.integers(0, 2**40),
    st.none(),
    st.text(),
    st.booleans(),
    st.lists(st.integers(-1, 40), max_size=5),
)


def check_rows(whole, folder, which, field, value):
    """Lets a row of the table say something else, with its checksum made right too."""
    _, table, leaves = split(whole)
    before = json.loads(zlib.decompress(table[:-4]))

    def change(rows, honest=False):
        row = rows[which % len(rows)]
        if field == "parts":
            names = list(row["parts"])
            row["parts"][names[which % len(names)]] = value
        elif field == "shape":
            row["shape"] = [value, *row["shape"][1:]]
        else:
            row[field] = value
        if honest and field != "crc":
            at = [0, *np.cumsum([sum(r["parts"].values()) for r in before])]
            row.pop("crc")
            here = which % len(rows)
            row["crc"] = crc_of(row, leaves[at[here] : at[here + 1]])

    loaded(folder, with_rows(whole, lambda rows: change(rows, True)))
    changed = json.loads(json.dumps(before))
    change(changed)
    if changed != before:
        assert loaded(folder, with_rows(whole, change)) is None


FIELDS = [
    *("shape", "parts", "alive", "fillers", "gap_bits", "clusters", "name", "crc"),
    *("turned", "lags", "beside", "dtype", "coder"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


@settings(max_examples=300, deadline=None)
@given(data=st.binary(max_size=400))
@example(b"\x10" + b"\0" * 7 + b"{" * 16)
def test_any_bytes_are_refused(whole, folder, data):
    check_file(whole, folder, data)


@settings(max_examples=500, deadline=None)
@given(edits=EDITS)
def test_any_damage_is_refused(whole, folder, edits):
    check_file(whole, folder, damaged(whole, edits))


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(edits=EDITS)
def test_any_leaves_are_decoded_or_refused(whole, folder, edits):
    check_leaves(whole, folder, edits)


@settings(max_examples=100, deadline=None)
@given(which=st.integers(0, 9), field=st.sampled_from(FIELDS), value=NUMBERS)
def test_any_row_is_followed_or_refused(whole, folder, which, field, value):
    check_rows(whole, folder, which, field, value)


@pytest.mark.slow
@pytest.mark.long
@settings(max_examples=10_000, deadline=None)
@given(
    edits=EDITS, which=st.integers(0, 9), field=st.sampled_from(FIELDS), value=NUMBERS
)
def test_twenty_thousand_files(whole, folder, edits, which, field, value):
    """By two coders: ten thousand each, in three ways."""
    check_file(whole, folder, damaged(whole, edits))
    check_leaves(whole, folder, edits)
    check_rows(whole, folder, which, field, value)


def test_a_file_with_its_graph_is_as_well_guarded(tmp_path, refused):
    """Each length, each changed byte; a graph that is not whole, or claims too much."""
    path, graph = tmp_path / "given", bytes(range(200)) * 2
    params = {"w": np.arange(4, dtype=np.float32)}
    compress.save(path, params, graph=graph)
    whole = path.read_bytes()
    assert whole[8:].startswith(b'{"__metadata__":{"jaxprune":"2"}')
    assert compress.read_graph(path) == graph
    np.testing.assert_array_equal(compress.load(path)[0]["w"], params["w"])
    sizes = compress.sizes(path)
    assert sizes.graph_bytes > 200
    total = sizes.header_bytes + sizes.total.bytes + sizes.graph_bytes
    assert total == sizes.file_bytes == len(whole)
    assert (
        "in its graph; it is trunc"
        in [refused(whole[:n]) for n in range(len(whole))][-1]
    )
    messages = [
        refused(whole[:i] + bytes([whole[i] ^ 1]) + whole[i + 1 :])
        for i in range(len(whole))
    ]
    assert "the checksum of its graph is wrong" in messages[-1]
    start = 8 + int.from_bytes(whole[:8], "little")
    for program in (b"none", zlib.compress(graph)[:-1], zlib.compress(graph) + b"x"):
        (size,) = json.loads(whole[8:start])["table"]["shape"]
        table, leaves = whole[start:][: size - 4], whole[start + size :][:16]
        header = container._header(size, 16, len(program) + 4)
        crcs = [zlib.crc32(part, zlib.crc32(header)) for part in (table, program)]
        first, last = (crc.to_bytes(4, "little") for crc in crcs)
        data = header + table + first + leaves + program + last
        assert "its graph" in refused(data)
    with pytest.raises(ValueError, match="graph has 0 bytes, expected 1 to 67,108,864"):
        compress.save(path, params, graph=b"")


def test_a_file_without_a_graph_is_of_the_first_version(tmp_path):
    path = tmp_path / "net"
    compress.save(path, {"w": np.ones(3)})
    assert path.read_bytes()[8:].startswith(b'{"__metadata__":{"jaxprune":"1"}')
    assert compress.read_graph(path) is None
    assert compress.sizes(path).graph_bytes == 0
