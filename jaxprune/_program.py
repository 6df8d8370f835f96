"""A function traced to one flat list of steps: calls inlined, scans written out.

Every value has a slot, a number. The forms of a call in a jaxpr (jit, remat, custom
derivatives) and the bodies of scans are dissolved, so that whoever reads a program
meets plain operations on slots only.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import Literal, Primitive


PRODUCTS = ("dot_general", "conv_general_dilated")

# Primitives that run one jaxpr once, on their own operands.
_CALLS = frozenset(
    "jit pjit call closed_call core_call remat remat2 checkpoint custom_jvp_call "
    "custom_vjp_call custom_vjp_call_jaxpr".split()
)


class Step(NamedTuple):
    """One operation: a primitive with its parameters, from slots to slots."""

    primitive: Primitive
    params: dict[str, Any]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


class Program(NamedTuple):
    """Steps in order of execution; the type of every slot; the constants by slot."""

    steps: list[Step]
    types: list[jax.ShapeDtypeStruct]
    constants: dict[int, Any]
    inputs: list[int]
    outputs: list[int]


def flatten(function: Callable[..., Any], *args: Any) -> Program:
    """Traces `function` on arrays or shapes and writes it out.

    The slots of `inputs` are those of the leaves of `args`, in tree order.
    """
    program = Program([], [], {}, [], [])
    closed = jax.make_jaxpr(function)(*args)
    program.inputs.extend(_slot(program, v.aval) for v in closed.jaxpr.invars)
    program.outputs.extend(
        _inline(program, closed.jaxpr, closed.consts, program.inputs)
    )
    return program


def evaluate(program: Program, args: Sequence[Any], wanted: Sequence[int]) -> list[Any]:
    """Runs a program on the leaves of its arguments and gives the wanted slots."""
    values = {**program.constants, **dict(zip(program.inputs, args, strict=True))}
    for step in program.steps:
        outputs = run_step(step, [values[slot] for slot in step.inputs])
        values.update(zip(step.outputs, outputs, strict=True))
    return [values[slot] for slot in wanted]


def run_step(step: Step, inputs: Sequence[Any]) -> list[Any]:
    """Binds the primitive of a step to values."""
    # JAX before 0.8 gives a pair, whose first half is empty but for calls.
    bound: Any = step.primitive.get_bind_params(step.params)
    functions, params = bound if isinstance(bound, tuple) else ((), bound)
    out = step.primitive.bind(*functions, *inputs, **params)
    return list(out) if step.primitive.multiple_results else [out]


def called(eqn: Any) -> tuple[Any, Sequence[Any]] | None:
    """Gives the jaxpr and constants that an equation runs once on its own operands."""
    for key in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
        if eqn.primitive.name in _CALLS and key in eqn.params:
            inner = eqn.params[key]
            jaxpr = getattr(inner, "jaxpr", inner)
            if len(jaxpr.invars) == len(eqn.invars):
                return jaxpr, getattr(inner, "consts", ())
    return None


def holds_product(params: dict[str, Any]) -> bool:
    """Tells whether a primitive with these parameters runs a product inside."""
    for value in params.values():
        for inner in value if isinstance(value, tuple | list) else (value,):
            for eqn in getattr(getattr(inner, "jaxpr", inner), "eqns", ()):
                if eqn.primitive.name in PRODUCTS or holds_product(eqn.params):
                    return True
    return False


def _slot(program: Program, aval: Any) -> int:
    shape, dtype = getattr(aval, "shape", ()), getattr(aval, "dtype", jnp.float32)
    program.types.append(jax.ShapeDtypeStruct(shape, dtype))
    return len(program.types) - 1


def _constant(program: Program, aval: Any, value: Any) -> int:
    slot = _slot(program, aval)
    program.constants[slot] = value
    return slot


def _inline(
    program: Program, jaxpr: Any, consts: Sequence[Any], args: Sequence[int]
) -> list[int]:
    """Appends the equations of a jaxpr, given the slots of its arguments."""
    slots = dict(zip(jaxpr.invars, args, strict=True))
    for var, value in zip(jaxpr.constvars, consts, strict=True):
        slots[var] = _constant(program, var.aval, value)

    def read(v: Any) -> int:
        if isinstance(v, Literal):
            return _constant(program, v.aval, v.val)
        return slots[v]

    for eqn in jaxpr.eqns:
        inputs = [read(v) for v in eqn.invars]
        name = eqn.primitive.name
        inner = called(eqn)
        if inner is not None:
            outputs = _inline(program, *inner, inputs)
        elif name == "scan" and eqn.params["length"] and holds_product(eqn.params):
            outputs = _unroll(program, eqn, inputs)
        else:
            outputs = [_slot(program, v.aval) for v in eqn.outvars]
            step = Step(eqn.primitive, eqn.params, tuple(inputs), tuple(outputs))
            program.steps.append(step)
        slots.update(zip(eqn.outvars, outputs, strict=True))
    return [read(v) for v in jaxpr.outvars]


def _unroll(program: Program, eqn: Any, inputs: list[int]) -> Sequence[int]:
    """Appends the body of a scan once for every turn."""
    body, turns = eqn.params["jaxpr"], range(eqn.params["length"])
    # JAX tells the numbers of constants and of what is carried in several ways, by its
    # version; what is scanned over, or stacked, has one axis less in the body.
    first = len(inputs) - _scanned(eqn.invars, body.jaxpr.invars)
    carried = len(eqn.outvars) - _scanned(eqn.outvars, body.jaxpr.outvars)
    consts, carry = inputs[: first - carried], inputs[first - carried : first]
    xs = inputs[first:]
    ys: list[list[int]] = [[] for _ in turns]
    for i in reversed(turns) if eqn.params["reverse"] else turns:
        at_i = _apply(program, lambda *xs, i=i: [x[i] for x in xs], xs)
        out = _inline(program, body.jaxpr, body.consts, [*consts, *carry, *at_i])
        carry, ys[i] = out[: len(carry)], out[len(carry) :]
    columns = zip(*ys, strict=True)
    return [*carry, *(_apply(program, _stack, column)[0] for column in columns)]


def _scanned(outside: Sequence[Any], inside: Sequence[Any]) -> int:
    pairs = zip(outside, inside, strict=True)
    return sum(len(x.aval.shape) > len(y.aval.shape) for x, y in pairs)


def _stack(*xs: Any) -> list[Any]:
    return [jnp.stack(xs)]


def _apply(
    program: Program, function: Callable[..., Any], slots: Sequence[int]
) -> list[int]:
    closed = jax.make_jaxpr(function)(*(program.types[slot] for slot in slots))
    return _inline(program, closed.jaxpr, closed.consts, slots)
