"""The one training loop: devices, state, step, log, checkpoint, from top to bottom.

It knows nothing of pruning beyond the `tx` that it is given: the mask is found in the
optimizer's state, for the penalty, for the dropout and for the progress bar.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax

import jaxprune
from experiments import files
from experiments.checkpoint import Checkpoints
from experiments.config import DATA, Refused, Settings, decisive
from experiments.layout import Layout, make_layout
from experiments.log import Log
from experiments.models import Network
from experiments.processes import any_process, first_process, to_host, together
from experiments.program import make_program
from experiments.progress import Progress
from experiments.recipes import Plan
from experiments.step import FEW_CLASSES, read, sound
from experiments.stop import Stop, Stopped
from experiments.tasks import InFlight, Task


class Fitted(NamedTuple):
    """What comes out of `fit`, in the memory of the host.

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


Round = Callable[[str, Any, Any, dict[str, float]], None]


def fit(
    config: Settings,
    network: Network,
    plan: Plan,
    task: Task,
    folder: Path,
    *,
    layout: Layout | None = None,
    accumulate: int = 1,
    params: Any = None,
    round_done: Round | None = None,
) -> Fitted:
    """Trains `network` by `plan` on `task`, in the run folder `folder`.

    Starts from the folder's last checkpoint where there is one. In a run of several
    processes each calls it; the first writes what is not a checkpoint.

    Args:
      config: settings.
      network: what is trained.
      plan: the optimizer, and how long.
      task: what on.
      folder: the run folder.
      layout: the devices; the default is one.
      accumulate: parts in which a batch is computed.
      params: the weights to start from, in the host's memory; drawn if `None`.
      round_done: called after each round of pruning, if the task judges those, with the
        round's name, params and mask in the host's memory, and the errors.

    Raises:
      Refused: if there is a checkpoint that does not belong to this run.
      Diverged: if the loss is not finite, naming the step.
      Stopped: after SIGTERM, naming the step, which is saved.
    """
    layout = layout or make_layout()
    first = first_process()
    feed, epoch_steps = task.feed, task.feed.steps_per_epoch
    top5 = network.classes > FEW_CLASSES

    # State: drawn, or made from weights, where it is to lie.
    program = make_program(
        config, network, plan, feed, layout, accumulate, params, task.loss
    )
    state = program.begin(params)
    del params

    # Checkpoint: where to go on from.
    same = decisive(config) | {DATA: f"{task.trained_on}, judged on {task.judged_on}"}
    checkpoints = Checkpoints(folder / "checkpoints", same)
    step = checkpoints.latest() or 0
    if step:
        state = checkpoints.load(step, state)
    log = Log(folder / "metrics.jsonl", step, first, config.run.tensorboard)
    began = time.perf_counter() - log.seconds
    saved = logged = time.perf_counter()
    logged_step = step

    # Loop.
    ends = plan.ends
    line: dict[str, Any]
    rate: dict[str, Any]
    in_flight = InFlight(2)
    progress = Progress(plan, step, shown=first)
    dense_file = folder / "dense.safetensors"
    try:
        with progress, Stop() as stop:
            while True:
                if step == plan.dense_step:
                    dense = to_host(state.params)
                    if first:
                        files.save_weights(dense_file, dense)
                    del dense
                if task.rounds and step in ends and step != checkpoints.latest():
                    state = sound(state, checkpoints.latest())
                    errors = task.judge(state.params)
                    seconds = round(time.perf_counter() - began, 3)
                    line = {"step": step, "round": ends[step], **errors}
                    log.write({**line, "seconds": seconds})
                    logged = time.perf_counter()  # judging is not training
                    if round_done is not None:
                        mask = jaxprune.get_mask(state.opt_state)
                        held = to_host((state.params, mask))
                        if first:
                            round_done(ends[step], held[0], held[1], errors)
                        del held
                # What processes must agree on, they do where they wait anyway.
                minutes = (time.perf_counter() - saved) / 60
                due = minutes > config.run.checkpoint_minutes
                stopped = stop.asked
                if jax.process_count() > 1:
                    waiting = step == logged_step
                    due = waiting and any_process(due)
                    stopped = waiting and any_process(stopped)
                due |= step % config.run.checkpoint_every == 0 or step in ends
                if step and (due or stopped):
                    checkpoints.save(step, sound(state, checkpoints.latest()))
                    saved = time.perf_counter()
                if step == plan.steps:
                    break
                if stopped:
                    checkpoints.close()
                    raise Stopped(step)
                log_at = min(
                    _next(step, config.run.log_every),
                    *[end for end in ends if end > step],
                )
                until = min(
                    step + feed.per_call,
                    log_at,
                    _next(step, config.run.checkpoint_every),
                    _next(step, epoch_steps),
                )
                try:
                    arrays = feed.arrays(step)
                except Exception as error:
                    # Too many are broken, or workers were ended, as by a signal to all:
                    # the steps that are made are good. Others may not come to save.
                    if jax.process_count() > 1 or not step:
                        raise
                    checkpoints.save(step, sound(state, checkpoints.latest()))
                    checkpoints.wait()
                    if stop.asked:
                        raise Stopped(step) from None
                    if isinstance(error, Refused):
                        raise Refused(f"{error} --resume goes on.") from error
                    raise
                if feed.per_call > 1:
                    state, tick = program.many(state, arrays, until)
                else:
                    state, tick = program.one(state, arrays)
                in_flight.add(tick)
                step = until
                line, rate = {}, {}
                if step == log_at:
                    state, line = read(sound(state, checkpoints.latest()), top5)
                    now = time.perf_counter()
                    images = (step - logged_step) * config.training.batch
                    rate = {"images_per_second": round(images / (now - logged), 1)}
                    logged, logged_step = now, step
                    left = progress.update(step, line | rate)
                    rate |= {} if left is None else {"seconds_left": left}
                if task.held_out and step % epoch_steps == 0:
                    line["held_out_error"] = task.judge(state.params)["error"]
                if line:
                    at = {"step": step, "epoch": round(step / epoch_steps, 4)}
                    seconds = round(time.perf_counter() - began, 3)
                    timed = {"seconds": seconds, **rate}
                    log.write({**at, **line, **timed})
    finally:
        feed.close()
        checkpoints.close()
        log.close()
    params, mask = to_host((state.params, jaxprune.get_mask(state.opt_state)))
    jaxprune.verify(params, jaxprune.PruneState(state.step, mask, ()))
    dense_params = None
    if plan.dense_step is not None:
        together("dense weights")  # the first process has written them
        dense_params = files.load_weights(dense_file, params)
    seconds = time.perf_counter() - began
    return Fitted(params, mask, dense_params, step, seconds)


def _next(step: int, period: int) -> int:
    """Gives the first multiple of `period` after `step`."""
    return (step // period + 1) * period
