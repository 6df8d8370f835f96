"""Arithmetic of activations: with each other, and with constants."""

from collections.abc import Callable
from typing import Any

import numpy as np

from jaxprune._program import Step
from jaxprune.interop._litert_compare import operand
from jaxprune.interop._litert_gelu import gelu
from jaxprune.interop._litert_nodes import Node, added, shortest
from jaxprune.interop._litert_views import View, Walk, node_of, source_of, whole


def add(walk: Walk, step: Step) -> View:
    """Adds activations, or a constant, as a bias where it can be one."""
    types, (made,) = walk.program.types, step.outputs
    for slot, other in (step.inputs, step.inputs[::-1]):
        same = types[slot].shape == types[made].shape
        if same and isinstance(walk.values[other], np.ndarray):
            node, at = source_of(walk, slot)
            constant = _turned(walk.values[other], at, node.shape)
            return View(added(node, constant), at)
    return binary("add")(walk, step)


def binary(kind: str) -> Callable[[Walk, Step], View]:
    """Makes the rule of an operator of two activations, or of one and a constant."""

    def rule(walk: Walk, step: Step) -> View:
        slots, types = step.inputs[-2:], walk.program.types
        shape = types[step.outputs[0]].shape
        constant = [isinstance(walk.values[slot], np.ndarray) for slot in slots]
        given = slots[constant.index(False)]
        if not any(constant) or types[given].shape != shape:
            operands = tuple(operand(walk, slot, shape) for slot in slots)
            found = gelu(*operands) if kind == "mul" and not any(constant) else None
            return whole(found or Node(kind, shape, operands))
        node, at = source_of(walk, given)
        operands = tuple(
            shortest(_turned(walk.values[slot], at, node.shape), node.shape)
            if known
            else node
            for slot, known in zip(slots, constant, strict=True)
        )
        return View(Node(kind, node.shape, operands), at)

    return rule


def _turned(constant: Any, at: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Gives a constant in the order of the tensor whose numbers are `at` of a value."""
    turned = np.empty(at.size, np.float32)
    turned[at.ravel()] = np.broadcast_to(constant, at.shape[1:]).ravel()
    return turned.reshape(shape)


def unary(kind: str) -> Callable[[Walk, Step], View]:
    """Makes the rule of an operator of one activation."""

    def rule(walk: Walk, step: Step) -> View:
        node, at = source_of(walk, step.inputs[0])
        return View(Node(kind, node.shape, (node,)), at)

    return rule


def power(walk: Walk, step: Step) -> View:
    """Raises to a whole power by products."""
    node, at = source_of(walk, step.inputs[0])
    power, made = step.params.get("y", 2), node
    if power == 0:
        raise ValueError("it raises activations to the power 0")
    for _ in range(abs(power) - 1):
        made = Node("mul", node.shape, (made, node))
    if power < 0:
        made = Node("div", node.shape, (np.ones(1, np.float32), made))
    return View(made, at)


def beside_one(kind: str) -> Callable[[Walk, Step], View]:
    """Makes the rule of exp(x) - 1 or log(1 + x), less exact than JAX's near 0."""

    def rule(walk: Walk, step: Step) -> View:
        node, at = source_of(walk, step.inputs[0])
        one = np.ones(1, np.float32)
        if kind == "log":
            return View(Node("log", node.shape, (added(node, one),)), at)
        return View(added(Node("exp", node.shape, (node,)), -one), at)

    return rule


def total(walk: Walk, step: Step) -> View:
    """Adds up the numbers along axes."""
    x, axes = node_of(walk, step.inputs[0]), np.array(step.params["axes"], np.int32)
    shape = walk.program.types[step.outputs[0]].shape
    return whole(Node("sum", shape, (x, axes)))
