"""Heap trim: returns memory that a large piece of work has freed to the operating system.

Sealing a log takes several times its bytes for a moment. The allocators keep freed memory, so the
process would show its peak for the rest of its life.
"""

from __future__ import annotations

import ctypes
import sys
from typing import Any


def release_memory() -> None:
    """Return freed memory to the system, as far as the allocators of this process can."""
    pyarrow = sys.modules.get("pyarrow")
    if pyarrow is not None:
        pyarrow.default_memory_pool().release_unused()
    trim = _malloc_trim()
    if trim is not None:
        trim(0)


def _malloc_trim() -> Any:
    """Return the C library's `malloc_trim`, where it has one."""
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError):
        return None
