"""Checkpoints: what goes in comes out, and what is damaged or foreign is refused."""

import gc
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from orbax.checkpoint import v1 as ocp
from quick import quick
from safetensors.numpy import load_file

import jaxprune
from experiments import lenet300_prune
from experiments.checkpoint import Checkpoints, _checksums
from experiments.config import Refused


ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def _forget_what_orbax_left():
    """Orbax leaves coroutines of a checkpoint that it could not read to the collector.

    They warn when they are collected, which may be in any later test.
    """
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        gc.collect()


SETTINGS = {"network": "toy", "--lr": 0.1}


def toy(width=4):
    """Params and the state of a pruning optimizer after a few steps."""
    params = {
        "fc1": {
            "kernel": jnp.linspace(-1, 1, 5 * width).reshape(5, width),
            "bias": jnp.zeros(width),
        }
    }
    tx = jaxprune.prune(
        optax.adamw(1e-2),
        jaxprune.every(2, jaxprune.to_sparsity(jaxprune.magnitude, 0.5)),
    )
    state = tx.init(params)
    for _ in range(3):
        params, state = toy_step(tx, params, state)
    return tx, params, state


def toy_step(tx, params, state):
    grads = jax.tree.map(jnp.sin, params)
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state


def assert_same_bits(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


def listing(folder):
    return {p: p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_orbax_gives_back_a_state_whose_next_step_is_bit_equal(tmp_path):
    tx, params, state = toy()
    like = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
        (params, state),
    )
    ocp.save(tmp_path / "state", (params, state))
    restored = ocp.load(tmp_path / "state", like)
    assert_same_bits(restored, (params, state))
    assert_same_bits(toy_step(tx, *restored), toy_step(tx, params, state))


@pytest.fixture
def written(tmp_path):
    _, *state = toy()
    checkpoints = Checkpoints(tmp_path / "run", SETTINGS)
    for step in (1, 2, 3):
        checkpoints.save(step, state)
    checkpoints.close()
    return tmp_path / "run", state


def reopened(folder, settings=None):
    return Checkpoints(folder, SETTINGS if settings is None else settings)


def test_the_last_two_are_kept_and_load(written):
    folder, state = written
    checkpoints = reopened(folder)
    assert checkpoints.latest() == 3
    assert sorted(p.name for p in folder.iterdir()) == ["2", "3"]
    before = listing(folder)
    checkpoints.save(3, jax.tree.map(jnp.zeros_like, state))  # it is there
    checkpoints.wait()
    assert listing(folder) == before
    assert_same_bits(checkpoints.load(3, state), state)


def test_a_checkpoint_that_was_being_written_does_not_count(written):
    folder, state = written
    shutil.copytree(folder / "3", folder / "4.orbax-checkpoint-tmp")
    (folder / "4.orbax-checkpoint-tmp" / "_CHECKPOINT_METADATA").unlink()
    checkpoints = reopened(folder)
    assert checkpoints.latest() == 3
    checkpoints.save(4, state)
    assert checkpoints.latest() == 4


def damage_metadata(folder):
    path = folder / "3" / "_CHECKPOINT_METADATA"
    path.write_bytes(path.read_bytes()[:100])


def truncate_arrays(folder):
    path = max((folder / "3").rglob("d/*"), key=lambda p: p.stat().st_size)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_a_bit(folder):
    path = max((folder / "3").rglob("d/*"), key=lambda p: p.stat().st_size)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def remove_arrays(folder):
    shutil.rmtree(folder / "3" / "state")


def empty(folder):
    shutil.rmtree(folder / "3")
    (folder / "3").mkdir()


def put_something_else_there(folder):
    shutil.rmtree(folder / "3")
    (folder / "3").mkdir()
    (folder / "3" / "notes.txt").write_text("mine")


@pytest.mark.parametrize(
    "harm",
    quick(
        [
            damage_metadata,
            truncate_arrays,
            flip_a_bit,
            remove_arrays,
            empty,
            put_something_else_there,
        ],
        truncate_arrays,
        flip_a_bit,
    ),
)
def test_a_damaged_checkpoint_is_refused_and_left_alone(written, harm, caplog, capfd):
    folder, state = written
    harm(folder)
    before = listing(folder)
    caplog.clear()
    checkpoints = reopened(folder)
    last = checkpoints.latest()
    with pytest.raises(Refused, match=r"the checkpoint .*run/3"):
        checkpoints.load(last, state)
    assert listing(folder) == before
    # The refusal is all that is said.
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]
    assert capfd.readouterr().err == ""


def test_checksums_are_those_of_numpy():
    """Or old checkpoints would be damaged ones."""
    draw = np.random.default_rng(0)
    given = {
        "float32": draw.normal(size=(3, 2, 4)).astype(np.float32),
        "bfloat16": draw.normal(size=(4, 5)).astype(jnp.bfloat16),
        "int8": np.arange(-6, 6, dtype=np.int8).reshape(4, 3),
        "bool": np.array([True, False, True, True]),
    }
    found = jax.device_get(_checksums(given))
    for name, x in given.items():
        bits = x.view(f"u{x.itemsize}").ravel().tolist()
        total = sum(b * (2 * place + 1) for place, b in enumerate(bits))
        assert int(found[name]) == total % 2**32, name


def test_a_file_where_checkpoints_belong_is_refused(tmp_path):
    (tmp_path / "run").write_text("mine")
    with pytest.raises(Refused, match="run is a file, expected the folder of the ch"):
        reopened(tmp_path / "run")
    assert (tmp_path / "run").read_text() == "mine"


def test_a_checkpoint_of_other_settings_is_refused_by_name(written):
    folder, state = written
    with pytest.raises(Refused, match=r"--lr was 0\.1 and is now 0\.2"):
        reopened(folder, {**SETTINGS, "--lr": 0.2}).load(3, state)


def test_a_checkpoint_of_another_network_is_refused_by_name(written):
    folder, _ = written
    _, *wider = toy(width=6)
    with pytest.raises(Refused, match=r"fc1/bias is .*4.*expected .*6"):
        reopened(folder).load(3, wider)


def test_a_checkpoint_of_another_dtype_is_refused(written):
    folder, state = written
    half = jax.tree.map(
        lambda x: x.astype(jnp.bfloat16) if x.dtype == jnp.float32 else x, state
    )
    with pytest.raises(Refused, match=r"float32.*expected.*bfloat16"):
        reopened(folder).load(3, half)


def test_a_checkpoint_of_another_program_is_refused(tmp_path):
    state = {"w": jnp.ones(3)}
    other = ocp.training.Checkpointer(tmp_path / "run")
    other.save(5, state)
    other.close()
    with pytest.raises(Refused, match="not written by this program"):
        reopened(tmp_path / "run").load(5, state)


FLAGS = (
    "--recipe gradual --epochs 4 --period 20 --checkpoint-every 50 --log-every 30 "
    "--augment"
).split()


@pytest.mark.slow
def test_a_run_killed_with_sigkill_resumes_to_the_same_bits(tmp_path, capsys):
    """With distorted digits, which are drawn anew at each step."""
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    command = [sys.executable, "-m", "experiments.lenet300_prune", *FLAGS, "--out"]
    process = subprocess.Popen(
        [*command, str(killed)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 240
        while not list(killed.glob("checkpoints/[0-9]*")):
            assert process.poll() is None, "the run ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.005)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not (killed / "result.json").exists()

    assert lenet300_prune.main([*FLAGS, "--out", str(killed), "--resume"]) == 0
    assert lenet300_prune.main([*FLAGS, "--out", str(whole)]) == 0
    capsys.readouterr()
    resumed = load_file(killed / "pruned.safetensors")
    straight = load_file(whole / "pruned.safetensors")
    for name, array in straight.items():
        assert array.tobytes() == resumed[name].tobytes(), name
    assert metrics(killed) == metrics(whole)


def metrics(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [line.split(', "seconds"')[0] for line in lines]
