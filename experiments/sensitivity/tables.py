"""The tables: levels, what was chosen, and how it did on examples not chosen on."""

import csv
import glob
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

import jaxprune
from experiments import files
from experiments.sensitivity import ways
from experiments.sensitivity.measure import Difference, cross_entropies, paired
from experiments.sensitivity.options import Options
from experiments.sensitivity.subject import Subject, all_logits


Chosen = Mapping[float, jaxprune.Solution]  # by compression

as_glob = glob.escape


def write_scan(path: Path, options: Options, scan: jaxprune.Scan) -> None:
    """Writes a row for each level of each layer."""
    rows = [
        {
            "network": options.network,
            "layer": layer,
            "sparsity": f"{sparsity:.6f}",
            "metric": options.metric,
            "retrain_steps": options.retrain_steps,
            "value": f"{value:.6f}",
            "change": f"{value - scan.value:.6f}",
        }
        for layer, curve in scan.curves.items()
        for sparsity, value in zip(*curve, strict=True)
    ]
    write(path, rows)


def write_chosen(
    path: Path, options: Options, subject: Subject, chosen: Chosen
) -> None:
    """Writes a row for each layer at each compression."""
    rows = []
    for target, solution in chosen.items():
        quality = jaxprune.to_quality(subject.params, subject.mask, solution.sparsities)
        _, mask = ways.prune(subject.params, subject.mask, solution.sparsities)
        for row in jaxprune.summarize(subject.params, mask):
            if row.prunable:
                rows.append(
                    {
                        "network": options.network,
                        "compression": f"{target:g}",
                        "layer": row.path,
                        "weights": row.size,
                        "alive": row.alive,
                        "sparsity": f"{1 - row.alive / row.size:.6f}",
                        "quality": _number(quality.get(as_glob(row.path))),
                    }
                )
    write(path, rows)


def judge(
    options: Options, subject: Subject, chosen: Chosen, folder: Path
) -> list[dict[str, Any]]:
    """Measures every way to choose on the examples kept for that; writes judged.csv.

    The losses of each are kept in the folder, so that a run that is resumed measures
    none twice.
    """
    labels = np.concatenate([labels for _, labels in subject.judge])

    def measured(
        name: str, params: Any, mask: Any
    ) -> tuple[np.ndarray, dict[str, Any]]:
        path = folder / f"judged-{name}.npz"
        if not path.exists():
            logits = all_logits(subject.network, params, subject.judge)
            wrong = logits.argmax(-1) != labels
            files.save_arrays(path, losses=cross_entropies(logits, labels), wrong=wrong)
        with np.load(path) as kept:
            losses, wrong = kept["losses"], kept["wrong"]
        print(f"{name}: cross-entropy {losses.mean():.5f}", flush=True)
        return losses, {
            "network": options.network,
            "judged_on": subject.judge_name,
            "way": name.split("-", 1)[-1],
            "compression": name.split("-", 1)[0],
            "alive": ways.alive(mask),
            "cross_entropy": f"{losses.mean():.6f}",
            "error_percent": f"{100 * wrong.mean():.3f}",
            "above_solved": "",
            "standard_error": "",
            "ratio": "",
        }

    _, before = measured("-before", subject.params, subject.mask)
    rows = [before]
    for target, solution in chosen.items():
        name = f"{target:g}x"
        params, mask = ways.prune(subject.params, subject.mask, solution.sparsities)
        solved, row = measured(f"{name}-solved", params, mask)
        rows.append(row)
        total = sum(m.size for m in jax.tree.leaves(subject.mask)) / target
        others = ways.others(subject.params, subject.mask, total)
        for way, shares in others.items():
            params, mask = ways.prune(subject.params, subject.mask, shares)
            losses, row = measured(f"{name}-{way}", params, mask)
            gain = paired(losses, solved)
            rows.append(row | of_difference(gain))
    write(folder / "judged.csv", rows)
    return rows


def of_difference(gain: Difference) -> dict[str, str]:
    """Gives the columns that tell how much better the solved one is."""
    return {
        "above_solved": f"{gain.mean:.6f}",
        "standard_error": f"{gain.error:.6f}",
        "ratio": f"{gain.mean / gain.error:.2f}",
    }


def show(rows: Sequence[Mapping[str, Any]], subject: Subject) -> None:
    """Prints what was judged."""
    title = f"{subject.network.name} on {subject.judge_name}, not retrained"
    table = Table(title=title, title_justify="left")
    heads = {
        "compression": "",
        "way": "chosen by",
        "alive": "live weights",
        "cross_entropy": "cross-entropy",
        "error_percent": "error %",
        "above_solved": "above solved",
        "standard_error": "s.e.",
    }
    for head in heads.values():
        table.add_column(head, justify="left" if head == "chosen by" else "right")
    for row in rows:
        table.add_row(*(str(row[key]) for key in heads))
    Console().print(table)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.6f}"


def write(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes rows as CSV."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    files.write_text(path, text.getvalue())
