"""A small network on images that are drawn, for tests of the training loop.

Run as a program it trains as one of several processes, which without the last three are
told by the environment:

    python small_task.py FOLDER MESH [COORDINATOR PROCESSES PROCESS]
"""

import sys
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import toy

from experiments import data, judge, recipes, train
from experiments.config import Devices, Pruning, Run, Training
from experiments.data.loader import Batches, Plan
from experiments.image_settings import ImageConfig
from experiments.image_tasks import shard_of
from experiments.layout import make_layout
from experiments.models import Network
from experiments.models.layers import dropout
from experiments.models.network import drops
from experiments.processes import start_processes
from experiments.tasks import Streamed, Task


class Small(nn.Module):
    """A convolution and two dense layers, whose axes 8 devices can share."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images, rates=None, rng=None):
        drop = drops(("fc2",), rates, rng)
        x = nn.relu(nn.Conv(16, (3, 3), (2, 2), dtype=self.dtype, name="conv1")(images))
        x = x.reshape(x.shape[0], -1)
        x = nn.relu(nn.Dense(32, dtype=self.dtype, name="fc2")(x))
        x = dropout(x, *drop["fc2"]) if drop else x
        return nn.Dense(16, dtype=self.dtype, name="fc3")(x).astype(jnp.float32)


NETWORK = Network(
    name="Small",
    module=Small(),
    dropout={"fc2": "fc2/kernel"},
    rates={"fc2": 0.5},
    groups={"conv": ("conv1/kernel",), "fc": ("fc2/kernel", "fc3/kernel")},
    kept={},
    dense_error=None,
    pruned_error=None,
    compression=None,
    links=(),
    flatten={},
    input=(8, 8, 3),
    classes=16,
    preprocessing="cifar10",
)

# The first steps prune, from the params that were drawn; then it is trained on.
CONFIG = ImageConfig(
    network="Small",
    training=Training(optimizer="sgd", lr=0.02, batch=16, dense_epochs=1, warmup=0),
    pruning=Pruning(recipe="paper", rounds=1, quality="1", retrain_epochs=8),
    run=Run(steps_per_call=1, checkpoint_every=8, log_every=4),
)


class Drawn:
    """64 photographs: the pixels are drawn, some files are broken."""

    classes = tuple("abcdefghijklmnop")

    def __len__(self):
        return 64

    def read(self, index):
        if index % 9 == 4:
            raise data.Broken("drawn so")
        return bytes([index]), index % 16

    def name(self, index):
        return f"image {index}"


def pixels(content, draw, out):
    """A class shows in the mean of its channels; the rest is noise."""
    index = content[0]
    noise = np.random.default_rng((index, draw.randrange(4))).integers(0, 60, out.shape)
    out[...] = noise + np.array([index % 16 * 9, 90, 180 - index % 16 * 9])


def make_task(layout, batch=16, seed=0):
    shard = shard_of(layout, batch)

    def batches(seed):
        plan = Plan(Drawn(), pixels, 8, batch, shard, seed)
        return data.OnDevice(Batches(plan, max_broken=64), layout.batch)

    return Task(
        feed=Streamed(batches(seed), NETWORK.preprocessing),
        judge=judge.streamed(NETWORK, lambda: batches(None), 64),
        judged_on="64 drawn images",
        dataset="drawn",
        trained_on="64 drawn images",
        rounds=True,
    )


def fit(folder: Path, mesh: str = "data=1", config=CONFIG, fsdp=False, **given):
    """Trains from given weights, so that pruning comes first, or as `given` says."""
    layout = make_layout(mesh, fsdp)
    params = given.pop("params", "drawn")
    if isinstance(params, str):
        images = jnp.zeros((1, *NETWORK.input))
        params = jax.device_get(toy.drawn(NETWORK.module, images, seed=7))
    task = make_task(layout, config.training.batch, config.run.seed)
    epoch = task.feed.steps_per_epoch
    plan = recipes.plan(config, NETWORK, epoch, params is not None)
    folder.mkdir(parents=True, exist_ok=True)
    return train.fit(
        config, NETWORK, plan, task, folder, layout=layout, params=params, **given
    )


if __name__ == "__main__":
    folder, mesh, *where = sys.argv[1:]
    coordinator, processes, process = where or [None] * 3
    numbers = (int(processes), int(process)) if where else (None, None)
    start_processes(Devices(mesh, True, 1, "float32", coordinator, *numbers))
    fitted = fit(Path(folder), mesh, fsdp=True)
    leaves = jax.tree_util.tree_leaves_with_path({"p": fitted.params, "m": fitted.mask})
    arrays = {jax.tree_util.keystr(k, simple=True, separator="/"): v for k, v in leaves}
    # All of them judge what lies in the memory of each, as a report does.
    task = make_task(make_layout(mesh, True))
    for name, params in (
        ("error", fitted.params),
        ("dense_error", fitted.dense_params),
    ):
        arrays[name] = np.array(task.judge(params)["error"])
    if jax.process_index() == 0:
        np.savez(Path(folder) / "fitted.npz", **arrays)
