"""How XLA compiles in tests."""

import os
from importlib.metadata import version


def flags() -> str:
    """Gives XLA's flags: eight devices on one CPU, and hardly any optimization.

    Tests spend their time in compiling, which takes a third of it then. With
    JAXPRUNE_OPTIMIZED=1 it is as users have it: .ci/run sets that for the slow tests
    and for the oldest JAX. XLA ends a process at a flag that it does not know, so only
    the versions in which these were tried get them.
    """
    devices = "--xla_force_host_platform_device_count=8"
    release = tuple(map(int, version("jaxlib").split(".")[:2]))
    if "JAXPRUNE_OPTIMIZED" in os.environ or not (0, 7) <= release < (0, 11):
        return devices
    return (
        f"{devices} --xla_backend_optimization_level=0 "
        "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
    )
