"""The recipe best: its scores, its loss, its stages, and a run on digits."""

import csv
import dataclasses
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from safetensors.numpy import load_file
from scipy.special import log_softmax, softmax

import jaxprune
from experiments import (
    alexnet_prune,
    best,
    data,
    lenet300_prune,
    recipes,
    records,
    train,
)
from experiments.config import Best, Data, Refused, Training
from experiments.flags import parse
from experiments.losses import cross_entropy, distilled
from experiments.models import ALEXNET, LENET5, LENET300
from experiments.scores import fisher, spared, with_mean_square
from experiments.tasks import Resident


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


# Scores


@pytest.mark.slow
def test_fisher_prunes_what_numpy_finds_least():
    w = normal(20, 30)
    params = {"fc": {"kernel": jnp.asarray(w), "bias": jnp.zeros(30)}}
    cut = jaxprune.to_sparsity(fisher, 0.4)
    # A learning rate of 0: the weights stay what NumPy has.
    tx = with_mean_square(jaxprune.prune(optax.adam(0.0), jaxprune.once(6, cut)))
    state = tx.init(params)
    scores = mean_square = np.zeros_like(w)
    for step in range(7):
        # What is pruned at a step is scored by the gradients before it.
        live = np.asarray(jaxprune.get_mask(state)["fc"]["kernel"])
        assert live.all()
        scores = np.abs(w) * np.sqrt(mean_square)
        g = normal(20, 30, seed=step + 1) * np.arange(1, 31, dtype=np.float32)
        grads = {"fc": {"kernel": jnp.asarray(g), "bias": jnp.zeros(30)}}
        _, state = tx.update(grads, state, params)
        mean_square = 0.999 * mean_square + 0.001 * g**2
    mask = np.asarray(jaxprune.get_mask(state)["fc"]["kernel"])
    assert np.array_equal(mask, scores > np.sort(scores.ravel())[240 - 1])
    assert not np.array_equal(mask, np.abs(w) > np.sort(np.abs(w).ravel())[240 - 1])


def test_factors_are_those_of_the_first_match():
    params = {"a": {"kernel": jnp.ones((1, 2)), "bias": jnp.ones(2)}}
    params |= {"b": {"kernel": jnp.ones((1, 2))}, "c": {"kernel": jnp.ones((1, 2))}}
    mask = jaxprune.dense_mask(params)
    criterion = spared(jaxprune.magnitude, {"a/*": 3.0, "a/kernel": 5.0, "b/*": 0.5})
    scores = criterion(params, mask, jnp.int32(0))
    assert scores["a"]["bias"] is None
    found = [float(scores[name]["kernel"][0, 1]) for name in "abc"]
    assert found == [3, 0.5, 1]
    with pytest.raises(ValueError, match=r"--spare has \['conv\*'\], which match no"):
        spared(jaxprune.magnitude, {"conv*": 2.0})(params, mask, jnp.int32(0))


# Loss


@pytest.mark.parametrize(("share", "temperature"), [(0.3, 4.0), (1.0, 1.0), (0, 2.0)])
def test_the_loss_is_that_of_scipy(share, temperature):
    logits, soft = 3 * normal(8, 10), 5 * normal(8, 10, seed=1)
    labels = np.arange(8)
    hard = -log_softmax(logits, -1)[labels, labels]
    cold = log_softmax(logits / temperature, -1)
    agreement = -np.sum(softmax(soft / temperature, -1) * cold, -1)
    expected = (1 - share) * hard + share * temperature**2 * agreement
    loss = distilled(share, temperature)(logits, labels, soft)
    np.testing.assert_allclose(loss, expected, rtol=2e-5)
    np.testing.assert_allclose(cross_entropy(logits, labels, soft), hard, rtol=2e-5)


@pytest.mark.slow
def test_soft_labels_follow_their_digits():
    digits = data.load(Data()).train
    soft = np.eye(10, dtype=np.float32)[digits.labels]
    feed = Resident(digits, 64, jax.random.key(3), soft=soft)
    batch = feed.batch(feed.arrays(70), jnp.int32(70))
    assert np.array_equal(np.argmax(batch.soft, -1), batch.labels)
    assert len(np.unique(batch.labels)) > 5


# Stages


def settings(**best):
    pruning = dataclasses.replace(
        lenet300_prune.CONFIG.pruning, recipe="best", period=2
    )
    return dataclasses.replace(
        lenet300_prune.CONFIG,
        training=Training(lr=1e-9),
        pruning=pruning,
        best=Best(
            **{"stage_epochs": 1, "criterion": "magnitude", "spare": "1", **best}
        ),
    )


@pytest.mark.slow
@pytest.mark.parametrize("network", [LENET300, LENET5], ids=lambda n: n.name)
def test_each_stage_ends_at_its_target_on_weights(network):
    images = jnp.zeros((1, 28, 28, 1))
    shapes = jax.eval_shape(network.module.init, jax.random.key(0), images)["params"]
    params = jax.tree.map(lambda p: jnp.asarray(normal(*p.shape, seed=p.size)), shapes)
    size = sum(p.size for p in jax.tree.leaves(params) if p.ndim > 1)
    plan = recipes.plan(settings(targets=(3, 12, 280), stage_ramp=0.5), network, 12)
    assert plan.ends == {0: "dense", 12: "3x", 24: "12x", 36: "280x"}
    state = plan.tx.init(params)
    update = jax.jit(plan.tx.update)
    alive = []
    for _ in range(plan.steps):
        updates, state = update(jax.tree.map(jnp.zeros_like, params), state, params)
        params = optax.apply_updates(params, updates)
        kernels = [np.asarray(p) for p in jax.tree.leaves(params) if p.ndim > 1]
        alive.append(sum(np.count_nonzero(k) for k in kernels))
    assert [alive[i] for i in (11, 23, 35)] == [size // 3, size // 12, size // 280]
    # It falls in the first half of a stage and stays in the second.
    changed = [i for i, (a, b) in enumerate(itertools.pairwise(alive), 1) if a != b]
    assert changed == [2, 4, 6, 14, 16, 18, 26, 28, 30]
    # A cubic: what is left of the way is the cube of what is left of the time.
    dead = size - np.array(alive)
    way = dead[18] - dead[11]
    assert dead[14] - dead[11] == pytest.approx(way * (1 - (2 / 3) ** 3), abs=2)
    assert dead[16] - dead[11] == pytest.approx(way * (1 - (1 / 3) ** 3), abs=2)


def test_what_cannot_be_is_refused():
    for given, message in (
        ({"stage_epochs": 0.2}, "--period is 2, expected at most the 1 steps"),
        ({"targets": (12.0, 1e5)}, "--targets has 100000, expected at most 88733"),
        ({"stage_epochs": 1e9}, "--stage-epochs is 1e"),
    ):
        with pytest.raises(Refused, match=message):
            recipes.plan(settings(**given), LENET300, 12)
    sgd = dataclasses.replace(
        settings(criterion="fisher"), training=Training(optimizer="sgd")
    )
    with pytest.raises(Refused, match="--criterion is fisher and --optimizer sgd"):
        recipes.plan(sgd, LENET300, 12)
    config = alexnet_prune.PRESETS["cifar10"].config
    config = dataclasses.replace(
        config, pruning=dataclasses.replace(config.pruning, recipe="best")
    )
    with pytest.raises(Refused, match="best, which is for digits"):
        recipes.plan(config, ALEXNET, 12)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--targets 12 4", "--targets is (12.0, 4.0), expected rising ratios"),
        ("--targets 12 inf", "--targets is (12.0, inf), expected a finite number"),
        ("--stage-ramp 1", "--stage-ramp is 1.0, expected a share in (0, 1)"),
        ("--teachers 0", "--teachers is 0, expected 1 or more"),
        ("--distill 2", "--distill is 2.0, expected a share in [0, 1]"),
        ("--spare fc1", "--spare is 'fc1', expected a positive number"),
    ],
)
def test_a_wrong_flag_is_named(flags, message, capsys):
    with pytest.raises(SystemExit):
        parse(lenet300_prune.CONFIG, "", "", flags.split())
    assert message in capsys.readouterr().err


# Runs


FLAGS = "--recipe best --dense-epochs 1 --targets 4 10 --stage-epochs 1 --period 10 \
    --criterion fisher --distill 0.5 --teachers 2 --holdout 1000"


def forward(weights, images):
    x = images.reshape(len(images), -1).astype(np.float64) / 255
    for name in ("fc1", "fc2", "fc3"):
        x = x @ weights[f"{name}/kernel"] + weights[f"{name}/bias"]
        x = x if name == "fc3" else np.maximum(x, 0)
    return x


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["--augment"]])
def test_a_run_leaves_a_net_for_each_target(tmp_path, capsys, monkeypatch, more):
    given = [*FLAGS.split(), *more]
    out = tmp_path / "run"
    fit, calls = train.fit, []

    def interrupted(*args, **given):
        calls.append(args)
        if len(calls) == 2:  # after the first dense net
            raise KeyboardInterrupt
        return fit(*args, **given)

    monkeypatch.setattr(train, "fit", interrupted)
    assert lenet300_prune.main([*given, "--out", str(out)]) == 130
    assert lenet300_prune.main([*given, "--out", str(out), "--resume"]) == 0
    assert len(calls) == 4  # the first dense net was not trained again

    digits = data.load(Data(holdout=1000))
    images = digits.train.images[:50]
    first, second = (
        load_file(out / name / "weights.safetensors") for name in ("dense", "dense2")
    )
    assert not np.array_equal(first["fc3/kernel"], second["fc3/kernel"])
    params = {name: {} for name in ("fc1", "fc2", "fc3")}
    for name, leaf in first.items():
        params[name.split("/")[0]][name.split("/")[1]] = leaf
    taught = best.logits(best.teacher(LENET300, [params]), images, batch=20)
    np.testing.assert_allclose(taught, forward(first, images), atol=1e-3)
    with (out / "rounds.csv").open(newline="") as file:
        rows = {row["round"]: row for row in csv.DictReader(file)}
    assert list(rows) == ["dense", "4x", "10x"]
    nets = {name: load_file(out / f"{name}.safetensors") for name in rows}
    for name, row in rows.items():
        wrong = np.argmax(forward(nets[name], digits.judge.images), -1)
        error = 100 * np.mean(wrong != digits.judge.labels)
        assert float(row["error"]) == pytest.approx(error, abs=0.2)
    alive = {
        name: np.concatenate([w.ravel() != 0 for w in net.values() if w.ndim > 1])
        for name, net in nets.items()
    }
    assert alive["4x"].sum() == 266200 // 4
    assert alive["10x"].sum() == 266200 // 10
    assert not (alive["10x"] & ~alive["4x"]).any()
    result = json.loads((out / "result.json").read_text())
    assert result["alive_weights"] == 26620
    assert result["dense_error"] == float(rows["dense"]["error"])
    assert result["error"] == float(rows["10x"]["error"])
    assert "The test split was not read" in capsys.readouterr().out


def test_the_records_are_those_of_the_seeds(tmp_path, capsys):
    for seed, errors in ((0, (4.0, 5.0)), (10, (6.0, 8.0)), (2, (5.0, 8.0))):
        home = tmp_path / "seeds" / f"seed{seed}"
        (home / "dense").mkdir(parents=True)
        about = {"network": "LeNet-5", "dataset": "mnist", "judged_on": "9 digits"}
        (home / "result.json").write_text(json.dumps(about | {"seed": seed}))
        log = {"step": 7, "seconds": 1.5, "held_out_error": 3}
        (home / "dense" / "metrics.jsonl").write_text(json.dumps(log) + "\n")
        ends = [{"round": f"{n}x", "step": 2 * n, "seconds": n} for n in (4, 12)]
        lines = [{"step": 1, "seconds": 1.0}, *ends]
        (home / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
        text = "round,error,alive_weights,compression_weights,compression_params\n"
        text += f"4x,{errors[0]},25,4.0,3.9\n12x,{errors[1]},8,12.5,10.0\n"
        (home / "rounds.csv").write_text(text)
    out = tmp_path / "all.csv"
    assert records.main([str(tmp_path / "seeds"), "--out", str(out)]) == 0
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["seed"] for row in rows] == ["0", "0", "2", "2", "10", "10"]
    assert rows[3] == {
        **{"network": "LeNet-5", "dataset": "mnist", "judged_on": "9 digits"},
        **{"seed": "2", "target": "12x", "error": "8.0", "alive_weights": "8"},
        **{"compression_weights": "12.5", "compression_params": "10.0"},
        **{"steps": "31", "seconds": "13.5"},
    }
    printed = capsys.readouterr().out
    assert "5.000%" in printed
    assert "1.000" in printed
    assert "7.000%" in printed
    assert "1.732" in printed
    assert records.main([str(tmp_path)]) == 1
    assert "holds no finished run of --recipe best" in capsys.readouterr().err
