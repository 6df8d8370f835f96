"""Batches on the device before they are asked for."""

import collections
from typing import Any

import jax

from experiments.data.loader import Batch, Batches


class OnDevice:
    """An iterator over batches on the device, a few of them sent ahead.

    Its position is that of the batches it has given, not of those sent ahead. Images
    stay uint8: a byte a pixel crosses to the device.
    """

    def __init__(
        self,
        batches: Batches,
        sharding: jax.sharding.Sharding | None = None,
        *,
        depth: int = 2,
    ):
        """Makes the iterator; nothing is read before the first batch.

        Args:
          batches: this process's part of each batch.
          sharding: that of the whole batch, over all processes; its first axis is the
            batch. `None`: all on the first device, for one process.
          depth: batches on the device, the one given last included; 1 or more.
        """
        self._batches = batches
        self._sharding = sharding
        self._depth = depth
        self._sent: collections.deque[tuple[Batch, dict[str, int]]] = (
            collections.deque()
        )
        self._state = batches.get_state()

    @property
    def steps_per_epoch(self) -> int:
        """Counts the batches of an epoch, of which an evaluation has one."""
        return self._batches.steps_per_epoch

    @property
    def at_once(self) -> int:
        """Counts the batches that this process makes side by side."""
        return self._batches.at_once

    @property
    def broken(self) -> dict[str, str]:
        """Why images of this process were left out, by name."""
        return self._batches.broken

    def __iter__(self) -> "OnDevice":
        return self

    def __next__(self) -> Batch:
        """Gives the next batch, and sends further ones on their way."""
        while len(self._sent) < self._depth:
            batch = next(self._batches, None)
            if batch is None:
                break
            self._sent.append((self._put(batch), self._batches.get_state()))
        if not self._sent:
            raise StopIteration
        batch, self._state = self._sent.popleft()
        return batch

    def get_state(self) -> dict[str, int]:
        """Gives the position: the number of batches that were given."""
        return self._state

    def set_state(self, state: dict[str, int]) -> None:
        """Goes to a position that `get_state` gave, here or in another process."""
        self._sent.clear()
        self._batches.set_state(state)
        self._state = self._batches.get_state()

    def close(self) -> None:
        """Ends the workers and lets go of the batches."""
        self.set_state(self._state)

    def _put(self, batch: Batch) -> Batch:
        sharding = self._sharding
        if sharding is None:
            return jax.device_put(batch)

        def place(part: Any) -> jax.Array:
            return jax.make_array_from_process_local_data(sharding, part)

        return jax.tree.map(place, batch)
