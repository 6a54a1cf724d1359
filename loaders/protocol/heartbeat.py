"""Heartbeat: a page of memory in which an isolate shows its pulse, without a message.

Machine words: the number of the loop's turn, whether that turn is still busy, and the lifetime that
was resumed last; then what the isolate has used, for a supervisor that cannot look it up (see
`lifeline.py`). The isolate writes, the supervisor only reads. Tenant code may forge the page; so
CPU clocks, which it cannot forge, have the last word.
"""

from __future__ import annotations

import errno
import mmap
import os
import selectors
import tempfile
from collections.abc import Callable
from typing import TYPE_CHECKING

from ..sandbox import linux

if TYPE_CHECKING:
    from selectors import SelectorKey

PAGE_BYTES = mmap.PAGESIZE
_TURN, _BUSY, _LIFE, _CPU_US, _RESIDENT = range(5)


class HeartbeatReader:
    """The supervisor's side: makes the page, reads it, and cannot be hurt by what is in it."""

    def __init__(self, *, may_be_unsealed: bool = False) -> None:
        """`may_be_unsealed`: the guest is trusted not to shrink the page. Raises OSError."""
        self.fd = _make_file(may_be_unsealed)
        """To be passed to the isolate, then closed by `close_fd`."""
        try:
            self._map = mmap.mmap(self.fd, PAGE_BYTES, access=mmap.ACCESS_READ)
        except BaseException:
            self.close_fd()
            raise
        self._words = memoryview(self._map).cast("Q")

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

    @property
    def cpu_s(self) -> float:
        """CPU seconds that the isolate says it has used."""
        return self._words[_CPU_US] / 1e6

    @property
    def resident_bytes(self) -> int:
        """The most memory that the isolate says it had, beyond what it shares."""
        return self._words[_RESIDENT]

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


def _make_file(may_be_unsealed: bool) -> int:
    try:
        fd = linux.memory_file("heartbeat")
    except OSError as error:
        if error.errno != errno.ENOSYS or not may_be_unsealed:
            raise
        return _make_plain_file()
    try:
        os.ftruncate(fd, PAGE_BYTES)
        # Without the seals a guest could shrink the file, and reading would end us with SIGBUS.
        linux.seal_size(fd)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _make_plain_file() -> int:
    fd, path = tempfile.mkstemp(prefix="dw-heartbeat-")
    os.unlink(path)
    os.ftruncate(fd, PAGE_BYTES)
    return fd


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

    @property
    def is_busy(self) -> bool:
        """Whether the loop is in the middle of a turn."""
        return self._words[_BUSY] != 0

    def say_used(self, cpu_s: float, resident_bytes: int) -> None:
        """For a supervisor that cannot look it up."""
        self._words[_CPU_US] = int(cpu_s * 1e6)
        self._words[_RESIDENT] = resident_bytes


class HeartbeatSelector(selectors.DefaultSelector):
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
