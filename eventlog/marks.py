"""Marks: when what happened, written down by each process, for whoever asks where time goes.

Off unless DYNAMIC_WORKFLOWS_MARKS names a folder: then each process appends lines to a file of its
own there, named by its process id. `bench/w7.py --trace` shows what it is for.
"""

from __future__ import annotations

import os
import time

VARIABLE = "DYNAMIC_WORKFLOWS_MARKS"

_folder = os.environ.get(VARIABLE)
is_on = _folder is not None
"""For hot paths: whether anybody wants to know."""


def mark(what: str) -> None:
    """It happens now; in ns of the machine's monotonic clock, which all its processes share."""
    if _folder is not None:
        line = f"{time.perf_counter_ns()} {what}\n"
        with open(os.path.join(_folder, str(os.getpid())), "a", encoding="utf-8") as file:
            file.write(line)
