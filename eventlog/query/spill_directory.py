"""Spill directory: where DuckDB in this process puts parts of a query that do not fit in memory.

The folder has a random name, which cannot be guessed or created beforehand, and mode 0700: rows of
all tenants may lie in it.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile

_folders: dict[int, str] = {}


def spill_folder() -> str:
    """Return the folder, which the first call makes and the end of this process removes."""
    pid = os.getpid()
    folder = _folders.get(pid)
    if folder is None or not os.path.isdir(folder):
        folder = _folders[pid] = tempfile.mkdtemp(prefix="dynamic-workflows-")
        atexit.register(_remove, pid, folder)
    return folder


def _remove(pid: int, folder: str) -> None:
    # A child that was forked is not the one to remove it.
    if pid == os.getpid():
        shutil.rmtree(folder, ignore_errors=True)
