"""Channel: batches of messages over a stream socket, with the same code on both sides of the
sandbox.

On the socket a batch is a little-endian u32 length and the msgpack of `[[kind, life, body], ...]`.
The reader trusts nothing: lengths are bounded before a byte is kept, the decoder is typed (what
does not fit ends in an error in C, before Python sees an object), and bodies stay opaque bytes. A
message too large for a batch goes ahead in parts, each alone in its batch, all of one size.

Kinds below zero belong to the channel's two ends, before any tenant code runs (see
`isolate_main.py`).
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from .messages import Frame, ProtocolViolation

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

BATCH_BYTES_MAX = 1 << 20
"""Of one batch, without its length."""
BATCH_MESSAGES_MAX = 1024
PART = 0
"""The kind of a part: its body goes before the body of the next message that is no part."""
PART_BYTES = 512 * 1024
"""Of the body of every part; also the most bytes of bodies that share a batch."""

_LENGTH = struct.Struct("<I")
_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(list[tuple[int, int, bytes]])


def encode(frames: list[Frame]) -> list[bytearray]:
    """Return the batches that carry these messages, in their order."""
    if len(frames) <= BATCH_MESSAGES_MAX and sum([len(f[2]) for f in frames]) <= PART_BYTES:
        return [_batch(frames)]
    batches: list[bytearray] = []
    held: list[Frame] = []
    held_bytes = 0
    for kind, life, body in frames:
        if held and (held_bytes + len(body) > PART_BYTES or len(held) == BATCH_MESSAGES_MAX):
            batches.append(_batch(held))
            held, held_bytes = [], 0
        if len(body) > PART_BYTES:
            # By offsets: cutting the front off each time would copy all that is left.
            starts = range(0, len(body) - PART_BYTES, PART_BYTES)
            for start in starts:
                batches.append(_batch([(PART, 0, body[start : start + PART_BYTES])]))
            body = body[starts[-1] + PART_BYTES :]
        held.append((kind, life, body))
        held_bytes += len(body)
    batches.append(_batch(held))
    return batches


def _batch(frames: list[Frame]) -> bytearray:
    batch = bytearray(_LENGTH.size)
    _ENCODER.encode_into(frames, batch, _LENGTH.size)
    _LENGTH.pack_into(batch, 0, len(batch) - _LENGTH.size)
    return batch


class FrameReader:
    """Parses bytes into messages, in bounded memory; raises ProtocolViolation."""

    def __init__(self, *, message_bytes_max: int) -> None:
        self._message_bytes_max = message_bytes_max
        self._bytes = bytearray()
        self._parts: list[bytes] = []

    @property
    def held_bytes(self) -> int:
        """Bytes of incomplete messages."""
        return len(self._bytes) + len(self._parts) * PART_BYTES

    def feed(self, data: ReadableBuffer) -> None:
        """Add bytes that the socket received."""
        self._bytes += data

    def take(self, messages_max: int) -> tuple[list[Frame], bool]:
        """Return whole messages, at least `messages_max` if complete; True: there may be more."""
        frames: list[Frame] = []
        start, end = 0, len(self._bytes)
        size = 0
        try:
            with memoryview(self._bytes) as view:
                while end - start >= _LENGTH.size and len(frames) < messages_max:
                    (size,) = _LENGTH.unpack_from(view, start)
                    if not 0 < size <= BATCH_BYTES_MAX:
                        raise ProtocolViolation(f"a batch of {size} bytes")
                    if end - start < _LENGTH.size + size:
                        break
                    start += _LENGTH.size
                    self._accept(_decode(view[start : start + size]), frames)
                    start += size
                    size = 0
        except ProtocolViolation:
            # A new one: the error's traceback still holds a view of the old, which pins its size.
            self._bytes = bytearray()
            raise
        del self._bytes[:start]
        return frames, size == 0 and end - start >= _LENGTH.size

    def _accept(self, batch: list[Frame], frames: list[Frame]) -> None:
        kind, life, body = batch[0]
        if kind == PART and len(batch) == 1:
            self._accept_part(body)
            return
        if self._parts:
            if len(self._parts) * PART_BYTES + len(body) > self._message_bytes_max:
                raise ProtocolViolation(self._too_large())
            self._parts.append(body)
            batch[0] = (kind, life, b"".join(self._parts))
            self._parts.clear()
        frames += batch

    def _accept_part(self, body: bytes) -> None:
        # One size only: else a message of a million tiny parts would cost far more than its bytes.
        if len(body) != PART_BYTES:
            raise ProtocolViolation(f"a part of {len(body)} bytes, not {PART_BYTES}")
        if (len(self._parts) + 1) * PART_BYTES > self._message_bytes_max:
            raise ProtocolViolation(self._too_large())
        self._parts.append(body)

    def _too_large(self) -> str:
        return f"a message above {self._message_bytes_max} bytes"


def _decode(view: memoryview) -> list[Frame]:
    try:
        batch = _DECODER.decode(view)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise ProtocolViolation(f"a batch does not decode: {error}") from None
    if not 0 < len(batch) <= BATCH_MESSAGES_MAX:
        raise ProtocolViolation(f"a batch of {len(batch)} messages")
    return batch


class Channel:
    """One end of a socket, on an event loop; every method returns at once and none raises.

    Everything sent in one turn of the loop goes out in one write. Reading stops while more than
    `unsent_bytes_pause` wait to be written, if that is given: only the supervisor gives it, the
    guest always reads, so the two can never wait for each other.
    """

    _RECV_BYTES = 64 * 1024
    _TURN_MESSAGES = 2048

    def __init__(
        self,
        sock: socket.socket,
        *,
        loop: asyncio.AbstractEventLoop,
        on_frames: Callable[[list[Frame]], None],
        on_end: Callable[[ProtocolViolation | None], None],
        message_bytes_max: int,
        unsent_bytes_pause: int | None = None,
        is_flushed_by_loop: bool = True,
    ) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._loop = loop
        self._on_frames = on_frames
        self._on_end = on_end
        self._reader = FrameReader(message_bytes_max=message_bytes_max)
        self._unsent_bytes_pause = unsent_bytes_pause
        self._is_flushed_by_loop = is_flushed_by_loop
        self._queue: list[Frame] = []
        self._is_flush_due = False
        self._unsent: deque[memoryview] = deque()
        self._is_reading = False
        self._is_closed = False
        self._is_draining = False
        self.unsent_bytes = 0
        """Bytes that the socket has not taken yet, without the messages of this turn."""
        self._read_on()

    @property
    def queued(self) -> int:
        """Messages that wait for the next flush."""
        return len(self._queue)

    @property
    def is_reading(self) -> bool:
        """Whether the channel reads what the other side sends."""
        return self._is_reading

    @property
    def held_bytes(self) -> int:
        """Bytes of incoming messages that are incomplete."""
        return self._reader.held_bytes

    def send(self, frames: list[Frame]) -> None:
        """Queue messages; dropped when the channel is closed."""
        if self._is_closed:
            return
        self._queue += frames
        if self._is_flushed_by_loop and not self._is_flush_due:
            self._is_flush_due = True
            self._loop.call_soon(self.flush)

    def flush(self) -> None:
        """Write what is queued, as far as the socket accepts it."""
        self._is_flush_due = False
        if self._is_closed or not self._queue:
            return
        batches = encode(self._queue)
        self._queue = []
        data = batches[0] if len(batches) == 1 else None
        if data is not None and not self._unsent:
            sent = self._send(data)
            if sent == len(data):
                return
            batches = []
            self._hold(memoryview(data)[sent:])
        for batch in batches:
            self._hold(memoryview(batch))
        self._write_on()

    def _hold(self, view: memoryview) -> None:
        self._unsent.append(view)
        self.unsent_bytes += len(view)

    def _write_on(self) -> None:
        while self._unsent:
            view = self._unsent[0]
            sent = self._send(view)
            self.unsent_bytes -= sent
            if sent < len(view):
                self._unsent[0] = view[sent:]
                break
            self._unsent.popleft()
        if self._is_closed:
            return
        if self._unsent:
            self._loop.add_writer(self._sock, self._write_on)
        else:
            self._loop.remove_writer(self._sock)
        self._throttle()

    def _send(self, data: bytearray | memoryview) -> int:
        try:
            return self._sock.send(data)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError:
            # The other side is gone. Reading finds the end, after what it still said.
            return len(data)

    def _throttle(self) -> None:
        pause = self._unsent_bytes_pause
        if pause is None:
            return
        if self._is_reading and self.unsent_bytes > pause:
            self._is_reading = False
            self._loop.remove_reader(self._sock)
        elif not self._is_reading and not self._is_draining and self.unsent_bytes <= pause // 4:
            self._read_on()

    def _read_on(self) -> None:
        self._is_reading = True
        self._loop.add_reader(self._sock, self._readable)

    def _readable(self) -> None:
        try:
            data = self._sock.recv(self._RECV_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if not data:
            self._end(None)
            return
        self._reader.feed(data)
        self._work()

    def _work(self) -> None:
        """Deliver one turn's share of messages; while there are more, the socket is not read."""
        if self._is_closed:
            return
        try:
            frames, has_more = self._reader.take(self._TURN_MESSAGES)
        except ProtocolViolation as violation:
            self._end(violation)
            return
        if has_more and len(frames) >= self._TURN_MESSAGES:
            self._is_draining = True
            if self._is_reading:
                self._is_reading = False
                self._loop.remove_reader(self._sock)
            self._loop.call_soon(self._work)
        elif self._is_draining:
            self._is_draining = False
            self._read_on()
            self._throttle()
        if frames:
            self._on_frames(frames)

    def drain(self) -> None:
        """Deliver what the other side wrote before its process ended."""
        bytes_left = 4 * 1024 * 1024
        while not self._is_closed and bytes_left > 0:
            try:
                data = self._sock.recv(self._RECV_BYTES)
            except OSError:
                data = b""
            bytes_left -= len(data)
            self._reader.feed(data)
            try:
                frames, _ = self._reader.take(1 << 62)
            except ProtocolViolation:
                return
            if frames:
                self._on_frames(frames)
            if not data:
                return

    def _end(self, violation: ProtocolViolation | None) -> None:
        """Stop reading, and report the end; the owner closes the channel."""
        if self._is_reading:
            self._is_reading = False
            self._loop.remove_reader(self._sock)
        self._is_draining = True  # nothing turns reading on again
        self._on_end(violation)

    def close(self) -> None:
        """Close the socket; what is unsent is dropped."""
        if self._is_closed:
            return
        self._is_closed = True
        self._loop.remove_reader(self._sock)
        self._loop.remove_writer(self._sock)
        self._queue = []
        self._unsent.clear()
        self.unsent_bytes = 0
        self._sock.close()
