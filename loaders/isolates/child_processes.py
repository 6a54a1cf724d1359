"""Child processes: the children of a zygote, which alone may wait for them and reap them.

Where the kernel has pidfds, the supervisor gets one of each child and kills through it. Elsewhere
it asks the zygote: as long as a child is not reaped, its pid is no other process's.
"""

from __future__ import annotations

import contextlib
import os
import resource
import select
import signal
from collections.abc import Iterable
from typing import NamedTuple

from ..sandbox import linux


class ChildExit(NamedTuple):
    """A child that was reaped."""

    id: int
    status: int
    """As from wait(2)."""
    cpu_s: float
    rss_max_bytes: int


def _ended(id: int, status: int, usage: resource.struct_rusage) -> ChildExit:
    return ChildExit(id, status, usage.ru_utime + usage.ru_stime, linux.peak_bytes(usage))


class Children:
    """The zygote's children, held by pidfds."""

    def __init__(self, poll: select.poll) -> None:
        self._poll = poll
        self._pids: dict[int, tuple[int, int]] = {}  # pidfd -> id, pid

    def add(self, id: int, pid: int) -> list[int]:
        """Add a child; return the descriptors to send to its supervisor, which stay ours."""
        pidfd = linux.open_pidfd(pid)
        self._pids[pidfd] = id, pid
        self._poll.register(pidfd, select.POLLIN)
        return [pidfd]

    def reap(self, fd: int) -> Iterable[ChildExit]:
        """Return the children of whose ends this descriptor tells."""
        id, pid = self._pids.pop(fd)
        self._poll.unregister(fd)
        os.close(fd)
        _, status, usage = os.wait4(pid, 0)
        return [_ended(id, status, usage)]

    def kill(self, id: int) -> None:
        """Send SIGKILL if the child lives. Only supervisors without pidfds request it."""

    def kill_all(self) -> None:
        """Send SIGKILL to all children."""
        for pidfd in self._pids:
            linux.kill(pidfd)

    def leave(self) -> None:
        """Drop the siblings' descriptors; to be called in a child."""


class PidChildren(Children):
    """The zygote's children, known by their pids; SIGCHLD tells that one has ended."""

    def __init__(self, poll: select.poll) -> None:
        super().__init__(poll)
        self._numbers: dict[int, int] = {}  # id -> pid
        self._news, news_end = os.pipe()
        for fd in (self._news, news_end):
            os.set_blocking(fd, False)
        signal.set_wakeup_fd(news_end, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        poll.register(self._news, select.POLLIN)

    def add(self, id: int, pid: int) -> list[int]:
        """Add a child; no descriptor goes to its supervisor."""
        self._numbers[id] = pid
        return []

    def reap(self, fd: int) -> Iterable[ChildExit]:
        """Return all children that have ended."""
        os.read(self._news, 4096)
        for id, pid in list(self._numbers.items()):
            found, status, usage = os.wait4(pid, os.WNOHANG)
            if found:
                del self._numbers[id]
                yield _ended(id, status, usage)

    def kill(self, id: int) -> None:
        """Send SIGKILL if the child lives."""
        with contextlib.suppress(KeyError, ProcessLookupError):
            os.kill(self._numbers[id], signal.SIGKILL)

    def kill_all(self) -> None:
        """Send SIGKILL to all children."""
        for id in self._numbers:
            self.kill(id)

    def leave(self) -> None:
        """Reset the signal handlers; to be called in a child."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def children(poll: select.poll) -> Children:
    """Return the kind of Children that this kernel supports."""
    return Children(poll) if linux.has_pidfds() else PidChildren(poll)
