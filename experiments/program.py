"""The compiled parts of a run."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
from jax import lax

from experiments.config import Settings
from experiments.layout import Layout, shardings
from experiments.losses import Loss, cross_entropy
from experiments.models import Network
from experiments.recipes import Plan
from experiments.step import State, first_state, make_step
from experiments.tasks import Feed


class Program(NamedTuple):
    """The compiled parts of a run; the steps take the state over.

    Attributes:
      begin: makes the first state, of weights in the host's memory or drawn.
      one: a step, of a state and what the feed gave.
      many: steps until the one that is given, or until a loss is not finite.
    """

    begin: Callable[[Any], State]
    one: Any
    many: Any


def make_program(
    config: Settings,
    network: Network,
    plan: Plan,
    feed: Feed,
    layout: Layout,
    accumulate: int = 1,
    params: Any = None,
    loss: Loss = cross_entropy,
) -> Program:
    """Makes the compiled parts; `params` are looked at for their shapes."""
    key = jax.random.key(config.run.seed)
    begin = partial(first_state, network, plan.tx, key)
    shapes = jax.eval_shape(begin, params)
    lies = shardings(layout, shapes.params, shapes)
    step_of = make_step(
        config, network, plan.tx, jax.random.fold_in(key, 2), accumulate, loss
    )
    jit = partial(jax.jit, donate_argnums=0, out_shardings=(lies, None))

    # The second result tells when a call is done; the state's own step is donated.
    @partial(jit, in_shardings=(lies, None))
    def one(state: State, arrays: Any) -> tuple[State, jax.Array]:
        state = step_of(state, feed.batch(arrays, state.step))
        return state, state.step + 0

    @partial(jit, in_shardings=(lies, None, None))
    def many(state: State, arrays: Any, until: int) -> tuple[State, jax.Array]:
        state = lax.while_loop(
            lambda s: (s.step < until) & (s.bad < 0),
            lambda s: step_of(s, feed.batch(arrays, s.step)),
            state,
        )
        return state, state.step + 0

    return Program(jax.jit(begin, out_shardings=lies), one, many)
