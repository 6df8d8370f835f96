"""Runs of several processes, each with devices of its own: on a pod, or by flags."""

import os
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from experiments.config import Devices, Refused


def start_processes(devices: Devices) -> None:
    """Joins the other processes, if there are any; before JAX is used.

    Raises:
      Refused: if only some of the flags are given, or the others are not to be had.
    """
    given = (devices.coordinator, devices.processes, devices.process)
    if given == (None, None, None) and not _several_hosts():
        return
    if given in ((None, None, None), ("auto", None, None)):
        try:
            jax.distributed.initialize()
        except (RuntimeError, ValueError) as error:
            raise Refused(
                "the processes did not come together as the environment says; give "
                f"--coordinator, --processes and --process: {error}"
            ) from error
        return
    if any(value is None for value in given):
        raise Refused(
            "--coordinator, --processes and --process belong together: give all three, "
            "or none, or --coordinator auto, where the environment tells them."
        )
    assert devices.processes is not None
    assert devices.process is not None
    if not 0 <= devices.process < devices.processes:
        raise Refused(
            f"--process is {devices.process}, expected 0 to {devices.processes - 1}, "
            "one less than --processes."
        )
    try:
        jax.distributed.initialize(*given)
    except (RuntimeError, ValueError) as error:
        raise Refused(
            f"the processes did not come together at --coordinator "
            f"{devices.coordinator}: {error}"
        ) from error


def _several_hosts() -> bool:
    """Tells whether the environment is one that `jax.distributed` knows to read."""
    env = os.environ
    hosts = env.get("TPU_WORKER_HOSTNAMES", "").split(",")
    # Slurm tells an allocation's tasks to what runs alone in it, without srun, too.
    names = ["SLURM_NTASKS"] if "SLURM_STEP_NODELIST" in env else []
    tasks = [int(env.get(name) or 1) for name in (*names, "OMPI_COMM_WORLD_SIZE")]
    return len(hosts) > 1 or "MEGASCALE_COORDINATOR_ADDRESS" in env or max(tasks) > 1


def to_host(tree: Any) -> Any:
    """Copies a tree whole to the memory of every process, as NumPy arrays."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    return jax.tree.map(
        lambda x: multihost_utils.process_allgather(x, tiled=True), tree
    )


def first_process() -> bool:
    """Tells whether this process writes what the run leaves behind."""
    return jax.process_index() == 0


def together(name: str) -> None:
    """Waits for all processes to come to the place of this name."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def any_process(told: bool) -> bool:
    """Tells whether any process was told so; all of them must ask."""
    if jax.process_count() == 1:
        return told
    return bool(np.any(multihost_utils.process_allgather(np.array(told))))
