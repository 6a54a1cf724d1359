"""Fork hooks: lets a process with one thread fork without the standard library's care for
threads.

`logging`, `threading` and `concurrent.futures` register hooks that repair, after a fork, what other
threads may have held. Where there are no other threads there is nothing to repair, but the hooks
write to some hundred pages that the child would otherwise share with its parent: a tenth of the
time that an isolate needs to start.
"""

from __future__ import annotations

import os
import sys
from typing import Any

_OF_THREADS = frozenset({"logging", "threading", "concurrent.futures.thread"})

_register = os.register_at_fork
_held_back: list[dict[str, Any]] = []


def hold_back() -> None:
    """Keep hooks about threads unregistered from now on; to be called before all imports."""

    def register_at_fork(**hooks: Any) -> None:
        if sys._getframe(1).f_globals.get("__name__") in _OF_THREADS:
            _held_back.append(hooks)
        else:
            _register(**hooks)

    os.register_at_fork = register_at_fork


def restore(*, has_threads: bool) -> None:
    """Register hooks as usual again, after all imports; with threads, the held back ones too."""
    os.register_at_fork = _register
    if has_threads:
        for hooks in _held_back:
            _register(**hooks)
