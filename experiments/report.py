"""What a run leaves behind: tables, figures, weights."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np

import jaxprune
from experiments import figures, files
from experiments.config import Settings, as_dict
from experiments.models import Network
from experiments.processes import first_process
from experiments.recipes import Plan
from experiments.step import at_path
from experiments.tasks import Task
from experiments.train import Fitted


def finish(
    config: Settings,
    network: Network,
    plan: Plan,
    task: Task,
    fitted: Fitted,
    folder: Path,
) -> dict[str, Any]:
    """Measures the errors, once, and writes all files of the run folder.

    Of several processes all measure, and the first writes.

    Returns:
      What is written to result.json: counts, errors in percent, times in seconds.
    """
    errors = task.judge(fitted.params)
    dense: dict[str, float] = {}
    if config.pruning.recipe == "dense":
        dense = errors
    elif plan.dense_is_trained and fitted.dense_params is not None:
        dense = task.judge(fitted.dense_params)

    judged_on = task.judged_on
    if "broken" in errors:
        judged_on += f", {errors['broken']} broken ones left out"

    rows = jaxprune.summarize(fitted.params, fitted.mask)
    layers = [
        {
            "layer": row.path,
            "weights": row.size,
            "alive": row.alive,
            "kept_percent": 100 * row.alive / row.size,
            "paper_percent": network.kept.get(row.path),
        }
        for row in rows
        if row.prunable
    ]
    weights = sum(row.size for row in rows if row.prunable)
    alive_weights = sum(row.alive for row in rows if row.prunable)
    params = sum(row.size for row in rows)
    alive_params = sum(row.alive for row in rows)
    result = {
        "network": network.name,
        "recipe": config.pruning.recipe,
        "dataset": task.dataset,
        "seed": config.run.seed,
        "judged_on": judged_on,
        "dense_error": dense.get("error"),
        "error": errors["error"],
        "dense_top5_error": dense.get("top5_error"),
        "top5_error": errors.get("top5_error"),
        "layers": layers,
        "weights": weights,
        "alive_weights": alive_weights,
        "compression_weights": weights / alive_weights,
        "params": params,
        "alive_params": alive_params,
        "compression_params": params / alive_params,
        "sparsity": 1 - alive_weights / weights,
        "steps": fitted.steps,
        "train_seconds": round(fitted.seconds, 2),
    }
    if not first_process():
        return result
    files.write_text(folder / "table.csv", _table_csv(result))
    about = {
        "network": network.name,
        "mask": "a weight of these leaves is dead where it is 0",
        "pruned_leaves": " ".join(row["layer"] for row in layers),
        "error_percent": str(errors["error"]),
        "judged_on": judged_on,
        "settings": json.dumps(as_dict(config)),
    }
    name = "dense" if config.pruning.recipe == "dense" else "pruned"
    files.save_weights(folder / f"{name}.safetensors", fitted.params, about)
    draw(config, network, plan, fitted, folder, result)
    files.write_text(folder / "result.json", json.dumps(result, indent=2) + "\n")
    return result


def draw(
    config: Settings,
    network: Network,
    plan: Plan,
    fitted: Fitted,
    folder: Path,
    result: dict[str, Any],
) -> None:
    """Writes the figures of the run."""
    title = (
        f"{network.name}, {result['dataset']}, recipe {result['recipe']}, "
        f"seed {result['seed']}"
    )
    figures.curves(folder / "curves.png", folder / "metrics.jsonl", plan.phases, title)
    if plan.dense_step is None:
        return
    before = f"before pruning, step {plan.dense_step}: all weights"
    after = f"retrained, step {fitted.steps}: live weights"
    figures.histograms(
        folder / "weights.png",
        fitted.dense_params,
        fitted.params,
        fitted.mask,
        (before, after),
    )
    if not network.groups["conv"]:  # the first layer sees pixels, one a row
        first = network.groups["fc"][0]
        mask = np.asarray(at_path(fitted.mask, first))
        layer = first.split("/")[0]
        share = f"{mask.mean():.1%} of the weights live"
        figures.bands(
            folder / f"{layer}_mask.png",
            mask,
            f"{title}: live weights of {layer}, {share}",
        )
        figures.attention(
            folder / f"{layer}_attention.png",
            mask,
            f"{network.name}: where {layer} looks\n{share}",
        )


def _table_csv(result: dict[str, Any]) -> str:
    text = io.StringIO()
    columns = ("layer", "weights", "alive", "kept_percent", "paper_percent")
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(result["layers"])
    for name, size, alive in (
        ("all weights", "weights", "alive_weights"),
        ("all parameters", "params", "alive_params"),
    ):
        kept = 100 * result[alive] / result[size]
        writer.writerow(
            {
                "layer": name,
                "weights": result[size],
                "alive": result[alive],
                "kept_percent": kept,
            }
        )
    return text.getvalue()
