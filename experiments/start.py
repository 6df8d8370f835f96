"""Starts a command, so that Ctrl-C is quiet from the first moment to the last.

It imports nothing that takes long.
"""

import importlib
import os
import signal
import sys
import threading
from typing import Any


INTERRUPTED = 130


def start(module: str) -> int:
    """Imports a module and calls its `main`; gives the exit code.

    JAX, Flax and Orbax take seconds to import, and an exception in their compiled parts
    is not passed on as it is, or ends in a crash. So Ctrl-C raises none until they are
    there: it ends the process, which has nothing to lose yet.
    """
    usual = signal.signal(signal.SIGINT, _leave)
    main = importlib.import_module(module).main
    sys.unraisablehook = _raise_again
    signal.signal(signal.SIGINT, usual)
    try:
        code = main()
    except KeyboardInterrupt:
        print("\nInterrupted.", file=sys.stderr)
        code = INTERRUPTED
    except BrokenPipeError:
        if not _reader_left():
            raise
        code = 1
    if code == INTERRUPTED:
        # XLA's threads may still run code that Python's own end takes away: a crash.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def _reader_left() -> bool:
    """Tells whether who read what is printed has read enough, as `head` does.

    Then nothing more is printed, Python's own complaint at its end neither.
    """
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False


def _leave(*_: Any) -> None:
    os.write(2, b"\nInterrupted.\n")
    os._exit(INTERRUPTED)


def _raise_again(lost: Any) -> None:
    """Repeats a Ctrl-C that met a callback, JAX's at a garbage collection for one.

    Python drops what such a callback raises.
    """
    if issubclass(lost.exc_type, KeyboardInterrupt):
        here = threading.get_ident()
        threading.Timer(0.01, signal.pthread_kill, (here, signal.SIGINT)).start()
    else:
        sys.__unraisablehook__(lost)
