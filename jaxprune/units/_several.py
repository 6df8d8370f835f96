"""Labels through steps that move numbers, and through sums and maxima of several."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune._program import Step, run_step
from jaxprune._weights import JOINS, Constant
from jaxprune.units._labels import BIG, Active, gather, named
from jaxprune.units._link import Between
from jaxprune.units._walk import Value, Walk, give_up, share


REDUCTIONS = ("reduce_max", "reduce_min", "reduce_sum")
WINDOWS = ("reduce_window_max", "reduce_window_min", "reduce_window_sum")


def moved(walk: Walk, step: Step, inputs: Sequence[Value]) -> list[Active]:
    """Follows a step that moves, drops or repeats numbers, or adds constant ones."""
    name = step.primitive.name
    share(walk, inputs)
    operands, borders = [], list[float]()
    for i, (slot, x) in enumerate(zip(step.inputs, inputs, strict=True)):
        filled = name in JOINS or (name == "pad" and i == 1)
        if isinstance(x, Active):
            operands.append(x.label)
        elif filled:
            fill = 0 if isinstance(x, Constant) else -1
            shape = walk.program.types[slot].shape
            operands.append(np.full(shape, fill, np.int32))
            if isinstance(x, Constant) and (name in JOINS or _widens(step)):
                borders += np.unique(np.asarray(x.value(), np.float64)).tolist()
        elif isinstance(x, Constant):
            operands.append(x.value())
    labels = run_step(step, [jnp.asarray(x) for x in operands])
    actives = [x for x in inputs if isinstance(x, Active)]
    through: dict[int, tuple[Between, ...]] = {}
    for x in actives:
        for leaf, chain in x.through.items():
            if through.setdefault(leaf, chain) != chain:
                walk.makers.pin([leaf], f"{name} joins what was computed from it")
    fresh = frozenset(
        leaf
        for leaf in through
        if all(leaf in x.fresh for x in actives if leaf in x.through)
    )
    ragged = any(x.ragged for x in actives) or -np.inf in borders
    for border in borders:
        if border != -np.inf:
            through = {leaf: (*c, _padding(border)) for leaf, c in through.items()}
            fresh = frozenset()
    return [
        Active(np.asarray(label), through, fresh, ragged and not np.all(label))
        for label in labels
    ]


def _widens(step: Step) -> bool:
    return any(low > 0 or high > 0 or inner > 0
               for low, high, inner in step.params["padding_config"])  # fmt: skip


def _padding(border: float) -> Between:
    if border == 0:
        return "zero padding"
    same = lambda c: np.where(c == border, c, np.nan)
    return named("padding", same)


def reduced(walk: Walk, step: Step, x: Active) -> Active:
    """Follows a sum or an extreme along whole axes."""
    name, axes = step.primitive.name, tuple(step.params["axes"])
    low = np.where(x.label == 0, BIG, x.label).min(axes)
    high = x.label.max(axes)
    label = gather(walk.makers, low, high, x.label, name)
    if name == "reduce_max":
        return Active(label, x.through, x.fresh, x.ragged and not np.all(label))
    if name == "reduce_min" and not (x.label == 0).any():
        return Active(label, x.through, x.fresh)
    if name == "reduce_min":
        return Active(label, _unknown(x, name))
    count = math.prod(x.label.shape[axis] for axis in axes)
    return Active(label, _times(x, count, bool((x.label == 0).any())))


def windows(walk: Walk, step: Step, x: Active) -> Active:
    """Follows sums or extremes of windows."""
    name = step.primitive.name
    size = step.params["window_dimensions"]
    if any(n > 1 for n in step.params["base_dilation"]):
        return give_up(walk, step, [x], f"{name} acts on it")[0]
    settings = (
        size,
        step.params["window_strides"],
        step.params["padding"],
        None,
        step.params["window_dilation"],
    )
    window = jax.lax.reduce_window
    least = np.int32(np.iinfo(np.int32).min)
    high = np.asarray(window(x.label, least, jax.lax.max, *settings))
    filled = np.where(x.label == 0, BIG, x.label).astype(np.int32)
    low = np.asarray(window(filled, np.int32(BIG), jax.lax.min, *settings))
    label = gather(walk.makers, low, high, x.label, name)
    if name == "reduce_window_max":
        return Active(label, x.through, x.fresh, x.ragged and not np.all(label))
    if name == "reduce_window_min":
        return Active(label, x.through if not x.ragged else _unknown(x, name))
    padded = any(n > 0 for pair in step.params["padding"] for n in pair)
    padded = padded or bool((x.label == 0).any())
    return Active(label, _times(x, math.prod(size), padded))


def _unknown(x: Active, name: str) -> dict[int, tuple[Between, ...]]:
    none = named(name, lambda c: np.full_like(c, np.nan))
    return {leaf: (*chain, none) for leaf, chain in x.through.items()}


def _times(x: Active, count: int, padded: bool) -> dict[int, tuple[Between, ...]]:
    if x.ragged:
        return _unknown(x, "sum")
    guard: tuple[Between, ...] = ("zero padding",) if padded else ()
    total = named("sum", lambda c: c * count)
    return {leaf: (*chain, *guard, total) for leaf, chain in x.through.items()}
