"""Running a function that was written for dense params with sparse ones."""

import logging
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import wraps
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal

from jaxprune._program import Step, called, run_step
from jaxprune.sparse._conv import convolved
from jaxprune.sparse._groups import SparseGroups, grouped, split
from jaxprune.sparse._kernel import SparseKernel
from jaxprune.sparse._product import product
from jaxprune.sparse._sparsify import is_sparse as _is_sparse
from jaxprune.sparse._sparsify import to_array as _dense


_LOG = logging.getLogger(__name__)

Layers = Mapping[str, Callable[..., Any]]


def lift(
    function: Callable[..., Any], *, layers: Layers | None = None
) -> Callable[..., Any]:
    """Lets a function take params of `sparsify` wherever it takes arrays.

    The function is traced as if its params were dense, and every product with a sparse
    one is replaced. So it may be written in any framework, and no model is changed:

        run = jax.jit(sparse.lift(lambda params, x: model.apply({"params": params}, x)))
        logits = run(sparse_params, images)

    What has no sparse form, a sum of weights say, meets the dense matrix, which is
    written out again in every call; a line of the log says so.

    A layer that computes with its kernel in a way of its own, folded or split, cannot
    be seen through. If it is a function under `jax.jit`, `layers` tells by its name
    what to run in its place where it meets a sparse kernel.

    Args:
      function: of pytrees of arrays; pure, as for `jax.jit`. What is no array, a flag
        say, is bound beforehand.
      layers: by the name of a function under `jax.jit` that `function` calls: a
        function of the same arrays, of which some may be sparse.

    Returns:
      The function, of the same arguments. It traces in each call: put it under `jit`.
      It raises ValueError, while traced, if a name of `layers` is that of no function
      called, or the outputs of its function have other shapes.
    """
    layers = layers or {}

    @wraps(function)
    def lifted(*args: Any) -> Any:
        leaves, tree = jax.tree.flatten(args, is_leaf=_is_sparse)
        shapes = [
            jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) if _is_sparse(leaf) else leaf
            for leaf in leaves
        ]
        closed, out = jax.make_jaxpr(function, return_shape=True)(
            *jax.tree.unflatten(tree, shapes)
        )
        if unmet := set(layers) - set(_names(closed.jaxpr)):
            raise ValueError(
                f"layers names {min(unmet)!r}, but no function of that name is called "
                "under jax.jit; put the one that should be replaced under it."
            )
        results = _evaluate(closed.jaxpr, closed.consts, leaves, layers)
        return jax.tree.unflatten(jax.tree.structure(out), map(_dense, results))

    return lifted


def _names(jaxpr: Any) -> Iterator[str]:
    """Lists the functions under `jit` that are called."""
    for eqn in jaxpr.eqns:
        inner = called(eqn)
        if inner is not None:
            yield eqn.params.get("name", "")
            yield from _names(inner[0])


def _evaluate(
    jaxpr: Any, consts: Sequence[Any], args: Sequence[Any], layers: Layers
) -> list[Any]:
    """Runs a jaxpr whose values may be sparse."""
    values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True))
    sums = _Sums(jaxpr)

    def read(v: Any) -> Any:
        return v.val if isinstance(v, Literal) else values[v]

    for eqn in jaxpr.eqns:
        inputs = [read(v) for v in eqn.invars]
        if any(map(_is_sparse, inputs)):
            outputs = _replaced(eqn, inputs, layers)
        else:
            outputs = sums.biased(eqn, inputs) or _run(eqn, inputs)
        sums.note(eqn, inputs)
        values.update(zip(eqn.outvars, outputs, strict=True))
    return [read(v) for v in jaxpr.outvars]


def _run(eqn: Any, inputs: Sequence[Any]) -> list[Any]:
    return run_step(Step(eqn.primitive, eqn.params, (), ()), inputs)


def _replaced(eqn: Any, inputs: list[Any], layers: Layers) -> list[Any]:
    """Runs an equation that reads a sparse value."""
    inner = called(eqn)
    if inner is not None:
        if eqn.params.get("name") in layers:
            return _instead(eqn, inputs, layers[eqn.params["name"]])
        return _evaluate(*inner, inputs, layers)
    name, params, first = eqn.primitive.name, eqn.params, inputs[0]
    y = None
    if name == "convert_element_type" and params["new_dtype"] == jnp.float32:
        return [first]
    if name == "transpose" and isinstance(first, SparseKernel):
        return [first.T if params["permutation"] == (1, 0) else first]
    kinds = tuple(map(type, inputs))
    if name == "dot_general" and kinds.count(SparseKernel) == 1:
        y = _dot(first, inputs[1], params["dimension_numbers"])
    if name == "split" and isinstance(first, SparseGroups):
        parts = split(first, params)
        if parts is not None:
            return parts
    if name == "conv_general_dilated" and not _is_sparse(first):
        run: Any = grouped if isinstance(inputs[1], SparseGroups) else convolved
        y = run(first, inputs[1], params)
    if y is not None:
        return [y.astype(eqn.outvars[0].aval.dtype)]
    _LOG.warning(
        "%s reads a sparse matrix, which has to be written out dense: %s. Leave its "
        "path out of `sparsify`, or give the `axis` that its product sums over; a "
        "convolution has to have stride 1, and `sparsify` to know its groups.",
        name,
        ", ".join(str(leaf.shape) for leaf in inputs if _is_sparse(leaf)),
    )
    return _run(eqn, [_dense(value) for value in inputs])


def _instead(eqn: Any, inputs: list[Any], layer: Callable[..., Any]) -> list[Any]:
    """Runs the function that takes the place of one under `jit`."""
    outputs = jax.tree.leaves(layer(*inputs))
    made = [jnp.shape(y) for y in outputs]
    want = [v.aval.shape for v in eqn.outvars]
    if made != want:
        raise ValueError(
            f"what layers has for {eqn.params['name']!r} gives arrays of shapes "
            f"{made}, expected {want}, as that function gives."
        )
    pairs = zip(outputs, eqn.outvars, strict=True)
    return [jnp.asarray(y, v.aval.dtype) for y, v in pairs]


def _dot(left: Any, right: Any, numbers: Any) -> jax.Array | None:
    """Gives the product of an array and a matrix; `None` if it has no sparse form."""
    (over_left, over_right), (batch, _) = numbers
    flipped = _is_sparse(left)
    kernel = cast(SparseKernel, left if flipped else right)
    x, over = (right, over_right) if flipped else (left, over_left)
    if batch or tuple(over_left if flipped else over_right) != (kernel.axis,):
        return None
    if jnp.iscomplexobj(x):  # which product does not take
        return None
    # The result may be wider than x, which product would round it to.
    y = product(jnp.moveaxis(x, over[0], -1).astype(jnp.float32), kernel)
    return jnp.moveaxis(y, -1, 0) if flipped else y


class _Sums:
    """What is known of the values of a jaxpr, so that a product adds the bias itself.

    That saves a pass over the outputs; and where every layer is sparse, a small network
    has so few operations left that XLA runs it at once instead of handing it to a
    thread, which takes longer than the network.
    """

    def __init__(self, jaxpr: Any):
        """Counts how often every variable is read."""
        read = [v for eqn in jaxpr.eqns for v in eqn.invars] + list(jaxpr.outvars)
        self._reads = Counter(v for v in read if not isinstance(v, Literal))
        self._products: dict[Any, tuple[Any, SparseKernel]] = {}  # x and kernel
        self._rows: dict[Any, Any] = {}  # the vector that every row of an array is

    def note(self, eqn: Any, inputs: Sequence[Any]) -> None:
        """Notes an equation that multiplies by a sparse matrix, or repeats a vector."""
        name = eqn.primitive.name
        if name not in ("dot_general", "reshape", "broadcast_in_dim"):
            return
        first = inputs[0]
        if name == "dot_general" and not _is_sparse(first):
            kernel, over = inputs[1], eqn.params["dimension_numbers"][0]
            real = not jnp.iscomplexobj(first)
            if isinstance(kernel, SparseKernel) and real:
                if over == ((first.ndim - 1,), (kernel.axis,)):
                    self._products[eqn.outvars[0]] = first, kernel
        elif not _is_sparse(first):
            row, shape = self._row(eqn.invars[0], first), eqn.outvars[0].aval.shape
            axes = eqn.params.get("broadcast_dimensions", (len(shape) - 1,))
            whole = name == "broadcast_in_dim" or math.prod(shape) == np.size(row)
            if row is not None and whole and axes[-1:] == (len(shape) - 1,):
                if shape[-1:] == row.shape:
                    self._rows[eqn.outvars[0]] = row

    def biased(self, eqn: Any, inputs: Sequence[Any]) -> list[Any] | None:
        """Gives a product with its bias, where the equation adds one."""
        if eqn.primitive.name != "add":
            return None
        out = eqn.outvars[0].aval
        pairs = list(zip(eqn.invars, inputs, strict=True))
        for (a, _), (b, value) in (pairs, pairs[::-1]):
            # What is read elsewhere too would be computed twice.
            if isinstance(a, Literal) or a not in self._products or self._reads[a] > 1:
                continue
            (x, kernel), bias = self._products[a], self._row(b, value)
            if bias is not None and a.aval.shape == out.shape:
                if x.dtype == bias.dtype == out.dtype:
                    return [product(x, kernel, bias)]
        return None

    def _row(self, v: Any, value: Any) -> Any:
        if isinstance(v, Literal):
            return None
        return value if value.ndim == 1 else self._rows.get(v)
