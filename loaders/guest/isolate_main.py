"""Inside: the main function of an isolate, behind its walls.

It serves the channel with a guest (`guest.py`), shows its pulse on the heartbeat page, and holds
calls back that would exceed the limits in flight. Its first message is `HELLO`: the walls stand.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import traceback
from collections import deque
from collections.abc import Callable
from typing import NoReturn, Protocol

import msgspec

from ..protocol.channel import Channel, encode
from ..protocol.heartbeat import HeartbeatSelector, HeartbeatWriter
from ..protocol.messages import CallRequest, Ended, Frame, Log, ProtocolViolation, Reply, pack
from .quiescence import MESSAGES_MAX

CHANNEL_FD, HEARTBEAT_FD = 3, 4
HELLO, FAILURE = -1, -2
"""Kinds of the first message: no body; or the text of what went wrong with the walls."""
FAILED = 70
"""The exit status after FAILURE."""
SUPERVISOR_GONE = 0

CALL_KIND = pack(CallRequest(0, "", "", b"", b""))[0]
REPLY_KIND = pack(Reply(0))[0]
LOG_KIND = pack(Log("", ""))[0]
GONE_KIND = pack(Ended())[0]

# A loop that is never idle still sends: at the latest after so many turns, or so many messages.
_TURNS_MAX = 16


class GuestInterface(Protocol):
    """What serves the channel."""

    def receive(self, frames: list[Frame]) -> None:
        """Take messages of the supervisor."""
        ...


class MakeGuest(Protocol):
    """The class named in the zygote's plan."""

    def __call__(
        self,
        send: Callable[[list[Frame]], None],
        *,
        loop: asyncio.AbstractEventLoop,
        on_resume: Callable[[int], None],
    ) -> GuestInterface:
        """Make the guest of this process."""
        ...


class CallHead(msgspec.Struct, array_like=True):
    """The number that a Call and a Reply begin with."""

    call: int


decode_head = msgspec.msgpack.Decoder(CallHead).decode


class CallBackpressure:
    """Holds calls back while too many, or too large ones, are without an answer."""

    def __init__(
        self, send: Callable[[list[Frame]], None], *, calls_max: int, bytes_max: int
    ) -> None:
        self._send = send
        self._calls_max = calls_max
        self._bytes_max = bytes_max
        self._sizes: dict[int, int] = {}
        self._bytes = 0
        self._held: deque[Frame] = deque()

    def send(self, frames: list[Frame]) -> None:
        """Send, but for the calls that have to wait."""
        if self._held:
            # Nothing may be heard of a lifetime that is gone.
            gone = {frame[1] for frame in frames if frame[0] == GONE_KIND}
            if gone:
                self._held = deque(frame for frame in self._held if frame[1] not in gone)
        for frame in frames:
            if frame[0] == CALL_KIND:
                self._send(
                    [frame for frame in frames if frame[0] != CALL_KIND or self._admit(frame)]
                )
                return
        self._send(frames)

    def _admit(self, frame: Frame) -> bool:
        if not self._held and self._has_room(frame):
            self._count(frame)
            return True
        self._held.append(frame)
        return False

    def _has_room(self, frame: Frame) -> bool:
        if not self._sizes:
            return True
        return len(self._sizes) < self._calls_max and self._bytes + len(frame[2]) <= self._bytes_max

    def _count(self, frame: Frame) -> None:
        self._sizes[decode_head(frame[2]).call] = len(frame[2])
        self._bytes += len(frame[2])

    def answered(self, frames: list[Frame]) -> None:
        """Note the answers among these messages, and let waiting calls go."""
        if not self._sizes:
            return
        for kind, _, body in frames:
            if kind == REPLY_KIND:
                self._bytes -= self._sizes.pop(decode_head(body).call, 0)
        released = []
        while self._held and self._has_room(self._held[0]):
            self._count(self._held[0])
            released.append(self._held.popleft())
        if released:
            self._send(released)


def main(
    make_guest: MakeGuest,
    *,
    make_writer: Callable[[int], HeartbeatWriter] = HeartbeatWriter,
    calls_in_flight_max: int,
    bytes_in_flight_max: int,
) -> int:
    """Serve until the supervisor is gone; the exit status. Tenant code may end it as it likes."""
    writer = make_writer(HEARTBEAT_FD)
    os.close(HEARTBEAT_FD)
    selector = HeartbeatSelector(writer)
    loop = asyncio.SelectorEventLoop(selector)
    asyncio.set_event_loop(loop)

    def receive(frames: list[Frame]) -> None:
        gate.answered(frames)
        guest.receive(frames)

    channel = Channel(
        # Family and kind are given: finding them out needs system calls that are walled off.
        socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, fileno=CHANNEL_FD),
        loop=loop,
        on_frames=receive,
        on_end=_leave,
        message_bytes_max=1 << 40,
        is_flushed_by_loop=False,
    )

    def send(frames: list[Frame]) -> None:
        channel.send(frames)
        if frames and frames[-1][0] == LOG_KIND:
            channel.flush()  # the next thing that code does may be its last

    gate = CallBackpressure(send, calls_max=calls_in_flight_max, bytes_max=bytes_in_flight_max)
    guest = make_guest(gate.send, loop=loop, on_resume=writer.resume)
    selector.before_wait = _Flusher(channel).before_wait
    channel.send([(HELLO, 0, b"")])
    try:
        loop.run_forever()
    except SystemExit as exit:
        return exit.code if isinstance(exit.code, int) else int(exit.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


def _leave(violation: ProtocolViolation | None) -> NoReturn:
    os._exit(SUPERVISOR_GONE if violation is None else FAILED)


class _Flusher:
    """Sends when the loop has nothing else to do, so that batches are as large as they can be."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._turns = 0

    def before_wait(self, timeout: float | None) -> None:
        queued = self._channel.queued
        if not queued:
            return
        self._turns += 1
        if timeout != 0 or self._turns >= _TURNS_MAX or queued >= MESSAGES_MAX:
            self._turns = 0
            self._channel.flush()


def report_failure(error: BaseException) -> None:
    """Tell the supervisor what went wrong before the guest began; never raises."""
    text = f"{type(error).__name__}: {error}"
    try:
        os.write(CHANNEL_FD, encode([(FAILURE, 0, text.encode(errors="replace"))])[0])
    except OSError:
        return
