"""The measuring process of the sparse benchmark: one network, one number of threads.

Threads are settings of a process, so `experiments.bench.sparse` starts this one anew
for each: `python -m experiments.bench._sparse_measure SETTINGS FILE`, settings as JSON.
"""

import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from experiments.bench._common import hardware, write_csv
from experiments.bench._sparse_files import litert_dense, litert_sparse, onnx_dense
from experiments.bench._sparse_nets import NETWORKS, Case, Net, make_net
from experiments.bench._sparse_others import scipy_csr, torch_csr, torch_dense
from experiments.bench._sparse_sides import (
    CHOSEN,
    DENSE,
    FORMS,
    Forms,
    Maker,
    Side,
    jax_side,
)


OTHERS: Mapping[str, Callable[[Net, Case, int], Maker]] = {
    "SciPy CSR": scipy_csr,
    "torch dense": torch_dense,
    "torch CSR": torch_csr,
    "ONNX dense": onnx_dense,
    "LiteRT dense": litert_dense,
    "LiteRT sparse": litert_sparse,
}
SIDES = (*FORMS, *OTHERS)
MOST = 301  # calls of each side, of those that take microseconds
LONG = 0.01  # seconds, beyond which what a call finds in the caches hardly matters
BEFORE = 5  # calls untimed before one that is timed, unless it is long
FLOOR = 0.95  # of the dense speed, which no layer that is chosen may fall below


def measure(
    net: Net,
    batches: Sequence[int],
    threads: int,
    pairs: int,
    seconds: float,
    sides: Sequence[str] = SIDES,
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Times the layers of a network and the whole.

    Args:
      net: the network.
      batches: images at a time.
      threads: of those who are told; those of XLA are the cores of this process.
      pairs: the least number of timed calls of each side, in turn.
      seconds: what a case with one batch may take where more calls than `pairs` fit.
      sides: names, `DENSE` among them.

    Returns:
      A row for each case, batch and side; what was left out, with the reason.
    """
    rows, missing, forms = [], {}, Forms(net)
    for case in net.cases:
        makers: dict[str, Maker] = {}
        for side in sides:
            try:
                if side in FORMS:
                    makers[side] = jax_side(side, forms, case)
                else:
                    makers[side] = OTHERS[side](net, case, threads)
            except (ImportError, ValueError) as error:
                missing[f"{net.name}, {case.layer}, {side}"] = str(error)
        for batch in batches:
            x = np.random.default_rng(1).random((batch, *case.shape), np.float32)
            made = {name: maker(x) for name, maker in makers.items()}
            about = {
                "network": net.name,
                "layer": case.layer,
                "density": round(net.density(case), 4),
                "batch": batch,
                "threads": threads,
            }
            rows += [about | row for row in timed(made, pairs, seconds)]
    return rows, missing


def timed(
    sides: Mapping[str, Side], pairs: int, seconds: float
) -> list[dict[str, Any]]:
    """Times the sides of a case in turn and compares them with `DENSE`.

    Returns:
      For each the median and the shortest call in milliseconds; how many times as fast
      as `DENSE`, the median over the pairs; how far its outputs are from those of
      `DENSE`, the largest difference over the largest output; the bytes of its weights
      and biases; and for a choice whether it keeps up.
    """
    outputs = {name: side.output() for name, side in sides.items()}
    calls = {name: side.call for name, side in sides.items()}
    times = in_turn(calls, pairs, seconds)
    want, base = outputs[DENSE], times[DENSE]
    scale = float(np.abs(want).max(initial=0)) or 1.0
    rows = []
    for name, side in sides.items():
        ratio = statistics.median(d / t for d, t in zip(base, times[name], strict=True))
        far = float(np.abs(outputs[name] - want).max(initial=0)) / scale
        rows.append(
            {
                "side": name,
                "form": side.form,
                "median_ms": round(1e3 * statistics.median(times[name]), 5),
                "fastest_ms": round(1e3 * min(times[name]), 5),
                "times_as_fast": round(ratio, 3),
                "difference": f"{far:.1e}",
                "weight_bytes": side.nbytes,
                "times_smaller": round(sides[DENSE].nbytes / side.nbytes, 2),
                "pairs": len(base),
                "keeps_up": "" if name != CHOSEN else str(ratio >= FLOOR).lower(),
            }
        )
    return rows


def in_turn(
    calls: Mapping[str, Callable[[], Any]], pairs: int, seconds: float
) -> dict[str, list[float]]:
    """Times functions in turn, in an order drawn anew for each round.

    Before a call that is timed, the same function is called `BEFORE` times, so that its
    weights, and the code of whoever calls it, are as near to the processor as when
    nothing else runs: VGG-16's fc7 took 0.62 ms right after a dense call, 0.44 after
    another of its own, and 0.23 in the end. In a fixed order, or one that is
    reversed every time, the functions at either end would be the only ones to follow
    upon themselves: equal programs differed by a third.
    """
    once: dict[str, float] = {}
    for name, call in calls.items():
        call()  # compiles
        call()
        once[name] = _seconds(call)
    total = sum(t * (1 if t > LONG else 1 + BEFORE) for t in once.values())
    draw = np.random.default_rng(0)
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(max(pairs, min(MOST, int(seconds / total)))):
        for name in draw.permutation(list(calls)):
            for _ in range(BEFORE if once[name] <= LONG else 0):
                calls[name]()
            times[name].append(_seconds(calls[name]))
    return times


def _seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def versions() -> dict[str, str]:
    """Gives the versions of what is compared, of what is installed."""
    found = {}
    for name in ("scipy", "torch", "onnxruntime", "ai-edge-litert"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = ""
    return found


def main(args: Sequence[str]) -> None:
    """Measures as the settings say; writes rows, prints what was left out as JSON."""
    settings, out = json.loads(args[0]), Path(args[1])
    threads, load = settings["threads"], os.getloadavg()[0]
    if hasattr(os, "sched_setaffinity"):  # before JAX looks for its devices
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    net = make_net(*NETWORKS[settings.pop("network")])
    rows, missing = measure(net, **settings)
    about = {"load_before": round(load, 2), **hardware(), **versions()}
    write_csv(out, [row | about for row in rows])
    print(json.dumps(missing))


if __name__ == "__main__":
    main(sys.argv[1:])
