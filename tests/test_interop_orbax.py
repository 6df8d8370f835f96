"""Checkpoints that Orbax wrote, read without the program that did."""

import gc
import json
import shutil
import sys
import warnings

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from orbax.checkpoint import v1 as ocp

import jaxprune
from experiments.checkpoint import Checkpoints
from jaxprune import interop
from jaxprune.__main__ import main


@pytest.fixture(autouse=True)
def _forget_what_orbax_left():
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        gc.collect()


def trained(seed=0):
    """Params and an optimizer state with their mask in it."""
    rng = np.random.default_rng(seed)
    params = {
        "fc1": {"kernel": rng.normal(size=(5, 4)), "bias": rng.normal(size=4)},
        "fc2": {"kernel": rng.normal(size=(4, 3))},
    }
    params = jax.tree.map(lambda p: jnp.asarray(p, jnp.float32), params)
    halve = jaxprune.once(0, jaxprune.to_sparsity(jaxprune.magnitude, 0.5))
    tx = optax.chain(optax.clip(1.0), jaxprune.prune(optax.adam(0.1), halve))
    updates, state = tx.update(params, tx.init(params), params)
    params, state = optax.apply_updates(params, updates), state
    return {"params": params, "opt_state": state, "step": jnp.int32(seed)}


def check(read, state):
    params, mask = read
    chex.assert_trees_all_equal(params, state["params"])
    chex.assert_trees_all_equal(mask, jaxprune.get_mask(state["opt_state"]))
    assert all(isinstance(p, np.ndarray) for p in jax.tree.leaves((params, mask)))


@pytest.mark.slow
def test_the_last_checkpoint_of_a_run(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints", {})
    for step in (9, 10):
        checkpoints.save(step, trained(step))
    checkpoints.close()
    for path in (tmp_path, tmp_path / "checkpoints", tmp_path / "checkpoints/10"):
        check(interop.read_orbax(path), trained(10))
    check(interop.read_orbax(tmp_path / "checkpoints/9"), trained(9))


@pytest.mark.slow
def test_checkpoints_of_others(tmp_path):
    state = trained()
    ocp.save(tmp_path / "all", state)
    check(interop.read_orbax(tmp_path / "all"), state)
    ocp.save(tmp_path / "params", state["params"])
    params, mask = interop.read_orbax(tmp_path / "params")
    chex.assert_trees_all_equal(params, state["params"])
    assert mask is None


def test_what_is_refused(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="is no checkpoint of Orbax, and holds none"):
        interop.read_orbax(tmp_path)
    state = trained()
    ocp.save(tmp_path / "two", state | {"mask": jaxprune.get_mask(state["opt_state"])})
    with pytest.raises(ValueError, match="several masks: mask, opt_state/1/mask"):
        interop.read_orbax(tmp_path / "two")
    ocp.save(tmp_path / "text", {"params": {"name": "net"}})
    with pytest.raises(ValueError, match="its params are not all arrays"):
        interop.read_orbax(tmp_path / "text")
    for part in (tmp_path / "two").rglob("d/*"):
        part.unlink()
    with pytest.raises(ValueError, match="two cannot be read as a checkpoint"):
        interop.read_orbax(tmp_path / "two")
    shutil.rmtree(tmp_path / "text" / "state")
    with pytest.raises(ValueError, match="text cannot be read as a checkpoint"):
        interop.read_orbax(tmp_path / "text")
    monkeypatch.setitem(sys.modules, "orbax.checkpoint", None)
    with pytest.raises(ImportError, match=r"pip install 'jaxprune\[orbax\]'"):
        interop.read_orbax(tmp_path / "two")


@pytest.mark.slow
def test_the_commands_take_a_checkpoint(tmp_path, capsys):
    state, given, out = trained(), tmp_path / "run", tmp_path / "small"
    checkpoints = Checkpoints(given / "checkpoints", {})
    checkpoints.save(3, state)
    checkpoints.close()
    assert main(["inspect", str(given), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    mask = jaxprune.get_mask(state["opt_state"])
    dead = sum(int((~m).sum()) for m in jax.tree.leaves(mask))
    assert (told["weights"], told["alive"]) == (36, 36 - dead)
    assert dead == 16
    assert main(["compress", str(given / "checkpoints"), "--out", str(out)]) == 0
    check(jaxprune.load(out), state)
    shutil.rmtree(given / "checkpoints" / "3")
    assert main(["inspect", str(given)]) == 1
    assert "holds no checkpoint of Orbax" in capsys.readouterr().err
