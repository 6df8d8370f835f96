"""The one training loop: data, model, step, log, checkpoint, from top to bottom.

It knows nothing of pruning beyond the `tx` that it is given: the mask is found in the
optimizer's state, for the penalty, for the dropout and for the progress bar.
"""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

import jaxprune
from experiments import data, files
from experiments.checkpoint import Checkpoints
from experiments.config import Config, Refused, decisive
from experiments.log import Log
from experiments.models import Network
from experiments.progress import Progress
from experiments.recipes import Plan
from experiments.step import State, first_state, make_evaluate, make_step, read, sound


class Fitted(NamedTuple):
    """What comes out of `fit`.

    Attributes:
      params: after the last step.
      mask: which weights are alive.
      dense_params: at the step at which pruning began; `None` if it did not.
      steps: steps made.
      seconds: spent in the loop, earlier parts of a resumed run included.
    """

    params: Any
    mask: Any
    dense_params: Any
    steps: int
    seconds: float


def fit(
    config: Config,
    network: Network,
    plan: Plan,
    digits: data.Digits,
    folder: Path,
) -> Fitted:
    """Trains `network` by `plan`, in the run folder `folder`.

    Starts from the folder's last checkpoint where there is one.

    Raises:
      Refused: if there is a checkpoint that does not belong to this run.
      Diverged: if the loss is not finite, naming the step.
    """
    # Data: on the device once, as bytes; a batch is a gather there.
    train = data.put(digits.train)
    batch = config.training.batch
    epoch_steps = steps_per_epoch(config, digits)
    key = jax.random.key(config.run.seed)
    order_of = order(key, train[0].shape[0])

    def next_batch(feed: Any, step: jax.Array) -> tuple[jax.Array, jax.Array]:
        images, labels, rows = feed
        first = step % epoch_steps * batch
        rows = lax.dynamic_slice(rows, (first,), (batch,))
        return images[rows].astype(jnp.float32) / 255, labels[rows]

    # Model, optimizer, state.
    shape = train[0].shape[1:]
    state = jax.jit(partial(first_state, network, plan.tx, shape))(key)
    train_step = make_step(config, network, plan.tx, jax.random.fold_in(key, 2))

    # Steps: one a call, or as many as are due, in a loop that stops at a bad loss.
    @partial(jax.jit, donate_argnums=0)
    def one(state: State, feed: Any) -> State:
        return train_step(state, next_batch(feed, state.step))

    @partial(jax.jit, donate_argnums=0)
    def many(state: State, feed: Any, until: int) -> State:
        return lax.while_loop(
            lambda s: (s.step < until) & (s.bad < 0),
            lambda s: train_step(s, next_batch(feed, s.step)),
            state,
        )

    per_call = config.run.steps_per_call

    # Checkpoint: where to go on from.
    checkpoints = Checkpoints(folder / "checkpoints", decisive(config))
    step = checkpoints.latest() or 0
    if step:
        state = checkpoints.load(step, state)
    log = Log(folder / "metrics.jsonl", step)
    began = time.perf_counter() - log.seconds
    evaluate = make_evaluate(network)
    judge = data.put(digits.judge) if config.data.holdout else None

    # Loop.
    progress = Progress(plan, step)
    try:
        with progress:
            epoch, feed = -1, None
            while True:
                if step == plan.dense_step:
                    files.save_weights(folder / "dense.safetensors", state.params)
                if step and (
                    step % config.run.checkpoint_every == 0 or step == plan.steps
                ):
                    checkpoints.save(step, sound(state, checkpoints.latest()))
                if step == plan.steps:
                    break
                if step // epoch_steps != epoch:
                    epoch = step // epoch_steps
                    feed = (*train, order_of(epoch))
                phase_ends = [begin for begin, _ in plan.phases if begin > step]
                log_at = min(_next(step, config.run.log_every), *phase_ends, plan.steps)
                until = min(
                    step + per_call,
                    log_at,
                    _next(step, config.run.checkpoint_every),
                    _next(step, epoch_steps),
                )
                state = many(state, feed, until) if per_call > 1 else one(state, feed)
                step = until
                line: dict[str, Any] = {}
                if step == log_at:
                    state, line = read(sound(state, checkpoints.latest()))
                    progress.update(step, line)
                if judge and step % epoch_steps == 0:
                    line["held_out_error"] = evaluate(state.params, *judge)
                if line:
                    seconds = time.perf_counter() - began
                    at = {"step": step, "epoch": round(step / epoch_steps, 4)}
                    log.write({**at, **line, "seconds": round(seconds, 3)})
    finally:
        checkpoints.close()
        log.close()
    dense_params = None
    if plan.dense_step is not None:
        dense_params = files.load_weights(folder / "dense.safetensors", state.params)
    mask = jaxprune.get_mask(state.opt_state)
    jaxprune.verify(state.params, state.opt_state)
    seconds = time.perf_counter() - began
    return Fitted(state.params, mask, dense_params, step, seconds)


def order(key: jax.Array, size: int) -> Callable[[int], jax.Array]:
    """Makes the function from an epoch to the order of the digits in it."""
    key = jax.random.fold_in(key, 1)
    return jax.jit(
        lambda epoch: jax.random.permutation(jax.random.fold_in(key, epoch), size)
    )


def steps_per_epoch(config: Config, digits: data.Digits) -> int:
    """Counts whole batches; the digits left over are others in each epoch.

    Raises:
      Refused: if a batch is larger than the training set.
    """
    size, batch = len(digits.train.labels), config.training.batch
    if batch > size:
        raise Refused(f"--batch is {batch}, expected at most the {size} digits.")
    return size // batch


def _next(step: int, period: int) -> int:
    """Gives the first multiple of `period` after `step`."""
    return (step // period + 1) * period
