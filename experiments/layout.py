"""How a run lies on its devices: the mesh, and which axis of a leaf goes along which.

    data=8,model=2

is 16 devices. Each batch is divided along `data`, and the params along `model`; where
asked for (`--fsdp`) the params along `data` too. Moments and masks lie as their params
do. The compiler puts in what must be sent between devices.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

import jaxprune
from experiments.config import Refused


# Axis of a leaf that lies along `model`, the first rule that matches deciding: the
# outputs of a layer, so that each device computes some channels of it.
RULES: tuple[tuple[str, int], ...] = (
    ("**/kernel", -1),
    ("**/bias", -1),
    ("**/scale", -1),
    ("**/mean", -1),
    ("**/variance", -1),
)

_AXES = ("data", "model")


class Layout(NamedTuple):
    """A mesh with the axes `data` and `model`, and how params lie on it.

    Attributes:
      mesh: the devices.
      fsdp: whether params are divided along `data` too.
      rules: `RULES`, or others: glob of paths, and the axis along `model`.
    """

    mesh: Mesh
    fsdp: bool = False
    rules: Sequence[tuple[str, int]] = RULES

    def along(self, *axes: str | None) -> NamedSharding:
        """Gives the sharding whose array axes lie along these axes of the mesh."""
        return NamedSharding(self.mesh, PartitionSpec(*axes))

    @property
    def batch(self) -> NamedSharding:
        """The sharding of a batch."""
        return self.along("data")

    @property
    def everywhere(self) -> NamedSharding:
        """The sharding of what every device has a copy of."""
        return self.along()


def make_layout(text: str | None = "data=1,model=1", fsdp: bool = False) -> Layout:
    """Reads `--mesh`.

    Args:
      text: sizes of the axes, "data=8,model=2"; an axis left out has size 1. `None`:
        all devices along `data`.
      fsdp: as in `Layout`.

    Raises:
      Refused: if it is no mesh, or there are too few devices for it, or, in a run of
        several processes, too many.
    """
    devices = jax.devices()
    sizes = dict.fromkeys(_AXES, 1)
    if text is None:
        sizes["data"] = len(devices)
    else:
        for part in text.split(","):
            name, _, size = part.strip().partition("=")
            if name not in sizes or not size.isdecimal() or int(size) < 1:
                raise Refused(
                    f"--mesh is {text!r}, expected sizes of data and model such as "
                    "'data=8,model=2'."
                )
            sizes[name] = int(size)
    count = sizes["data"] * sizes["model"]
    if count > len(devices) or (jax.process_count() > 1 and count < len(devices)):
        raise Refused(
            f"--mesh is {text!r}, {count} devices, and there are {len(devices)}: "
            f"{devices[0].device_kind}."
        )
    grid = np.array(devices[:count]).reshape(sizes["data"], sizes["model"])
    # Auto: the networks are written without a word on devices.
    mesh = Mesh(grid, _AXES, axis_types=(AxisType.Auto,) * 2)
    return Layout(mesh, fsdp)


def leaf_sharding(layout: Layout, path: str, leaf: Any) -> NamedSharding:
    """Says how a leaf of the params lies.

    The axis that the rule names lies along `model`, and with `fsdp` the longest other
    one along `data`; an axis that cannot be divided evenly is not divided.

    Raises:
      ValueError: if no rule covers the leaf.
    """
    covering = [a for glob, a in layout.rules if jaxprune.where(glob)(path, leaf)]
    if not covering:
        raise ValueError(
            f"no rule says how {path} lies on the devices, expected one that matches "
            f"it; the rules are for {[pattern for pattern, _ in layout.rules]}."
        )
    axes: list[str | None] = [None] * len(leaf.shape)
    if not axes:
        return layout.everywhere
    axis, sizes = covering[0], layout.mesh.shape
    if leaf.shape[axis] % sizes["model"] == 0:
        axes[axis] = "model"
    if layout.fsdp:
        whole = [i for i, name in enumerate(axes) if name is None]
        whole = [i for i in whole if leaf.shape[i] % sizes["data"] == 0]
        if whole:
            axes[max(whole, key=lambda i: leaf.shape[i])] = "data"
    return layout.along(*axes)


def shardings(layout: Layout, params: Any, tree: Any) -> Any:
    """Says how a tree lies that holds params, or what belongs to them.

    A leaf belongs to a parameter if its path ends in that of the parameter and its
    shape is the same: moments and masks do. All other leaves lie everywhere.

    Args:
      layout: the mesh and its rules.
      params: params, or their shapes.
      tree: a state with params in it, or its shapes.

    Raises:
      ValueError: if no rule covers a leaf of `params`.
    """
    owners = [
        (_parts(path), leaf.shape, leaf_sharding(layout, "/".join(_parts(path)), leaf))
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    ]
    owners.sort(key=lambda owner: -len(owner[0]))

    def lies(path: Any, leaf: Any) -> NamedSharding:
        parts = _parts(path)
        for name, shape, sharding in owners:
            if parts[-len(name) :] == name and leaf.shape == shape:
                return sharding
        return layout.everywhere

    return jax.tree_util.tree_map_with_path(lies, tree)


def _parts(path: Any) -> tuple[str, ...]:
    return tuple(jax.tree_util.keystr(path, simple=True, separator="/").split("/"))
