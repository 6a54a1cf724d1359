"""Control: the socket between a supervisor and its zygote: whole messages, descriptors beside them.

Where the system keeps messages apart (SOCK_SEQPACKET), a message is a packet. Elsewhere, on macOS
for one, each goes over a stream behind a head: its length and the number of its descriptors.
"""

from __future__ import annotations

import contextlib
import select
import socket
import struct
from collections import deque

BYTES_MAX = 64 * 1024
"""Of one message."""
_FDS_MAX = 8
_HEAD = struct.Struct("<IB")

Message = tuple[bytes, list[int]]
"""The bytes, and the descriptors: fewer than were sent where there is no room for them."""


class Control:
    """One end of the socket; this one sends packets."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def fileno(self) -> int:
        """For a selector."""
        return self._sock.fileno()

    def close(self) -> None:
        """The other end learns of it."""
        self._sock.close()

    def send(self, data: bytes, fds: list[int] | tuple[int, ...] = ()) -> None:
        """Raises OSError where the other side is gone, or does not keep up."""
        if fds:
            socket.send_fds(self._sock, [data], fds)
        else:
            self._sock.send(data)

    def receive(self) -> list[Message] | None:
        """What has come, nothing if that is less than a message; None: the other side is gone."""
        try:
            data, fds, _, _ = socket.recv_fds(self._sock, BYTES_MAX, _FDS_MAX)
        except BlockingIOError:
            return []
        except OSError:
            return None
        return [(data, fds)] if data else None


class StreamControl(Control):
    """The same over a stream."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock)
        self._bytes = bytearray()
        # As they came, one list for each message that has some: no kernel joins two.
        self._fds: deque[list[int]] = deque()

    def send(self, data: bytes, fds: list[int] | tuple[int, ...] = ()) -> None:
        """Raises OSError where the other side is gone."""
        view = memoryview(_HEAD.pack(len(data), len(fds)) + data)
        # The descriptors arrive with the first byte.
        sent = socket.send_fds(self._sock, [view], fds) if fds else self._sock.send(view)
        while sent < len(view):
            # Half a message would be the end of all others. The other side reads soon, or dies.
            select.select([], [self._sock], [])
            with contextlib.suppress(BlockingIOError):
                sent += self._sock.send(view[sent:])

    def receive(self) -> list[Message] | None:
        """What has come, nothing if that is less than a message; None: the other side is gone."""
        try:
            data, fds, flags, _ = socket.recv_fds(self._sock, BYTES_MAX, _FDS_MAX)
        except BlockingIOError:
            return []
        except OSError:
            return None
        if not data:
            return None
        self._bytes += data
        if fds or flags & socket.MSG_CTRUNC:
            self._fds.append(fds)
        return self._take()

    def _take(self) -> list[Message]:
        messages: list[Message] = []
        while len(self._bytes) >= _HEAD.size:
            length, count = _HEAD.unpack_from(self._bytes)
            end = _HEAD.size + length
            if len(self._bytes) < end:
                break
            fds = self._fds.popleft() if count and self._fds else []
            messages.append((bytes(self._bytes[_HEAD.size : end]), fds))
            del self._bytes[:end]
        return messages


def pair() -> tuple[socket.socket, socket.socket]:
    """Two connected ends, of the best kind that this system has; `over` makes Controls of them."""
    try:
        return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    except (AttributeError, OSError):
        return socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)


def over(sock: socket.socket) -> Control:
    """The Control for a socket of either kind."""
    is_stream = sock.type == socket.SOCK_STREAM
    return StreamControl(sock) if is_stream else Control(sock)
