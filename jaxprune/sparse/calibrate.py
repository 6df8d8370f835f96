"""`python -m jaxprune.sparse.calibrate`: measures what products cost on this machine.

It takes about half a minute, best while nothing else runs, and writes a small file that
`jaxprune.sparse.sparsify` reads from then on.
"""

import argparse
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprune.sparse._choose import Costs
from jaxprune.sparse._conv import convolve, to_conv
from jaxprune.sparse._costs import default_path, write_costs
from jaxprune.sparse._fast import target
from jaxprune.sparse._kernel import SparseKernel, to_kernel
from jaxprune.sparse._layout import PORTABLE
from jaxprune.sparse._product import product


_LARGE = 2**22  # bytes
_LEAST = 1e-3  # nanoseconds; noise can make a difference of two times negative


class Sizes(NamedTuple):
    """What is measured.

    Attributes:
      small: rows and columns of a matrix that fits any cache.
      large: of one that fits none.
      narrow: rows of a matrix with three columns, whose sparse form has many turns.
      keep: share of the weights that live.
      image: rows and columns, and channels, of a convolution's input and output.
      small_image: the same of one that fits any cache.
      large_image: the same of one that fits none.
    """

    small: int = 512
    large: int = 4096
    narrow: int = 5000
    keep: float = 0.05
    image: tuple[int, int] = (28, 128)
    small_image: tuple[int, int] = (24, 16)
    large_image: tuple[int, int] = (448, 32)


FULL = Sizes()


def measure(sizes: Sizes = FULL, repeats: int = 15) -> Costs:
    """Times products in turn, and solves for the costs by which they are estimated."""
    rng = np.random.default_rng(0)

    def kernel(rows: int, columns: int, keep: float, fast: bool) -> SparseKernel:
        alive = rng.random((rows, columns)) < keep
        return to_kernel(np.where(alive, 1.0, 0.0), alive, fast=fast)

    small = jnp.ones((sizes.small, sizes.small), jnp.float32)
    large = jnp.ones((sizes.large, sizes.large), jnp.float32)
    tiny, narrow = kernel(16, 16, 1.0, False), kernel(sizes.narrow, 3, 1.0, False)
    wide = kernel(sizes.large, sizes.large, sizes.keep, False)
    dense = {
        "nothing": (jnp.ones((16, 16), jnp.float32), 1),
        "cached": (small, 1),
        "streamed": (large, 1),
        "16": (large, 16),
        "64": (large, 64),
    }
    plain = {"tiny": (tiny, 1), "narrow": (narrow, 1), "wide": (wide, 1)}
    plain["wide 16"] = (wide, 16)
    times = _timed(dense | plain, repeats)
    t = lambda name: times[name]

    both = (t("64") - t("16")) / 48 / large.size
    turns, blocks = sum(longest for longest, _ in wide.blocks), len(wide.blocks)
    slots = wide.slots
    turn = (t("narrow") - t("tiny")) / sizes.narrow
    rest = t("tiny") + turn * turns + PORTABLE.block * blocks
    slot = (t("wide") - rest) / slots
    costs = Costs()._replace(
        dense_call=t("nothing"),
        cached=(t("cached") - t("nothing")) / small.size,
        streamed=(t("streamed") - t("nothing")) / large.size,
        packed=(t("16") - t("nothing")) / large.size - 16 * both,
        dense=both,
        call=t("tiny"),
        turn=turn,
        slot=slot,
        image=((t("wide 16") - rest) / slots - slot) / 15,
    )
    if all(target("float32", "uint16", kind) for kind in ("one", "many")):
        costs = _fast(costs, sizes, repeats, kernel)
    if target("float32", "uint16", "conv"):
        costs = _conv(costs, sizes, repeats, rng)
    found = {name: max(cost, _LEAST) for name, cost in costs._asdict().items()}
    return Costs(**found | {"cache": costs.cache})


def _fast(
    costs: Costs, sizes: Sizes, repeats: int, kernel: Callable[..., SparseKernel]
) -> Costs:
    """Measures the kernel of the extra `fast`."""
    # So few weights that one thread works on them.
    one = kernel(sizes.small, sizes.small, 0.2, True)
    wide = kernel(sizes.large, sizes.large, sizes.keep, True)
    times = _timed(
        {
            "tiny": (kernel(16, 16, 1.0, True), 1),
            "one": (one, 1),
            "wide": (wide, 1),
            "16": (wide, 16),
            "64": (wide, 64),
        },
        repeats,
    )
    slots, call = wide.slots, times["tiny"]
    slot = (times["one"] - call) / one.slots
    threads = max(1.0, slot * slots / max(times["wide"] - call, 1.0))
    image = threads * (times["64"] - times["16"]) / 48 / slots
    return costs._replace(
        fast_call=call,
        fast_slot=slot,
        fast_threads=threads,
        fast_image=image,
        fast_many=threads * (times["16"] - call) / slots - 16 * image,
    )


def _conv(costs: Costs, sizes: Sizes, repeats: int, rng: np.random.Generator) -> Costs:
    """Measures convolutions of 3 x 3: dense, a quarter alive, and nearly empty."""
    numbers, padding = ("NHWC", "HWIO", "NHWC"), ((1, 1), (1, 1))
    images, convs = {}, {}
    for name, (side, channels), keep in (
        ("quarter", sizes.image, 0.25),
        ("few", sizes.image, 0.01),
        ("small", sizes.small_image, 0.1),
        ("large", sizes.large_image, 0.01),
    ):
        alive = rng.random((3, 3, channels, channels)) < keep
        images[name] = jnp.ones((1, side, side, channels), jnp.float32)
        convs[name] = to_conv(np.where(alive, 1.0, 0.0), alive)
    dense = jax.jit(
        lambda x, w: lax.conv_general_dilated(
            x, w, (1, 1), padding, dimension_numbers=numbers
        )
    )
    sparse = jax.jit(lambda x, conv: convolve(x, conv, padding))
    weights = jnp.ones(convs["few"].shape, jnp.float32)
    little = jnp.ones((1, 4, 4, sizes.image[1]), jnp.float32)
    grey, one_by_one = little[..., :1], weights[:, :, :1, :1]
    run = {
        name: lambda name=name, conv=conv: sparse(images[name], conv)
        for name, conv in convs.items()
    }
    # Small ones take turns among themselves: after a large one the caches are cold.
    small: dict[str, Callable[[], Any]] = {
        "nothing": lambda: dense(grey, one_by_one),
        "small": run.pop("small"),
    }
    large: dict[str, Callable[[], Any]] = {
        "dense": lambda: dense(images["few"], weights),
        "little": lambda: dense(little, weights),
        **run,
    }
    times = _in_turn(small, 10 * repeats) | _in_turn(large, repeats)
    slots = {n: c.matrix.slots for n, c in convs.items()}
    positions = sizes.image[0] ** 2
    one = (times["quarter"] - times["few"]) / (slots["quarter"] - slots["few"])
    one /= positions

    def move(name: str, side: int, channels: int) -> float:
        """Gives what is not spent on weights, for a value in or out."""
        rest = (times[name] - costs.fast_call) / side**2 - one * slots[name]
        return rest / (2 * channels)

    conv = (times["dense"] - times["little"]) / weights.size / (positions - 16)
    packed = (times["little"] - times["nothing"]) / weights.size - 16 * conv
    return costs._replace(
        conv_call=times["nothing"],
        conv_packed=packed,
        conv=conv,
        fast_conv=one,
        fast_move=move("large", *sizes.large_image),
        cached_move=move("small", *sizes.small_image),
    )


def _timed(products: Mapping[str, tuple[Any, int]], repeats: int) -> dict[str, float]:
    """Gives the median nanoseconds of products, timed in turn.

    Small matrices take turns among themselves: after a large one the caches are cold.
    """
    dense, sparse = jax.jit(jnp.matmul), jax.jit(product)
    small: dict[str, Callable[[], Any]] = {}
    large: dict[str, Callable[[], Any]] = {}
    for name, (matrix, batch) in products.items():
        run = sparse if isinstance(matrix, SparseKernel) else dense
        x = jnp.ones((batch, matrix.shape[0]), jnp.float32)
        calls = small if matrix.nbytes < _LARGE else large
        calls[name] = lambda run=run, x=x, matrix=matrix: run(x, matrix)
    return _in_turn(small, 10 * repeats) | _in_turn(large, repeats)


def _in_turn(calls: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Gives the median nanoseconds of calls, timed in turn."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(-2, repeats):
        for name, call in calls.items():
            start = time.perf_counter_ns()
            call().block_until_ready()
            if turn >= 0:  # the first two compile and fill the caches
                found[name].append(time.perf_counter_ns() - start)
    return {name: float(np.median(times)) for name, times in found.items()}


def main(args: list[str] | None = None) -> int:
    """Measures, writes the file, and prints what was found."""
    parser = argparse.ArgumentParser(
        prog="python -m jaxprune.sparse.calibrate",
        description="Measures what products cost on this machine.",
    )
    parser.add_argument("--out", type=Path, help="file, instead of the user's cache")
    parser.add_argument("--repeats", type=int, default=15, help="times of each product")
    given = parser.parse_args(args)
    path = given.out or default_path()
    if given.repeats < 1:
        parser.error(f"--repeats is {given.repeats}, expected 1 or more.")
    if path is None:
        parser.error("no --out, and without pip install 'jaxprune[fast]' no default.")
    if path.is_dir():
        parser.error(f"--out is {path}, a folder, expected a file.")
    if jax.default_backend() != "cpu":
        parser.error(f"JAX runs on {jax.default_backend()}; set JAX_PLATFORMS=cpu.")
    try:
        costs = measure(repeats=given.repeats)
    except KeyboardInterrupt:
        print("\nInterrupted.", file=sys.stderr)
        return 130
    try:
        write_costs(path, costs)
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for name, cost in costs._asdict().items():
        print(f"{name:>12} {cost:12.4g}")
    print(f"Nanoseconds of a weight or a call, `cache` in bytes; written to {path}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
