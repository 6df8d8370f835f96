"""The experiments: command line, digits, recipes, run folders, and a few steps each."""

import csv
import dataclasses
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import conftest
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from quick import quick
from rich.console import Console
from rich.text import Text
from safetensors import safe_open
from safetensors.numpy import load_file

import jaxprune
from experiments import (
    data,
    files,
    lenet5_prune,
    lenet300_prune,
    progress,
    recipes,
    runs,
    seeds,
    summary,
    tasks,
    train,
)
from experiments.bench import lenet5_step, neurons, select, step, train_step
from experiments.config import Data, Pruning, Refused
from experiments.flags import parse, qualities
from experiments.log import Log
from experiments.models import LENET5, LENET300
from experiments.stop import Stopped


ROOT = Path(__file__).parent.parent
NETWORKS = {"lenet300": (lenet300_prune, LENET300), "lenet5": (lenet5_prune, LENET5)}


# Command line


@pytest.mark.parametrize("name", NETWORKS)
def test_help_names_every_flag(name, capsys):
    with pytest.raises(SystemExit) as stopped:
        NETWORKS[name][0].main(["--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    config = NETWORKS[name][0].CONFIG
    groups = (config.data, config.training, config.pruning, config.best, config.run)
    for group in groups:
        for field in dataclasses.fields(group):
            assert f"--{field.name.replace('_', '-')} " in text
    assert "--network" not in text
    assert f"usage: python -m experiments.{name}_prune [-h]" in text


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--bogus", "1"], "--bogus"),
        (["--dataset", "cifar"], "mnist5k"),
        (["--lr", "-1"], "--lr is -1.0, expected more than 0"),
        (["--dropout", "1"], "--dropout is 1.0, expected a probability in [0, 1)"),
        (["--quality", "high"], "--quality is 'high', expected a positive number"),
        (["--quality", "fc1/*=-1"], "--quality is 'fc1/*=-1', expected a positive"),
        (["--epochs", "inf"], "--epochs is inf, expected a finite number"),
        (["--dense-epochs", "inf"], "--dense-epochs is inf, expected a finite"),
        (["--retrain-epochs", "nan"], "--retrain-epochs is nan, expected a finite"),
        (["--ramp", "0.1", "inf"], "--ramp is (0.1, inf), expected a finite number"),
        (["--seed", "4294967296"], "--seed is 4294967296, expected 0 to 4294967295"),
        (["--resume", "--overwrite"], "--resume and --overwrite exclude each other"),
    ],
)
def test_a_wrong_flag_exits_with_2_and_is_named(flags, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        lenet300_prune.main(flags)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


BENCHES = {
    "select": select,
    "step": step,
    "lenet5_step": lenet5_step,
    "train_step": train_step,
    "neurons": neurons,
}


@pytest.mark.parametrize(
    ("bench", "flags", "message"),
    [
        ("select", "--repeats 0", "--repeats is 0, expected 1 or more."),
        ("select", "--sizes", "--sizes names no tree, expected some of lenet5,"),
        ("step", "--pairs 0", "--pairs is 0, expected 50 or more."),
        ("step", "--stacks VGG", "--stacks is 'VGG', expected parts of 'LeNet-300-100"),
        ("lenet5_step", "--pairs 0", "--pairs is 0, expected 1 or more."),
        ("train_step", "--batch 0", "--batch is 0, expected 1 or more."),
        ("train_step", "--side 8", "--side is 8, expected 32 or more."),
        ("train_step", "--peak-tflops 0", "--peak-tflops is 0.0, expected above 0."),
        ("train_step", "--networks", "--networks names none, expected one or more."),
        ("neurons", "none --calls 0", "--calls is 0, expected 1 or more."),
        ("neurons", "none --multiple 0", "--multiple is 0, expected 1 or more."),
        ("neurons", "none --batches 0", "--batches is 0, expected 1 or more."),
        ("neurons", "none", "none holds no finished run with pruned weights"),
    ],
)
def test_a_wrong_flag_of_a_benchmark_exits_with_2_and_is_named(
    bench, flags, message, tmp_path, capsys
):
    out = tmp_path / "out.csv"
    assert BENCHES[bench].main([*flags.split(), "--out", str(out)]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize("bench", BENCHES)
def test_the_help_of_a_benchmark_names_a_command_that_runs(bench, capsys):
    with pytest.raises(SystemExit):
        BENCHES[bench].main(["--help"])
    text = capsys.readouterr().out
    assert f"usage: python -m experiments.bench.{bench} [-h]" in text


COMMANDS = [f"experiments.{name}_prune" for name in NETWORKS]
COMMANDS += ["experiments.records"]
COMMANDS += [f"experiments.bench.{name}" for name in BENCHES]


@pytest.mark.parametrize("module", COMMANDS)
def test_a_command_imports_nothing_before_ctrl_c_is_quiet(module):
    code = f"""
import runpy, signal, sys, experiments.start

def interrupted(name):
    print(name, "jax" in sys.modules, "tyro" in sys.modules, flush=True)
    signal.raise_signal(signal.SIGINT)

experiments.start.importlib.import_module = interrupted
runpy.run_module({module!r}, run_name="__main__")
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True
    )
    assert done.stdout.split() == [module, "False", "False"]
    assert (done.stderr, done.returncode) == ("\nInterrupted.\n", 130)


LOST = """
class Callback:
    def __del__(self):
        raise KeyboardInterrupt

def main():
    Callback()
    __import__("time").sleep(60)
"""


@pytest.mark.parametrize("main", ["def main(): raise KeyboardInterrupt", LOST])
def test_ctrl_c_outside_a_run_is_quiet_too_and_not_lost(main, tmp_path):
    (tmp_path / "command.py").write_text(main)
    # A test run in the background may have been told to ignore it.
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    code += "from experiments.start import start; start('command')"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert (done.stderr, done.returncode) == ("\nInterrupted.\n", 130)


def test_flags_change_the_defaults():
    config = parse(
        lenet300_prune.CONFIG, "", "", ["--lr", "0.5", "--recipe", "gradual"]
    )
    assert (config.training.lr, config.pruning.recipe) == (0.5, "gradual")
    assert config.network == "LeNet-300-100"
    assert qualities("fc1/*=1.2, **=1") == {"fc1/*": 1.2, "**": 1.0}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            "--target 40",
            "--target is 40.0, but --recipe paper does not read it",
        ),
        ("--spare fc9/*=2", "--spare is fc9/*=2, but --recipe paper does not read it"),
        ("--recipe gradual --rounds 7", "but --recipe gradual does not read it"),
        ("--recipe best --target 40", "expected --recipe gradual or rewind."),
    ],
)
def test_a_flag_that_the_recipe_would_ignore_is_refused(flags, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        lenet300_prune.main(flags.split())
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_weights_can_be_read_by_whom_the_umask_lets(tmp_path):
    before = os.umask(0o022)
    try:
        files.save_weights(tmp_path / "w.safetensors", {"w": np.ones(3)})
    finally:
        os.umask(before)
    assert (tmp_path / "w.safetensors").stat().st_mode & 0o777 == 0o644


# Digits


def test_the_sample_is_shuffled_stratified_and_fixed():
    digits, again = data.load(Data()), data.load(Data())
    assert digits.train.images.shape == (4000, 28, 28, 1)
    assert digits.train.images.dtype == np.uint8
    assert np.bincount(digits.train.labels).tolist() == [400] * 10
    assert np.bincount(digits.judge.labels).tolist() == [100] * 10
    assert len(set(digits.train.labels[:200].tolist())) == 10
    for a, b in zip(jax.tree.leaves(digits), jax.tree.leaves(again), strict=True):
        assert np.array_equal(a, b)


def test_held_out_digits_are_training_digits_and_the_test_digits_stay_away():
    whole, held = data.load(Data()), data.load(Data(holdout=500))
    as_set = lambda split: {image.tobytes() for image in split.images}
    train_set, judge_set = as_set(held.train), as_set(held.judge)
    assert not train_set & judge_set
    assert train_set | judge_set == as_set(whole.train)
    assert not (train_set | judge_set) & as_set(whole.judge)
    assert held.judge_name == "500 held-out training digits"
    with pytest.raises(Refused, match="--holdout is 4000, expected less than the 4000"):
        data.load(Data(holdout=4000))


def test_where_mnist_is_missing_the_command_that_prepares_it_is_told(tmp_path):
    with pytest.raises(Refused) as refused:
        data.load(Data(dataset="mnist", data_dir=tmp_path))
    message = str(refused.value)
    assert str(tmp_path) in message
    assert "file_format='array_record'" in message
    assert "download_and_prepare()" in message


def mnist() -> Path:
    folder = os.environ.get("JAXPRUNE_DATA")
    if not folder:
        pytest.skip("JAXPRUNE_DATA does not name the folder that holds tfds/")
    return Path(folder) / "tfds"


def test_skipped_data_tests_are_found_among_skipped_modules(monkeypatch):
    monkeypatch.setenv("JAXPRUNE_DATA", "there")
    why = ("f.py", 1, "Skipped: why")
    module = pytest.CollectReport("tests/a.py", "skipped", why, [])
    place, words = ("f.py", 1, ""), {"data": 1}
    test = pytest.TestReport("tests/b.py::b", place, words, "skipped", why, "setup")
    reporter = SimpleNamespace(stats={"skipped": [module, test]})
    plugins = SimpleNamespace(get_plugin={"terminalreporter": reporter}.get)
    config = SimpleNamespace(pluginmanager=plugins)
    assert conftest._lost_data(config) == ["tests/b.py::b"]


@pytest.mark.slow
@pytest.mark.data
def test_the_whole_of_mnist_is_read(monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(mnist()))
    digits = data.load(Data(dataset="mnist", holdout=5000))
    assert digits.train.images.shape == (55000, 28, 28, 1)
    assert len(digits.judge.labels) == 5000
    assert np.bincount(digits.train.labels, minlength=10).min() > 4900
    assert 33 < digits.train.images.mean() < 34


# Recipes


@pytest.mark.parametrize("network", [LENET300, LENET5], ids=lambda n: n.name)
@pytest.mark.parametrize("target", [2.0, 12.0, 12.5, 30.0])
def test_the_target_counts_all_parameters(network, target):
    images = jnp.zeros((1, 28, 28, 1))
    params = jax.eval_shape(network.module.init, jax.random.key(0), images)["params"]
    total = sum(p.size for p in jax.tree.leaves(params))
    prunable = sum(p.size for p in jax.tree.leaves(params) if p.ndim > 1)
    dead = recipes.sparsity_for(target, network) * prunable
    assert round(dead) == pytest.approx(dead, abs=1e-6)
    left = total - round(dead)
    assert total / left >= target > total / (left + 1)


def test_a_target_that_only_biases_could_reach_is_refused():
    with pytest.raises(Refused, match="--target is 700, expected less than 649"):
        recipes.sparsity_for(700, LENET300)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--recipe gradual --epochs 1e300", r"--epochs is 1e\+300, expected so few"),
        ("--recipe dense --dense-epochs 1e9", r"--dense-epochs is 1e\+09"),
        ("--retrain-epochs 1e9", r"--retrain-epochs is 1e\+09"),
        ("--retrain-epochs 1e7 --rounds 4", "--rounds is 4, expected so few"),
    ],
)
def test_more_steps_than_can_be_counted_are_refused(flags, message):
    config = parse(lenet300_prune.CONFIG, "", "", flags.split())
    with pytest.raises(Refused, match=message):
        recipes.plan(config, LENET300, epoch=62)


def test_every_number_among_the_flags_must_be_finite(capsys):
    default = lenet300_prune.CONFIG
    groups = (
        default.data,
        default.training,
        default.pruning,
        default.best,
        default.run,
    )
    fields = [field for group in groups for field in dataclasses.fields(group)]
    names = [
        f.name.replace("_", "-") for f in fields if f.type in (float, float | None)
    ]
    assert {"lr", "warmup", "dropout", "target"} < set(names)
    for name in names:
        with pytest.raises(SystemExit):
            parse(default, "", "", [f"--{name}", "inf"])
        assert f"--{name} is inf, expected a finite" in capsys.readouterr().err


@pytest.mark.slow
def test_rounds_prune_at_their_steps_and_the_deviation_can_be_frozen():
    params = {"fc": {"kernel": jax.random.normal(jax.random.key(0), (40, 50))}}
    masks = {}
    for deviation in ("live", "dense"):
        config = dataclasses.replace(
            lenet300_prune.CONFIG,
            pruning=Pruning(
                quality="1", quality_start=0.5, rounds=2, deviation=deviation
            ),
        )
        config = dataclasses.replace(
            config,
            training=dataclasses.replace(config.training, lr=1e-9, dense_epochs=3),
        )
        config = dataclasses.replace(
            config, pruning=dataclasses.replace(config.pruning, retrain_epochs=2)
        )
        plan = recipes.plan(config, LENET300, epoch=1)
        assert plan.steps == 7
        assert [begin for begin, _ in plan.phases] == [0, 3, 5]
        w, state = params, plan.tx.init(params)
        counts = []
        update = jax.jit(plan.tx.update)
        for _ in range(plan.steps):
            updates, state = update(jax.tree.map(jnp.zeros_like, w), state, w)
            w = optax.apply_updates(w, updates)
            counts.append(jaxprune.sparsity(jaxprune.get_mask(state)))
        assert [i for i in range(1, 7) if counts[i] != counts[i - 1]] == [3, 5]
        masks[deviation] = np.asarray(jaxprune.get_mask(state)["fc"]["kernel"])
    dense = np.asarray(params["fc"]["kernel"])
    assert np.array_equal(masks["dense"], np.abs(dense) >= dense.std())
    survivors = dense[np.abs(dense) >= dense.std() / 2]
    assert np.array_equal(masks["live"], np.abs(dense) >= survivors.std())


# Run folders, with a run that trains nothing


def stub(config, digits, folder):
    result = {
        "network": LENET300.name,
        "recipe": config.pruning.recipe,
        "dataset": config.data.dataset,
        "seed": config.run.seed,
        "judged_on": digits.judge_name,
        "dense_error": 2.0 + config.run.seed,
        "error": 1.0 + config.run.seed,
        "layers": [
            {
                "layer": "fc1/kernel",
                "weights": 100,
                "alive": 10,
                "kept_percent": 10.0,
                "paper_percent": 8,
            }
        ],
        "weights": 100,
        "alive_weights": 10,
        "compression_weights": 10.0,
        "params": 110,
        "alive_params": 20,
        "compression_params": 5.5,
        "sparsity": 0.9,
        "steps": 5,
        "train_seconds": 0.1,
    }
    (folder / "result.json").write_text(json.dumps(result))
    return result


def invoke(*flags, run=stub):
    return runs.main(run, lenet300_prune.CONFIG, LENET300, "", [str(f) for f in flags])


def never(config, digits, folder):
    raise AssertionError("a finished run was run again")


def test_a_run_folder_is_not_clobbered(tmp_path, capsys):
    out = tmp_path / "run"
    assert invoke("--out", out) == 0
    (out / "mine.txt").write_text("keep")
    before = sorted(out.iterdir())
    assert invoke("--out", out, run=never) == 1
    assert "holds a run, finished. Give --resume" in capsys.readouterr().err
    assert invoke("--out", out, "--resume", "--lr", "0.5", run=never) == 1
    assert (
        f"--lr was {lenet300_prune.CONFIG.training.lr} and is now 0.5"
        in capsys.readouterr().err
    )
    assert sorted(out.iterdir()) == before
    assert invoke("--out", out, "--resume", run=never) == 0
    assert invoke("--out", out, "--overwrite", "--lr", "0.5") == 0
    assert json.loads((out / "config.json").read_text())["training"]["lr"] == 0.5
    assert not (out / "mine.txt").exists()


def test_a_folder_that_is_no_run_is_left_alone(tmp_path, capsys):
    (tmp_path / "thesis.tex").write_text("years")
    for flag in ("--overwrite", "--resume"):
        assert invoke("--out", tmp_path, flag, run=never) == 1
        assert "not a run of this program" in capsys.readouterr().err
    assert (tmp_path / "thesis.tex").read_text() == "years"
    assert invoke("--out", tmp_path / "new", "--resume", run=never) == 1
    assert "there is no run in" in capsys.readouterr().err


REFUSED = {
    "quality": (
        "--quality conv/*=2",
        "'conv/*', which matches no prunable leaf; these are prunable: fc1/",
    ),
    "target": ("--recipe gradual --target 1e9", "--target is 1e+09"),
    "batch": ("--batch 5000", "--batch is 5000"),
    "holdout": ("--holdout 4000", "--holdout is 4000"),
    "data": ("--dataset mnist --data-dir nowhere", "MNIST is not in nowhere"),
}


@pytest.mark.parametrize("seeds", quick([1, 2], 2))
@pytest.mark.parametrize("case", REFUSED)
def test_a_run_that_is_refused_leaves_nothing(tmp_path, capsys, case, seeds):
    flags, message = REFUSED[case]
    out = tmp_path / "run"
    command = ["--out", out, "--seeds", seeds]
    assert invoke(*command, *flags.split(), run=never) == 1
    assert message in capsys.readouterr().err
    assert not out.exists()
    assert invoke(*command) == 0
    before = contents(out)
    assert invoke(*command, "--overwrite", *flags.split(), run=never) == 1
    assert contents(out) == before


def contents(folder):
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_the_run_of_another_network_is_refused(tmp_path, capsys):
    assert invoke("--out", tmp_path / "run") == 0
    flags = ["--out", str(tmp_path / "run"), "--resume"]
    assert runs.main(never, lenet5_prune.CONFIG, LENET5, "", flags) == 1
    assert "network was LeNet-300-100 and is now LeNet-5" in capsys.readouterr().err


def test_seeds_are_skipped_when_done_and_summed_up(tmp_path, capsys):
    done = []

    def counting(config, digits, folder):
        if config.run.seed == 2 and len(done) == 2:
            done.append("interrupted")
            raise KeyboardInterrupt
        done.append(config.run.seed)
        return stub(config, digits, folder)

    assert invoke("--out", tmp_path, "--seeds", 3, run=counting) == 130
    assert "Continue with:" in capsys.readouterr().err
    assert invoke("--out", tmp_path, "--seeds", 3, run=counting) == 0
    assert done == [0, 1, "interrupted", 2]
    text = capsys.readouterr().out
    mean, sd = (next(x for x in text.splitlines() if w in x) for w in ("mean", " sd "))
    assert ("3.000%" in mean, "2.000%" in mean, "1.000%" in sd) == (True,) * 3
    with (tmp_path / "seeds.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["seed"] for row in rows] == ["0", "1", "2"]
    assert [float(row["error"]) for row in rows] == [1.0, 2.0, 3.0]
    assert invoke("--out", tmp_path, "--seeds", 4, "--lr", "0.5", run=never) == 1
    assert "--lr was" in capsys.readouterr().err


def test_the_seeds_of_another_run_are_refused_though_they_are_not_asked_for(
    tmp_path, capsys
):
    assert invoke("--out", tmp_path, "--seeds", 2, "--seed", 5) == 0
    assert invoke("--out", tmp_path, "--seeds", 2, "--lr", "0.5", run=never) == 1
    assert "--lr was" in capsys.readouterr().err


SEEDS_HEADER = ",".join(seeds.COLUMNS)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("seeds.csv", "plant,height\nbasil,12\n", "not a table of seeds"),
        ("seeds.csv", f"{SEEDS_HEADER}\nbasil,12\n", "not a table of seeds"),
        ("thesis.tex", "years", "holds thesis.tex, which no run of --seeds wrote"),
        ("seed1/thesis.tex", "years", "not a run of this program"),
        ("seed7/thesis.tex", "years", "not a run of this program"),
        ("seed1", "a file", "is a file, expected a folder"),
    ],
)
@pytest.mark.parametrize("flags", [[], ["--overwrite"]], ids=["plain", "overwrite"])
def test_seeds_leave_a_foreign_folder_alone(
    tmp_path, capsys, name, text, message, flags
):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(text)
    before = contents(tmp_path)
    assert invoke("--out", tmp_path, "--seeds", 2, *flags, run=never) == 1
    assert message in capsys.readouterr().err
    assert contents(tmp_path) == before


@pytest.mark.slow
def test_old_seeds_are_gone_after_an_overwrite_that_was_interrupted(tmp_path, capsys):
    assert invoke("--out", tmp_path, "--seeds", 4) == 0

    def interrupted(config, digits, folder):
        raise KeyboardInterrupt

    flags = ["--out", tmp_path, "--seeds", 3, "--lr", "0.5"]
    assert invoke(*flags, "--overwrite", run=interrupted) == 130
    assert {p.name for p in tmp_path.iterdir()} == {"seed0"}
    done = []

    def counting(config, digits, folder):
        done.append(config.run.seed)
        return stub(config, digits, folder)

    assert invoke(*flags, run=counting) == 0
    assert done == [0, 1, 2]
    assert len((tmp_path / "seeds.csv").read_text().splitlines()) == 4
    capsys.readouterr()


def test_ctrl_c_says_how_to_go_on(tmp_path, capsys, monkeypatch):
    def interrupted(config, network, plan, digits, folder):
        (folder / "checkpoints" / "40").mkdir(parents=True, exist_ok=True)
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "fit", interrupted)
    monkeypatch.setattr(sys, "executable", str(Path.cwd() / ".venv/bin/python"))
    out = tmp_path / "run"
    assert lenet300_prune.main(["--out", str(out), "--lr", "0.5"]) == 130
    error = capsys.readouterr().err
    assert "The last checkpoint is of step 40." in error
    command = "-m experiments.lenet300_prune --out"
    assert f"\n  .venv/bin/python {command} {out} --lr 0.5 --resume\n" in error
    monkeypatch.setattr(sys, "executable", "/opt/my python/bin/python")
    assert lenet300_prune.main(["--out", str(out), "--resume", "--lr", "0.5"]) == 130
    assert f"\n  '/opt/my python/bin/python' {command} " in capsys.readouterr().err


@pytest.mark.parametrize(("step", "where"), [(40, "saved at step 40"), (0, "before")])
def test_after_sigterm_one_line_says_how_to_go_on(tmp_path, capsys, step, where):
    def stopped(config, digits, folder):
        raise Stopped(step)

    assert invoke("--out", str(tmp_path), "--overwrite", run=stopped) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith(f"Stopped, {where}")
    assert lines[0].endswith(f"--out {tmp_path} --resume")


def test_the_log_for_tensorboard_holds_the_numbers_too(tmp_path, monkeypatch):
    log = Log(tmp_path / "metrics.jsonl", 0, tensorboard=True)
    log.write({"step": 3, "round": "dense", "train_error": 12.5, "seconds": 1.0})
    log.close()
    (events,) = (tmp_path / "tensorboard").iterdir()
    written = events.read_bytes()
    assert b"train_error" in written
    assert np.float32(12.5).tobytes() in written
    assert b"round" not in written
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(Refused, match="--tensorboard needs tensorboardX"):
        Log(tmp_path / "metrics.jsonl", 0, tensorboard=True)


def test_ctrl_c_before_the_run_begins_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(config):
        raise KeyboardInterrupt

    monkeypatch.setattr(data, "load", interrupted)
    with pytest.raises(KeyboardInterrupt):
        invoke("--out", tmp_path / "run", run=never)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("loss", [0.012345, 2.3, 1234.5, 1e9])
def test_the_progress_bar_fits_80_columns(loss):
    phases = ((0, "dense"), (100, "pruning"), (200, "retraining"))
    plan = recipes.Plan(optax.identity(), 280800, phases, 100, False)
    console = Console(width=80, file=io.StringIO(), force_terminal=True)
    with progress.Progress(plan, 0, console) as bar:
        line = {"loss": loss, "train_error": 12.345, "sparsity": 0.98765}
        bar.update(140400, line)
    shown = Text.from_ansi(console.file.getvalue()).plain.splitlines()[-1]
    assert len(shown) <= 80
    wanted = f"140400/280800 loss {loss:.4g} error 12.35% sparsity 98.8% -:--:--"
    assert " ".join(shown.split()).endswith(wanted)
    assert shown.startswith("retraining ")


def test_without_a_terminal_a_line_comes_every_five_minutes(capsys, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    plan = recipes.Plan(optax.identity(), 100_000, ((0, "dense"),), 0, False)
    bar = progress.Progress(plan, 0, Console(file=io.StringIO()))
    bar._bar.get_time = lambda: clock[0]
    line = {"loss": 1.0, "train_error": 50.0, "sparsity": 0.0}
    left = []
    for at in range(100, 1100, 100):  # a step takes 1.8 s
        clock[0] += 180
        left.append(bar.update(at, line))
    # Told at 360, 720, ... s. The first hundred steps hold the start.
    out = capsys.readouterr().out.splitlines()
    assert [int(words.split()[1]) for words in out] == [200, 400, 600, 800, 1000]
    assert left == [None, *[1.8 * (100_000 - at) for at in range(200, 1100, 100)]]
    assert out[-1].endswith("2 days, 1:30:00 left")


# A few real steps


@pytest.mark.slow
@pytest.mark.parametrize("per_call", [1, 100])
def test_a_loss_that_is_not_finite_stops_the_run_with_its_step(
    tmp_path, capsys, monkeypatch, per_call
):
    # The labels are drawn first, so the first step that meets this one is known.
    whole = data.load(Data())
    config = lenet300_prune.CONFIG
    order = train_order(config, len(whole.train.labels))
    images = whole.train.images.astype(np.float32)
    images[order[64 * 37 + 5]] = np.nan
    broken = whole._replace(train=whole.train._replace(images=images))
    monkeypatch.setattr(data, "load", lambda _: broken)
    out = tmp_path / "run"
    flags = f"--recipe dense --dense-epochs 1 --log-every 20 --checkpoint-every 30 \
        --steps-per-call {per_call} --out {out}"
    assert lenet300_prune.main(flags.split()) == 1
    error = capsys.readouterr().err
    assert "The loss is not finite at step 37 (counted from 0)" in error
    assert "the last good checkpoint is of step 30" in error
    assert [p.name for p in (out / "checkpoints").iterdir()] == ["30"]
    assert [line["step"] for line in read_log(out)] == [20]


@pytest.mark.slow
def test_a_loss_that_is_not_finite_before_any_checkpoint_says_how_to_start_anew(
    tmp_path, capsys
):
    out = tmp_path / "run"
    flags = f"--recipe dense --dense-epochs 0.1 --lr 1e30 --out {out}"
    assert lenet300_prune.main(flags.split()) == 1
    error = capsys.readouterr().err
    assert "The run stops; no checkpoint was written. Start anew, with " in error
    assert "--overwrite or another --out" in error


def train_order(config, size):
    return np.asarray(tasks.order(jax.random.key(config.run.seed), size)(0))


def read_log(out):
    lines = (out / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.slow
def test_a_layer_at_the_floor_is_warned_of(tmp_path, capsys):
    out = tmp_path / "run"
    flags = f"--quality fc2/*=1000,**=1 --dense-epochs 0.1 --retrain-epochs 0.1 \
        --rounds 1 --out {out}"
    assert lenet300_prune.main(flags.split()) == 0
    result = json.loads((out / "result.json").read_text())
    alive = {row["layer"]: row["alive"] for row in result["layers"]}
    assert alive["fc2/kernel"] == 1
    warned = [x for x in capsys.readouterr().out.splitlines() if "Warning" in x]
    assert warned == summary.warnings(result)
    assert len(warned) == 1
    assert warned[0].startswith("Warning: fc2/kernel is at the floor of 1 live weight")
    assert warned[0].endswith("lower its --quality.")


def test_the_warnings_of_each_seed_are_printed(tmp_path, capsys):
    def emptied(config, digits, folder):
        result = stub(config, digits, folder)
        result["layers"][0]["alive"] = 1
        return result

    assert invoke("--out", tmp_path, "--seeds", 2, run=emptied) == 0
    text = capsys.readouterr().out
    for seed in (0, 1):
        assert f"seed {seed}: Warning: fc1/kernel is at the floor of 1" in text


def check_run(out, result_of, images):
    result = json.loads((out / "result.json").read_text())
    config = json.loads((out / "config.json").read_text())
    assert config["data"]["dataset"] == result["dataset"]
    lines = read_log(out)
    assert lines[-1]["step"] == result["steps"]
    assert lines[-1]["sparsity"] == pytest.approx(result["sparsity"])
    weights = load_file(out / "pruned.safetensors")
    assert sum(w.size for w in weights.values()) == result["params"]
    assert sum(w.size for w in weights.values() if w.ndim > 1) == result["weights"]
    alive = sum(np.count_nonzero(w) for w in weights.values() if w.ndim > 1)
    assert alive == result["alive_weights"] < result["weights"]
    with safe_open(out / "pruned.safetensors", "numpy") as file:
        assert file.metadata()["network"] == result_of.name
    with (out / "table.csv").open(newline="") as file:
        rows = {row["layer"]: row for row in csv.DictReader(file)}
    assert set(result_of.kept) < set(rows)
    assert float(rows["fc1/kernel"]["paper_percent"]) == 8
    assert int(rows["all parameters"]["alive"]) == result["alive_params"]
    assert {p.name for p in out.glob("*.png")} == images
    assert not list(out.glob(".*.part"))
    assert summary.notes(result)
    return result


@pytest.mark.slow
def test_lenet300_gradual_reaches_its_target(tmp_path, capsys):
    out = tmp_path / "run"
    flags = f"--recipe gradual --epochs 2 --period 10 --holdout 1000 --json --out {out}"
    assert lenet300_prune.main(flags.split()) == 0
    pictures = {"curves.png", "weights.png", "fc1_mask.png", "fc1_attention.png"}
    result = check_run(out, LENET300, pictures)
    assert result["compression_params"] >= 12.5 > result["compression_params"] - 0.01
    assert result["dense_error"] is None
    printed = capsys.readouterr().out
    assert json.loads(printed.splitlines()[-1]) == result
    assert "paper keeps" in printed
    assert "The test split was not read" in printed
    judged = [x["epoch"] for x in read_log(out) if "held_out_error" in x]
    assert judged == [1.0, 2.0]


@pytest.mark.slow
def test_lenet5_by_the_paper_prunes_and_retrains(tmp_path, capsys):
    out = tmp_path / "run"
    flags = f"--dense-epochs 0.2 --rounds 1 --retrain-epochs 0.1 --out {out}"
    assert lenet5_prune.main(flags.split()) == 0
    result = check_run(out, LENET5, {"curves.png", "weights.png"})
    assert result["dense_error"] is not None
    assert "error, pruned" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.data
def test_lenet300_runs_on_the_whole_of_mnist(tmp_path, capsys):
    out = tmp_path / "run"
    flags = f"--dataset mnist --data-dir {mnist()} --batch 1000 --recipe dense \
        --dense-epochs 0.5 --out {out}"
    assert lenet300_prune.main(flags.split()) == 0
    assert json.loads((out / "result.json").read_text())["error"] < 20
    capsys.readouterr()
