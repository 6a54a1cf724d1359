"""Isolate process: the supervisor's side of one isolate: process, channel, heartbeat page, log
pipe.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import msgspec

from dynamic_workflows.eventlog.errors import SandboxUnavailable, Unavailable
from dynamic_workflows.eventlog.token_bucket import TokenBucket

from ..guest.isolate_main import CALL_KIND, FAILURE, HELLO, REPLY_KIND, decode_head
from ..protocol.channel import Channel
from ..protocol.heartbeat import HeartbeatReader
from ..protocol.messages import FROM_GUEST, Frame, Idle, Log, ProtocolViolation
from ..sandbox import linux
from ..sandbox.sandbox import UNSAFE
from .fork_server import Exited
from .interface import Exit, Limits, OnExit, OnFrames
from .stdout_pipe import LogPipe
from .watchdog import UsageSample, Watchdog
from .zygote import Spawn
from .zygote_client import Child, Spawner

_log = logging.getLogger("dynamic_workflows.isolates")

# Of replies that the guest has not read: above, we stop reading what it says.
_UNSENT_BYTES_PAUSE = 1 << 20
_GRACE_S = 0.25
_MESSAGE_S = 10.0
"""A message that has begun may take so long, or twice the longest turn, without a further byte."""
_CHECK_S = 1.0
"""Of the time between two looks no more counts: the rest is our own delay."""
_FAULTS = (
    signal.SIGSEGV,
    signal.SIGBUS,
    signal.SIGILL,
    signal.SIGFPE,
    signal.SIGABRT,
    signal.SIGTRAP,
    signal.SIGSYS,
    signal.SIGXCPU,
)
_KINDS = frozenset(FROM_GUEST)
_UNPAID = frozenset(kind for kind, message in FROM_GUEST.items() if message in (Idle, Log))
"""What a guest may say of its own accord, as often as it likes, at no cost but ours."""
_CREDIT_MAX = 100_000
_MESSAGES_BURST_S = 10
"""So many seconds' worth of unpaid messages may come at once."""


class ProcessIsolate:
    """A guest in a process of its own; implements `Isolate`."""

    def __init__(
        self,
        limits: Limits,
        *,
        level: str,
        shared_bytes: int,
        on_ended: Callable[[ProcessIsolate, Exit], None],
    ) -> None:
        self.level = level
        self.pid: int | None = None
        self._limits = limits
        self._watchdog = Watchdog(limits, shared_bytes=shared_bytes)
        self._on_ended = on_ended
        self._on_frames: OnFrames | None = None
        self._on_exit: OnExit | None = None
        self._has_work = False
        self._early: list[Frame] = []
        """Messages that came before `attach`."""
        self._loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[Exit] = self._loop.create_future()
        """Resolves when the process is gone and everything of it is given back."""
        self._hello: asyncio.Future[None] = self._loop.create_future()
        self._child: Child | None = None
        self._exit: Exit | None = None
        self._frames = 0
        per_second = limits.messages_per_second_max
        self._message_budget = TokenBucket(per_second, burst=_MESSAGES_BURST_S * per_second)
        self._credit = 0
        self._last: UsageSample | None = None
        self._sampled_cpu_s = -1.0
        self._held_bytes, self._held_s, self._checked_s = 0, 0.0, 0.0
        self._calls: dict[int, int] = {}
        self._calls_bytes = 0
        with contextlib.ExitStack() as undo:
            self._page = HeartbeatReader(may_be_unsealed=level == UNSAFE)
            undo.callback(self._page.close)
            self._logs = LogPipe(
                self._loop,
                on_log=self._deliver_log,
                flood_bytes_max=limits.output_mb << 20,
                on_flood=self._flooded,
            )
            undo.callback(self._logs.close)
            ours, self._theirs = socket.socketpair()
            undo.pop_all()
        self._channel = Channel(
            ours,
            loop=self._loop,
            on_frames=self._receive,
            on_end=self._channel_ended,
            message_bytes_max=limits.bytes_in_flight_max,
            unsent_bytes_pause=_UNSENT_BYTES_PAUSE,
        )

    @property
    def has_ended(self) -> bool:
        """Whether the process has ended, or was killed."""
        return self.ended.done() or self._exit is not None

    @property
    def is_busy(self) -> bool:
        """Whether the guest's event loop has work now, as the guest reports it."""
        return not self.ended.done() and self._page.is_busy

    @property
    def life(self) -> int:
        """The lifetime that was resumed last, as the guest reports it."""
        return 0 if self.ended.done() else self._page.life

    async def spawn(self, spawner: Spawner, *, is_blank: bool, first: Sequence[Frame] = ()) -> None:
        """Fork the process, and wait until it is sandboxed.

        `first`: messages that it finds then. It reads nothing before. Raises Unavailable when the
        fork fails, SandboxUnavailable when the walls do not hold.
        """
        spawn = Spawn(
            id=0,
            memory_bytes=self._limits.memory_mb << 20,
            files_max=self._limits.files_max,
            tmp_bytes=self._limits.tmp_mb << 20,
            calls_in_flight_max=self._limits.calls_in_flight_max,
            bytes_in_flight_max=self._limits.bytes_in_flight_max,
            is_blank=is_blank,
        )
        self._has_work = bool(first)
        self.send(list(first))
        fds = [self._theirs.fileno(), self._page.fd, self._logs.write_fd]
        try:
            child = await spawner.spawn(spawn, fds=fds, listener=self)
        except BaseException:
            if not self.ended.done():  # else its zygote was lost, and it has heard so already
                self._end(_NEVER_STARTED)
            raise
        self._close_their_ends()
        if self.ended.done():
            child.close()
        else:
            self._child = child
            self.pid = child.pid
            if self._exit is not None:
                child.kill()
        try:
            await asyncio.shield(self._hello)
        except BaseException:
            self.kill(_NEVER_STARTED)
            raise

    def _close_their_ends(self) -> None:
        self._theirs.close()
        self._page.close_fd()
        self._logs.close_write_fd()

    def attach(self, on_frames: OnFrames, on_exit: OnExit) -> None:
        """Give a blank isolate its owner's callbacks for messages and for its end."""
        self._on_frames = on_frames
        self._on_exit = on_exit
        if self._early:
            early, self._early = self._early, []
            self._loop.call_soon(self._deliver, early)
        if self.ended.done():
            self._loop.call_soon(on_exit, self.ended.result())

    # --- messages -------------------------------------------------------------------------------

    def send(self, frames: list[Frame]) -> None:
        """Queue messages; one loop turn, one write. Never blocks, never raises."""
        if self._calls:
            for frame in frames:
                if frame[0] == REPLY_KIND:
                    self._calls_bytes -= self._calls.pop(decode_head(frame[2]).call, 0)
        self._credit = min(_CREDIT_MAX, self._credit + len(frames))
        self._channel.send(frames)
        if self._channel.unsent_bytes > self._limits.bytes_in_flight_max:
            self._break(f"leaves more than {self._limits.bytes_in_flight_max} bytes unread")

    def _receive(self, frames: list[Frame]) -> None:
        if self._exit is not None:
            return
        self._frames += len(frames)
        if not self._hello.done():
            frames = self._read_hello(frames)
        kinds = {kind for kind, _, _ in frames}
        if FAILURE in kinds:
            self._guest_failed(next(body for kind, _, body in frames if kind == FAILURE))
            return
        if not kinds <= _KINDS:
            self._break(f"a message of kind {min(kinds - _KINDS)}")
            return
        if kinds & _UNPAID and not self._allow(sum(kind in _UNPAID for kind, _, _ in frames)):
            return
        if CALL_KIND in kinds and not self._count(frames):
            return
        if frames:
            self._deliver(frames)

    def _allow(self, count: int) -> bool:
        # A message to the guest allows it one report that it is idle again.
        earned = min(count, self._credit)
        self._credit -= earned
        if not self._message_budget.take(count - earned, time.monotonic_ns() // 1000):
            limit = f"message limit of {self._limits.messages_per_second_max:,} a second"
            self.kill(Exit(f"{limit} exceeded", is_tenants_own=True, kind="messages"))
        return self._exit is None

    def _deliver(self, frames: list[Frame]) -> None:
        if self._on_frames is None:
            self._early += frames
            return
        try:
            self._on_frames(frames)
        except Exception:
            # These messages are lost, so what follows them makes no sense: better a fresh start.
            _log.exception("the supervisor failed on messages of isolate %s", self.pid)
            self.kill(Exit("its supervisor failed on a message", is_tenants_own=False))

    def _read_hello(self, frames: list[Frame]) -> list[Frame]:
        kind, _, body = frames[0]
        if kind == HELLO:
            self._hello.set_result(None)
        elif kind == FAILURE:
            self._fail(SandboxUnavailable(f"the walls do not hold: {body.decode()}"))
        else:
            self._break("sent a message before it was sandboxed")
        return frames[1:]

    def _guest_failed(self, body: bytes) -> None:
        """What runs the tenant's code failed itself: as a rule there was no memory left for it."""
        text = body.decode(errors="replace")[:_FAILURE_CHARACTERS_MAX]
        if text.startswith("MemoryError"):
            limit = f"memory limit of {self._limits.memory_mb} MB"
            self.kill(Exit(f"{limit} exceeded", is_tenants_own=True, kind="memory"))
        else:
            self._break(f"it failed: {text}")

    def _fail(self, error: Exception) -> None:
        if not self._hello.done():
            self._hello.set_exception(error)
            self._hello.exception()  # perhaps no caller waits any more

    def _count(self, frames: list[Frame]) -> bool:
        try:
            for body in (body for kind, _, body in frames if kind == CALL_KIND):
                call = decode_head(body).call
                if call in self._calls:
                    raise ProtocolViolation(f"call {call} is already in flight")
                self._calls[call] = len(body)
                self._calls_bytes += len(body)
        except (msgspec.MsgspecError, RecursionError, ProtocolViolation) as error:
            self._break(str(error))
            return False
        # The guest holds calls back by itself: only one that was tampered with comes here.
        if len(self._calls) > self._limits.calls_in_flight_max:
            self._break(f"more than {self._limits.calls_in_flight_max} calls in flight")
        elif len(self._calls) > 1 and self._calls_bytes > self._limits.bytes_in_flight_max:
            self._break(f"calls of more than {self._limits.bytes_in_flight_max} bytes in flight")
        return self._exit is None

    def _channel_ended(self, violation: ProtocolViolation | None) -> None:
        if violation is not None:
            self._break(str(violation))
        else:
            # As a rule its process is ending, and the zygote is about to say how.
            self._loop.call_later(_GRACE_S, self._check_that_it_ends)

    def _check_that_it_ends(self) -> None:
        if self._child is not None and not self.ended.done() and not self._child.has_exited():
            self._break("closed its channel")

    def _break(self, what: str) -> None:
        self.kill(Exit(f"broken protocol: {what}", is_tenants_own=True, kind="protocol"))

    def _deliver_log(self, frame: Frame) -> None:
        self._deliver([(frame[0], self.life, frame[2])])

    def _flooded(self) -> None:
        limit = f"output limit of {self._limits.output_mb} MB"
        self.kill(Exit(f"{limit} exceeded", is_tenants_own=True, kind="output"))

    # --- watching and ending --------------------------------------------------------------------

    def check_limits(self, now_s: float, *, samples_memory: bool) -> bool:
        """Sample the usage, and kill above a limit; return True when anything has changed."""
        if self.has_ended or self.pid is None:
            return False
        cpu_s = linux.cpu_s(self.pid) if linux.has_cpu_clocks() else self._page.cpu_s
        if cpu_s is None:
            return False
        last = self._last
        has_moved = last is None or cpu_s != last.cpu_s or self._frames != last.frames
        sample = self._last = UsageSample(
            now_s=now_s,
            cpu_s=cpu_s,
            turn=self._page.turn,
            is_busy=self._page.is_busy,
            life=self._page.life,
            frames=self._frames,
            resident_bytes=self._sample_memory(cpu_s) if samples_memory else None,
        )
        exceeded = self._watchdog.check(sample)
        if exceeded is not None:
            self.kill(exceeded)
        elif self._is_stuck(now_s):
            self._break("a message that does not end")
        return has_moved or sample.is_busy

    def _sample_memory(self, cpu_s: float) -> int | None:
        """Return the resident bytes, if the process used CPU since the last sample."""
        if cpu_s == self._sampled_cpu_s:
            return None
        self._sampled_cpu_s = cpu_s
        return linux.memory_bytes(self.pid or 0)[1] or self._page.resident_bytes

    def _is_stuck(self, now_s: float) -> bool:
        """Return whether an incomplete message blocks all later ones."""
        held, since_s = self._channel.held_bytes, min(now_s - self._checked_s, _CHECK_S)
        self._checked_s = now_s
        if not held or not self._channel.is_reading or held != self._held_bytes:
            self._held_bytes, self._held_s = held, 0.0
        else:
            self._held_s += since_s
        return self._held_s > max(_MESSAGE_S, 2 * self._limits.turn_wall_ms / 1000)

    def kill(self, exit: Exit) -> None:
        """End the process now; `on_exit` follows with this Exit, and no more messages."""
        if self.has_ended:
            return
        self._exit = exit if exit.life else replace(exit, life=self.life)
        if self._child is not None:
            self._child.kill()

    def exited(self, report: Exited | None) -> None:
        """Handle the report that the zygote reaped the process, or ended itself."""
        if self.ended.done():
            return
        if self._exit is None and report is not None:
            self._channel.drain()
        if report is None and self._child is not None:
            self._child.kill()
        self._end(self._exit or self._verdict(report))

    def _verdict(self, report: Exited | None) -> Exit:
        life = self._page.life
        if report is None:
            return Exit("lost with its zygote", is_tenants_own=False, life=life)
        if os.WIFEXITED(report.status):
            reason = f"exited with status {os.WEXITSTATUS(report.status)}"
            return Exit(reason, is_tenants_own=self._is_tenants(), life=life, kind="exit")
        number = os.WTERMSIG(report.status)
        if number == signal.SIGSYS:
            reason = "killed for a forbidden system call"
        else:
            reason = f"killed by signal {number} ({_signal_name(number)})"
        if number in _FAULTS:
            return Exit(reason, is_tenants_own=self._is_tenants(), life=life, kind="signal")
        return Exit(reason, is_tenants_own=False, life=life)

    def _is_tenants(self) -> bool:
        # A blank one, or one whose walls do not stand yet, has seen no code of a tenant.
        return self._on_exit is not None or (self._has_work and self._hello.done())

    def _end(self, exit: Exit) -> None:
        self.ended.set_result(exit)
        self._fail(Unavailable(f"the isolate ended before it was sandboxed: {exit.reason}"))
        self._channel.close()
        self._close_their_ends()
        self._logs.close()
        self._page.close()
        if self._child is not None:
            self._child.close()
            self._child = None
        self._on_ended(self, exit)
        if self._on_exit is not None:
            self._on_exit(exit)


_FAILURE_CHARACTERS_MAX = 500
_NEVER_STARTED = Exit("never started", is_tenants_own=False)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "unknown"
