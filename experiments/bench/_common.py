"""What the benchmarks share: naming the hardware, interleaving, writing a CSV."""

import csv
import io
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.files import write_text


def hardware() -> dict[str, str]:
    """Names the processor, the device and the versions that a time belongs to.

    `cores` counts the cores this process may use.
    """
    device = jax.devices()[0]
    return {
        "cpu": _cpu_model(),
        "cores": str(usable_cores()),
        "device": device.device_kind if device.platform != "cpu" else "cpu",
        "system": platform.system(),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "numpy": np.__version__,
    }


def usable_cores() -> int:
    """Counts the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def interleave(
    functions: Mapping[str, Callable[[], Any]], repeats: int
) -> dict[str, list[float]]:
    """Times functions in turn, so that a slow moment of the machine meets them all.

    Each is called twice first, untimed, to compile. The order of a round is drawn: in
    a fixed one every function would find the caches as the same neighbour left them.
    The functions wait for their own results.

    Returns:
      Seconds of each call, by name.
    """
    for function in functions.values():
        function()
        function()
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    draw, names = np.random.default_rng(0), list(functions)
    for _ in range(repeats):
        for name in [names[i] for i in draw.permutation(len(names))]:
            start = time.perf_counter()
            functions[name]()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes rows whole, with the columns of the first one as the header."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text.getvalue())


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine() or "unknown"
