"""What is known while a program is followed, and how to give up on a step."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np

from jaxprune._program import Program, Step
from jaxprune._weights import Constant, Weight
from jaxprune.units._labels import Active, Makers
from jaxprune.units._pieces import Piece


Value: TypeAlias = Active | Constant | Weight


class Walk(NamedTuple):
    """What is known while a program is followed.

    Attributes:
      program: the program.
      shapes: those of the leaves of params.
      paths: their paths.
      makers: the layers met so far.
      pieces: what each product tells of its kernel.
      stored: the leaf that a slot holds just as it is stored.
      altered: slots whose numbers are made from those of leaves but are others: scaled,
        masked, negated.
      shared: leaves that are read by more than a product as its kernel or a layer as
        its bias: to cut them would change what is computed there.
    """

    program: Program
    shapes: list[tuple[int, ...]]
    paths: list[str]
    makers: Makers
    pieces: list[Piece]
    stored: dict[int, int]
    altered: set[int]
    shared: set[int]


def lost(walk: Walk, step: Step, output: int = 0) -> Active:
    shape = walk.program.types[step.outputs[output]].shape
    return Active(np.full(shape, -1, np.int32))


def share(walk: Walk, values: Iterable[Value]) -> None:
    """Notes the leaves of weights that are read in a way no link describes."""
    for x in values:
        if isinstance(x, Weight):
            walk.shared.update(x.leaves)


def give_up(
    walk: Walk, step: Step, inputs: Sequence[Value], reason: str
) -> list[Active]:
    share(walk, inputs)
    for x in inputs:
        if isinstance(x, Active):
            walk.makers.pin(walk.makers.of(x.label), reason)
    return [lost(walk, step, i) for i in range(len(step.outputs))]
