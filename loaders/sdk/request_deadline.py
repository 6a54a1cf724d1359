"""Deadline: a socket whose every wait together has an end, however slowly the other side goes on.

A timeout of a socket is for one wait: a server that sends a byte now and then never meets it.
"""

from __future__ import annotations

import io
import socket
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

_SEND_BYTES = 256 * 1024


class RequestDeadline:
    """A moment, on the clock that only goes forward, and the longest single wait before it."""

    def __init__(self, seconds: float, *, wait_s: float) -> None:
        self._end_s = time.monotonic() + seconds
        self._wait_s = wait_s

    @property
    def is_over(self) -> bool:
        """Whether the moment has passed."""
        return time.monotonic() >= self._end_s

    def wait_s(self) -> float:
        """How long the next wait may be; raises TimeoutError when none may."""
        left_s = self._end_s - time.monotonic()
        if left_s <= 0:
            raise TimeoutError("the deadline has passed")
        return min(left_s, self._wait_s)


class DeadlineSocket:
    """As much of a socket as `http.client` uses; what waits too long raises TimeoutError."""

    def __init__(self, sock: socket.socket, deadline: RequestDeadline) -> None:
        self._sock = sock
        self._deadline = deadline
        self._reader: _Reader | None = None

    def sendall(self, data: ReadableBuffer) -> None:
        """Send everything."""
        with memoryview(data) as view, view.cast("B") as rest:
            sent = 0
            while sent < len(rest):
                self._sock.settimeout(self._deadline.wait_s())
                sent += self._sock.send(rest[sent : sent + _SEND_BYTES])

    def makefile(self, mode: str) -> io.BufferedReader:
        """The reader; while it is open, it keeps the socket open too."""
        assert mode == "rb"
        self._reader = _Reader(self._sock, self._deadline)
        return io.BufferedReader(self._reader)

    def close(self) -> None:
        """Close the socket, now or when its reader is closed."""
        if self._reader is None or self._reader.closed:
            self._sock.close()
        else:
            self._reader.is_last = True


class _Reader(io.RawIOBase):
    def __init__(self, sock: socket.socket, deadline: RequestDeadline) -> None:
        self._sock = sock
        self._deadline = deadline
        self.is_last = False
        """Nobody else needs the socket."""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        self._sock.settimeout(self._deadline.wait_s())
        return self._sock.recv_into(buffer)

    def close(self) -> None:
        if not self.closed and self.is_last:
            self._sock.close()
        super().close()
