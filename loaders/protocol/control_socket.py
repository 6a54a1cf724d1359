"""Control socket: whole messages with descriptors, between a supervisor and its zygote.

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
    """One end of the socket, where it sends packets."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def fileno(self) -> int:
        """Return the descriptor, for a selector."""
        return self._sock.fileno()

    def close(self) -> None:
        """Close the socket; the other end reads its end."""
        self._sock.close()

    def send(self, data: bytes, fds: list[int] | tuple[int, ...] = ()) -> None:
        """Send a message; raises OSError where the other side has closed, or does not keep up."""
        if fds:
            socket.send_fds(self._sock, [data], fds)
        else:
            self._sock.send(data)

    def receive(self) -> list[Message] | None:
        """Return the messages received, maybe none; None where the other side has closed."""
        try:
            data, fds, _, _ = socket.recv_fds(self._sock, BYTES_MAX, _FDS_MAX)
        except BlockingIOError:
            return []
        except OSError:
            return None
        return [(data, fds)] if data else None


class StreamControl(Control):
    """One end of the socket, where it is a stream."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock)
        self._bytes = bytearray()
        # As they came, one list for each message that has some: no kernel joins two.
        self._fds: deque[list[int]] = deque()

    def send(self, data: bytes, fds: list[int] | tuple[int, ...] = ()) -> None:
        """Send a message; raises OSError where the other side has closed."""
        view = memoryview(_HEAD.pack(len(data), len(fds)) + data)
        # The descriptors arrive with the first byte.
        sent = socket.send_fds(self._sock, [view], fds) if fds else self._sock.send(view)
        while sent < len(view):
            # Half a message would be the end of all others. The other side reads soon, or dies.
            select.select([], [self._sock], [])
            with contextlib.suppress(BlockingIOError):
                sent += self._sock.send(view[sent:])

    def receive(self) -> list[Message] | None:
        """Return the messages received, maybe none; None where the other side has closed."""
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
    """Return two connected sockets, of the best kind of this system; `over` makes Controls of
    them."""
    try:
        return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    except (AttributeError, OSError):
        return socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)


def over(sock: socket.socket) -> Control:
    """Return the Control for a socket of either kind."""
    is_stream = sock.type == socket.SOCK_STREAM
    return StreamControl(sock) if is_stream else Control(sock)
