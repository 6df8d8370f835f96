"""What `train_step` times: the experiments' step, one without jaxprune, PyTorch's."""

import dataclasses
import gc
import importlib
import importlib.util
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxprune
from experiments import alexnet_prune, vgg16_prune
from experiments.bench import _torch_nets
from experiments.data import Batch
from experiments.image_settings import ImageConfig
from experiments.layout import make_layout
from experiments.models import VGG16, Network, preprocess
from experiments.optimizers import optimizer
from experiments.program import make_program
from experiments.recipes import Plan
from experiments.tasks import Examples


SPARSITY = 0.9
LR = 1e-4  # so small that weights on random labels stay numbers


class Timed(NamedTuple):
    """A side: its call, and what it needs.

    Attributes:
      call: trains a few steps and waits for them.
      sparsity: share of the prunable weights that are dead.
      step_bytes: memory of a step, arguments included; `None` if not known.
      device_bytes: the most that the device had in use; `None` if not known.
    """

    call: Callable[[], Any]
    sparsity: float
    step_bytes: int | None
    device_bytes: int | None


class Fixed:
    """A feed of one batch that lies on the device."""

    steps_per_epoch = 10**6
    per_call = 1
    at_once = 1

    def __init__(self, batch: Batch, kind: str):
        """Takes the batch; `kind` is one that `preprocess` knows."""
        self._batch, self._kind = batch, kind

    def arrays(self, step: int) -> Batch:
        """Gives the batch."""
        del step
        return self._batch

    def batch(self, arrays: Any, step: jax.Array) -> Examples:
        """Normalises it, as photographs that are streamed."""
        del step
        images = preprocess(arrays.image, self._kind)
        return Examples(images, arrays.label, arrays.valid)

    def close(self) -> None:
        """Does nothing."""


def jax_side(
    side: str,
    network: Network,
    images: np.ndarray,
    labels: np.ndarray,
    options: Any,
    first: bool,
) -> Timed:
    """Makes one of JAX's sides, compiled and called once.

    Args:
      side: "pruned", "dense" or "plain".
      network: what is trained.
      images: uint8.
      labels: of the images.
      options: the benchmark's.
      first: whether nothing else has used the device's memory.
    """
    layout = make_layout()
    valid = np.ones(len(labels), bool)
    batch = jax.device_put(Batch(images, labels, valid), layout.batch)
    feed = Fixed(batch, network.preprocessing)
    config = config_of(network, options.batch)
    if side == "plain":
        begin, step = plain_program(config, network, feed)
    else:
        plan = plan_of(config, side, options.period)
        program = make_program(config, network, plan, feed, layout)
        begin, step = program.begin, program.one
    state = begin(None)
    step = step.lower(state, batch).compile()
    memory = step.memory_analysis()
    kept = [state]
    del state

    def call() -> None:
        tick = None
        for _ in range(options.steps):
            kept[0], tick = step(kept[0], feed.arrays(0))
        jax.block_until_ready(tick)

    call()
    sparsity = 0.0
    if side != "plain":
        sparsity = jaxprune.sparsity(jaxprune.get_mask(kept[0].opt_state))
    counted = jax.devices()[0].memory_stats() if first else None
    step_bytes = None
    if memory is not None:
        step_bytes = (
            memory.argument_size_in_bytes
            + memory.output_size_in_bytes
            - memory.alias_size_in_bytes
            + memory.temp_size_in_bytes
        )
    peak = counted.get("peak_bytes_in_use") if counted else None
    return Timed(call, round(float(sparsity), 4), step_bytes, peak)


def config_of(network: Network, batch: int) -> ImageConfig:
    """Gives the settings of the network's experiment, with this batch."""
    module = vgg16_prune if isinstance(network.module, VGG16) else alexnet_prune
    training = dataclasses.replace(module.CONFIG.training, batch=batch, lr=LR)
    return dataclasses.replace(module.CONFIG, training=training)


def plan_of(config: ImageConfig, side: str, period: int) -> Plan:
    """Gives a plan that prunes at the first step and then every `period`, or never."""
    inner = optimizer(config.training, optax.constant_schedule(LR))
    schedule = jaxprune.hold
    if side == "pruned":
        cut = jaxprune.to_sparsity(jaxprune.magnitude, SPARSITY, scope="global")
        schedule = jaxprune.every(period, cut)
    return Plan(jaxprune.prune(inner, schedule), 10**6, ((0, side),), None, True)


def plain_program(config: ImageConfig, network: Network, feed: Fixed) -> Any:
    """Makes the first state and the step of optax alone: no mask, no sums."""
    tx = optimizer(config.training, optax.constant_schedule(LR))
    strength, key = config.training.strength, jax.random.key(1)

    def begin(params: Any) -> Any:
        del params
        inputs = jnp.zeros((1, *network.input))
        params = network.module.init(jax.random.key(0), inputs)["params"]
        return jnp.int32(0), params, tx.init(params)

    def loss_of(params: Any, batch: Examples, key: jax.Array) -> jax.Array:
        logits: Any = network.module.apply(
            {"params": params}, batch.inputs, network.rates, key
        )
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels)
        kernels = [p for p in jax.tree.leaves(params) if p.ndim > 1]
        squares = jnp.stack([jnp.sum(jnp.square(p)) for p in kernels])
        return losses.mean() + strength / 2 * squares.sum()

    def step(state: Any, arrays: Any) -> Any:
        count, params, opt_state = state
        batch = feed.batch(arrays, count)
        grads = jax.grad(loss_of)(params, batch, jax.random.fold_in(key, count))
        updates, opt_state = tx.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
        return (count + 1, params, opt_state), count + 0

    return jax.jit(begin), jax.jit(step, donate_argnums=0)


def torch_side(
    side: str,
    network: Network,
    images: np.ndarray,
    labels: np.ndarray,
    options: Any,
    first: bool,
) -> Timed | None:
    """Makes PyTorch's side; `None` where it is not, or sees no such device."""
    del side, first
    if importlib.util.find_spec("torch") is None:
        return None
    torch: Any = importlib.import_module("torch")  # an extra, so not typed
    device = {"cpu": "cpu", "gpu": "cuda"}.get(jax.default_backend())
    if device is None or (device == "cuda" and not torch.cuda.is_available()):
        return None
    gc.collect()
    step = _torch_nets.make_steps(
        network,
        images,
        labels,
        device=device,
        dtype=options.dtype,
        lr=LR,
        strength=config_of(network, options.batch).training.strength,
        compiled=not options.eager,
    )

    def call() -> None:
        for _ in range(options.steps):
            step()
        if device == "cuda":
            torch.cuda.synchronize()

    call()
    peak = None
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        call()
        peak = torch.cuda.max_memory_allocated()
    return Timed(call, 0.0, peak, None)


def torch_version() -> str:
    """Gives PyTorch's version, or nothing."""
    if importlib.util.find_spec("torch") is None:
        return ""
    return str(importlib.import_module("torch").__version__)
