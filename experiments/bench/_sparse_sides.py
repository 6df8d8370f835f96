"""The sides of the sparse benchmark that JAX runs, and how all sides are described."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.bench._sparse_nets import Case, Conv, Net
from jaxprune import sparse
from jaxprune.report import positions


DENSE, CHOSEN = "dense XLA", "as chosen"
CONVOLUTIONS = "chosen, with convolutions"
EVERY = "every layer"
SMALL = 10**6  # weights of a network up to which every layer is run sparse


class Side(NamedTuple):
    """One way to run a case on one batch.

    Attributes:
      call: runs it and waits; this is what is timed.
      output: runs it and gives the outputs as the JAX function does.
      nbytes: of its weights and biases, in the form they are kept in.
      form: the layers that run sparse, or "dense", if that is a choice.
    """

    call: Callable[[], Any]
    output: Callable[[], np.ndarray]
    nbytes: int
    form: str = ""


Maker = Callable[[np.ndarray], Side]
"""Makes the side of a batch; what does not depend on the batch is made before."""


# What `jaxprune.sparse` makes of params and their net; a batch size is what the choice
# is made for. A kernel of another kind is one more line.
FORMS: dict[str, Callable[[Any, Net, int], Any]] = {
    DENSE: lambda params, net, batch: params,
    "sparse f32": lambda params, net, batch: _all(params, net, fast=False),
    "sparse int8": lambda params, net, batch: _all(
        params, net, fast=False, values="int8"
    ),
    "fast f32": lambda params, net, batch: _all(params, net, fast=True),
    "fast int8": lambda params, net, batch: _all(params, net, fast=True, values="int8"),
    CHOSEN: lambda params, net, batch: sparse.sparsify(params, net.mask, batch=batch),
    CONVOLUTIONS: lambda params, net, batch: sparse.sparsify(
        params,
        net.mask,
        batch=batch,
        convolutions=True,
        groups=_groups(net),
        positions=_positions(net),
    ),
    # Where little is left for XLA to do, it runs a program at once, in no thread.
    EVERY: lambda params, net, batch: sparse.sparsify(
        params, net.mask, batch=batch, convolutions=True, where=_kernels
    ),
}
CHOICES = {CHOSEN, CONVOLUTIONS}
"""The forms that depend on the batch, and may leave a layer dense."""


class Forms:
    """Params of one network in every form, made once for all its cases."""

    def __init__(self, net: Net):
        """Puts the dense params on the device."""
        self._net, self._dense = net, jax.device_put(net.params)
        self.small = sum(p.size for p in jax.tree.leaves(net.params)) <= SMALL
        self._made: dict[tuple[str, int], Any] = {}

    def of(self, side: str, case: Case, batch: int) -> Any:
        """Gives the params of a case."""
        key = (side, batch if side in CHOICES else 1)
        if key not in self._made:
            made = FORMS[side](self._dense, self._net, batch)
            self._made[key] = jax.block_until_ready(made)
        return {name: self._made[key][name] for name in case.names}


def jax_side(side: str, forms: Forms, case: Case) -> Maker:
    """Prepares a side that JAX runs.

    Raises:
      ValueError: if there is nothing sparse in it, or the side is not for this network.
    """
    if side == EVERY and not forms.small:
        raise ValueError("it is for small networks")
    if side not in (DENSE, *CHOICES) and not _thin(forms.of(side, case, 1)):
        raise ValueError("a convolution has no sparse form")

    def make(x: np.ndarray) -> Side:
        params = forms.of(side, case, len(x))
        apply = case.apply
        if side != DENSE:
            apply = sparse.lift(apply, layers=case.sparse_layers)
        run = jax.jit(apply)
        images = jax.device_put(x)
        return Side(
            lambda: jax.block_until_ready(run(params, images)),
            lambda: np.asarray(run(params, images)),
            sum(leaf.nbytes for leaf in jax.tree.leaves(params)),
            (" ".join(_thin(params)) or "dense") if side in CHOICES else "",
        )

    return make


def _all(params: Any, net: Net, **how: Any) -> Any:
    return sparse.sparsify(params, net.mask, where=_matrices, **how)


def _groups(net: Net) -> dict[str, int]:
    convs = [op for op in net.cases[-1].ops if isinstance(op, Conv)]
    return {f"{op.name}/kernel": op.groups for op in convs if op.groups > 1}


def _positions(net: Net) -> dict[str, int]:
    whole = net.cases[-1]
    image = jax.ShapeDtypeStruct((1, *whole.shape), jnp.float32)
    return positions(whole.apply, net.params, image)


def _kernels(_: str, leaf: Any) -> bool:
    return leaf.ndim > 1


def _matrices(_: str, leaf: Any) -> bool:
    return leaf.ndim == 2


def _thin(params: Any) -> list[str]:
    """Lists the layers that are sparse."""
    return [n for n, p in params.items() if not isinstance(p["kernel"], jax.Array)]
