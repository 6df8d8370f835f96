"""Costs of products: their file, their choices, and how they are measured."""

import json

import numpy as np
import pytest

from jaxprune import sparse
from jaxprune.sparse import _costs, calibrate


RNG = np.random.default_rng(0)


def alive(rows, columns, keep):
    return RNG.random((rows, columns)) < keep


def test_costs_come_back_from_their_file(tmp_path):
    costs = sparse.Costs()._replace(slot=0.123456789, cache=7)
    path = tmp_path / "deep" / "costs.json"
    sparse.write_costs(path, costs)
    assert sparse.read_costs(path) == costs
    sparse.write_costs(path, sparse.Costs())
    assert sparse.read_costs(path) == sparse.Costs()
    assert [p.name for p in path.parent.iterdir()] == ["costs.json"]


def test_the_default_is_the_file_if_there_is_one(tmp_path, monkeypatch):
    path = tmp_path / "costs.json"
    monkeypatch.setattr(_costs, "default_path", lambda: path)
    assert sparse.default_costs() == sparse.Costs()
    # So dear that nothing is worth making sparse, which an argument overrides.
    dear = sparse.Costs()._replace(call=1e15, fast_call=1e15)
    sparse.write_costs(path, dear)
    assert sparse.default_costs() == dear
    mask = {"w": alive(4096, 400, 0.01)}
    params = {"w": np.ones((4096, 400), np.float32)}
    made = lambda **given: sparse.sparsify(params, mask, **given)["w"]
    assert not isinstance(made(), sparse.SparseKernel)
    assert isinstance(made(costs=sparse.Costs()), sparse.SparseKernel)
    path.write_text("{")
    with pytest.raises(ValueError, match=r"costs\.json holds no costs"):
        made()


GOOD = {"version": 1, "nanoseconds": sparse.Costs()._asdict()}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "Expecting value"),
        ("[1]", "indices must be"),
        ("\xff", "decode"),
        (json.dumps({}), "version"),
        (json.dumps(GOOD | {"version": 2}), "version is 2, not 1"),
        (json.dumps(GOOD | {"nanoseconds": {"slot": 1}}), "unknown: cache, cached"),
        (json.dumps(GOOD | {"nanoseconds": 3}), "not iterable"),
        *(
            (
                json.dumps(
                    {"version": 1, "nanoseconds": GOOD["nanoseconds"] | {"slot": bad}}
                ),
                "slot is",
            )
            for bad in (-1, "1", None, True, float("nan"), float("inf"))
        ),
    ],
)
def test_broken_files_are_named(tmp_path, content, message):
    path = tmp_path / "broken.json"
    path.write_text(content, encoding="latin-1")
    with pytest.raises(ValueError, match=rf"broken\.json holds no costs.*{message}"):
        sparse.read_costs(path)


def test_a_file_cut_anywhere_is_an_error(tmp_path):
    path = tmp_path / "costs.json"
    sparse.write_costs(path, sparse.Costs())
    whole = path.read_bytes().rstrip()
    for end in range(len(whole)):
        path.write_bytes(whole[:end])
        with pytest.raises(ValueError, match=r"costs\.json holds no costs"):
            sparse.read_costs(path)


def test_a_missing_file_is_said(tmp_path):
    with pytest.raises(FileNotFoundError):
        sparse.read_costs(tmp_path / "none.json")


def test_the_way_is_the_cheapest():
    some = alive(1000, 1000, 0.1)
    base = sparse.Costs(fast_call=0.0)._replace(
        cached=1.0, packed=1.0, dense=0.0, slot=1.0, image=1.0, turn=0.0, call=0.0
    )
    of = lambda fast=True, batch=1, **c: sparse.choose(
        some, batch, base._replace(**c), fast=fast
    )
    assert of(fast_slot=0.5) == "fast"
    assert of(fast_slot=0.5, fast=False) == "portable"
    assert of(fast_slot=50.0) == "portable"
    assert of(fast_slot=50.0, slot=50.0) == "dense"
    assert of(fast_many=50.0, batch=2) == "portable"
    assert of(fast_many=0.1, fast_image=0.01, batch=2) == "fast"
    assert sparse.pays(some, 1, base)
    few = alive(20, 20, 0.1)
    assert sparse.choose(few, 1, base._replace(cached=1e9), fast=True) == "dense"
    assert not sparse.pays(some, 1, base._replace(slot=50.0))


def test_times_are_sums_worked_by_hand():
    # Two outputs of 40,000 live weights: one block, 80,000 slots, so threads.
    some = np.ones((40_000, 2), bool)
    costs = sparse.Costs()._replace(
        fast_call=1e3, fast_slot=2.0, fast_threads=4.0, fast_many=3.0, fast_image=0.5
    )
    assert sparse.fast_time(some, 1, costs) == 1000 + 2 * 80_000 / 4
    assert sparse.fast_time(some, 3, costs) == 1000 + (3 + 0.5 * 4) * 80_000 / 4
    few = np.ones((100, 2), bool)
    assert sparse.fast_time(few, 1, costs) == 1000 + 2 * 200


def test_times_of_xla_are_sums_worked_by_hand():
    costs = sparse.Costs(dense_call=1e3, cached=1.0, streamed=2.0, cache=4000)
    costs = costs._replace(packed=1.5, dense=8.0)
    costs = costs._replace(slot=2.0, image=0.5, turn=10.0, call=3e3)
    assert sparse.dense_time(1000, 1, costs) == 1000 + 1000 * 1
    assert sparse.dense_time(1001, 1, costs) == 1000 + 1001 * 2
    assert sparse.dense_time(1000, 2, costs) == 1000 + 1000 * (1.5 + 8 * 2)
    assert sparse.dense_time(1001, 3, costs) == 1000 + 1001 * (2 + 8 * 3)
    # Two outputs in one block, of 100 turns; 17 images in two groups of 16.
    few = np.ones((100, 2), bool)
    once = 2000 + 10 * 100
    assert sparse.sparse_time(few, 1, costs) == 3000 + once + 2 * 200
    assert sparse.sparse_time(few, 3, costs) == 3000 + once + (2 + 0.5 * 2) * 200
    every = once + (2 + 0.5 * 15) * 200
    assert sparse.sparse_time(few, 17, costs) == 3000 + 2 * every
    # One of 10,000 is cut into 100 pieces, which stand in a block with two of the 99
    # outputs that have none; the other 97 are in a second block.
    cut = np.zeros((10_000, 100), bool)
    cut[:, 7] = True
    once = 2 * 2000 + 10 * 100
    assert sparse.sparse_time(cut, 1, costs) == 3000 + once + 4 * 199 + 2 * 10_200
    every = once + 4 * 199 * 3 + (2 + 0.5 * 2) * 10_200
    assert sparse.sparse_time(cut, 3, costs) == 3000 + every


@pytest.mark.parametrize(
    ("least", "call", "image"),
    [
        # 2 x 60 + 10 x 8 at a position, or from the cache, of 100 positions, 128.
        (1.1 * 200, 0.0, {}),
        (1.1 * 200 + 1.1 * 1000 / 101, 0.0, {"positions": 101}),
        (1.1 * 128 + 1.1 * 1000 / 100, 0.0, {"positions": 100}),
        (1.1 * 128 + 1.1 * 1000 / 300, 0.0, {"positions": 100, "batch": 3}),
        (1.1 * 128 + (1.1 * 1000 - 1600) / 50, 1000.0, {"positions": 50}),
    ],
)
def test_a_convolution_of_known_size_counts_its_call_and_the_cache(least, call, image):
    some = np.ones((2, 2, 3, 5), bool)  # 60 weights; 8 channels, 32 bytes a position
    costs = sparse.Costs()._replace(
        fast_call=1000.0, fast_conv=2.0, fast_move=10.0, cached_move=1.0, cache=3200
    )
    for dense, pays in ((0.999 * least, False), (1.001 * least, True)):
        made = costs._replace(conv=dense / 60, conv_call=call, conv_packed=call / 100)
        assert sparse.conv_pays(some, made, **image) == pays


@pytest.mark.slow
def test_a_machine_is_measured_and_the_file_read(tmp_path, monkeypatch, capsys):
    sizes = calibrate.Sizes(64, 256, 200, 0.1, (8, 16), (8, 4), (16, 8))
    measured = calibrate.measure(sizes, repeats=3)
    assert all(np.isfinite(cost) and cost > 0 for cost in measured)
    assert measured.call > 100  # no call of XLA's takes less
    monkeypatch.setattr(calibrate, "measure", lambda repeats: measured)
    path = tmp_path / "costs.json"
    assert calibrate.main(["--out", str(path)]) == 0
    assert sparse.read_costs(path) == measured
    assert "fast_slot" in capsys.readouterr().out


def test_wrong_flags_and_folders(tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        calibrate.main(["--repeats", "0"])
    assert "--repeats is 0" in capsys.readouterr().err
    monkeypatch.setattr(calibrate, "measure", lambda repeats: sparse.Costs())
    (tmp_path / "file").write_text("")
    assert calibrate.main(["--out", str(tmp_path / "file" / "costs.json")]) == 1
    with pytest.raises(SystemExit):
        calibrate.main(["--out", str(tmp_path)])

    def interrupted(repeats):
        raise KeyboardInterrupt

    monkeypatch.setattr(calibrate, "measure", interrupted)
    assert calibrate.main(["--out", str(tmp_path / "new.json")]) == 130
    assert "error:" in capsys.readouterr().err
