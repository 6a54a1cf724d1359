"""Tracing: timestamps that each process writes to a file, to find where time goes.

Off unless DYNAMIC_WORKFLOWS_MARKS names a folder: then each process appends lines to a file of its
own there, named by its process id. `bench/w7.py --trace` shows what it is for.
"""

from __future__ import annotations

import contextlib
import os
import time

VARIABLE = "DYNAMIC_WORKFLOWS_MARKS"

_folder = os.environ.get(VARIABLE)
is_on = _folder is not None
"""For hot paths: whether anybody wants to know."""


def begin(folder: str) -> None:
    """Write trace lines to this folder from now on, in this process and in those that it starts."""
    global _folder, is_on
    os.environ[VARIABLE] = _folder = folder
    is_on = True


def end() -> None:
    """Write no more trace lines."""
    global _folder, is_on
    del os.environ[VARIABLE]
    _folder, is_on = None, False


def mark(what: str) -> None:
    """Write a line with the current time in ns of the machine's monotonic clock, which all
    processes share."""
    if _folder is not None:
        line = f"{time.perf_counter_ns()} {what}\n"
        path = os.path.join(_folder, str(os.getpid()))
        # The folder may have been removed since tracing began.
        with contextlib.suppress(OSError), open(path, "a", encoding="utf-8") as file:
            file.write(line)
