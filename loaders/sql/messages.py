"""Messages: what the platform and a SQL process send each other, and the frames that carry it.

A frame is four bytes of length, one of kind, and so many bytes. Nothing in it can name a class or
run code: structs of msgspec, the text of the codec, and Arrow's own stream.
"""

from __future__ import annotations

import socket
import struct
import threading
import time
from typing import Literal

import msgspec

_HEAD = struct.Struct("<IB")
DATA_BYTES_MAX = 1 << 20
"""Of one frame with a piece of an answer."""
SMALL_BYTES_MAX = 256 * 1024
"""Of any other frame that comes from a SQL process."""

DATA, READ, DONE, FAILED, QUESTION, PART, ENTRIES, TROUBLE, BEGUN = range(1, 10)
"""Kinds: a piece of the answer, a wish to read, its end, its failure; what is asked, bytes and
entries that were read, why they could not be, and that a statement has arrived: from then on it
may be what ends the process."""


class SqlOpening(msgspec.Struct, frozen=True):
    """The tenant that a SQL process serves, and the resources that it may use."""

    root: str
    folder: str | None
    """The tenant's directory, where the log lies on this machine and has one."""
    is_local: bool
    tenant: str
    timeout_s: float
    memory_mb: int
    threads: int
    sql_bytes_max: int


class SqlSpawn(msgspec.Struct, array_like=True, tag=1):
    """Ask the zygote to fork a process around the socket that is sent with this message."""

    id: int
    opening: SqlOpening


class SqlQuestion(msgspec.Struct, frozen=True):
    """A statement; `params` is the codec's text, empty for none."""

    sql: str
    params: bytes = b""
    skip_damaged: bool = False


class SqlRead(msgspec.Struct, frozen=True):
    """A read of the store that a SQL process requests of the platform."""

    what: Literal["get", "range", "list"]
    key: str
    start: int = 0
    length: int = 0
    after: str | None = None


class SqlFailure(msgspec.Struct, frozen=True):
    """An error in place of an answer; `error` names a class of `eventlog.errors`."""

    error: str
    code: str
    message: str
    path: str = ""
    offset: int = 0
    is_worn: bool = False
    """The process has used so much memory that it should answer nothing more."""


WORN = b"worn"
"""What a DONE says where a SqlFailure would say `is_worn`."""


class SqlFrames:
    """One end of the socket. Frames are written whole, by any thread."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._writing = threading.Lock()

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._sock.fileno()

    def close(self) -> None:
        """Close the socket; the other end reads its end."""
        self._sock.close()

    def send(
        self, kind: int, data: bytes | memoryview = b"", *, until_s: float | None = None
    ) -> None:
        """Send a frame before that moment of the monotonic clock; raises TimeoutError, OSError."""
        with self._writing:
            self._limit(until_s)
            self._sock.sendall(_HEAD.pack(len(data), kind))
            self._limit(until_s)
            self._sock.sendall(data)

    def receive(self, *, until_s: float | None = None, small: bool = False) -> tuple[int, bytes]:
        """Return the next frame; raises EOFError where the other end has closed or sends an
        invalid one.

        `small`: what comes is bounded, since the other end is not trusted.
        """
        length, kind = _HEAD.unpack(self._exactly(_HEAD.size, until_s))
        if small and length > (DATA_BYTES_MAX if kind == DATA else SMALL_BYTES_MAX):
            raise EOFError
        return kind, self._exactly(length, until_s)

    def _exactly(self, size: int, until_s: float | None) -> bytes:
        parts = bytearray()
        while len(parts) < size:
            self._limit(until_s)
            piece = self._sock.recv(min(size - len(parts), 1 << 20))
            if not piece:
                raise EOFError
            parts += piece
        return bytes(parts)

    def _limit(self, until_s: float | None) -> None:
        if until_s is None:
            return
        left_s = until_s - time.monotonic()
        if left_s <= 0:
            raise TimeoutError
        self._sock.settimeout(left_s)
