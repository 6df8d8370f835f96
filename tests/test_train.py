"""The loop on devices: meshes, accumulation, transfers, signals, checkpoints."""

import contextlib
import dataclasses
import math
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import small_task
import toy
from scipy.special import log_softmax
from small_task import CONFIG, NETWORK

import jaxprune
from experiments import recipes
from experiments.config import Refused
from experiments.layout import leaf_sharding, make_layout, shardings
from experiments.program import make_program
from experiments.step import Diverged, State, first_state, make_step, read, sound
from experiments.stop import Stopped
from experiments.tasks import Examples, InFlight, Streamed


HERE = Path(__file__).parent
FILES = ("conv1", "fc2", "fc3")


def same_bits(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


# Layout


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "data=2,rows=2",
            "--mesh is 'data=2,rows=2', expected sizes of data and model",
        ),
        ("data=0", "--mesh is 'data=0', expected sizes"),
        ("8", "--mesh is '8', expected sizes"),
        ("data=5,model=2", "--mesh is 'data=5,model=2', 10 devices, and there are 8"),
    ],
)
def test_a_mesh_that_is_none_is_refused(text, message):
    with pytest.raises(Refused, match=message):
        make_layout(text)


def test_a_leaf_that_no_rule_covers_is_named():
    layout = make_layout("data=2,model=2")
    table = jax.ShapeDtypeStruct((4, 4), jnp.float32)
    with pytest.raises(ValueError, match="no rule says how head/table lies"):
        leaf_sharding(layout, "head/table", table)


def test_moments_and_masks_lie_as_their_params():
    tx = jaxprune.prune(optax.adam(1e-3), jaxprune.hold)
    state = jax.eval_shape(lambda k: first_state(NETWORK, tx, k), jax.random.key(0))
    lies = shardings(make_layout("data=4,model=2", fsdp=True), state.params, state)
    spec = lambda tree, name: tuple(tree[name]["kernel"].spec)
    # conv1 is 3x3x3x16, fc2 is 256x32, fc3 is 32x16.
    want = {"conv1": (None, None, None, "model"), "fc2": ("data", "model")}
    want["fc3"] = ("data", "model")
    moments = lies.opt_state.inner_state[0]
    for name, axes in want.items():
        assert spec(lies.params, name) == axes
        assert spec(lies.opt_state.mask, name) == axes
        assert spec(moments.mu, name) == spec(moments.nu, name) == axes
    assert tuple(lies.params["fc2"]["bias"].spec) == ("model",)
    assert tuple(lies.step.spec) == tuple(moments.count.spec) == ()


MESHES = [
    pytest.param("data=4,model=2", True, marks=pytest.mark.slow),
    *[
        pytest.param(mesh, fsdp, marks=pytest.mark.slow)
        for mesh in ("data=8", "data=4,model=2", "data=2,model=4", "model=8")
        for fsdp in (False, True)
        if (mesh, fsdp) != ("data=4,model=2", True)
    ],
]


def first_steps(mesh, fsdp, schedule):
    """Two steps, of which the first prunes, from the same params whatever the mesh."""
    layout = make_layout(mesh, fsdp)
    tx = jaxprune.prune(optax.sgd(0.1, momentum=0.9), schedule)
    plan = recipes.Plan(tx, 2, ((0, "round 1"),), 0, True)
    task = small_task.make_task(layout)
    program = make_program(CONFIG, NETWORK, plan, task.feed, layout)
    state = program.begin(None)
    states = []
    for step in range(2):
        state, _ = program.one(state, task.feed.arrays(step))
        host = jax.device_get((state.params, jaxprune.get_mask(state.opt_state)))
        states.append(host)
    task.feed.close()
    return states


def cut(scope):
    sparsity = jaxprune.to_sparsity(jaxprune.magnitude, 0.7, scope=scope)
    return jaxprune.once(0, sparsity)


@pytest.fixture(scope="module")
def alone():
    return first_steps("data=1", False, cut("global"))


@pytest.mark.parametrize(("mesh", "fsdp"), MESHES)
def test_masks_on_a_mesh_are_those_of_one_device(alone, mesh, fsdp):
    states = first_steps(mesh, fsdp, cut("global"))
    for (params, mask), (params_alone, mask_alone) in zip(states, alone, strict=True):
        same_bits(mask, mask_alone)
        for a, b in zip(
            jax.tree.leaves(params), jax.tree.leaves(params_alone), strict=True
        ):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    dead = [np.count_nonzero(~m) for m in jax.tree.leaves(alone[0][1])]
    assert sum(dead) == int(0.7 * (3 * 3 * 3 * 16 + 256 * 32 + 32 * 16))


@pytest.mark.slow
def test_a_global_threshold_gathers_no_weights():
    layout = make_layout("data=4,model=2", fsdp=True)
    params = {"fc": {"kernel": jax.ShapeDtypeStruct((512, 256), jnp.float32)}}
    mask = {"fc": {"kernel": jax.ShapeDtypeStruct((512, 256), jnp.bool_)}}
    lies = shardings(layout, params, params)
    select = cut("global")
    compiled = jax.jit(
        lambda p, m: select(p, m, jnp.int32(0), grads=p),
        in_shardings=(lies, lies),
        out_shardings=lies,
    ).lower(params, mask)
    text = str(compiled.compile().as_text())
    assert "all-reduce" in text
    assert "all-to-all" not in text
    # What is gathered are counts, two of each row, not weights.
    gathered = re.findall(r"\[([\d,]+)\]\S* all-gather\(", text)
    sizes = [math.prod(map(int, shape.split(","))) for shape in gathered]
    assert max(sizes, default=0) <= 2 * 512


# The step


def a_batch(n=16):
    draw = np.random.default_rng(0)
    inputs = jnp.asarray(draw.normal(size=(n, 8, 8, 3)), jnp.float32)
    labels = jnp.asarray(draw.integers(0, 16, n), jnp.int32)
    return inputs, labels


@pytest.mark.slow
@pytest.mark.parametrize("parts", [2, 4])
def test_an_accumulated_batch_is_the_batch(parts):
    config = dataclasses.replace(
        CONFIG, training=dataclasses.replace(CONFIG.training, dropout=0.0)
    )
    tx = jaxprune.prune(optax.sgd(0.1), jaxprune.hold)
    key = jax.random.key(0)
    state = first_state(NETWORK, tx, key)
    valid = jnp.arange(16) % 5 != 2
    batch = Examples(*a_batch(), valid)
    found = [
        jax.jit(make_step(config, NETWORK, tx, key, n))(state, batch)
        for n in (1, parts)
    ]
    for a, b in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-7)


def test_what_is_not_valid_counts_nowhere():
    config = dataclasses.replace(
        CONFIG, training=dataclasses.replace(CONFIG.training, dropout=0.0)
    )
    tx = jaxprune.prune(optax.sgd(0.1), jaxprune.hold)
    key = jax.random.key(0)
    state = first_state(NETWORK, tx, key)
    step = jax.jit(make_step(config, NETWORK, tx, key))
    inputs, labels = a_batch()
    valid = jnp.arange(16) < 10
    spoilt = inputs.at[10:].set(1e6)
    masked = step(state, Examples(spoilt, labels, valid))
    whole = step(state, Examples(inputs[:10], labels[:10]))
    assert int(masked.sums.images) == 10
    for a, b in zip(jax.tree.leaves(masked), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-7)


def test_the_first_five_are_those_of_numpy():
    logits, labels = np.random.default_rng(1).normal(size=(40, 16)), np.arange(40) % 16

    class Fixed:
        def apply(self, params, inputs, rates=None, key=None):
            return inputs.reshape(40, 16) + 0 * params["params"]["w"].sum()

    network = NETWORK._replace(module=Fixed(), rates={})
    tx = jaxprune.prune(optax.sgd(0.0), jaxprune.hold)
    params = {"w": jnp.ones((2, 2))}
    zero = jnp.zeros([], jnp.int32)
    sums = first_state(NETWORK, tx, jax.random.key(0)).sums
    state = State(zero, params, tx.init(params), sums, zero - 1)
    batch = Examples(jnp.asarray(logits, jnp.float32), jnp.asarray(labels, jnp.int32))
    after = make_step(CONFIG, network, tx, jax.random.key(0))(state, batch)
    ranked = np.argsort(-logits, axis=1)
    assert int(after.sums.wrong) == np.sum(ranked[:, 0] != labels)
    assert int(after.sums.wrong5) == np.sum(~(ranked[:, :5] == labels[:, None]).any(1))


class Logits:
    """Gives its inputs as logits, or what it draws, and depends on no weight."""

    def __init__(self, draws=False):
        self.draws = draws

    def apply(self, params, inputs, rates=None, key=None):
        drawn = jax.random.normal(key, inputs.shape) if self.draws else inputs
        return drawn + 0 * params["params"]["w"].sum()


def penalized(draws=False):
    """A step of sgd at a rate of 0 with three live weights, and its state."""
    training = dataclasses.replace(CONFIG.training, regularizer="l1", strength=0.1)
    config = dataclasses.replace(CONFIG, training=training)
    network = NETWORK._replace(module=Logits(draws), rates={})
    params = {"w": jnp.array([[1.0, -2.0], [0.0, 3.0]])}
    mask = {"w": params["w"] != 0}
    tx = jaxprune.prune(optax.sgd(0.0), jaxprune.hold, mask)
    key = jax.random.key(0)
    made = lambda parts: jax.jit(make_step(config, network, tx, key, parts))
    return made, first_state(network, tx, key, params)


def test_a_line_of_the_log_is_numpys():
    made, state = penalized()
    step = made(1)
    draw = np.random.default_rng(0)
    logits = draw.normal(size=(2, 12, 16)).astype(np.float32)
    labels = draw.integers(0, 16, (2, 12))
    batches = [
        Examples(jnp.asarray(a), jnp.asarray(b))
        for a, b in zip(logits, labels, strict=True)
    ]
    state = step(step(state, batches[0]), batches[1])
    assert sound(state, None) is state
    state, line = read(state, top5=True)
    losses = -np.take_along_axis(log_softmax(logits, -1), labels[..., None], -1)
    rank = np.argsort(np.argsort(-logits), axis=-1)
    rank = np.take_along_axis(rank, labels[..., None], -1)
    assert line == pytest.approx(
        {
            "loss": losses.mean() + 0.1 * 6,
            "train_error": 100 * np.mean(rank > 0),
            "train_top5_error": 100 * np.mean(rank > 4),
            "sparsity": 0.25,
        }
    )
    assert not any(np.any(total) for total in state.sums)
    for _ in range(2):  # the first is named
        state = step(state, Examples(jnp.full((12, 16), jnp.nan), batches[0].labels))
    with pytest.raises(Diverged, match=r"not finite at step 2 .*no checkpoint was"):
        sound(state, 0)
    state = state._replace(bad=jnp.int32(-1), params={"w": jnp.array([np.inf])})
    with pytest.raises(Diverged, match=r"not finite after step 3 .*is of step 2\."):
        sound(state, 2)


def test_a_run_that_diverges_at_once_names_step_0():
    made, state = penalized()
    step = made(1)
    for _ in range(2):
        state = step(state, Examples(jnp.full((2, 16), jnp.inf), jnp.array([3, 5])))
    with pytest.raises(Diverged, match="not finite at step 0 "):
        sound(state, None)


def test_each_step_and_each_part_draws_anew():
    made, state = penalized(draws=True)
    step = made(32)  # of one image each, which has the first of two classes
    batch = Examples(jnp.zeros((32, 2)), jnp.zeros(32, jnp.int32))
    first = step(state, batch)
    second = step(first, batch)
    assert 8 < int(first.sums.wrong) < 24
    assert 0.6 < float(first.sums.loss) < 3  # 0.6 is the penalty
    assert abs(float(second.sums.loss - 2 * first.sums.loss)) > 1e-3


# Transfers


class Watch:
    """Counts what crosses between host and device while it is on."""

    def __init__(self, monkeypatch):
        self.count, self.on = Counter(), False
        array = type(jnp.zeros(()))
        value = array._value

        def fetch(x):
            self.note("fetches")
            return value.fget(x)

        monkeypatch.setattr(array, "_value", property(fetch))
        for name in ("asarray", "array"):  # which read the buffer of an array on a CPU
            monkeypatch.setattr(np, name, self.reading(getattr(np, name), array))
        for name in ("device_get", "device_put", "make_array_from_process_local_data"):
            monkeypatch.setattr(jax, name, self.counting(name, getattr(jax, name)))

    def note(self, what):
        if self.on:
            self.count[what] += 1

    def reading(self, function, array):
        def call(x, *args, **kwargs):
            if isinstance(x, array):
                self.note("fetches")
            return function(x, *args, **kwargs)

        return call

    def counting(self, name, function):
        def call(*args, **kwargs):
            self.note(name)
            return function(*args, **kwargs)

        return call


def test_the_watch_sees_a_fetch_and_a_put(monkeypatch):
    watch = Watch(monkeypatch)
    x = jnp.arange(3.0)
    watch.on = True
    float(x[0] + 1)
    np.asarray(x * 2)
    jax.device_put(np.ones(3))
    watch.on = False
    assert watch.count["fetches"] >= 2
    assert watch.count["device_put"] == 1


@pytest.mark.slow
def test_between_two_lines_of_the_log_only_batches_cross(tmp_path, monkeypatch):
    watch = Watch(monkeypatch)
    arrays = Streamed.arrays

    def watched(feed, step):
        watch.on = 10 <= step < 20
        guard = "disallow" if watch.on else "allow"
        jax.config.update("jax_transfer_guard_host_to_device", guard)
        return arrays(feed, step)

    monkeypatch.setattr(Streamed, "arrays", watched)
    run = dataclasses.replace(CONFIG.run, log_every=1000, checkpoint_every=1000)
    config = dataclasses.replace(CONFIG, run=run)
    try:
        small_task.fit(tmp_path, "data=4,model=2", config)
    finally:
        jax.config.update("jax_transfer_guard_host_to_device", "allow")
    # Image, label and valid of ten batches.
    assert watch.count == {"make_array_from_process_local_data": 30}


@pytest.mark.slow
def test_the_compiled_step_calls_nothing_on_the_host():
    layout = make_layout("data=2,model=2")
    task = small_task.make_task(layout)
    plan = recipes.plan(CONFIG, NETWORK, task.feed.steps_per_epoch, True)
    program = make_program(CONFIG, NETWORK, plan, task.feed, layout)
    step = program.one.lower(program.begin(None), task.feed.arrays(0))
    task.feed.close()
    text = step.compile().as_text()
    for word in ("callback", "infeed", "outfeed", "send(", "recv("):
        assert word not in text
    # Every array of the state is written in place.
    assert text.count("may-alias") + text.count("must-alias") >= 15


def test_a_penalty_makes_a_step_copy_no_mask():
    config = dataclasses.replace(
        CONFIG, training=dataclasses.replace(CONFIG.training, dropout=0.0)
    )
    sparsity = jaxprune.to_sparsity(jaxprune.magnitude, 0.7, scope="global")
    tx = jaxprune.prune(optax.sgd(0.1), jaxprune.every(100, sparsity))
    key = jax.random.key(0)
    state = jax.eval_shape(lambda key: first_state(NETWORK, tx, key), key)
    step = jax.jit(make_step(config, NETWORK, tx, key), donate_argnums=0)
    program = step.lower(state, Examples(*a_batch())).compile()
    _, text = str(program.as_text()).split("ENTRY")  # what runs at every step
    assert re.search(r"pred\[256,32\]", text)
    assert not re.findall(r"pred\[256,32\]\S* copy\(", text)


def test_the_host_runs_a_few_steps_ahead_at_most(monkeypatch):
    waited = []
    monkeypatch.setattr(jax, "block_until_ready", waited.append)
    in_flight = InFlight(2)
    for tick in "abcd":
        in_flight.add(tick)
    assert waited == ["a", "b"]


# Signals and checkpoints


def stop_at(monkeypatch, step):
    """Sends SIGTERM to this process while the batch of a step is read."""
    arrays = Streamed.arrays

    def stopping(feed, at):
        if at == step:
            signal.raise_signal(signal.SIGTERM)
        return arrays(feed, at)

    monkeypatch.setattr(Streamed, "arrays", stopping)


@pytest.mark.slow
def test_sigterm_saves_and_the_run_goes_on_to_the_same_bits(tmp_path, monkeypatch):
    rounds = []
    note = lambda name, params, mask, errors: rounds.append(name)
    whole = small_task.fit(tmp_path / "whole", "data=2", round_done=note)
    with monkeypatch.context() as patch:
        stop_at(patch, 13)
        with pytest.raises(Stopped) as stopped:
            small_task.fit(tmp_path / "stopped", "data=2", round_done=note)
    assert stopped.value.step == 14
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    resumed = small_task.fit(tmp_path / "stopped", "data=2", round_done=note)
    same_bits((whole.params, whole.mask), (resumed.params, resumed.mask))
    assert rounds == ["dense", "round 1", "dense", "round 1"]


@pytest.mark.slow
@pytest.mark.parametrize("signalled", [True, False])
def test_what_is_made_is_saved_when_the_data_fails(tmp_path, monkeypatch, signalled):
    """As when a signal ended the workers too, or too many photographs are broken."""
    arrays = Streamed.arrays

    def failing(feed, at):
        if at == 13:
            if signalled:
                signal.raise_signal(signal.SIGTERM)
            raise RuntimeError("a worker ended") if signalled else Refused("broken.")
        return arrays(feed, at)

    whole = small_task.fit(tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(Streamed, "arrays", failing)
        with pytest.raises((Stopped, Refused)) as ended:
            small_task.fit(tmp_path / "run")
    told = "stopped at step 13" if signalled else "broken. --resume goes on."
    assert str(ended.value) == told
    resumed = small_task.fit(tmp_path / "run")
    same_bits((whole.params, whole.mask), (resumed.params, resumed.mask))


@pytest.mark.slow
def test_a_run_does_not_go_on_with_other_data(tmp_path, monkeypatch):
    stop_at(monkeypatch, 2)
    with pytest.raises(Stopped):
        small_task.fit(tmp_path)
    made = small_task.make_task
    grown = lambda *args: made(*args)._replace(trained_on="65 drawn images")
    monkeypatch.setattr(small_task, "make_task", grown)
    was, now = (f"{n} drawn images, judged on 64 drawn images" for n in (64, 65))
    with pytest.raises(Refused, match=f"the data was {was} and is now {now}"):
        small_task.fit(tmp_path)


def test_broken_photographs_are_counted_by_the_judge():
    task = small_task.make_task(make_layout())
    errors = task.judge(toy.drawn(NETWORK.module, jnp.zeros((1, *NETWORK.input))))
    assert errors["broken"] == 7  # of 64, each ninth


@pytest.mark.slow
def test_a_run_goes_on_on_another_mesh(tmp_path, monkeypatch):
    whole = small_task.fit(tmp_path / "whole", "data=8")
    with monkeypatch.context() as patch:
        stop_at(patch, 13)
        with pytest.raises(Stopped):
            small_task.fit(tmp_path / "moved", "data=8")
    moved = small_task.fit(tmp_path / "moved", "data=2,model=4", fsdp=True)
    same_bits(whole.mask, moved.mask)
    for a, b in zip(
        jax.tree.leaves(whole.params), jax.tree.leaves(moved.params), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_a_checkpoint_is_written_when_the_time_is_up(tmp_path):
    run = dataclasses.replace(
        CONFIG.run, checkpoint_every=1000, checkpoint_minutes=1e-9, log_every=4
    )
    config = dataclasses.replace(CONFIG, run=run)
    small_task.fit(tmp_path, "data=1", config)
    steps = sorted(int(p.name) for p in (tmp_path / "checkpoints").iterdir())
    assert steps == [31, 32]


# Processes


def launch(folder, *told):
    """Starts two processes, each told by flags and by variables which it is."""
    env = {
        **os.environ,
        "PYTHONPATH": f"{HERE.parent}{os.pathsep}{HERE}",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        "JAX_PLATFORMS": "cpu",
    }
    return [
        subprocess.Popen(
            [sys.executable, str(HERE / "small_task.py"), str(folder), "data=2,model=2",
             *flags],
            env=env | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for flags, variables in told
    ]  # fmt: skip


def by_flags():
    port = free_port(range(1))
    return [([f"127.0.0.1:{port}", "2", str(process)], {}) for process in range(2)]


def by_slurm():
    """What Slurm tells the tasks of `srun --ntasks=2`, as far as JAX asks."""
    # JAX's port follows from the number of the job.
    port = free_port(range(61440, 65536))
    common = {
        "SLURM_JOB_ID": str(port - 61440),
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NTASKS": "2",
    }
    return [
        ([], common | {"SLURM_PROCID": str(task), "SLURM_LOCALID": str(task)})
        for task in range(2)
    ]


def free_port(ports):
    """Finds a port nobody listens at; 0 stands for any."""
    for port in ports:
        with contextlib.suppress(OSError), socket.socket() as found:
            found.bind(("127.0.0.1", port))
            return found.getsockname()[1]
    raise AssertionError("no port is free")


def ended(processes):
    for process in processes:
        out, _ = process.communicate(timeout=300)
        assert process.returncode == 0, out


@pytest.mark.slow
def test_two_processes_prune_as_one_and_survive_a_kill(tmp_path):
    ended(launch(tmp_path / "two", *by_slurm()))
    two = np.load(tmp_path / "two" / "fitted.npz")
    one = small_task.fit(tmp_path / "one", "data=1")
    judge = small_task.make_task(make_layout()).judge
    assert two["dense_error"] == pytest.approx(judge(one.dense_params)["error"])
    assert two["error"] == pytest.approx(judge(one.params)["error"], abs=4)
    for name in FILES:
        assert np.array_equal(two[f"m/{name}/kernel"], one.mask[name]["kernel"])
        np.testing.assert_allclose(
            two[f"p/{name}/kernel"], one.params[name]["kernel"], rtol=1e-3, atol=1e-5
        )

    killed = tmp_path / "killed"
    processes = launch(killed, *by_flags())
    deadline = time.monotonic() + 240
    while not (killed / "checkpoints" / "8").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    processes[1].kill()
    time.sleep(1)
    for process in processes:
        process.kill()
        process.communicate()
    assert not (killed / "fitted.npz").exists()
    ended(launch(killed, *by_flags()))
    again = np.load(killed / "fitted.npz")
    for name, array in two.items():
        assert array.tobytes() == again[name].tobytes(), name
