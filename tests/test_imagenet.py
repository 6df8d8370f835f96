"""VGG-16 and AlexNet: command line, recipes in turns, rounds, dry run, photographs."""

import csv
import dataclasses
import itertools
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toy
from quick import quick
from safetensors.numpy import load_file
from small_task import CONFIG, NETWORK

import jaxprune
from experiments import (
    alexnet_prune,
    dry_run,
    image_tasks,
    imagenet,
    processes,
    recipes,
    rounds,
    vgg16_prune,
)
from experiments.config import Devices, Refused
from experiments.flags import qualities
from experiments.models import ALEXNET, VGG16_CAFFE
from experiments.optimizers import first_phase, in_turn, optimizer
from experiments.plan import steps_of


ROOT = Path(__file__).parent.parent
PROGRAMS = {"alexnet_prune": alexnet_prune, "vgg16_prune": vgg16_prune}


def replaced(config, **groups):
    """Replaces settings: `replaced(config, pruning={"rounds": 2})`."""
    new = {k: dataclasses.replace(getattr(config, k), **v) for k, v in groups.items()}
    return dataclasses.replace(config, **new)


# Command line


@pytest.mark.parametrize("name", PROGRAMS)
def test_help_names_every_flag_and_what_is_ours(name, capsys):
    with pytest.raises(SystemExit) as stopped:
        PROGRAMS[name].main(["--help"])
    assert stopped.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    config = PROGRAMS[name].CONFIG
    for group in dataclasses.fields(config):
        if group.name == "network":
            continue
        for field in dataclasses.fields(getattr(config, group.name)):
            assert f"--{field.name.replace('_', '-')} " in text
    assert "ours are the" in text
    assert f"usage: python -m experiments.{name} [-h]" in text


def test_the_data_set_chooses_the_defaults(capsys):
    chosen = lambda *flags: imagenet._chosen(vgg16_prune.PRESETS, list(flags))
    assert chosen() == "caffe"
    assert chosen("--lr", "0.1", "--convention", "torchvision") == "torchvision"
    assert chosen("--dataset", "cifar10", "--rounds", "2") == "cifar10"
    assert chosen("--dataset", "imagenette", "--resume") == "caffe"
    with pytest.raises(SystemExit):
        vgg16_prune.main(["--dataset", "cifar10", "--help"])
    assert "(default: cifar10)" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("", "VGG-16 does not train from scratch on inputs of --convention caffe"),
        ("--process 1", "--coordinator, --processes and --process belong together"),
        (
            "--coordinator a:1 --processes 2 --process 2",
            "--process is 2, expected 0 to 1",
        ),
        ("--mesh data=3 --batch 16", "--batch is 16, expected a multiple of 3"),
        ("--accumulate 0", "--batch is 256, expected a multiple of 0"),
        ("--mesh rows=3", "--mesh is 'rows=3', expected sizes of data and model"),
        ("--data-dir nowhere", "ILSVRC2012_img_train.tar"),
        ("--data-dir nowhere --dataset cifar10", "CIFAR-10 is not in nowhere"),
    ],
)
def test_what_cannot_run_is_told_and_leaves_nothing(flags, message, tmp_path, capsys):
    out = tmp_path / "run"
    if flags:
        flags += " --convention torchvision"
    assert vgg16_prune.main([*flags.split(), "--out", str(out)]) == 1
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_the_environment_tells_of_several_hosts(monkeypatch):
    hosts = ("TPU_WORKER_HOSTNAMES", "OMPI_COMM_WORLD_SIZE")
    for name in (*hosts, "SLURM_NTASKS", "SLURM_STEP_NODELIST"):
        monkeypatch.delenv(name, raising=False)
    started = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *a: started.append(a))
    processes.start_processes(Devices())
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "localhost")
    processes.start_processes(Devices())
    assert started == []
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "a,b")
    processes.start_processes(Devices())
    assert started == [()]
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "")
    monkeypatch.setenv("SLURM_NTASKS", "4")
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "")
    processes.start_processes(Devices())  # in an allocation, without srun
    assert started == [()]
    monkeypatch.setenv("SLURM_STEP_NODELIST", "a,b")
    processes.start_processes(Devices())
    assert started == [(), ()]
    processes.start_processes(Devices(coordinator="a:1", processes=2, process=1))
    assert started[-1] == ("a:1", 2, 1)


def test_where_the_environment_does_not_tell_what_jax_asks_is_said(monkeypatch, capsys):
    def failing():
        raise ValueError("coordinator_address should be defined")

    monkeypatch.setattr(jax.distributed, "initialize", failing)
    assert vgg16_prune.main(["--weights", "none", "--coordinator", "auto"]) == 1
    assert "give --coordinator, --processes and --process" in capsys.readouterr().err


# Recipes


@pytest.mark.parametrize(
    "network", quick([ALEXNET, VGG16_CAFFE], ALEXNET), ids=lambda n: n.name
)
def test_default_qualities_keep_what_the_paper_keeps(network):
    """Of weights drawn from the spread that they are made for."""
    draw = np.random.default_rng(0)
    quality = qualities(imagenet.spread_quality(network.kept))
    assert set(quality) == set(network.kept)
    params = {
        path.split("/")[0]: {"kernel": draw.laplace(0, 0.01, (400, 500))}
        for path in network.kept
    }
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
    mask = jaxprune.prune_now(params, jaxprune.by_std(quality))[1]
    for path, percent in network.kept.items():
        kept = 100 * float(jnp.mean(mask[path.split("/")[0]]["kernel"]))
        assert abs(kept - percent) < 0.5, path


def test_in_turn_moves_what_is_not_frozen_only():
    params = {"conv": {"kernel": jnp.ones(3), "bias": jnp.ones(2)}}
    params["fc"] = {"kernel": jnp.ones(4)}
    params["fc1"] = {"kernel": jnp.ones(4)}  # a name that begins like another's
    inner = optax.with_extra_args_support(optax.adam(0.1))
    tx = in_turn(inner, [(1, ["fc/kernel", "fc1/kernel"]), (3, ["conv/kernel"])])
    state, moved = tx.init(params), []
    update = jax.jit(tx.update)
    for _ in range(5):
        updates, state = update(jax.tree.map(jnp.ones_like, params), state, params)
        moved.append({k: bool(jnp.any(v["kernel"] != 0)) for k, v in updates.items()})
        assert bool(jnp.any(updates["conv"]["bias"] != 0)) == moved[-1]["conv"]
    all_move = {"conv": True, "fc": True, "fc1": True}
    conv_moves = {"conv": True, "fc": False, "fc1": False}
    assert moved[:3] == [all_move, conv_moves, conv_moves]
    assert moved[3:] == [{k: not v for k, v in conv_moves.items()}] * 2


def masks_by_step(config, epoch, given=False):
    """Runs a plan on params of the small network that never move."""
    plan = recipes.plan(config, NETWORK, epoch, given)
    images = jnp.zeros((1, *NETWORK.input))
    params = toy.drawn(NETWORK.module, images)
    state, kept = plan.tx.init(params), []
    update = jax.jit(plan.tx.update)
    for _ in range(plan.steps):
        updates, state = update(jax.tree.map(jnp.zeros_like, params), state, params)
        params = optax.apply_updates(params, updates)
        mask = jaxprune.get_mask(state)
        kept.append({k: float(jnp.mean(v["kernel"])) for k, v in mask.items()})
    return plan, kept


@pytest.mark.slow
def test_turns_prune_convolutions_then_dense_layers():
    config = replaced(
        CONFIG,
        training={"dense_epochs": 1, "lr": 1e-6},
        pruning={"rounds": 2, "retrain_epochs": 1, "freeze": "turns"},
    )
    plan, kept = masks_by_step(config, epoch=2)
    names = ["dense", "round 1 conv", "round 1 fc", "round 2 conv", "round 2 fc"]
    assert plan.phases == tuple(zip((0, 2, 4, 6, 8), names, strict=True))
    assert plan.ends == dict(zip((2, 4, 6, 8, 10), names, strict=True))
    changed = [
        {k for k in kept[0] if now[k] != before[k]}
        for before, now in itertools.pairwise(kept)
    ]
    conv, fc = {"conv1"}, {"fc2", "fc3"}
    assert changed == [set(), conv, set(), fc, set(), conv, set(), fc, set()]


def test_given_weights_are_pruned_at_once():
    config = replaced(CONFIG, pruning={"freeze": "turns", "retrain_epochs": 1})
    plan, kept = masks_by_step(config, epoch=2, given=True)
    assert plan.phases == ((0, "round 1 conv"), (2, "round 1 fc"))
    assert plan.ends == {0: "dense", 2: "round 1 conv", 4: "round 1 fc"}
    assert kept[0]["conv1"] < 1 == kept[0]["fc2"]


@pytest.mark.slow
def test_rewinding_prunes_geometrically_and_replays_the_learning_rate():
    config = replaced(
        CONFIG,
        training={"dense_epochs": 5, "warmup": 1, "lr": 0.5},
        pruning={"recipe": "rewind", "rounds": 3, "retrain_epochs": 2, "target": 8},
    )
    _, kept = masks_by_step(config, epoch=4)
    weights = {"conv1": 432, "fc2": 8192, "fc3": 512}
    alive = [sum(weights[k] * row[k] for k in weights) for row in kept]
    # 9,136 weights and 64 biases; 1,150 parameters are left of 9,200, so 1,086 weights.
    left = [9136 * (1086 / 9136) ** (r / 3) for r in (1, 2, 3)]
    assert alive[19] == 9136
    for begin, want in zip((20, 28, 36), left, strict=True):
        assert alive[begin] == alive[begin + 7] == pytest.approx(want, abs=1)
    dense = optax.warmup_cosine_decay_schedule(0.0, 0.5, 4, 20)
    lr = recipes._then(config.training, 20, 4, [20, 28, 36], lambda u: dense(12 + u))
    found = [float(lr(step)) for step in range(44)]
    # Steps 12 to 19 of dense training three times more.
    assert found[20:] == pytest.approx(found[12:20] * 3)
    assert found[12] > found[19] > 0
    too_long = replaced(config, pruning={"retrain_epochs": 6})
    with pytest.raises(Refused, match="--retrain-epochs is 6, expected at most the 5"):
        recipes.plan(too_long, NETWORK, 4)


def test_gradual_pruning_is_the_cubic():
    config = replaced(
        CONFIG,
        training={"lr": 1e-9},
        pruning={
            "recipe": "gradual",
            "target": 8,
            "epochs": 2,
            "period": 3,
            "ramp": (0.25, 0.75),
        },
    )
    plan = recipes.plan(config, NETWORK, epoch=10)
    assert plan.phases == ((0, "dense"), (6, "pruning"), (15, "retraining"))
    assert (plan.steps, plan.dense_step, plan.dense_is_trained) == (20, 6, False)
    assert plan.ends == {6: "dense", 15: "pruning", 20: "retraining"}
    w = {"fc": {"kernel": jax.random.normal(jax.random.key(0), (40, 50))}}
    state, update, dead = plan.tx.init(w), jax.jit(plan.tx.update), []
    for _ in range(plan.steps):
        _, state = update(jax.tree.map(jnp.zeros_like, w), state, w)
        dead.append(2000 * float(jaxprune.sparsity(jaxprune.get_mask(state))))
    # 9,136 weights and 64 biases; 1,150 parameters are left of 9,200.
    most = 2000 * (1 - 1086 / 9136)
    for step, left in ((6, 1), (9, 2 / 3), (12, 1 / 3), (15, 0)):
        assert dead[step] == pytest.approx(most * (1 - left**3), abs=1)
        assert dead[min(step + 4, 19)] == dead[min(step + 3, 19)]
        assert dead[step + 2] == dead[step]
    begun = replaced(config, pruning={"ramp": (0.0, 0.45)})
    assert recipes.plan(begun, NETWORK, epoch=10).phases[0] == (0, "pruning")


def test_rates_and_momentum_by_hand():
    training = dataclasses.replace(CONFIG.training, lr=0.5, warmup=1)
    rate = first_phase(training, 12, 4)
    found = [float(rate(step)) for step in range(13)]
    assert found[:5] == pytest.approx([0, 0.125, 0.25, 0.375, 0.5])
    falls = [0.25 * (1 + math.cos(math.pi * i / 8)) for i in range(9)]
    assert found[4:] == pytest.approx(falls, abs=1e-7)
    # A phase shorter than twice the warm-up rises in its first half.
    assert float(first_phase(training, 6, 4)(3)) == 0.5
    plain = dataclasses.replace(training, warmup=0)
    assert float(first_phase(plain, 6, 4)(0)) == 0.5
    tx, w = optimizer(training, lambda step: 0.5), jnp.zeros(1)
    state, moves = tx.init(w), []
    for _ in range(3):
        update, state = tx.update(jnp.ones(1), state, w)
        moves.append(float(update[0]))
    assert moves == pytest.approx([-0.5, -0.5 * 1.9, -0.5 * 2.71])
    assert [steps_of("epochs", epochs, 10) for epochs in (0.26, 0.01, 2)] == [3, 1, 20]


def test_a_round_leaves_its_row_and_a_repeated_one_replaces_it(tmp_path, capsys):
    params = toy.drawn(NETWORK.module, jnp.zeros((1, *NETWORK.input)))
    mask = jaxprune.dense_mask(params)
    # A quarter of fc2, whose other units fc3 does not read.
    mask["fc2"]["kernel"] = jnp.broadcast_to(jnp.arange(32) < 8, (256, 32))
    mask["fc3"]["kernel"] = jnp.broadcast_to(jnp.arange(32)[:, None] < 8, (32, 16))
    params = jaxprune.apply_mask(params, mask)
    done = rounds.make_round_done(NETWORK, tmp_path)
    done("round 1 conv", params, mask, {"error": 50.0, "top5_error": 20.0})
    done("round 1 fc", params, mask, {"error": 40.0, "broken": 3})
    done("round 1 fc", params, mask, {"error": 30.0})
    with (tmp_path / "rounds.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["round"] for row in rows] == ["round 1 conv", "round 1 fc"]
    assert [row["top5_error"] for row in rows] == ["20.0", ""]
    assert float(rows[1]["error"]) == 30
    alive = 432 + 2048 + 128
    assert int(rows[1]["alive_weights"]) == alive
    assert float(rows[1]["compression_weights"]) == pytest.approx(9136 / alive)
    assert float(rows[1]["compression_params"]) == pytest.approx(9200 / (alive + 64))
    # The convolution is computed at 4 x 4 places.
    kept = 100 * (16 * 432 + 2048 + 128) / (16 * 432 + 8192 + 512)
    assert float(rows[1]["flop_kept_percent"]) == pytest.approx(kept, rel=0.05)
    read = load_file(tmp_path / "round-1-fc.safetensors")
    np.testing.assert_array_equal(read["fc2/kernel"], params["fc2"]["kernel"])
    out = capsys.readouterr().out
    assert "round 1 conv: error 50.00%, top-5 20.00%; 3.5x fewer weights" in out
    assert "round 1 fc: error 40.00%, 3 broken images left out; 3.5x" in out


# Photographs


def tfds() -> str:
    folder = os.environ.get("JAXPRUNE_DATA")
    if not folder:
        pytest.skip("JAXPRUNE_DATA does not name the folder that holds tfds/")
    return str(Path(folder) / "tfds")


SPLITS = ["--train-split", "validation[:800]", "--eval-split", "validation[800:816]"]
SMALL = [*SPLITS, *"--batch 8 --crop 67 --resize 72 --log-every 1".split()]


@pytest.mark.data
@pytest.mark.parametrize(
    ("program", "convention", "parameters"),
    [  # as published: Caffe's bvlc_reference and VGG_ILSVRC_16_layers, torchvision's
        (alexnet_prune, "caffe", 60_965_224),
        (alexnet_prune, "torchvision", 61_100_840),
        (vgg16_prune, "caffe", 138_357_544),
        (vgg16_prune, "torchvision", 138_357_544),
    ],
)
def test_by_default_published_weights_fit(program, convention, parameters):
    preset = program.PRESETS[convention]
    images = {"data_dir": Path(tfds()), "convention": convention}
    images |= {"train_split": "validation", "eval_split": "validation"}
    layout = imagenet.make_layout("data=1")
    config = replaced(preset.config, data=images)
    network, _, _ = image_tasks.photographs(config, preset.network, layout)
    params = jax.eval_shape(
        network.module.init, jax.random.key(0), jnp.zeros((1, *network.input))
    )["params"]
    assert sum(math.prod(p.shape) for p in jax.tree.leaves(params)) == parameters


@pytest.mark.slow
@pytest.mark.data
def test_a_dry_run_tells_and_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    flags = [*SMALL, "--data-dir", tfds(), "--dry-run", "--mesh", "data=1"]
    assert alexnet_prune.main(flags) == 0
    text = capsys.readouterr().out
    for words in ("fc6/kernel", "GiB", "steps, round 5 fc", "images/s", "16 images of"):
        assert words in text
    # 100 steps an epoch; 90 epochs dense, five rounds of two turns of 10.
    assert "19,000" in text
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("at_once", [1, 2, 16, 96])
def test_a_batch_is_timed_beyond_the_first_wave(at_once, monkeypatch):
    """Batches come in waves, every 3 s; a first one took 60 s more to start."""
    clock = [0.0]

    class Waves:
        def __init__(self):
            self.at_once = at_once

        def arrays(self, step):
            clock[0] += 60 * (step == 0) + 3 * (step % at_once == 0)
            return step

    monkeypatch.setattr(dry_run.time, "perf_counter", lambda: clock[0])
    assert dry_run.time_batches(Waves())[1] == pytest.approx(3 / at_once)


PHASES = {
    "alexnet_prune": "--rounds 1 --dense-epochs 0.03 --retrain-epochs 0.02",
    "vgg16_prune": "--recipe gradual --epochs 0.06 --period 1 --ramp 0.2 0.7",
}


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.parametrize("name", PROGRAMS)
def test_on_photographs_killed_and_resumed(name, tmp_path):
    """Each program goes through all its phases; one is killed and goes on."""
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    flags = [*SMALL, *PHASES[name].split(), "--data-dir", tfds(), "--mesh", "data=1"]
    flags += ["--checkpoint-every", "2"]
    if name == "vgg16_prune":
        flags += "--crop 48 --resize 48 --target 4".split()
        flags += "--convention torchvision".split()
    command = [sys.executable, "-m", f"experiments.{name}", *flags, "--out"]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": ""}
    quiet = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}

    process = subprocess.Popen([*command, str(killed)], cwd=ROOT, env=env, **quiet)
    deadline = time.monotonic() + 600
    while not (killed / "checkpoints" / "2").exists():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (killed / "result.json").exists()
    for more in ([str(killed), "--resume"], [str(whole)]):
        done = subprocess.run([*command, *more], cwd=ROOT, env=env, **quiet)
        assert done.returncode == 0, done.stdout

    for file in ("dense.safetensors", "pruned.safetensors"):
        a, b = load_file(killed / file), load_file(whole / file)
        assert a.keys() == b.keys()
        for leaf in a:
            assert a[leaf].tobytes() == b[leaf].tobytes(), (file, leaf)
    result = json.loads((whole / "result.json").read_text())
    assert result["judged_on"] == "16 images of validation[800:816]"
    assert 0 <= result["top5_error"] <= result["error"] <= 100
    with (killed / "rounds.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows == list(csv.DictReader((whole / "rounds.csv").open(newline="")))
    assert len({row["round"] for row in rows}) == len(rows) == 3
    alive = [int(row["alive_weights"]) for row in rows]
    assert alive == sorted(alive, reverse=True)
    assert alive[-1] == result["alive_weights"] < result["weights"]
    if name == "vgg16_prune":
        assert result["compression_params"] == pytest.approx(4, rel=1e-6)
