"""A training step, and what is read of its state."""

from collections.abc import Callable
from functools import partial, reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import jaxprune
from experiments import data
from experiments.config import Config, Refused
from experiments.models import Network
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


class Diverged(RuntimeError):
    """The loss or a weight stopped being a number."""


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


def at_path(tree: Any, path: str) -> Any:
    """Gives the leaf of nested dicts that "a/b" names."""
    return reduce(lambda node, name: node[name], path.split("/"), tree)
