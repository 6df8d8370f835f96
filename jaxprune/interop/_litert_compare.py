"""Comparisons: written as operators only where no maximum is read from them."""

from typing import Any

import numpy as np

from jaxprune._program import Step
from jaxprune.interop._litert_nodes import Node, shortest
from jaxprune.interop._litert_views import Test, Value, Walk, node_of


def larger(test: Value) -> tuple[int, int] | None:
    """Gives the slots of b and a if `b > a`, or b is no number, was asked."""
    if not isinstance(test, Test):
        return None
    if test.kind == "or" and all(isinstance(part, Test) for part in test.of):
        for part, nan in (test.of, test.of[::-1]):
            pair = larger(part)
            if pair and nan == Test("ne", (pair[0], pair[0])):
                return pair
    if test.kind not in ("gt", "ge", "lt", "le"):
        return None
    one, other = test.of
    return (one, other) if test.kind in ("gt", "ge") else (other, one)


def tested(walk: Walk, test: Any, shape: tuple[int, ...]) -> Any:
    """Gives what computes a test."""
    if isinstance(test, np.ndarray):
        return np.broadcast_to(test, shape)
    if test.kind in ("or", "and", "not"):
        parts = [tested(walk, part, shape) for part in test.of]
    else:
        parts = [operand(walk, slot, shape) for slot in test.of]
    return Node(test.kind, shape, tuple(parts))


def operand(walk: Walk, slot: int, shape: tuple[int, ...]) -> Any:
    """Gives the operator, or the constant, that makes the value of a slot."""
    value = walk.values[slot]
    known = isinstance(value, np.ndarray)
    return shortest(value, shape) if known else node_of(walk, slot)


def compare(walk: Walk, step: Step) -> Test:
    """Notes what a comparison compares."""
    return Test(step.primitive.name, tuple(step.inputs))


def logical(walk: Walk, step: Step) -> Test:
    """Notes which tests are put together."""
    return Test(step.primitive.name, tuple(walk.values[slot] for slot in step.inputs))
