"""What a network is trained on, as `train.fit` sees it: batches, and a judge."""

import collections
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax import lax

from experiments.config import Refused
from experiments.data.device import OnDevice
from experiments.data.digits import Split, put
from experiments.layout import Layout
from experiments.losses import Loss, cross_entropy
from experiments.models import preprocess


class Examples(NamedTuple):
    """A batch as the network takes it, inside jit.

    Attributes:
      inputs: float32, (n, height, width, channels).
      labels: int32, (n,).
      valid: bool, (n,), False where a photograph was broken; `None` where all are good.
      soft: logits of a teacher, or of labels that were mixed, float32, (n, classes), or
        `None`.
    """

    inputs: jax.Array
    labels: jax.Array
    valid: jax.Array | None = None
    soft: jax.Array | None = None


class Feed(Protocol):
    """Gives any batch by the number of its step; so its position is that number."""

    @property
    def steps_per_epoch(self) -> int:
        """Counts whole batches; what is left over is other images in each epoch."""
        ...

    @property
    def per_call(self) -> int:
        """The most steps for which `arrays` of the first will do."""
        ...

    @property
    def at_once(self) -> int:
        """Counts the batches that are made side by side."""
        ...

    def arrays(self, step: int) -> Any:
        """Gives what `batch` needs at `step`, and until the epoch ends; on the host."""
        ...

    def batch(self, arrays: Any, step: jax.Array) -> Examples:
        """Gives the batch of a step; traced."""
        ...

    def close(self) -> None:
        """Lets go of what is open."""
        ...


class Task(NamedTuple):
    """What a network is trained on and judged on.

    Attributes:
      feed: the batches.
      judge: from params to errors in percent: `error`, and `top5_error` where there are
        enough classes.
      judged_on: how many of what the judge looks at, for tables.
      trained_on: how many of what the feed gives; a run goes on with the same only.
      dataset: its name.
      held_out: whether it looks at images held out of the training split, so that it
        may be asked after each epoch.
      rounds: whether it is asked after each round of pruning too.
      loss: of the images of a batch.
    """

    feed: Feed
    judge: Callable[[Any], dict[str, float]]
    judged_on: str
    dataset: str
    trained_on: str
    held_out: bool = False
    rounds: bool = False
    loss: Loss = cross_entropy


class Resident:
    """Images that lie on the device as bytes; a batch is a gather there."""

    at_once = 1

    def __init__(
        self,
        split: Split,
        batch: int,
        key: jax.Array,
        *,
        kind: str = "unit",
        per_call: int = 1,
        augment: Callable[[jax.Array, jax.Array], jax.Array] | None = None,
        mix: Callable[..., tuple[jax.Array, jax.Array]] | None = None,
        layout: Layout | None = None,
        soft: Any = None,
    ):
        """Puts the images on the device.

        Args:
          split: images and labels.
          batch: images a step.
          key: of the order, and of what is drawn to augment.
          kind: from pixels to inputs, as `preprocess` knows it.
          per_call: the most steps to be compiled into one call.
          augment: from a key and pixels to other pixels, anew for each batch.
          mix: from a key, inputs and labels to inputs and `soft`, anew for each batch.
          layout: the devices.
          soft: a teacher's logits for each image, (n, classes); or the function that
            gives them for a batch of inputs, for images that change; or `None`.

        Raises:
          Refused: if a batch is larger than the split.
        """
        self.steps_per_epoch = whole_batches(len(split.labels), batch)
        self.per_call = per_call
        self._batch, self._key, self._kind = batch, key, kind
        self._augment, self._mix, self._layout = augment, mix, layout
        where = None if layout is None else layout.everywhere
        self._images, self._labels = put(split, where)
        self._teacher: Any = soft if callable(soft) else None
        soft = None if callable(soft) else soft
        self._soft = None if soft is None else jax.device_put(soft, where)
        self._order_of = order(key, len(split.labels))
        self._epoch, self._rows = -1, None

    def arrays(self, step: int) -> Any:
        """Gives images, labels, soft labels and the order of the epoch."""
        epoch = step // self.steps_per_epoch
        if epoch != self._epoch:
            rows = self._order_of(epoch)
            if self._layout is not None:
                rows = jax.device_put(rows, self._layout.everywhere)
            self._epoch, self._rows = epoch, rows
        return self._images, self._labels, self._soft, self._rows

    def batch(self, arrays: Any, step: jax.Array) -> Examples:
        """Gathers a batch."""
        images, labels, soft, rows = arrays
        first = step % self.steps_per_epoch * self._batch
        rows = lax.dynamic_slice(rows, (first,), (self._batch,))
        images, labels = images[rows], labels[rows]
        soft = None if soft is None else soft[rows]
        if self._layout is not None:
            images = lax.with_sharding_constraint(images, self._layout.batch)
        if self._augment:
            key = jax.random.fold_in(jax.random.fold_in(self._key, 3), step)
            images = self._augment(key, images)
        if self._kind == "unit":  # digits, of any dtype
            inputs = images.astype(jnp.float32) / 255
        else:
            inputs = preprocess(images, self._kind)
        if self._teacher is not None:
            soft = lax.stop_gradient(self._teacher(inputs))
        if self._mix:
            key = jax.random.fold_in(jax.random.fold_in(self._key, 4), step)
            inputs, soft = self._mix(key, inputs, labels)
        return Examples(inputs, labels, soft=soft)

    def close(self) -> None:
        """Does nothing."""


class Streamed:
    """Photographs that are read, and decoded by workers, while the device computes."""

    per_call = 1

    def __init__(self, batches: OnDevice, kind: str):
        """Takes the iterator; `kind` is one that `preprocess` knows."""
        self._batches, self._kind = batches, kind
        self.steps_per_epoch = batches.steps_per_epoch
        self.at_once = batches.at_once

    def arrays(self, step: int) -> Any:
        """Gives the batch of `step`, which is on the device, or on its way there."""
        if self._batches.get_state()["step"] != step:
            self._batches.set_state({"step": step})
        return next(self._batches)

    def batch(self, arrays: Any, step: jax.Array) -> Examples:
        """Normalises a batch."""
        del step
        return Examples(
            preprocess(arrays.image, self._kind), arrays.label, arrays.valid
        )

    def close(self) -> None:
        """Ends the workers."""
        self._batches.close()


class InFlight:
    """Keeps the host at most a few steps ahead of the device.

    Each step that waits holds its batch on the device.
    """

    def __init__(self, most: int):
        """Allows `most` steps at once."""
        self._most = most
        self._ticks: collections.deque[jax.Array] = collections.deque()

    def add(self, tick: jax.Array) -> None:
        """Waits until the step is done that was `most` before the one of `tick`."""
        self._ticks.append(tick)
        if len(self._ticks) > self._most:
            jax.block_until_ready(self._ticks.popleft())


def order(key: jax.Array, size: int) -> Callable[[int], jax.Array]:
    """Makes the function from an epoch to the order of the images in it."""
    key = jax.random.fold_in(key, 1)
    return jax.jit(
        lambda epoch: jax.random.permutation(jax.random.fold_in(key, epoch), size)
    )


def whole_batches(size: int, batch: int) -> int:
    """Counts whole batches among `size` images.

    Raises:
      Refused: if a batch is larger than that.
    """
    if batch > size:
        raise Refused(f"--batch is {batch}, expected at most the {size} images.")
    return size // batch
