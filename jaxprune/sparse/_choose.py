"""Whether a matrix runs faster without its dead weights, and by which kernel."""

from importlib.util import find_spec
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool

from jaxprune.sparse._fast import ALONE, padded
from jaxprune.sparse._layout import ADD, FAST, PORTABLE, Loop, Plan, plan
from jaxprune.sparse._portable import images_at_a_time


Form = Literal["dense", "portable", "fast"]
_FEW = 500  # weights, for which no kernel is worth being compiled


class Costs(NamedTuple):
    """What a product costs on a machine, in nanoseconds.

    The defaults are estimates for 2 cores of an x86 processor, rounded from times on an
    AMD EPYC: `streamed`, `packed`, `dense`, `slot` and `image` of VGG-16's fc6 and fc7,
    `fast_slot`, `fast_many` and `fast_image` of AlexNet's dense layers with 1, 16 and
    64 images, `cached` and `dense_call` of fc8 and the LeNets, `conv` and `fast_conv`
    of VGG-16's convolutions, `conv_call`, `conv_packed` and `cached_move` of small
    ones; the others were not measured alone. `python -m jaxprune.sparse.calibrate`
    measures all but `cache` on another machine.

    Attributes:
      dense_call: of a dense product, whatever it works on.
      cached: a weight of a dense matrix that fits `cache`, for one image.
      streamed: a weight of a dense matrix that does not.
      packed: a weight of a dense matrix as soon as there are two images.
      dense: more for each of these images, a weight.
      slot: a live weight in the sparse form, padding included, for one image.
      image: more for each further image of a group, a live weight.
      turn: of the sparse product's loop, whatever it works on.
      call: of a sparse product.
      cache: bytes of the last-level cache that one matrix, or what a convolution reads
        and writes of one image, may count on.
      fast_call: of a product by the kernel of the extra `fast`.
      fast_slot: a live weight there for one image, on one thread.
      fast_many: a live weight as soon as there are two images, on one thread.
      fast_image: more for each of these images, a live weight.
      fast_threads: how many times as fast all threads together are as one.
      conv_call: of a dense convolution, whatever it works on.
      conv_packed: a weight of it, whatever the image.
      conv: a weight of a dense convolution at one position, on all threads.
      fast_conv: a live weight of a sparse convolution at one position, likewise.
      fast_move: a value of its input or its output at one position.
      cached_move: the same of images that fit `cache`.
    """

    dense_call: float = 15_000.0
    cached: float = 0.12
    streamed: float = 0.16
    packed: float = 0.5
    dense: float = 0.008
    slot: float = 0.5
    image: float = 0.09
    turn: float = 60.0
    call: float = 4000.0
    cache: int = 16 * 2**20
    fast_call: float = 5000.0
    fast_slot: float = 0.35
    fast_many: float = 0.9
    fast_image: float = 0.06
    fast_threads: float = 1.4
    conv_call: float = 25_000.0
    conv_packed: float = 0.5
    conv: float = 0.015
    fast_conv: float = 0.037
    fast_move: float = 2.0
    cached_move: float = 0.5


def dense_time(size: int, batch: int, costs: Costs) -> float:
    """Gives the nanoseconds of a dense product with `size` weights."""
    weight = costs.cached if 4 * size <= costs.cache else costs.streamed
    if batch > 1:
        weight = max(weight, costs.packed) + costs.dense * batch
    return costs.dense_call + size * weight


def sparse_time(
    alive: Bool[np.ndarray, "rows columns"], batch: int, costs: Costs, *, axis: int = 0
) -> float:
    """Gives the nanoseconds of a sparse product with the live weights of a mask."""
    return _portable(_plan(alive, axis, PORTABLE), batch, costs)


def fast_time(
    alive: Bool[np.ndarray, "rows columns"], batch: int, costs: Costs, *, axis: int = 0
) -> float:
    """Gives the nanoseconds of a sparse product by the kernel of the extra `fast`."""
    return _fast(_plan(alive, axis, FAST), batch, costs)


def pays(
    alive: Bool[np.ndarray, "rows columns"], batch: int, costs: Costs, *, axis: int = 0
) -> bool:
    """Tells whether the portable sparse product beats the dense one, by a tenth.

    The tenth is for errors of the estimate: what is not clearly faster stays dense.
    """
    return choose(alive, batch, costs, axis=axis, fast=False) == "portable"


def choose(
    alive: Bool[np.ndarray, "rows columns"],
    batch: int,
    costs: Costs,
    *,
    axis: int = 0,
    fast: bool | None = None,
    dense: bool = True,
) -> Form:
    """Names the fastest way to multiply by the live weights of a mask.

    Args:
      alive: True where alive.
      batch: images at a time.
      costs: on the machine that will run it.
      axis: of the inputs.
      fast: whether the kernel of the extra `fast` may be chosen; the default is where
        numba is installed.
      dense: whether "dense" may be chosen. It is unless another way is faster by a
        tenth, and for matrices of a few hundred weights.
    """
    if dense and alive.size <= _FEW:
        return "dense"
    fast = find_spec("numba") is not None if fast is None else fast
    times: dict[Form, float] = {"portable": sparse_time(alive, batch, costs, axis=axis)}
    if fast:
        times["fast"] = fast_time(alive, batch, costs, axis=axis)
    best = min(times, key=lambda form: times[form])
    if dense and 1.1 * times[best] >= dense_time(alive.size, batch, costs):
        return "dense"
    return best


def conv_pays(
    alive: Bool[np.ndarray, "rows columns in out"],
    costs: Costs,
    *,
    positions: int | None = None,
    batch: int = 1,
) -> bool:
    """Tells whether a convolution is faster by its live weights alone, by a tenth.

    Args:
      alive: True where alive.
      costs: on the machine that will run it.
      positions: of the output of one image. Where they are not known only what takes
        time in proportion to them is compared, as for large images.
      batch: images at a time.
    """
    channels = alive.shape[2] + alive.shape[3]
    small = positions is not None and 4 * channels * positions <= costs.cache
    moved = (costs.cached_move if small else costs.fast_move) * channels
    dense = costs.conv * alive.size
    sparse = costs.fast_conv * np.count_nonzero(alive) + moved
    if positions is not None:
        once = costs.conv_call + costs.conv_packed * alive.size
        dense = once + batch * positions * dense
        sparse = costs.fast_call + batch * positions * sparse
    return bool(1.1 * sparse < dense)


def _plan(alive: np.ndarray, axis: int, loop: Loop) -> Plan:
    return plan(np.count_nonzero(alive, axis=axis), loop=loop)


def _portable(made: Plan, batch: int, costs: Costs) -> float:
    groups, images = images_at_a_time(batch)
    slot = costs.slot + costs.image * (images - 1)
    blocks = PORTABLE.block * len(made.ends)
    added = ADD * made.pieces.owner.size * images if made.cut else 0.0
    once = blocks + added + costs.turn * made.turns + slot * made.slots
    return costs.call + groups * once


def _fast(made: Plan, batch: int, costs: Costs) -> float:
    images = padded(batch)
    slot = costs.fast_slot
    if images > 1:
        slot = costs.fast_many + costs.fast_image * images
    threads = costs.fast_threads if images * made.slots >= ALONE else 1.0
    return costs.fast_call + slot * made.slots / threads
