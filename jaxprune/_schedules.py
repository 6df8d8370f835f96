"""Schedules: when a mask changes. What it changes to is `_thresholds`."""

import dataclasses
import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxprune._checks import check_integer, check_schedule, whole
from jaxprune._types import Mask, MaskSchedule, Params, Step


def hold(params: Params, mask: Mask, step: Step, **extra: Any) -> Mask:
    """Returns the mask as it came: no pruning, or no more of it."""
    del params, step, extra
    return mask


def once(step: int, schedule: MaskSchedule) -> MaskSchedule:
    """Runs `schedule` at one step only.

    Args:
      step: the step at which the mask changes, counted from 0.
      schedule: the schedule to run.

    Raises:
      ValueError: if `step` is negative or not whole, or `schedule` is no function.
    """
    at = whole("step", step)
    check_schedule(schedule)
    return _When(lambda now: now == at, schedule)


def every(
    period: int,
    schedule: MaskSchedule,
    *,
    begin: int = 0,
    end: int | float | None = None,
) -> MaskSchedule:
    """Runs `schedule` at steps begin, begin + period, ... up to and including `end`.

    On other steps the mask is returned as it came, and the inner schedule costs
    nothing; under `vmap`, at steps at which no member of the batch is due.

    Args:
      period: optimizer steps between mask updates, at least 1.
      schedule: the schedule to run.
      begin: the first step, counted from 0.
      end: the last step at which the mask may change; `None` for no last step.

    Raises:
      ValueError: if `period` < 1, `begin` < 0 or `end` < `begin`, or if one of them is
        not whole, or `schedule` is no function.
    """
    check_schedule(schedule)
    check_integer("period", period, 1)
    period = whole("period", period)
    first = whole("begin", begin)
    last = None if end is None else whole("end", end, endless=True)
    if last is not None and last < first:
        raise ValueError(f"end is {last}, expected at least begin, {first}.")

    def due(now: Step) -> Array | bool:
        on = (now >= first) & ((now - first) % period == 0)
        return on if last is None else on & (now <= last)

    return _When(due, schedule)


def then(*pairs: tuple[int | float, MaskSchedule]) -> MaskSchedule:
    """Runs one schedule after the other: `(until, schedule), ...`.

    A pair is in force at steps before its `until`, and from the `until` of the pair in
    front of it on. After the last `until` the mask is held. Every schedule sees the
    step itself, not the time since it began. Steps at which one of `once`, `every`,
    `then` or `hold` has nothing to do cost as little as alone.

    Args:
      *pairs: at least one; the `until` of each, in steps, larger than the one before.

    Raises:
      ValueError: if there is no pair, something else than a pair is among them, or the
        steps are not whole or do not increase from above 0.
    """
    for pair in pairs:
        if not (isinstance(pair, Sequence) and len(pair) == 2):
            raise ValueError(
                f"then() got {pair!r}, expected pairs of a step and a schedule: "
                "then((1000, a), (2000, b))."
            )
    untils = [whole("until", until, endless=True) for until, _ in pairs]
    for _, schedule in pairs:
        check_schedule(schedule)
    if not pairs or any(b <= a for a, b in zip([0, *untils], untils, strict=False)):
        raise ValueError(
            f"then() got the steps {untils}, expected at least one, increasing from "
            "above 0: then((1000, a), (2000, b))."
        )

    schedules = [schedule for _, schedule in pairs]
    inners = [s.inner if isinstance(s, _When) else s for s in schedules]

    def due(now: Step) -> Array | bool:
        spans = zip([0, *untils], untils, schedules, strict=False)
        return functools.reduce(
            operator.or_,
            [(now >= a) & (now < b) & _is_due(s, now) for a, b, s in spans],
        )

    def in_turn(params: Params, mask: Mask, step: Step, **extra: Any) -> Mask:
        branches = [lambda s=s: s(params, mask, step, **extra) for s in (*inners, hold)]
        index = jnp.sum(jnp.asarray(step) >= jnp.asarray(untils), dtype=jnp.int32)
        return jax.lax.switch(index, branches)

    return _When(due, in_turn)


@dataclasses.dataclass(frozen=True)
class _When:
    """Runs `inner` at steps at which it is due; at others the mask stays as it is."""

    due: Callable[[Step], Array | bool]
    inner: MaskSchedule

    def __call__(self, params: Params, mask: Mask, step: Step, **extra: Any) -> Mask:
        # A loop of at most one turn. Unlike the branches of `lax.cond`, it leaves the
        # mask in place when there is nothing to do, where they copy it at every step.
        def turn(state: Any) -> Any:
            return self.inner(params, state[0], step, **extra), jnp.zeros((), bool)

        start = (mask, jnp.asarray(self.due(step)))
        return jax.lax.while_loop(lambda state: state[1], turn, start)[0]


def _is_due(schedule: MaskSchedule, now: Step) -> Array | bool:
    if isinstance(schedule, _When):
        return schedule.due(now)
    return schedule is not hold
