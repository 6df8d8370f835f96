"""What a call needs in memory, beyond its arguments."""

from collections.abc import Callable
from pathlib import Path
from typing import Any


def compiled_bytes(executable: Any) -> int:
    """Gives the temporaries and outputs of a compiled function, in bytes."""
    account = executable.memory_analysis()
    return account.temp_size_in_bytes + account.output_size_in_bytes


def peak_rise(call: Callable[[], Any]) -> tuple[Any, float | None]:
    """Calls; with the bytes by which that raised the peak resident memory."""
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        before = _status("VmRSS")
        result = call()
        return result, max(0, _status("VmHWM") - before)
    except OSError:
        return call(), None


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return 1024 * int(line.split()[1])
    raise OSError(f"/proc/self/status has no {field}")
