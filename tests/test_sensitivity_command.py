"""The experiment: on weights written here, with losses by NumPy; stages; retraining."""

import csv
import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from toy import by_name, cut, cut_all, dead_number

import jaxprune
from experiments import data, files, lenet300_prune
from experiments.config import Config, Data, as_dict
from experiments.models import LENET300, SQUEEZENET, preprocess
from experiments.sensitivity import command, measure, retrain, stages, ways
from experiments.sensitivity.options import Options, completed
from experiments.sensitivity.subject import shapes_of


LEAVES = ["fc1/kernel", "fc2/kernel", "fc3/kernel"]
FLAGS = "--network LeNet-300-100 --examples 60 --kept 0.5 0.1 --targets 4 --rounds 1"


@pytest.fixture
def weights(tmp_path):
    """Weights of LeNet-300-100 that were never trained, in the folder of a run."""
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda s: rng.normal(size=s.shape).astype(np.float32) / 16, shapes_of(LENET300)
    )
    folder = tmp_path / "run"
    folder.mkdir()
    config = dataclasses.replace(lenet300_prune.CONFIG, data=Data("mnist5k", None, 500))
    return write(folder, params, config), params


def write(folder: Path, params, config: Config) -> Path:
    path = folder / "dense.safetensors"
    files.save_weights(path, params)
    (folder / "config.json").write_text(json.dumps(as_dict(config)))
    return path


def losses(params, split):
    """Cross-entropy of each digit, by NumPy."""
    x = split.images.reshape(len(split.labels), -1) / 255.0
    for name in ("fc1", "fc2", "fc3"):
        x = x @ np.float64(params[name]["kernel"]) + params[name]["bias"]
        x = x if name == "fc3" else np.maximum(x, 0)
    top = x.max(1)
    log_sum = top + np.log(np.exp(x - top[:, None]).sum(1))
    return log_sum - x[np.arange(len(x)), split.labels], x.argmax(1) != split.labels


def pruned(params, masks):
    params = jax.tree.map(np.array, params)
    for name, mask in masks.items():
        params[name.split("/")[0]]["kernel"][~mask] = 0
    return params


def read(path):
    return list(csv.DictReader(path.read_text().splitlines()))


@pytest.mark.slow
def test_the_tables_of_a_scan(weights, tmp_path, capsys):
    path, params = weights
    out = tmp_path / "out"
    args = [*FLAGS.split(), "--weights", str(path), "--out", str(out)]
    assert command.main(args) == 0
    kernels = {k: v for k, v in by_name(params).items() if k in LEAVES}
    alive = {name: np.ones(w.shape, bool) for name, w in kernels.items()}
    held_out = data.load(Data("mnist5k", None, 500)).judge
    held_out = data.Split(held_out.images[:60], held_out.labels[:60])

    # The scan.
    rows = read(out / "scan.csv")
    assert [row["layer"] for row in rows] == [n for n in LEAVES for _ in range(3)]
    for row in rows:
        w = kernels[row["layer"]]
        mask = cut(w, alive[row["layer"]], dead_number(float(row["sparsity"]), w.size))
        value = losses(pruned(params, {row["layer"]: mask}), held_out)[0].mean()
        assert float(row["value"]) == pytest.approx(value, abs=1e-5)
    points = [json.loads(x) for x in (out / "points.jsonl").read_text().splitlines()]
    assert len(points) == 1 + 1 + 2 * 3
    with Image.open(out / "scan.png") as picture:
        assert min(picture.size) > 400

    # What was chosen.
    chosen = read(out / "chosen.csv")
    total = sum(w.size for w in kernels.values())
    left = sum(int(row["alive"]) for row in chosen)
    assert total / 4 - 30 < left <= total / 4
    solved = {}
    for row in chosen:
        w = kernels[row["layer"]]
        solved[row["layer"]] = cut(w, alive[row["layer"]], w.size - int(row["alive"]))
        assert solved[row["layer"]].sum() == int(row["alive"])
        threshold = float(row["quality"]) * w.astype(np.float64).std()
        assert (np.abs(w) >= threshold).sum() == pytest.approx(int(row["alive"]), abs=2)

    # How it did.
    test = data.load(Data("mnist5k")).judge
    share = dead_number(0.75, total)
    masks = {
        "before": {},
        "solved": solved,
        "global": cut_all(kernels, alive, share),
        "uniform": {
            n: cut(w, alive[n], dead_number(0.75, w.size)) for n, w in kernels.items()
        },
    }
    judged = {row["way"]: row for row in read(out / "judged.csv")}
    assert list(judged) == list(masks)
    measured = {way: losses(pruned(params, m), test) for way, m in masks.items()}
    for way, row in judged.items():
        each, wrong = measured[way]
        assert float(row["cross_entropy"]) == pytest.approx(each.mean(), abs=1e-4)
        assert float(row["error_percent"]) == pytest.approx(100 * wrong.mean(), abs=0.2)
        if way in ("global", "uniform"):
            gain = each - measured["solved"][0]
            assert float(row["above_solved"]) == pytest.approx(gain.mean(), abs=1e-4)
            error = gain.std(ddof=1) / np.sqrt(len(gain))
            assert float(row["standard_error"]) == pytest.approx(error, rel=0.01)
    assert int(judged["solved"]["alive"]) <= int(judged["global"]["alive"])
    assert "1,000 test digits" in capsys.readouterr().out

    # Again, from what the folder holds.
    tables = {name: (out / name).read_text() for name in ("scan.csv", "judged.csv")}
    assert command.main(args) == 1
    assert "give --resume to go on" in capsys.readouterr().err
    assert command.main([*args, "--resume"]) == 0
    assert "scan:" not in capsys.readouterr().out
    for name, text in tables.items():
        assert (out / name).read_text() == text
    assert command.main([*args, "--resume", "--examples", "70"]) == 1
    assert "begun with --examples 60, now it is 70" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("best", ["solved", "global", "uniform"])
def test_improving_begins_with_the_best_way(best, weights, capsys):
    _, params = weights
    mask = jaxprune.dense_mask(params)
    way = ways.others(params, mask, 266_200 / 4).get(best)
    wanted = None if way is None else ways.prune(params, mask, way)[1]
    kernels = lambda tree: {name: layer["kernel"] for name, layer in tree.items()}

    def loss(params):
        """How many weights are not as they are wanted; or of the first layer alone."""
        if wanted is None:
            return 1.0 + float(np.mean(params["fc1"]["kernel"] == 0))
        off = jax.tree.map(
            lambda m, w: np.mean(m != (w != 0)), kernels(wanted), kernels(params)
        )
        return 1.0 + sum(jax.tree.leaves(off))

    options = completed(Options("LeNet-300-100", rounds=1, targets=(4.0,)))
    subject = SimpleNamespace(params=params, mask=mask)
    scan = jaxprune.sensitivity_scan(loss, params, mask, [0.5, 0.9, 0.99])
    found = command.chosen(options, subject, scan, loss, 4.0)
    assert f"4x: begins with {best}" in capsys.readouterr().out
    starts = [
        ways.prune(params, mask, w)[0]
        for w in command._others(subject, 66_550).values()
    ]
    assert found.value <= min(loss(p) for p in starts)
    assert found.total <= 266_200 / 4 * 1.001


@pytest.mark.slow
def test_held_out_digits_are_judged_on_too(weights, tmp_path, capsys):
    path, params = weights
    out = tmp_path / "out"
    args = [*FLAGS.split(), "--rounds", "0", "--weights", str(path), "--out", str(out)]
    assert command.main([*args, "--judge-holdout"]) == 0
    before = read(out / "judged.csv")[0]
    on = "1,000 test digits and 440 held-out training digits of mnist5k"
    assert before["judged_on"] == on
    left = data.Split(*(x[60:] for x in data.load(Data("mnist5k", None, 500)).judge))
    assert len(left.labels) == 440
    with np.load(out / "judged--before.npz") as kept:
        found = kept["losses"]
    test = losses(params, data.load(Data("mnist5k")).judge)[0]
    each = np.concatenate([test, losses(params, left)[0]])
    np.testing.assert_allclose(found, each, rtol=1e-3, atol=1e-4)
    # A folder of before there was this flag is one without it.
    settings = json.loads((out / "options.json").read_text())
    del settings["judge_holdout"]
    (out / "options.json").write_text(json.dumps(settings))
    assert command.main([*args, "--judge-holdout", "--resume"]) == 1
    message = "begun with --judge-holdout False, now it is True"
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--targets 1", "--targets is (1.0,), expected ratios above 1"),
        ("--kept 1.5", "--kept is (1.5,), expected shares in (0, 1)"),
        ("--examples 1", "--examples is 1, expected 2 or more"),
        ("--network SqueezeNet", "--weights is None, expected a file of weights"),
        (
            "--network SqueezeNet --weights x.net --judge-holdout",
            "--judge-holdout is True, expected digits, of which photographs have none",
        ),
        (
            "--network SqueezeNet --retrain-steps 3",
            "--retrain-steps is 3, expected 0 or more, and 0 for photographs",
        ),
    ],
)
def test_a_wrong_flag_is_told(flags, message, tmp_path, capsys):
    out = tmp_path / "out"
    assert command.main([*flags.split(), "--out", str(out)]) == 1
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_weights_that_saw_all_digits_are_refused(weights, tmp_path, capsys):
    path, params = weights
    write(path.parent, params, lenet300_prune.CONFIG)
    args = [*FLAGS.split(), "--weights", str(path), "--out", str(tmp_path / "out")]
    assert command.main(args) == 1
    assert "was trained on all training digits" in capsys.readouterr().err
    args[args.index("LeNet-300-100")] = "LeNet-5"
    args[-1] += "5"
    assert command.main(args) == 1
    assert "is of LeNet-300-100, expected LeNet-5" in capsys.readouterr().err


@pytest.mark.slow
def test_the_stages_are_the_network_from_any_change_on():
    rng = np.random.default_rng(0)
    # Small photographs: every stage still has something to do.
    pixels = rng.integers(0, 256, (2, 67, 67, 3)).astype(np.uint8)
    params = jax.tree.map(
        lambda s: jnp.asarray(rng.normal(size=s.shape) / 8, s.dtype),
        shapes_of(SQUEEZENET),
    )

    @jax.jit
    def whole(params):
        images = preprocess(pixels, "caffe")
        return SQUEEZENET.module.apply({"params": params}, images)

    outputs = stages.from_first_change(stages.squeezenet(), params, [pixels, pixels])
    for layer in (None, "fire5", "conv1", "conv_final"):
        changed = dict(params)
        if layer:
            changed[layer] = jax.tree.map(lambda w: w * (w > 0), params[layer])
        first, second = map(np.asarray, outputs(changed))
        expected = np.asarray(whole(changed))
        assert first == pytest.approx(expected, rel=1e-4, abs=1e-4)
        assert (first == second).all()
    assert not np.allclose(whole(params), whole(changed))


def test_divergence_is_that_of_scipy():
    from scipy.special import rel_entr, softmax

    a, b = np.random.default_rng(0).normal(size=(2, 5, 7)) * 30
    expected = rel_entr(softmax(a, -1), softmax(b, -1)).sum(-1)
    assert measure.divergences(a, b) == pytest.approx(expected)
    labels = np.array([0, 3, 6, 1, 1])
    picked = -np.log(softmax(a, -1)[np.arange(5), labels])
    assert measure.cross_entropies(a, labels) == pytest.approx(picked)


def test_retraining_is_momentum_on_the_live_weights(weights):
    _, params = weights
    digits = data.load(Data("mnist5k", None, 500)).train
    mask = jax.tree.map(lambda w: w > 0 if w.ndim > 1 else None, params)
    params = jax.tree.map(np.array, params)
    for layer in params:
        params[layer]["kernel"] *= params[layer]["kernel"] > 0
    found = retrain.make(LENET300, digits, steps=3, batch=16, lr=0.05)(params, mask)

    draw = np.random.default_rng(0).integers(0, len(digits.labels), (3, 16))
    velocity = jax.tree.map(np.zeros_like, params)
    for rows in draw:
        x = digits.images[rows].reshape(16, -1) / 255.0
        xs = [x]
        for name in ("fc1", "fc2", "fc3"):
            x = xs[-1] @ params[name]["kernel"] + params[name]["bias"]
            xs.append(x if name == "fc3" else np.maximum(x, 0))
        p = np.exp(xs[-1] - xs[-1].max(1, keepdims=True))
        back = p / p.sum(1, keepdims=True)
        back[np.arange(16), digits.labels[rows]] -= 1
        back /= 16
        grads = {}
        for i, name in ((2, "fc3"), (1, "fc2"), (0, "fc1")):
            live = mask[name]["kernel"]
            grads[name] = {"kernel": xs[i].T @ back * live, "bias": back.sum(0)}
            back = (back @ params[name]["kernel"].T) * (xs[i] > 0)
        velocity = jax.tree.map(lambda v, g: 0.9 * v + g, velocity, grads)
        params = jax.tree.map(lambda w, v: w - 0.05 * v, params, velocity)
    for name, value in by_name(params).items():
        assert by_name(found)[name] == pytest.approx(value, abs=1e-5)
