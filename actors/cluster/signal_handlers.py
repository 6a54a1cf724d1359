"""Signal handlers: a program's own stay in place while a library replaces them.

Ray puts a handler of its own under SIGTERM and the signals of crashes when it connects, beneath
Python's notice, and the system's default when it disconnects: a server that wants to stop in order
would then be killed by its first SIGTERM, or write a trace of Ray's stack.
"""

from __future__ import annotations

import ctypes
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

SIGNALS = ("SIGTERM", "SIGABRT", "SIGBUS", "SIGFPE", "SIGILL", "SIGSEGV", "SIGTRAP")
_ACTION_BYTES = 1024
"""More than a `struct sigaction` has anywhere."""


@contextmanager
def kept_handlers() -> Iterator[None]:
    """Put back afterwards what the process did at each signal; works in every thread.

    What the program itself set meanwhile, by Python, stays.
    """
    before = {number: (action_of(number), signal.getsignal(number)) for number in _numbers()}
    try:
        yield
    finally:
        for number, (action, handler) in before.items():
            if action is not None and signal.getsignal(number) is handler:
                _libc().sigaction(number, ctypes.create_string_buffer(action, len(action)), None)


def action_of(number: int) -> bytes | None:
    """What the process does at a signal, in the system's own words; None where it does not say."""
    action = ctypes.create_string_buffer(_ACTION_BYTES)
    try:
        failed = _libc().sigaction(number, None, action)
    except (AttributeError, OSError, TypeError):
        return None  # not a POSIX system
    return None if failed else action.raw


def _numbers() -> list[int]:
    return [int(getattr(signal, name)) for name in SIGNALS if hasattr(signal, name)]


def _libc() -> Any:
    return ctypes.CDLL(None)
