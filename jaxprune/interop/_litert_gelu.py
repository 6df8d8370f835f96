"""GELU, found in the product that it is: LiteRT has it, and no erf without it."""

import math

import numpy as np

from jaxprune.interop._litert_nodes import Node


def gelu(one: Node, other: Node) -> Node | None:
    r"""Finds :math:`x \Phi(x)` in a product; `None` if it is another.

    :math:`\Phi(x) = (1 + \text{erf}(x / \sqrt 2)) / 2 = \text{erfc}(-x / \sqrt 2) / 2`
    is the normal distribution's.

    Source:
      Hendrycks and Gimpel 2016 (arXiv:1606.08415), section 2.
    """
    for linear, normal in ((one, other), (other, one)):
        y, slope = _unscaled(linear)
        z, within, share = _normal(normal)
        if z is y and within:
            # slope y 2 share Phi(within y), of which x is within y.
            made = Node("gelu", y.shape, (_scaled(y, within),))
            return _scaled(made, 2 * share * slope / within)
    return None


def _normal(node: Node) -> tuple[Node | None, float, float]:
    """Gives y, k and s of 2 s Phi(k y), whichever way it is written."""
    node, share = _unscaled(node)
    if node.relu:
        return None, 0.0, 0.0
    if node.kind == "erfc":
        y, factor = _unscaled(node.inputs[0])
        return y, -math.sqrt(2) * factor, share
    if node.kind == "add":
        for one, other in (node.inputs, node.inputs[::-1]):
            if isinstance(one, Node):
                erf, half = _unscaled(one)
                if erf.kind == "erf" and not erf.relu and _number(other) == half:
                    y, factor = _unscaled(erf.inputs[0])
                    return y, math.sqrt(2) * factor, share * half
    return None, 0.0, 0.0


def _unscaled(node: Node) -> tuple[Node, float]:
    """Gives x and k of k x, of one number k."""
    factor = 1.0
    while not node.relu and node.kind in ("neg", "mul", "div"):
        if node.kind == "neg":
            node, factor = node.inputs[0], -factor
            continue
        x, other = node.inputs
        if node.kind == "mul" and not isinstance(x, Node):
            x, other = other, x
        number = _number(other)
        if not number:
            break
        node, factor = x, factor * (number if node.kind == "mul" else 1 / number)
    return node, factor


def _number(x: Node | np.ndarray) -> float | None:
    """Gives the only number of a constant."""
    if isinstance(x, Node) or np.ptp(x) != 0:
        return None
    return float(x.flat[0])


def _scaled(node: Node, factor: float) -> Node:
    if math.isclose(factor, 1, rel_tol=1e-6):
        return node
    return Node("mul", node.shape, (node, np.full(1, factor, np.float32)))
