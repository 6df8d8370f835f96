"""Judges: functions from params to the errors on a split, in percent."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments.config import Refused
from experiments.data.digits import Split, put
from experiments.data.loader import Batch
from experiments.models import Network, preprocess
from experiments.step import FEW_CLASSES


Judge = Callable[[Any], dict[str, float]]


class Accuracy(NamedTuple):
    """What was counted, of how many photographs."""

    top1: int
    top5: int
    images: int


def resident(
    network: Network,
    split: Split,
    batch: int = 1000,
    where: jax.sharding.Sharding | None = None,
) -> Judge:
    """Judges on images that are put on the device when they are first needed.

    `where` says how they lie on several devices.
    """

    @jax.jit
    def wrong(params: Any, images: jax.Array, labels: jax.Array) -> jax.Array:
        if network.preprocessing == "unit":  # digits
            inputs = images.astype(jnp.float32) / 255
        else:
            inputs = preprocess(images, network.preprocessing)
        logits: Any = network.module.apply({"params": params}, inputs)
        return jnp.sum(jnp.argmax(logits, -1) != labels, dtype=jnp.int32)

    def judge(params: Any) -> dict[str, float]:
        if not on_device:
            on_device.append(put(split, where))
        images, labels = on_device[0]
        parts = [
            wrong(params, images[i : i + batch], labels[i : i + batch])
            for i in range(0, len(labels), batch)
        ]
        return {"error": 100 * sum(int(part) for part in parts) / len(labels)}

    on_device: list[tuple[jax.Array, jax.Array]] = []
    return judge


def streamed(
    network: Network, batches: Callable[[], Iterable[Batch]], size: int
) -> Judge:
    """Judges on `size` photographs, each once, and counts the `broken` ones, if any.

    `batches` begins anew whenever it is called.
    """
    accuracy = make_accuracy(network)

    def judge(params: Any) -> dict[str, float]:
        found = accuracy(params, batches())
        if not found.images:
            raise Refused("no photograph of the split to judge on could be read.")
        errors = {"error": 100 - 100 * found.top1 / found.images}
        if network.classes > FEW_CLASSES:
            errors["top5_error"] = 100 - 100 * found.top5 / found.images
        if found.images < size:
            errors["broken"] = size - found.images
        return errors

    return judge


def make_accuracy(network: Network) -> Callable[[Any, Iterable[Batch]], Accuracy]:
    """Makes the count of photographs whose class is first, or among the first five.

    Of equal logits the one of the lower class comes first, as in a stable sort.
    """

    @jax.jit
    def count(params: Any, batch: Batch) -> jax.Array:
        images = preprocess(batch.image, network.preprocessing)
        logits: Any = network.module.apply({"params": params}, images)
        _, first = jax.lax.top_k(logits, min(5, network.classes))
        hits = (first == batch.label[:, None]) & batch.valid[:, None]
        found = hits[:, 0].sum(), hits.sum(), batch.valid.sum()
        return jnp.stack(found).astype(jnp.int32)

    def accuracy(params: Any, batches: Iterable[Batch]) -> Accuracy:
        parts = jax.device_get([count(params, batch) for batch in batches])
        return Accuracy(*(int(sum(n)) for n in zip(*parts, strict=True)))

    return accuracy
