"""SIGTERM, as schedulers send it before they take a machine away."""

import signal
import threading
from types import FrameType
from typing import Any


class Stopped(Exception):
    """A run that was asked to stop, and has saved where it is.

    Attributes:
      step: at which it stands.
    """

    def __init__(self, step: int):
        super().__init__(f"stopped at step {step}")
        self.step = step


class Stop:
    """A context in which SIGTERM ends nothing, but is noted in `asked`."""

    asked: bool = False

    def __enter__(self) -> "Stop":
        """Takes the signal over; Python allows that in the main thread only."""
        self._usual: Any = None
        if threading.current_thread() is threading.main_thread():
            self._usual = signal.signal(signal.SIGTERM, self._ask)
        return self

    def __exit__(self, *error: Any) -> None:
        """Gives the signal back."""
        if self._usual is not None:
            signal.signal(signal.SIGTERM, self._usual)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self.asked = True
