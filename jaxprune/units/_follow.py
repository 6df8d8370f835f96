"""Which rule follows labels through which step of a program."""

from collections.abc import Sequence
from typing import Any

import jax

from jaxprune._program import PRODUCTS, Step, holds_product, run_step
from jaxprune._weights import JOINS, MOVES, Constant, Weight, follow, mixed
from jaxprune.units._labels import Active
from jaxprune.units._numberwise import ELEMENTWISE, elementwise
from jaxprune.units._products import product
from jaxprune.units._several import REDUCTIONS, WINDOWS, moved, reduced, windows
from jaxprune.units._walk import Value, Walk, give_up


_AS_IS = frozenset(
    "convert_element_type reduce_precision copy copy_p stop_gradient "
    "sharding_constraint device_put name optimization_barrier".split()
)


def follow_step(walk: Walk, step: Step, inputs: Sequence[Value]) -> Sequence[Value]:
    """Gives what the outputs of a step are."""
    name = step.primitive.name
    if name in _AS_IS and len(inputs) == len(step.outputs):
        for a, b in zip(step.inputs, step.outputs, strict=True):
            if a in walk.stored:
                walk.stored[b] = walk.stored[a]
    if any(isinstance(x, Active) for x in inputs):
        return _follow_active(walk, step, inputs)
    weights = [x for x in inputs if isinstance(x, Weight)]
    types = walk.program.types
    moves = name in MOVES or name in _AS_IS
    if not moves or not walk.altered.isdisjoint(step.inputs):
        walk.altered.update(step.outputs)
    if weights and (name in PRODUCTS or holds_product(step.params)):
        return [mixed(weights) for _ in step.outputs]
    if weights:
        slots = (step.inputs[0], *step.outputs)
        known = [x for x in inputs if isinstance(x, Weight | Constant)]
        return follow(step, known, [types[slot].shape for slot in slots])

    def constant(i: int) -> Any:
        with jax.ensure_compile_time_eval():
            values = [x.value() for x in inputs if isinstance(x, Constant)]
            return run_step(step, values)[i]

    return [Constant(lambda i=i: constant(i)) for i in range(len(step.outputs))]


def _follow_active(walk: Walk, step: Step, inputs: Sequence[Value]) -> Sequence[Value]:
    name, first = step.primitive.name, inputs[0]
    if name in _AS_IS:
        return list(inputs)
    if name in PRODUCTS:
        return [product(walk, step, inputs)]
    if name in ELEMENTWISE:
        return [elementwise(walk, step, inputs)]
    if name in MOVES and (name in JOINS or isinstance(first, Active)):
        rest = inputs if name in JOINS else inputs[1:]
        if name in JOINS or all(isinstance(x, Constant) for x in rest):
            return moved(walk, step, inputs)
    if name in REDUCTIONS and isinstance(first, Active):
        return [reduced(walk, step, first)]
    if name in WINDOWS and isinstance(first, Active):
        return [windows(walk, step, first)]
    return give_up(walk, step, inputs, f"{name} acts on it")
