"""From the command line to one run or several: folders, seeds, errors, Ctrl-C."""

import contextlib
import dataclasses
import json
import re
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from experiments import data, files, judge, recipes, summary
from experiments.config import Config, Refused, Settings
from experiments.flags import parse
from experiments.models import Network
from experiments.processes import first_process, together
from experiments.seeds import add_row, read_rows, show_seeds
from experiments.step import Diverged, check_step
from experiments.stop import Stopped
from experiments.tasks import Resident, Task, whole_batches


# Trains and reports one seed in a folder, on what the other has loaded.
Run = Callable[[Any, Any, Path], dict[str, Any]]
Prepare = Callable[[Any, Network], Any]


class Interrupted(Exception):
    """Ctrl-C in a run that has its folder, so that it can be continued."""


def main(
    run: Run,
    default: Config,
    network: Network,
    description: str,
    args: Sequence[str] | None = None,
) -> int:
    """Reads the command line, runs on digits, prints.

    Args:
      run: trains and reports one seed in a folder, and gives its result; the module
        that it is from is the command that messages name.
      default: settings, where no flag is given.
      network: for names and for the paper's numbers.
      description: what `--help` begins with: the docstring of the experiment.
      args: flags; `None` reads those of the process.

    Returns:
      Exit code: 0, also after SIGTERM; 1 after an error that is told in a sentence, 130
      after Ctrl-C in a run that has begun. A wrong flag exits with 2.
    """
    given = list(sys.argv[1:] if args is None else args)
    command = f"-m {run.__module__}"
    config = parse(default, f"python {command}", description, given)
    return go(run, config, network, given, prepare)


def go(
    run: Run, config: Settings, network: Network, given: list[str], prepare: Prepare
) -> int:
    """Runs one seed or several; gives the exit code, as `main`.

    Args:
      run: as in `main`.
      config: settings.
      network: for names and for the paper's numbers.
      given: the flags, for the command that goes on.
      prepare: loads what `run` is given, and tries the settings on it.
    """
    command = f"{shlex.quote(_python())} -m {run.__module__}"
    kept = [flag for flag in given if flag not in ("--overwrite", "--resume")]
    if config.run.seeds == 1:
        kept.append("--resume")
    folder = config.run.out or _folder(config, network)
    began = time.perf_counter()
    try:
        if config.run.seeds > 1:
            several(run, config, network, folder, prepare)
        else:
            one(run, config, network, folder, prepare, began)
    except (Refused, Diverged) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except Stopped as stopped:
        where = f"saved at step {stopped.step}" if stopped.step else "before any step"
        print(f"Stopped, {where}. Go on with: {command} {shlex.join(kept)}")
        return 0
    except Interrupted:
        print(
            f"\nInterrupted. {_where(folder)}Continue with:\n"
            f"  {command} {shlex.join(kept)}",
            file=sys.stderr,
        )
        return 130
    return 0


def one(
    run: Run,
    config: Settings,
    network: Network,
    folder: Path,
    prepare: Prepare,
    began: float,
) -> dict[str, Any]:
    """Runs one seed, or prints the result of one that is finished."""
    files.check_run(folder, config)
    finished = folder / "result.json"
    if finished.exists() and not config.run.overwrite:
        result = json.loads(finished.read_text())
    else:
        loaded = prepare(config, network)
        together("checked")
        if first_process():
            files.make_run(folder, config)
        together("made")
        with _can_go_on():
            result = run(config, loaded, folder)
    if not first_process():
        return result
    summary.show(result, network, folder, time.perf_counter() - began)
    if config.run.json:
        print(json.dumps(result))
    return result


def several(
    run: Run, config: Settings, network: Network, folder: Path, prepare: Prepare
) -> None:
    """Runs the seeds that are not done, and prints mean and deviation of all."""
    table = folder / "seeds.csv"
    seeds = range(config.run.seed, config.run.seed + config.run.seeds)
    present = seeds_in(folder, table)
    configs = {}
    for seed in sorted({*seeds, *present}):
        begun = seed in present and not config.run.overwrite
        its_run = dataclasses.replace(config.run, seed=seed, resume=begun)
        configs[seed] = dataclasses.replace(config, run=its_run)
        files.check_run(folder / f"seed{seed}", configs[seed])
    done = [s for s in present if (folder / f"seed{s}" / "result.json").exists()]
    if config.run.overwrite:
        done = []
    loaded = None if set(seeds) <= set(done) else prepare(config, network)
    if config.run.overwrite:
        # The table first: it must not tell of seeds that are gone.
        table.unlink(missing_ok=True)
        for seed in present:
            files.clear_run(folder / f"seed{seed}")
            (folder / f"seed{seed}").rmdir()
    for seed in seeds:
        home = folder / f"seed{seed}"
        if seed in done:
            result = json.loads((home / "result.json").read_text())
        else:
            assert loaded is not None
            print(f"seed {seed}, {seed - seeds[0] + 1} of {len(seeds)}", flush=True)
            with _can_go_on():
                files.make_run(home, configs[seed])
                result = run(configs[seed], loaded, home)
        add_row(table, result)
        for warning in summary.warnings(result):
            print(f"seed {seed}: {warning}")
    rows = read_rows(table)
    show_seeds([rows[seed] for seed in seeds], network, table)
    if config.run.json:
        print(json.dumps([rows[seed] for seed in seeds]))


def prepare(config: Config, network: Network) -> data.Digits:
    """Loads the digits and tries the settings on them, before anything is written.

    Raises:
      Refused: if the digits are not there, or a setting does not fit them or the
        network.
    """
    digits = data.load(config.data)
    epoch = whole_batches(len(digits.train.labels), config.training.batch)
    plan = recipes.plan(config, network, epoch)
    shape = (1, *digits.train.images.shape[1:])
    check_step(config, network, plan, jax.ShapeDtypeStruct(shape, jnp.float32))
    return digits


def task_of(
    config: Config,
    network: Network,
    digits: data.Digits,
    soft: Any = None,
    phase: int = 0,
) -> Task:
    """Makes of digits what `train.fit` trains on.

    Args:
      config: settings.
      network: what is trained.
      digits: to train and to judge on.
      soft: a teacher's logits for them, or the function that gives them for inputs.
      phase: counts the trainings of a run that follow each other, each of which counts
        its steps from 0, so that none sees the distortions of another.
    """

    def distort(key: jax.Array, images: jax.Array) -> jax.Array:
        key = jax.random.fold_in(key, phase) if phase else key
        return data.distort(key, images)

    key = jax.random.key(config.run.seed)
    batch, per_call = config.training.batch, config.run.steps_per_call
    feed = Resident(
        digits.train,
        batch,
        key,
        per_call=per_call,
        augment=distort if config.data.augment else None,
        soft=soft,
    )
    return Task(
        feed=feed,
        judge=judge.resident(network, digits.judge),
        judged_on=digits.judge_name,
        dataset=config.data.dataset,
        trained_on=f"{len(digits.train.labels):,} training digits",
        held_out=bool(config.data.holdout),
    )


def seeds_in(folder: Path, table: Path) -> list[int]:
    """Lists the seeds that have a folder in a folder of seeds.

    Raises:
      Refused: if anything but the runs of seeds and their table is there.
    """
    if (folder / "config.json").exists():
        raise Refused(f"{folder} holds a single run; choose another --out for --seeds.")
    if not folder.exists():
        return []
    if not folder.is_dir():
        raise Refused(f"{folder} is a file, expected a folder; choose another --out.")
    read_rows(table)
    seeds = []
    for path in folder.iterdir():
        if found := re.fullmatch(r"seed(0|[1-9][0-9]*)", path.name):
            seeds.append(int(found[1]))
        elif path.name not in (table.name, f".{table.name}.part"):
            raise Refused(
                f"{folder} holds {path.name}, which no run of --seeds wrote; choose "
                "another --out."
            )
    return sorted(seeds)


def _folder(config: Settings, network: Network) -> Path:
    name = network.name.lower().replace("-", "")
    parts = [name, config.pruning.recipe, config.data.dataset]
    parts += ["augmented"] if getattr(config.data, "augment", False) else []
    parts += ["heldout"] if getattr(config.data, "holdout", 0) else []
    parts += ["seeds"] if config.run.seeds > 1 else []
    return Path("runs") / "-".join(parts)


@contextlib.contextmanager
def _can_go_on() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted from None


def _python() -> str:
    """Names the interpreter that runs, as briefly as it can be typed here."""
    path = Path(sys.executable)
    if path.is_relative_to(Path.cwd()):
        path = path.relative_to(Path.cwd())
    return str(path)


def _where(folder: Path) -> str:
    steps = [int(p.name) for p in folder.glob("**/checkpoints/*") if p.name.isdigit()]
    if not steps:
        return "No checkpoint was written yet. "
    return f"The last checkpoint is of step {max(steps)}. "
