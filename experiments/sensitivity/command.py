"""Scans what each layer bears, chooses sparsities by it, and judges the choice.

The paper's figure 6, without its numbers, which it does not print: each layer pruned
alone, without retraining. From this scan sparsities of all layers together are solved
for, at given compressions, and compared with one threshold for all layers and with one
sparsity for all, on examples that nothing was chosen on:

    python -m experiments.sensitivity --network LeNet-5
    python -m experiments.sensitivity --network LeNet-5 --dataset mnist
    python -m experiments.sensitivity --network SqueezeNet \
        --weights compressed_SqueezeNet.net --data-dir DIR

Found with the second: 4x and 8x beat the best of the others by over three standard
errors of paired differences, 2x beats one threshold by one only, and by three over
eight networks (experiments/results/README.md); with the third, 4x and
5x by over two, and with --rounds 4 also 6x, where one sparsity for all guesses. The
tables are in experiments/results.

The first takes digits that need no download, and like the second trains the network
before it scans it. In the folder, runs/sensitivity-NETWORK:

    scan.csv, scan.png    the metric at every level of every layer
    chosen.csv            for each compression the sparsity of every layer, and the
                          quality parameter that prunes to it
    judged.csv            cross-entropy and error of each way to choose, and by how much
                          the solved one is better, with the standard error of pairs
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

import jaxprune
from experiments.config import Refused
from experiments.folders import command, open_folder
from experiments.sensitivity import figure, retrain, tables, ways
from experiments.sensitivity.measure import cross_entropies, divergences
from experiments.sensitivity.options import Options, completed
from experiments.sensitivity.subject import Subject, load


def run(options: Options) -> list[dict[str, Any]]:
    """Scans, solves, judges, and writes the folder; gives the rows of judged.csv.

    Raises:
      Refused: if a flag is wrong, or weights, data or folder are not to be had.
    """
    options = completed(options)
    folder = open_folder(options, holds="such a scan")
    subject = load(options, folder)
    evaluate = metric(options, subject)
    scan = scanned(options, subject, evaluate, folder)
    tables.write_scan(folder / "scan.csv", options, scan)
    title = f"{options.network}: {options.metric} on {subject.choose_name}"
    figure.draw(folder / "scan.png", scan, title, options.metric or "")
    ways = {}
    for target in options.targets or ():
        ways[target] = chosen(options, subject, scan, evaluate, target)
    tables.write_chosen(folder / "chosen.csv", options, subject, ways)
    rows = tables.judge(options, subject, ways, folder)
    tables.show(rows, subject)
    Console().print(f"Folder: {folder}", soft_wrap=True, highlight=False)
    return rows


def metric(options: Options, subject: Subject) -> Any:
    """Makes the function from params to the metric, a mean over what is chosen on."""
    labels = np.concatenate([labels for _, labels in subject.choose])
    before = subject.logits(subject.params)

    def evaluate(params: Any) -> float:
        logits = subject.logits(params)
        if options.metric == "divergence":
            return float(divergences(before, logits).mean())
        return float(cross_entropies(logits, labels).mean())

    return evaluate


def scanned(
    options: Options, subject: Subject, evaluate: Any, folder: Path
) -> jaxprune.Scan:
    """Scans, or goes on with a scan; every tenth of it is told."""
    rows = [r for r in jaxprune.summarize(subject.params, subject.mask) if r.prunable]
    levels = {
        tables.as_glob(row.path): [
            1 - row.alive / row.size * share for share in options.kept or ()
        ]
        for row in rows
    }
    again = None
    if options.retrain_steps and subject.train is not None:
        again = retrain.make(subject.network, subject.train, options.retrain_steps)
    told = 0

    def report(point: jaxprune.Point, done: int, total: int) -> None:
        nonlocal told
        if 10 * done // total > told:
            told = 10 * done // total
            print(f"scan: {done} of {total} points", flush=True)

    return jaxprune.sensitivity_scan(
        evaluate,
        subject.params,
        subject.mask,
        levels,
        retrain=again,
        file=folder / "points.jsonl",
        report=report,
    )


def chosen(
    options: Options,
    subject: Subject,
    scan: jaxprune.Scan,
    evaluate: Any,
    target: float,
) -> jaxprune.Solution:
    """Solves for a compression, and improves the solution by scans around it."""
    wanted = sum(scan.sizes.values()) / target
    total = wanted - len(scan.sizes)  # dead weights are rounded to whole numbers
    tried = []
    try:
        for power in options.powers or ():
            found, total = solved(subject, _raised(scan, power), wanted, total)
            value = None
            if len(options.powers or ()) > 1:
                params, _ = ways.prune(subject.params, subject.mask, found.sparsities)
                value = evaluate(params)
                about = f"with exponent {power:g}, {value:.5f} measured"
            else:
                about = f"{found.value:.5f} predicted"
            print(f"{target:g}x: solved, {options.metric} {about}", flush=True)
            tried.append((value, found))
    except ValueError as error:
        raise Refused(f"--targets {target:g} cannot be reached: {error}") from error
    found = min(tried, key=lambda pair: pair[0])[1] if len(tried) > 1 else tried[0][1]
    if not options.rounds:
        return found
    starts = {"solved": found.sparsities, **_others(subject, wanted)}
    losses = {}
    for name, shares in starts.items():
        params, _ = ways.prune(subject.params, subject.mask, shares)
        losses[name] = evaluate(params)
    best = min(losses, key=lambda name: losses[name])
    print(f"{target:g}x: begins with {best}, {losses[best]:.5f} measured", flush=True)

    def report(solution: jaxprune.Solution, better: bool) -> None:
        verdict = "better" if better else "not better"
        print(f"{target:g}x: {solution.value:.5f} measured, {verdict}", flush=True)

    improved = jaxprune.refine(
        evaluate,
        subject.params,
        subject.mask,
        starts[best],
        total=total,
        rounds=options.rounds,
        report=report,
    )
    # Another way may begin with too many weights, of which refining takes some first.
    if improved.value > losses["solved"]:
        return found._replace(value=losses["solved"])
    return improved


def solved(
    subject: Subject, scan: jaxprune.Scan, wanted: float, total: float
) -> tuple[jaxprune.Solution, float]:
    """Solves so that no more than `wanted` weights live; gives the total it took."""
    found = jaxprune.solve(scan, total=total, exactly=True)
    # Weights tied with a threshold live, of which shared values have many.
    while (left := _alive(subject, found)) > wanted:
        total -= left - wanted
        found = jaxprune.solve(scan, total=total, exactly=True)
    return found, total


def _raised(scan: jaxprune.Scan, power: float) -> jaxprune.Scan:
    """Raises what each layer adds to the metric to a power; losses stay losses."""

    def raised(curve: jaxprune.Curve) -> jaxprune.Curve:
        added = curve.values - scan.value
        values = scan.value + np.sign(added) * np.abs(added) ** power
        return jaxprune.Curve(curve.sparsities, values)

    return scan._replace(curves={p: raised(c) for p, c in scan.curves.items()})


def _others(subject: Subject, wanted: float) -> dict[str, ways.Shares]:
    """Gives what the ways that are compared with leave of each layer, as shares."""
    found = {}
    for name, way in ways.others(subject.params, subject.mask, wanted).items():
        params, mask = ways.prune(subject.params, subject.mask, way)
        rows = [row for row in jaxprune.summarize(params, mask) if row.prunable]
        found[name] = {tables.as_glob(r.path): 1 - r.alive / r.size for r in rows}
    return found


def _alive(subject: Subject, solution: jaxprune.Solution) -> int:
    _, mask = ways.prune(subject.params, subject.mask, solution.sparsities)
    return ways.alive(mask)


def main(args: Sequence[str] | None = None) -> int:
    """Runs the command line; gives the exit code."""
    prog = "python -m experiments.sensitivity"
    return command(Options, run, prog, __doc__, args)
