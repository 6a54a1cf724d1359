"""Heap: memory that was used for a large piece of work and is free again goes back to the system.

Sealing a log takes several times its bytes for a moment. The allocators keep what they were given,
so a process would show its highest moment for the rest of its life.
"""

from __future__ import annotations

import ctypes
import sys
from typing import Any


def give_back() -> None:
    """Return freed memory to the system, as far as the allocators of this process can."""
    pyarrow = sys.modules.get("pyarrow")
    if pyarrow is not None:
        pyarrow.default_memory_pool().release_unused()
    trim = _malloc_trim()
    if trim is not None:
        trim(0)


def _malloc_trim() -> Any:
    """The C library's function, where it has one."""
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError):
        return None
