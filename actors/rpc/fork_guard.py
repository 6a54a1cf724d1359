"""Forks: what a child that was forked from a connected process may not do, and lets go of.

Threads do not survive a fork, and a connection to Ray consists of threads: the child would wait
for ever. What the parent holds (its actors, its Ray, its claim, its folder) is the parent's to end.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from dynamic_workflows.eventlog.errors import PlatformBusy

_letting_go: list[Callable[[], None]] = []
_is_hooked = False


class OwningProcess:
    """The process in which something was made."""

    __slots__ = ("pid",)

    def __init__(self) -> None:
        self.pid = os.getpid()

    @property
    def is_here(self) -> bool:
        """Whether it is this process, and not one that this was forked from."""
        return self.pid == os.getpid()

    def check(self) -> None:
        """Raise PlatformBusy in a forked child."""
        if self.pid != os.getpid():
            raise PlatformBusy(
                f"this process was forked from process {self.pid}, which is connected, and "
                "cannot use its connection: connect after the fork, or start the process afresh "
                '(multiprocessing: the method "spawn")'
            )


def on_fork(let_go: Callable[[], None]) -> None:
    """Call it in each child that is forked from now on, right after the fork."""
    global _is_hooked
    if let_go not in _letting_go:
        _letting_go.append(let_go)
    if not _is_hooked:
        _is_hooked = True
        os.register_at_fork(after_in_child=_let_go)


def no_longer(let_go: Callable[[], None]) -> None:
    """There is nothing left to let go of."""
    if let_go in _letting_go:
        _letting_go.remove(let_go)


def _let_go() -> None:
    for let_go in _letting_go:
        let_go()
    _letting_go.clear()
