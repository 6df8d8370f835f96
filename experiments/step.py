"""A training step, and what is read of its state."""

from collections.abc import Callable
from functools import partial, reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import jaxprune
from experiments.config import Refused, Settings
from experiments.losses import Loss, cross_entropy
from experiments.models import Network
from experiments.recipes import Plan
from experiments.tasks import Examples


# Of so few classes that the first five are no news.
FEW_CLASSES = 10


class Sums(NamedTuple):
    """Totals since the last line of the log, on the device until then."""

    loss: jax.Array
    wrong: jax.Array
    wrong5: jax.Array
    images: jax.Array
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


def first_state(network: Network, tx: Any, key: jax.Array, params: Any = None) -> State:
    """Makes the state of step 0, of `params` or of weights that are drawn."""
    if params is None:
        images = jnp.zeros((1, *network.input), jnp.float32)
        params = network.module.init(jax.random.fold_in(key, 0), images)["params"]
    zero = jnp.zeros([], jnp.int32)
    return State(zero, params, tx.init(params), _no_sums(), zero - 1)


def make_step(
    config: Settings,
    network: Network,
    tx: Any,
    key: jax.Array,
    accumulate: int = 1,
    loss_fn: Loss = cross_entropy,
) -> Callable[[State, Examples], State]:
    """Makes the pure function from a state and a batch to the next state.

    With `accumulate` the batch is computed in so many parts, one after the other, and
    their gradients are added; images that are not valid count in none.
    """
    training = config.training
    first = dict(network.rates)
    if training.dropout is not None:
        first = dict.fromkeys(first, training.dropout) if training.dropout else {}
    penalty = {"l1": jaxprune.l1, "l2": jaxprune.l2, "none": None}[training.regularizer]

    def loss_of(
        params: Any, mask: Any, rates: Any, batch: Examples, total: Any, key: jax.Array
    ) -> Any:
        logits: Any = network.module.apply({"params": params}, batch.inputs, rates, key)
        losses = loss_fn(logits, batch.labels, batch.soft)
        counted = True if batch.valid is None else batch.valid
        if total is None:
            loss = losses.mean()
        else:
            loss = jnp.sum(jnp.where(counted, losses, 0)) / total
        wrong = (jnp.argmax(logits, -1) != batch.labels) & counted
        wrong = jnp.sum(wrong, dtype=jnp.int32)
        wrong5 = jnp.zeros_like(wrong)
        if network.classes > FEW_CLASSES:
            wrong5 = jnp.sum(
                ~among_five(logits, batch.labels) & counted, dtype=jnp.int32
            )
        if penalty:
            # Dead weights are zero and add nothing. Asked here, the mask would be read
            # after the new one is made, and XLA would copy it twice at every step.
            covered = jax.tree.map(jnp.ones_like, mask)
            loss += training.strength / accumulate * penalty(params, covered)
        return loss, (wrong, wrong5)

    grads_of = jax.value_and_grad(loss_of, has_aux=True)

    def summed(params: Any, mask: Any, rates: Any, batch: Examples, key: Any) -> Any:
        valid = batch.valid
        size = jnp.int32(batch.labels.size)
        images = size if valid is None else jnp.sum(valid, dtype=jnp.int32)
        total = None if valid is None and accumulate == 1 else jnp.maximum(images, 1)
        if accumulate == 1:
            return grads_of(params, mask, rates, batch, total, key), images
        parts = jax.tree.map(lambda x: _in_parts(x, accumulate), batch)

        def add(sums: Any, part: Any) -> Any:
            number, batch = part
            part_key = jax.random.fold_in(key, number)
            found = grads_of(params, mask, rates, batch, total, part_key)
            return jax.tree.map(jnp.add, sums, found), None

        none = jnp.zeros([], jnp.int32)
        zeros = (jnp.zeros([]), (none, none)), jax.tree.map(jnp.zeros_like, params)
        return jax.lax.scan(add, zeros, (jnp.arange(accumulate), parts))[0], images

    def step(state: State, batch: Examples) -> State:
        mask = jaxprune.get_mask(state.opt_state)
        rates = {
            name: jaxprune.dropout_rate(rate, at_path(mask, network.dropout[name]))
            for name, rate in first.items()
        }
        ((loss, (wrong, wrong5)), grads), images = summed(
            state.params, mask, rates, batch, jax.random.fold_in(key, state.step)
        )
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        fine = jnp.isfinite(loss) | (state.bad >= 0)
        totals = Sums(loss, wrong, wrong5, images, jnp.int32(1))
        return State(
            step=state.step + 1,
            params=params,
            opt_state=opt_state,
            sums=jax.tree.map(jnp.add, state.sums, totals),
            bad=jnp.where(fine, state.bad, state.step),
        )

    return step


def among_five(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Tells whether fewer than five classes have a larger logit than the label's."""
    own = jnp.take_along_axis(logits, labels[:, None], -1)
    return jnp.sum(logits > own, -1) < 5


def _in_parts(x: jax.Array, parts: int) -> jax.Array:
    # Every so-manyth image, so that each device keeps those that it has.
    return jnp.moveaxis(x.reshape(x.shape[0] // parts, parts, *x.shape[1:]), 1, 0)


def check_step(
    config: Settings,
    network: Network,
    plan: Plan,
    inputs: jax.ShapeDtypeStruct,
    accumulate: int = 1,
) -> None:
    """Traces a step on a batch of `inputs`, and computes nothing.

    Raises:
      Refused: if a setting fits no layer, or not this network.
    """
    key = jax.random.key(config.run.seed)
    labels = jax.ShapeDtypeStruct(inputs.shape[:1], jnp.int32)
    shapes: Any = inputs, labels
    try:
        state = jax.eval_shape(partial(first_state, network, plan.tx), key)
        step = make_step(config, network, plan.tx, key, accumulate)
        jax.eval_shape(step, state, Examples(*shapes))
    except ValueError as error:
        raise Refused(str(error)) from error


def read(state: State, top5: bool = False) -> tuple[State, dict[str, Any]]:
    """Reads the sums back from the device, and begins new ones."""
    sums: Sums = jax.device_get(state.sums)
    alive, size = _count(jaxprune.get_mask(state.opt_state))
    images = max(int(sums.images), 1)
    line = {
        "loss": float(sums.loss) / int(sums.steps),
        "train_error": 100 * int(sums.wrong) / images,
        "sparsity": 1 - alive / size,
    }
    if top5:
        line["train_top5_error"] = 100 * int(sums.wrong5) / images
    return state._replace(sums=jax.tree.map(jnp.zeros_like, state.sums)), line


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
        "--overwrite or another --out, at a lower --lr, or look at the images and at "
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
    return Sums(jnp.zeros([]), *(jnp.zeros([], jnp.int32) for _ in range(4)))


def at_path(tree: Any, path: str) -> Any:
    """Gives the leaf of nested dicts that "a/b" names."""
    return reduce(lambda node, name: node[name], path.split("/"), tree)
