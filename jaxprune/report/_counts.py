"""Weights, operations and activations of every layer."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from jaxtyping import PyTree

from jaxprune.report._activations import Activations, count_examples
from jaxprune.report._rows import (
    LayerCount,
    add_product,
    per_example,
    shares_of,
    total_of,
)
from jaxprune.report._trace import trace


class Counts(NamedTuple):
    """What `count` found.

    Attributes:
      layers: a row for each leaf that a product reads, in order of execution.
      total: the sum of these rows; its `activations` is weighted by units.
      others: weights of all other leaves, such as biases and norms, all alive or not.
      others_kept: live ones among them.
      flop_unweighted: FLOP for one example of products that read no params, such as
        those of attention, or params that the data chooses, such as those of a mixture
        of experts; in no row, and never saved by pruning.
      examples: how many examples the activations were measured on; 0 if on none.
    """

    layers: tuple[LayerCount, ...]
    total: LayerCount
    others: int
    others_kept: int
    flop_unweighted: int
    examples: int


def count(
    apply: Callable[..., Any],
    params: PyTree,
    mask: PyTree | None,
    x: PyTree,
    *,
    activations: Activations | Mapping[str, float] | None = None,
    examples: int | None = None,
) -> Counts:
    """Counts weights, operations and activations, layer by layer and in total.

    The operations are found by tracing `apply`, not by a table of layers, so any
    function of params and input will do: linen, NNX, equinox under `jax.vmap`, plain
    functions. Zeros that a program pads its kernels with are no weights, and products
    with them are counted apart, in `flop_run`.

    >>> import jax.numpy as jnp
    >>> apply = lambda w, x: x @ w
    >>> mask = jnp.array([[True, False, False]] * 4)
    >>> row, = count(apply, jnp.ones((4, 3)), mask, jnp.ones((2, 4))).layers
    >>> row.weights, row.kept, row.flop, row.flop_kept
    (12, 4, 24, 8)

    Args:
      apply: `apply(params, x)`, without dropout.
      params: the params, or their shapes.
      mask: their mask; `None`, for all or at a leaf, where nothing is pruned.
      x: a sample input, array or shape.
      activations: what `jaxprune.report.activations` measured with the same `apply`, or
        the share in [0, 1] of non-zeros in the output of each layer, by path; layers
        that nothing reads from need none.
      examples: how many examples `x` holds; the default is the length of its first
        axis.

    Raises:
      ValueError: if the mask does not fit, if a product cannot be counted, if there are
        no examples, or if `activations` are those of another function.

    Source:
      Han et al. 2015 (arXiv:1506.02626), tables 2 to 5. Their FLOP% is `flop_needed`
      over `flop`.
    """
    found = trace(apply, params, mask, x)
    examples = count_examples(x) if examples is None else examples
    if examples < 1:
        raise ValueError(f"x holds {examples} examples, expected 1 or more.")
    shares = shares_of(found, activations)
    rows: dict[int, LayerCount] = {}
    unweighted = 0
    for number, product in enumerate(found.products):
        if product.weight is None:
            unweighted += per_example(product.flop, examples)
        else:
            add_product(rows, found, number, examples, shares)
    layers = tuple(rows.values())
    rest = [leaf for i, leaf in enumerate(found.leaves) if i not in rows]
    return Counts(
        layers=layers,
        total=total_of(layers),
        others=sum(leaf.size for leaf in rest),
        others_kept=sum(leaf.alive for leaf in rest),
        flop_unweighted=unweighted,
        examples=activations.examples if isinstance(activations, Activations) else 0,
    )


def positions(apply: Callable[..., Any], params: PyTree, x: PyTree) -> dict[str, int]:
    """Counts at how many positions one example is multiplied by the weights of a layer.

    That is 1 for a dense layer, and rows times columns of the output for a convolution.

    >>> import jax.numpy as jnp
    >>> apply = lambda w, x: jnp.convolve(x, w, "valid")
    >>> positions(apply, jnp.ones(3), jnp.ones(10))
    {'': 8}

    Args:
      apply: as in `count`.
      params: as in `count`.
      x: a sample input of one example, array or shape.

    Returns:
      the number by path of the layer.
    """
    layers = count(apply, params, None, x, examples=1).layers
    return {layer.path: layer.flop // (2 * layer.weights) for layer in layers}


def first_and_last(
    apply: Callable[..., Any], params: PyTree, x: PyTree
) -> tuple[str, str]:
    """Gives the paths of the first and of the last layer in order of execution.

    >>> import jax.numpy as jnp
    >>> apply = lambda p, x: jnp.tanh(x @ p["in"]) @ p["a"]
    >>> shapes = {"a": jnp.ones((3, 2)), "in": jnp.ones((4, 3))}
    >>> first_and_last(apply, shapes, jnp.ones((1, 4)))
    ('in', 'a')

    Raises:
      ValueError: if `apply` multiplies no leaf of params.
    """
    layers = count(apply, params, None, x, examples=1).layers
    if not layers:
        raise ValueError("the function multiplies no leaf of params, so has no layers.")
    return layers[0].path, layers[-1].path
