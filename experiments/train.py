"""The one training loop: data, model, step, log, checkpoint, from top to bottom.

It knows nothing of pruning beyond the `tx` that it is given: the mask is found in the
optimizer's state, for the penalty, for the dropout and for the progress bar.
"""

import json
import time
from collections.abc import Callable
from functools import partial, reduce
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

import jaxprune
from experiments import data, files
from experiments.checkpoint import Checkpoints
from experiments.config import Config, Refused, decisive
from experiments.models import Network
from experiments.progress import Progress
from experiments.recipes import Plan


class Sums(NamedTuple):
    """Totals since the last line of the log, on the device until then."""

    loss: jax.Array
    wrong: jax.Array
    digits: jax.Array
    steps: jax.Array


class State(NamedTuple):
    """All that a step reads and writes; a checkpoint is one of these.

    Attributes:
      step: steps made so far, int32.
      params: the network's.
      opt_state: the optimizer's, with the mask.
      sums: of loss and errors since the last line of the log.
      bad: the first step whose loss was not finite, int32; -1 while there is none.
    """

    step: jax.Array
    params: Any
    opt_state: Any
    sums: Sums
    bad: jax.Array


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


class Diverged(RuntimeError):
    """The loss or a weight stopped being a number."""


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


def first_state(
    network: Network, tx: Any, shape: tuple[int, ...], key: jax.Array
) -> State:
    """Draws the first weights; `shape` is that of one image."""
    images = jnp.zeros((1, *shape), jnp.float32)
    params = network.module.init(jax.random.fold_in(key, 0), images)["params"]
    zero = jnp.zeros([], jnp.int32)
    return State(zero, params, tx.init(params), _no_sums(), zero - 1)


def make_step(
    config: Config, network: Network, tx: Any, key: jax.Array
) -> Callable[[State, tuple[jax.Array, jax.Array]], State]:
    """Makes the pure function from a state and a batch to the next state."""
    training = config.training
    first = dict(network.rates)
    if training.dropout is not None:
        first = dict.fromkeys(first, training.dropout) if training.dropout else {}
    penalty = {"l1": jaxprune.l1, "l2": jaxprune.l2, "none": None}[training.regularizer]

    def loss_of(params: Any, mask: Any, rates: Any, batch: Any, key: jax.Array) -> Any:
        images, labels = batch
        logits: Any = network.module.apply({"params": params}, images, rates, key)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        loss = losses.mean()
        wrong = jnp.sum(jnp.argmax(logits, -1) != labels, dtype=jnp.int32)
        if penalty:
            loss += training.strength * penalty(params, mask)
        return loss, wrong

    def step(state: State, batch: tuple[jax.Array, jax.Array]) -> State:
        mask = jaxprune.get_mask(state.opt_state)
        rates = {
            name: jaxprune.dropout_rate(rate, at_path(mask, network.dropout[name]))
            for name, rate in first.items()
        }
        (loss, wrong), grads = jax.value_and_grad(loss_of, has_aux=True)(
            state.params, mask, rates, batch, jax.random.fold_in(key, state.step)
        )
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        fine = jnp.isfinite(loss) | (state.bad >= 0)
        totals = Sums(loss, wrong, jnp.int32(batch[1].size), jnp.int32(1))
        return State(
            step=state.step + 1,
            params=params,
            opt_state=opt_state,
            sums=jax.tree.map(jnp.add, state.sums, totals),
            bad=jnp.where(fine, state.bad, state.step),
        )

    return step


def check_step(
    config: Config, network: Network, plan: Plan, digits: data.Digits
) -> None:
    """Traces a step, and computes nothing.

    Raises:
      Refused: if a setting fits no layer, or not this network.
    """
    split = digits.train
    key = jax.random.key(config.run.seed)
    batch = (jnp.zeros((1, *split.images.shape[1:])), jnp.zeros((1,), jnp.int32))
    begin = partial(first_state, network, plan.tx, split.images.shape[1:])
    try:
        state = jax.eval_shape(begin, key)
        jax.eval_shape(make_step(config, network, plan.tx, key), state, batch)
    except ValueError as error:
        raise Refused(str(error)) from error


def make_evaluate(network: Network, batch: int = 1000) -> Callable[..., float]:
    """Makes the function from params, images and labels to the error in percent."""

    @jax.jit
    def wrong(params: Any, images: jax.Array, labels: jax.Array) -> jax.Array:
        pixels = images.astype(jnp.float32) / 255
        logits: Any = network.module.apply({"params": params}, pixels)
        return jnp.sum(jnp.argmax(logits, -1) != labels, dtype=jnp.int32)

    def evaluate(params: Any, images: jax.Array, labels: jax.Array) -> float:
        starts = range(0, len(labels), batch)
        parts = [
            wrong(params, images[i : i + batch], labels[i : i + batch]) for i in starts
        ]
        return 100 * sum(int(part) for part in parts) / len(labels)

    return evaluate


def read(state: State) -> tuple[State, dict[str, Any]]:
    """Reads the sums back from the device, and begins new ones."""
    sums: Sums = jax.device_get(state.sums)
    alive, size = _count(jaxprune.get_mask(state.opt_state))
    line = {
        "loss": float(sums.loss) / int(sums.steps),
        "train_error": 100 * int(sums.wrong) / int(sums.digits),
        "sparsity": 1 - alive / size,
    }
    return state._replace(sums=_no_sums()), line


def sound(state: State, last: int | None) -> State:
    """Passes a state on if it holds numbers only.

    Raises:
      Diverged: naming the step at which the loss, or the one after which a weight, was
        not finite.
    """
    bad = int(state.bad)
    where = f"The loss is not finite at step {bad}"
    if bad < 0:
        if _all_finite(state.params):
            return state
        where = f"A weight is not finite after step {int(state.step) - 1}"
    kept = f"the last good checkpoint is of step {last}"
    if not last:
        kept = "no checkpoint was written"
    raise Diverged(
        f"{where} (counted from 0). The run stops; {kept}. Start anew, with "
        "--overwrite or another --out, at a lower --lr, or look at the digits and at "
        "the penalty's --strength."
    )


@jax.jit
def _all_finite(params: Any) -> jax.Array:
    finite = [jnp.all(jnp.isfinite(p)) for p in jax.tree.leaves(params)]
    return jnp.all(jnp.stack(finite))


def _count(mask: Any) -> tuple[int, int]:
    leaves = jax.tree.leaves(mask)
    alive = jax.device_get(_alive(leaves))
    return sum(int(n) for n in alive), sum(m.size for m in leaves)


@jax.jit
def _alive(leaves: list[jax.Array]) -> list[jax.Array]:
    return [jnp.sum(m, dtype=jnp.int32) for m in leaves]


def _no_sums() -> Sums:
    return Sums(jnp.zeros([]), *(jnp.zeros([], jnp.int32) for _ in range(3)))


def _next(step: int, period: int) -> int:
    """Gives the first multiple of `period` after `step`."""
    return (step // period + 1) * period


def at_path(tree: Any, path: str) -> Any:
    """Gives the leaf of nested dicts that "a/b" names."""
    return reduce(lambda node, name: node[name], path.split("/"), tree)


class Log:
    """metrics.jsonl: a line of JSON each time values are read back.

    Opened for a step, it drops the lines after that step, and a last line cut off by a
    kill, so that a resumed run leaves no step out and writes none twice.
    """

    def __init__(self, path: Path, step: int):
        """Opens the log to go on after `step`; `seconds` is the time it has told."""
        lines = []
        for text in path.read_text().splitlines() if path.exists() else []:
            try:
                line = json.loads(text)
            except json.JSONDecodeError:
                break
            if line["step"] > step:
                break
            lines.append(line)
        self.seconds: float = lines[-1]["seconds"] if lines else 0.0
        files.write_text(path, "".join(json.dumps(line) + "\n" for line in lines))
        self._file = path.open("a")

    def write(self, line: dict[str, Any]) -> None:
        """Appends a line, at once."""
        self._file.write(json.dumps(line, allow_nan=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()
