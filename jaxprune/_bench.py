"""How long a forward pass takes: dense, sparse, and by LiteRT."""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from jaxprune import sparse
from jaxprune.interop._litert import interpreter_of, litert_bytes
from jaxprune.sparse._fast import cores


Way = Callable[[], np.ndarray]


def ways_of(
    apply: Callable[..., Any],
    params: PyTree,
    mask: PyTree,
    x: np.ndarray,
    threads: int = 1,
    dense_only: bool = False,
) -> tuple[dict[str, Way], dict[str, str]]:
    """Gives what can be timed on one batch, and why the rest cannot.

    Args:
      apply: of params and inputs.
      params: dead weights are zero.
      mask: their mask.
      x: the inputs, the batch first.
      threads: of LiteRT.
      dense_only: whether `apply` is a program that nothing can be read from.

    Returns:
      Functions that compute the outputs of `x`, "dense" among them; reasons by name.
    """
    weights, images, dense = jax.device_put(params), jax.device_put(x), jax.jit(apply)
    ways: dict[str, Way] = {"dense": lambda: np.asarray(dense(weights, images))}
    if dense_only:
        reason = "the program that the file carries runs dense alone; give --model"
        return ways, dict.fromkeys(("sparse", "litert"), reason)
    missing, lean = {}, sparse.sparsify(params, mask, batch=len(x))
    lifted = jax.jit(sparse.lift(apply))
    if jax.tree.structure(lean) == jax.tree.structure(params):
        missing["sparse"] = f"at batch {len(x)} no layer is expected to gain by it"
    else:
        ways["sparse"] = lambda: np.asarray(lifted(lean, images))
    try:
        data = litert_bytes(apply, params, x.shape[1:])
        ways["litert"] = interpreter_of(data, x, threads)
    except (ImportError, ValueError) as error:
        missing["litert"] = str(error)
    return ways, missing


def timed(ways: Mapping[str, Way], repeats: int) -> list[dict[str, Any]]:
    """Times functions in turn, so that a slow moment of the machine meets them all.

    Each is called twice first, untimed; every second round runs in reverse order.

    Returns:
      For each the median and the shortest time in milliseconds, how many times as fast
      as the first it is by the medians, and how far its outputs are from those of the
      first, relative to the largest of these.
    """
    made = {name: (way(), way())[1] for name, way in ways.items()}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(repeats):
        for name in list(ways)[:: 1 if turn % 2 == 0 else -1]:
            start = time.perf_counter()
            ways[name]()
            seconds[name].append(time.perf_counter() - start)
    (first, *_), (base, *_) = made.values(), seconds.values()
    scale = max(float(np.abs(first).max(initial=0)), 1e-30)
    rows = []
    for name, times in seconds.items():
        median = float(np.median(times))
        far = float(np.abs(made[name] - first).max(initial=0))
        row = {"way": name, "median_ms": 1e3 * median, "fastest_ms": 1e3 * min(times)}
        row["times_as_fast"] = float(np.median(base)) / median
        rows.append(row | {"difference": far / scale})
    return rows


def check_numbers(batches: Sequence[int], repeats: int, threads: int) -> None:
    """Raises ValueError, naming the flag, if a number is less than 1."""
    for name, number in [("repeats", repeats), ("threads", threads)]:
        if number < 1:
            raise ValueError(f"--{name} is {number}, expected 1 or more.")
    if not batches or min(batches) < 1:
        raise ValueError(f"--batch is {tuple(batches)}, expected sizes of 1 or more.")


def measure(
    apply: Callable[..., Any],
    params: PyTree,
    mask: PyTree,
    shape: Sequence[int],
    batches: Sequence[int],
    repeats: int,
    threads: int,
    dense_only: bool = False,
) -> dict[str, Any]:
    """Times every way at every batch size, on inputs drawn at random.

    Raises:
      ValueError: if `apply` gives no single array.
    """
    rows, missing = [], []
    for batch in batches:
        rng = np.random.default_rng(0)
        x = rng.normal(size=(batch, *shape)).astype(np.float32)
        out = jax.eval_shape(apply, params, x)
        if not isinstance(out, jax.ShapeDtypeStruct):
            raise ValueError("the model gives several outputs, expected one array.")
        ways, reasons = ways_of(apply, params, mask, x, threads, dense_only)
        rows += [{"batch": batch, **row} for row in timed(ways, repeats)]
        missing += [
            {"batch": batch, "way": way, "reason": reason}
            for way, reason in reasons.items()
        ]
    device = jax.devices()[0]
    machine = {
        "device": device.device_kind,
        "cores": cores(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "litert_threads": threads,
    }
    return {"machine": machine, "repeats": repeats, "rows": rows, "missing": missing}
