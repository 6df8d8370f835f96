"""From settings to the batches that an experiment on photographs needs."""

from experiments.bench._common import usable_cores
from experiments.config import Refused
from experiments.data.loader import Batches, Plan, Shard
from experiments.data.settings import Images, check_images, crop_side
from experiments.data.sources import Source
from experiments.data.transforms import make_transform


def make_batches(
    source: Source,
    images: Images,
    *,
    batch: int,
    seed: int | None,
    shard: Shard = Shard(),  # noqa: B008
) -> Batches:
    """Makes the iterator over one process's part of the batches.

    To train, with a seed: without end, each epoch in an order of its own, its last,
    incomplete batch left out. To judge, without one: every photograph once, and then
    the end; the last batch is filled up, and every process has as many batches as the
    others. Do not choose anything by a photograph's place in an evaluation: it depends
    on the number of processes.

    Args:
      source: of `open_source`.
      images: settings.
      batch: photographs in a batch, of all processes together.
      seed: of the order and of what is drawn, 0 or more; `None` to judge.
      shard: which process this is, of how many.

    Raises:
      Refused: if settings are out of range, if the batch cannot be divided among the
        processes, or if there are fewer photographs than it takes to train.
    """
    check_images(images)
    if batch < 1 or batch % shard.processes:
        raise Refused(
            f"--batch is {batch}, expected a positive multiple of the number of "
            f"processes, {shard.processes}."
        )
    if not 0 <= shard.process < shard.processes:
        raise Refused(f"process {shard.process} of {shard.processes}: counted from 0.")
    if seed is not None and batch > len(source):
        raise Refused(
            f"--batch is {batch}, expected at most the {len(source)} images of the "
            "split to train on."
        )
    side = crop_side(images)
    transform = make_transform(
        images.convention, train=seed is not None, crop=side, resize=images.resize
    )
    plan = Plan(source, transform, side, batch, shard, seed)
    threads = images.threads or max(1, usable_cores() // max(1, images.workers))
    return Batches(
        plan,
        workers=images.workers,
        threads=threads,
        ahead=images.prefetch,
        max_broken=images.max_broken,
    )
