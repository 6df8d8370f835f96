"""What only moves numbers, and what puts activations together."""

import numpy as np

from jaxprune._program import Step, run_step
from jaxprune.interop._litert_nodes import Node, added, bordered
from jaxprune.interop._litert_views import (
    Value,
    View,
    Walk,
    made_of,
    node_of,
    view_of,
    whole,
)


MOVES = frozenset(
    "reshape transpose slice squeeze expand_dims broadcast_in_dim rev copy copy_p "
    "stop_gradient split pad concatenate stack dynamic_slice gather".split()
)


def move(walk: Walk, step: Step) -> list[Value]:
    """Moves the places of numbers.

    Raises:
      ValueError: as `node_of`, or if activations are stacked.
    """
    if step.primitive.name != "slice":  # by which several pools are taken in turns
        for slot in step.inputs:
            _settle(walk, slot)
    if step.primitive.name in ("concatenate", "stack"):
        return [_joined(walk, step)]
    view = view_of(walk, step.inputs[0])
    rest = [walk.values[slot] for slot in step.inputs[1:]]
    fill = view.fill
    if step.primitive.name == "pad":
        fill, rest = float(np.asarray(rest[0])), [np.int32(-1)]
        if view.fill not in (None, fill):
            view = whole(node_of(walk, step.inputs[0]))
    made = [run_step(step, [at, *rest]) for at in view.at]
    columns = (np.stack(reads) for reads in zip(*made, strict=True))
    return [View(view.of, at, fill if (at < 0).any() else None) for at in columns]


def joined_fill(views: list[View]) -> tuple[bool, float | None]:
    """Tells whether views are of one tensor with one fill, and gives that."""
    fills = {view.fill for view in views} - {None}
    same = all(view.of is views[0].of for view in views) and len(fills) < 2
    return same, next(iter(fills), None)


def _settle(walk: Walk, slot: int) -> None:
    """Makes the maximum of several reads, if it is pooling, before it is moved."""
    value = walk.values[slot]
    if isinstance(value, View) and len(value.at) > 1:
        node = made_of(value)
        walk.values[slot] = value if node is None else whole(node)


def _joined(walk: Walk, step: Step) -> View:
    if any(isinstance(walk.values[slot], np.ndarray) for slot in step.inputs):
        return _among_constants(walk, step)
    views = [view_of(walk, slot) for slot in step.inputs]
    same, fill = joined_fill(views)
    reads = {len(view.at) for view in views}
    if same and len(reads) == 1:
        columns = zip(*(view.at for view in views), strict=True)
        at = np.stack([np.asarray(run_step(step, parts)[0]) for parts in columns])
        return View(views[0].of, at, fill)
    parts = tuple(node_of(walk, slot) for slot in step.inputs)
    shape = walk.program.types[step.outputs[0]].shape
    axis = step.params.get("dimension")
    if axis is None:
        raise ValueError("activations are stacked, which cannot be written")
    return whole(Node("concat", shape, parts, {"axis": axis}))


def _among_constants(walk: Walk, step: Step) -> View:
    """Joins activations with constants: those of one batch cannot be joined to more.

    Activations have borders of zeros where the constants are, which are added.
    """
    axis = step.params.get("dimension")
    shape = walk.program.types[step.outputs[0]].shape
    if not axis:
        raise ValueError("activations are put together with constants along no axis")
    constants, parts, at = np.zeros(shape, np.float32), [], 0
    rim = 0  # of constants before the next activation
    for slot in step.inputs:
        value, n = walk.values[slot], walk.program.types[slot].shape[axis]
        if isinstance(value, np.ndarray):
            places = [slice(None)] * len(shape)
            places[axis] = slice(at, at + n)
            constants[tuple(places)] = value
            rim += n
        else:
            parts.append([node_of(walk, slot), rim, 0])
            rim = 0
        at += n
    parts[-1][2] = rim
    nodes = []
    for node, before, after in parts:
        borders = [(0, 0)] * len(shape)
        borders[axis] = (before, after)
        nodes.append(bordered(node, borders))
    made = nodes[0]
    if len(nodes) > 1:
        made = Node("concat", shape, tuple(nodes), {"axis": axis})
    return whole(added(made, constants))
