"""Heartbeat: a page of shared memory in which an isolate shows its state, without a message.

Machine words: the number of the loop's turn, whether that turn is still busy, and the lifetime that
was resumed last; then what the isolate has used, for a supervisor that cannot look it up (see
`parent_death.py`). The isolate writes, the supervisor only reads. Tenant code may forge the page;
so CPU clocks, which it cannot forge, have precedence.
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
    """The supervisor's side: makes the page and reads it; safe against any content."""

    def __init__(self, *, may_be_unsealed: bool = False) -> None:
        """`may_be_unsealed`: the guest is trusted not to shrink the page. Raises OSError."""
        self.fd = _make_file(may_be_unsealed)
        """To be passed to the isolate, then closed by `close_fd`."""
        try:
            self._map = mmap.mmap(self.fd, PAGE_BYTES, access=mmap.ACCESS_READ)
        except BaseException:
            self.close_fd()
            raise
        self._fields = memoryview(self._map).cast("Q")

    @property
    def turn(self) -> int:
        """How many turns the loop has begun."""
        return self._fields[_TURN]

    @property
    def is_busy(self) -> bool:
        """Whether the loop is in the middle of a turn."""
        return self._fields[_BUSY] != 0

    @property
    def life(self) -> int:
        """The lifetime that was resumed last, 0 for none."""
        return self._fields[_LIFE]

    @property
    def cpu_s(self) -> float:
        """CPU seconds that the isolate has used, as it reports them."""
        return self._fields[_CPU_US] / 1e6

    @property
    def resident_bytes(self) -> int:
        """The isolate's peak memory beyond what it shares, as it reports it."""
        return self._fields[_RESIDENT]

    def close_fd(self) -> None:
        """Close the descriptor; the page stays mapped."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def close(self) -> None:
        """Unmap the page."""
        self.close_fd()
        self._fields.release()
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
    """The isolate's side: writes the page."""

    def __init__(self, fd: int) -> None:
        self._map = mmap.mmap(fd, PAGE_BYTES)
        self._fields = memoryview(self._map).cast("Q")

    def begin_turn(self) -> None:
        """Record that the loop has work."""
        self._fields[_TURN] += 1
        self._fields[_BUSY] = 1

    def rest(self) -> None:
        """Record that the loop waits."""
        self._fields[_BUSY] = 0

    def resume(self, life: int) -> None:
        """Record that this lifetime is about to run, so that earlier use is not counted for it."""
        self._fields[_LIFE] = life
        self._fields[_TURN] += 1

    @property
    def is_busy(self) -> bool:
        """Whether the loop is in the middle of a turn."""
        return self._fields[_BUSY] != 0

    def write_usage(self, cpu_s: float, resident_bytes: int) -> None:
        """Record CPU seconds and resident bytes, for a supervisor that cannot look them up."""
        self._fields[_CPU_US] = int(cpu_s * 1e6)
        self._fields[_RESIDENT] = resident_bytes


class HeartbeatSelector(selectors.DefaultSelector):
    """The selector of an isolate's event loop; it writes the heartbeat around every wait."""

    def __init__(self, writer: HeartbeatWriter) -> None:
        super().__init__()
        self._begin_turn = writer.begin_turn
        self._rest = writer.rest
        self.before_wait: Callable[[float | None], None] = lambda timeout: None
        """Called with the timeout of every wait: 0 means that the loop has more to do."""

    def select(self, timeout: float | None = None) -> list[tuple[SelectorKey, int]]:
        """Wait for events, and write to the page when the wait begins and ends."""
        self.before_wait(timeout)
        self._rest()
        try:
            return super().select(timeout)
        finally:
            self._begin_turn()
