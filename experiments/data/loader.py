"""Batches of photographs: in which order, by which process, decoded by whom.

A batch is a pure function of the settings and the number of the step: the order is one
of (seed, epoch), what is drawn for a photograph one of (seed, epoch, photograph). So
the position of an iterator is a step, whatever number of workers, or of processes,
goes on from it.
"""

import functools
import logging
import multiprocessing
import os
import random
import signal
import threading
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from experiments.config import Refused
from experiments.data.decode import Broken
from experiments.data.memory import Memory
from experiments.data.sources import Source
from experiments.data.transforms import Transform


_log = logging.getLogger(__name__)
# More steps than any run has.
_ENDLESS = 1 << 40


class Batch(NamedTuple):
    """The part of a batch that one process reads.

    Attributes:
      image: uint8, (n, crop, crop, 3), RGB; black where not valid.
      label: int32, (n,); 0 where not valid.
      valid: bool, (n,); False where a photograph was broken, and for what fills up the
        last batch of an evaluation.
    """

    image: Any
    label: Any
    valid: Any


class Shard(NamedTuple):
    """Which process this is, of how many: `jax.process_index`, `jax.process_count`."""

    process: int = 0
    processes: int = 1


@dataclass(frozen=True)
class Plan:
    """Makes any batch by its number; what is sent to the workers."""

    source: Source
    transform: Transform
    crop: int
    batch: int  # of all processes
    shard: Shard
    seed: int | None  # None: each photograph once, in the order of the files

    def steps(self) -> int:
        """Counts the batches of an epoch, the same for each process."""
        whole, rest = divmod(len(self.source), self.batch)
        return whole + (self.seed is None and rest > 0)

    def indices(self, step: int) -> tuple[int, np.ndarray]:
        """Gives the epoch and the photographs of a step; -1 fills up the last batch."""
        epoch, step = divmod(step, self.steps())
        size = self.batch // self.shard.processes
        begin = step * self.batch + self.shard.process * size
        places = np.arange(begin, begin + size)
        if self.seed is not None:
            return epoch, _order(self.seed, epoch, len(self.source))[places]
        return epoch, np.where(places < len(self.source), places, -1)

    def __call__(self, step: int) -> dict[str, Any]:
        """Reads and transforms the photographs of a step."""
        epoch, indices = self.indices(step)
        images = _memory((len(indices), self.crop, self.crop, 3)).take()
        labels = np.zeros(len(indices), np.int32)
        valid = np.zeros(len(indices), bool)
        broken = []
        for place, index in enumerate(indices.tolist()):
            if index < 0:
                images[place] = 0
                continue
            # An integer for each triple: epochs and photographs are below 2^32.
            draw = random.Random((self.seed or 0) << 64 | epoch << 32 | index)
            try:
                data, label = self.source.read(index)
                self.transform(data, draw, images[place])
            except Broken as error:
                images[place] = 0
                broken.append(f"{self.source.name(index)}\n{error}")
            else:
                labels[place], valid[place] = label, True
        return {
            "image": images,
            "label": labels,
            "valid": valid,
            # One string, for Grain takes a list for more arrays.
            "broken": "\0".join(broken),
        }


class Batches:
    """An iterator over batches, whose position can be saved and gone back to."""

    def __init__(
        self,
        plan: Plan,
        *,
        workers: int = 0,
        threads: int = 1,
        ahead: int = 2,
        max_broken: int = 0,
    ):
        """Makes the iterator; nothing is read before the first batch.

        Args:
          plan: what the batches are.
          workers: processes that decode; 0: threads of this one.
          threads: threads in each of them, each of which makes a batch at a time.
          ahead: batches that lie ready, in each process.
          max_broken: broken photographs to leave out before it is an error.
        """
        self._plan = plan
        self._workers = workers
        self._threads = threads
        self._ahead = ahead
        self._max_broken = max_broken
        self._step = 0
        self._reader: Any = None
        self.broken: dict[str, str] = {}  # why, by name

    @property
    def steps_per_epoch(self) -> int:
        """Counts the batches of an epoch, of which an evaluation has one."""
        return self._plan.steps()

    @property
    def at_once(self) -> int:
        """Counts the batches that are made side by side."""
        return self._threads * max(1, self._workers)

    def __iter__(self) -> "Batches":
        return self

    def __next__(self) -> Batch:
        """Gives the next batch.

        Raises:
          Refused: if more photographs were broken than `max_broken`.
          StopIteration: after the last batch of an evaluation.
        """
        if self._reader is None:
            self._reader = iter(self._dataset())
        parts = next(self._reader)
        self._step += 1
        self._count(str(parts["broken"]))
        return Batch(parts["image"], parts["label"], parts["valid"])

    def get_state(self) -> dict[str, int]:
        """Gives the position: the number of batches that were given."""
        return {"step": self._step}

    def set_state(self, state: dict[str, int]) -> None:
        """Goes to a position that `get_state` gave, here or in another process."""
        self.close()
        self._step = int(state["step"])

    def close(self) -> None:
        """Ends the workers; the next batch starts new ones."""
        if self._reader is not None and hasattr(self._reader, "close"):
            self._reader.close()
        self._reader = None

    def _dataset(self) -> Any:
        import grain
        from absl import flags

        steps = self._plan.steps() if self._plan.seed is None else _ENDLESS
        batches = grain.MapDataset.range(min(self._step, steps), steps).map(self._plan)
        buffer = max(self._threads, self._ahead)
        dataset = batches.to_iter_dataset(grain.ReadOptions(self._threads, buffer))
        if not self._workers:
            return dataset
        if not flags.FLAGS.is_parsed():  # Grain's, which nobody gave
            flags.FLAGS.mark_as_parsed()
        return dataset.mp_prefetch(
            grain.MultiprocessingOptions(self._workers, self._ahead), _begin_worker
        )

    def _count(self, broken: str) -> None:
        for entry in filter(None, broken.split("\0")):
            name, _, reason = entry.partition("\n")
            if name in self.broken:
                continue
            self.broken[name] = reason
            _log.warning("left out, broken: %s: %s", name, reason)
            if len(self.broken) > self._max_broken:
                raise Refused(
                    f"{len(self.broken)} images are broken, more than --max-broken "
                    f"{self._max_broken}; the last is {name}: {reason}"
                )


def _begin_worker(worker: int, workers: int) -> None:
    """Ties a worker's life to that of the process that trains.

    A signal to all of them must not end it: batches are needed until that process has
    saved. Nor must it outlive that process, however that ends.
    """
    del worker, workers
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def follow() -> None:
        assert parent is not None
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


@functools.lru_cache(maxsize=2)  # to train and to judge
def _memory(shape: tuple[int, ...]) -> Memory:
    return Memory(shape)


@functools.lru_cache(maxsize=2)
def _order(seed: int, epoch: int, size: int) -> np.ndarray:
    """Gives the order of an epoch; 10 MB for ImageNet."""
    return np.random.default_rng((seed, epoch)).permutation(size)
