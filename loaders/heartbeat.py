"""Heartbeat: a page of memory in which an isolate shows its pulse, without a message.

Three machine words: the number of the loop's turn, whether that turn is still busy, and the
lifetime that was resumed last. The isolate writes, the supervisor only reads. Tenant code may forge
the page; so CPU clocks, which it cannot forge, have the last word.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import selectors
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from selectors import SelectorKey

PAGE_BYTES = mmap.PAGESIZE
_TURN, _BUSY, _LIFE = range(3)


class HeartbeatReader:
    """The supervisor's side: makes the page, reads it, and cannot be hurt by what is in it."""

    def __init__(self) -> None:
        self.fd = os.memfd_create("heartbeat", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        """To be passed to the isolate, then closed by `close_fd`."""
        try:
            self._map = self._seal_and_map()
        except BaseException:
            self.close_fd()
            raise
        self._words = memoryview(self._map).cast("Q")

    def _seal_and_map(self) -> mmap.mmap:
        os.ftruncate(self.fd, PAGE_BYTES)
        # Without the seals a guest could shrink the file, and reading would end us with SIGBUS.
        fcntl.fcntl(
            self.fd,
            fcntl.F_ADD_SEALS,
            fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL,
        )
        return mmap.mmap(self.fd, PAGE_BYTES, access=mmap.ACCESS_READ)

    @property
    def turn(self) -> int:
        """How many turns the loop has begun."""
        return self._words[_TURN]

    @property
    def is_busy(self) -> bool:
        """Whether the loop is in the middle of a turn."""
        return self._words[_BUSY] != 0

    @property
    def life(self) -> int:
        """The lifetime that was resumed last, 0 for none."""
        return self._words[_LIFE]

    def close_fd(self) -> None:
        """Close the descriptor; the page stays mapped."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def close(self) -> None:
        """Give the page back."""
        self.close_fd()
        self._words.release()
        self._map.close()


class HeartbeatWriter:
    """The isolate's side."""

    def __init__(self, fd: int) -> None:
        self._map = mmap.mmap(fd, PAGE_BYTES)
        self._words = memoryview(self._map).cast("Q")

    def begin_turn(self) -> None:
        """The loop has work."""
        self._words[_TURN] += 1
        self._words[_BUSY] = 1

    def rest(self) -> None:
        """The loop waits."""
        self._words[_BUSY] = 0

    def resume(self, life: int) -> None:
        """This lifetime is about to run: what others used before it is not its fault."""
        self._words[_LIFE] = life
        self._words[_TURN] += 1


class HeartbeatSelector(selectors.EpollSelector):
    """The selector of an isolate's event loop: it writes the heartbeat around every wait."""

    def __init__(self, writer: HeartbeatWriter) -> None:
        super().__init__()
        self._begin_turn = writer.begin_turn
        self._rest = writer.rest
        self.before_wait: Callable[[float | None], None] = lambda timeout: None
        """Called with the timeout of every wait: 0 means that the loop has more to do."""

    def select(self, timeout: float | None = None) -> list[tuple[SelectorKey, int]]:
        """Wait for events."""
        self.before_wait(timeout)
        self._rest()
        try:
            return super().select(timeout)
        finally:
            self._begin_turn()
