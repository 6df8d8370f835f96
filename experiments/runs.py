"""From the command line to one run or several: folders, seeds, errors, Ctrl-C."""

import dataclasses
import json
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from experiments import data, files, report
from experiments.config import Config, Refused, parse
from experiments.models import Network
from experiments.train import Diverged


Run = Callable[[Config, data.Digits, Path], dict[str, Any]]


def main(
    run: Run,
    default: Config,
    network: Network,
    description: str,
    args: Sequence[str] | None = None,
) -> int:
    """Reads the command line, runs, prints.

    Args:
      run: trains and reports one seed in a folder, and gives its result.
      default: settings, where no flag is given.
      network: for names and for the paper's numbers.
      description: what `--help` begins with: the docstring of the experiment.
      args: flags; `None` reads those of the process.

    Returns:
      Exit code: 0, 1 after an error that is told in a sentence, 130 after Ctrl-C. A
      wrong flag exits with 2.
    """
    given = list(sys.argv[1:] if args is None else args)
    config = parse(default, description, given)
    folder = config.run.out or _folder(config, network)
    began = time.perf_counter()
    try:
        if config.run.seeds > 1:
            several(run, config, network, folder)
        else:
            one(run, config, network, folder, began)
    except (Refused, Diverged) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        kept = [flag for flag in given if flag not in ("--overwrite", "--resume")]
        if config.run.seeds == 1:
            kept.append("--resume")
        module = f"experiments.{Path(sys.argv[0]).stem}"
        print(
            f"\nInterrupted. {_where(folder)}Continue with:\n"
            f"  python -m {module} {shlex.join(kept)}",
            file=sys.stderr,
        )
        return 130
    return 0


def one(
    run: Run, config: Config, network: Network, folder: Path, began: float
) -> dict[str, Any]:
    """Runs one seed, or prints the result of one that is finished."""
    files.open_run(folder, config)
    finished = folder / "result.json"
    if finished.exists():
        result = json.loads(finished.read_text())
    else:
        result = run(config, data.load(config.data), folder)
    report.show(result, network, folder, time.perf_counter() - began)
    if config.run.json:
        print(json.dumps(result))
    return result


def several(run: Run, config: Config, network: Network, folder: Path) -> None:
    """Runs the seeds that are not done, and prints mean and deviation of all."""
    table = folder / "seeds.csv"
    if (folder / "config.json").exists():
        raise Refused(f"{folder} holds a single run; choose another --out for --seeds.")
    if config.run.overwrite:
        table.unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    seeds = range(config.run.seed, config.run.seed + config.run.seeds)
    digits = None
    for seed in seeds:
        home = folder / f"seed{seed}"
        begun = not config.run.overwrite and (home / "config.json").exists()
        its_run = dataclasses.replace(config.run, seed=seed, resume=begun)
        its_config = dataclasses.replace(config, run=its_run)
        files.open_run(home, its_config)
        finished = home / "result.json"
        if finished.exists():
            result = json.loads(finished.read_text())
        else:
            print(f"seed {seed}, {seed - seeds[0] + 1} of {len(seeds)}", flush=True)
            digits = digits or data.load(config.data)
            result = run(its_config, digits, home)
        report.add_row(table, result)
    rows = report.read_rows(table)
    report.show_seeds([rows[seed] for seed in seeds], network, table)
    if config.run.json:
        print(json.dumps([rows[seed] for seed in seeds]))


def _folder(config: Config, network: Network) -> Path:
    name = network.name.lower().replace("-", "")
    parts = [name, config.pruning.recipe, config.data.dataset]
    parts += ["heldout"] if config.data.holdout else []
    parts += ["seeds"] if config.run.seeds > 1 else []
    return Path("runs") / "-".join(parts)


def _where(folder: Path) -> str:
    steps = [int(p.name) for p in folder.glob("**/checkpoints/*") if p.name.isdigit()]
    if not steps:
        return "No checkpoint was written yet. "
    return f"The last checkpoint is of step {max(steps)}. "
