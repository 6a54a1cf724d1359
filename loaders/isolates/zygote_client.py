"""Zygote client: a supervisor's end of one zygote.

It starts the zygote as a new program (never a fork of this process, which has threads), waits for
it in the background, and passes descriptors on. A zygote that has ended is replaced, not restarted.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec

from dynamic_workflows.eventlog.errors import SandboxUnavailable, Unavailable

from ..protocol import control_socket
from ..sandbox import linux
from ..sandbox.sandbox import SandboxPlan
from . import fresh_python, zygote
from .fork_server import Exited, Kill, Spawned, SpawnFailed
from .zygote import Ready, Refused, Spawn, ZygotePlan

_decode = msgspec.msgpack.Decoder(zygote.Report).decode
_encode = msgspec.msgpack.Encoder().encode

# At most so many requests lie in the control socket: it holds a bounded number of packets.
_SPAWNS_AT_ONCE = 16
_BOOT = (
    "import sys; stdlib = sys.path[:]; sys.path += sys.argv[2:]; "
    "from dynamic_workflows.loaders.isolates import fork_hooks; fork_hooks.hold_back(); "
    "from dynamic_workflows.loaders.isolates.zygote import main; main(int(sys.argv[1]), stdlib)"
)


# One arena: an isolate has one thread, and each arena costs address space and page tables.
# One seed: a set of texts is gone through in the same order in every lifetime.
_ENVIRONMENT = {"MALLOC_ARENA_MAX": "1", "PYTHONHASHSEED": "0"}


class ExitListener(Protocol):
    """Receives the end of one forked process."""

    def exited(self, report: Exited | None) -> None:
        """Handle the end; None: the zygote ended first, so the process's status is unknown."""
        ...


@dataclass
class Child:
    """A process that the zygote forked."""

    pid: int
    pidfd: int | None
    """None where the kernel has no such thing: then its zygote is asked."""
    id: int
    spawner: Spawner

    def kill(self) -> None:
        """Send SIGKILL; harmless when the process has ended."""
        if self.pidfd is not None:
            linux.kill(self.pidfd)
        else:
            self.spawner.kill(self.id, self.pid)

    def has_exited(self) -> bool:
        """Return whether the process is known to have ended, though not yet how."""
        if self.pidfd is None:
            return False
        poll = select.poll()
        poll.register(self.pidfd, select.POLLIN)
        return bool(poll.poll(0))

    def close(self) -> None:
        """Close the process's pidfd."""
        if self.pidfd is not None:
            os.close(self.pidfd)


class Spawner:
    """The client of one zygote process."""

    def __init__(
        self,
        *,
        sandbox: SandboxPlan,
        packages: tuple[str, ...],
        guest: str,
        path: tuple[str, ...] = (),
        on_lost: Callable[[Spawner], None],
    ) -> None:
        self._plan = ZygotePlan(sandbox, list(packages), guest, os.getpid())
        self._path = path
        self._on_lost = on_lost
        self._loop = asyncio.get_running_loop()
        self._ready: asyncio.Future[Ready] = self._loop.create_future()
        self._spawn_permits = asyncio.Semaphore(_SPAWNS_AT_ONCE)
        self._requests: dict[int, asyncio.Future[Child]] = {}
        self._listeners: dict[int, ExitListener] = {}
        self._next_id = 0
        self._is_lost = False
        self._start()

    def _start(self) -> None:
        ours, theirs = control_socket.pair()
        errors, errors_end = os.pipe()
        with contextlib.ExitStack() as undo, theirs:
            undo.callback(os.close, errors)
            undo.callback(ours.close)
            try:
                # The thread of the loop starts it: the kernel's parent-death signal means a thread.
                self._process = subprocess.Popen(
                    [
                        *(sys.executable, "-P", "-s", "-S", "-B", "-X", "utf8", "-c", _BOOT),
                        *(str(theirs.fileno()), *fresh_python.search_path(), *self._path),
                    ],
                    pass_fds=[theirs.fileno()],
                    env=fresh_python.environment(**_ENVIRONMENT),
                    cwd="/",
                    stdin=subprocess.DEVNULL,
                    stdout=errors_end,
                    stderr=errors_end,
                    start_new_session=True,
                )
            finally:
                os.close(errors_end)
            undo.pop_all()
        self._errors = errors
        ours.setblocking(False)
        self._control = control_socket.over(ours)
        self._control.send(_encode(self._plan))
        self._loop.add_reader(self._control, self._receive)
        self._reaped: asyncio.Future[None] = self._loop.create_future()
        self._pidfd: int | None = None
        if linux.has_pidfds():
            self._pidfd = linux.open_pidfd(self._process.pid)
            self._loop.add_reader(self._pidfd, self._reap)

    @property
    def pid(self) -> int:
        """The zygote's process id."""
        return self._process.pid

    @property
    def is_lost(self) -> bool:
        """Whether the zygote has ended, and with it all that it forked."""
        return self._is_lost

    async def ready(self) -> Ready:
        """Wait until the zygote is sandboxed; raises SandboxUnavailable or Unavailable."""
        return await asyncio.shield(self._ready)

    async def spawn(self, spawn: Spawn, *, fds: list[int], listener: ExitListener) -> Child:
        """Fork an isolate around these descriptors; `listener` receives its end. Raises
        Unavailable."""
        async with self._spawn_permits:
            if self._is_lost:
                raise Unavailable("the zygote ended before it could fork")
            self._next_id += 1
            spawn.id = self._next_id
            reply = self._requests[spawn.id] = self._loop.create_future()
            self._listeners[spawn.id] = listener
            try:
                self._control.send(_encode(spawn), fds)
            except OSError as error:
                del self._requests[spawn.id], self._listeners[spawn.id]
                if isinstance(error, ConnectionError):
                    self._lose()  # it has ended, though its end is not reported yet
                raise Unavailable(f"the zygote does not take requests: {error}") from error
            try:
                return await asyncio.shield(reply)
            except asyncio.CancelledError:
                self._abandon(reply)
                raise

    def _abandon(self, reply: asyncio.Future[Child]) -> None:
        """End a process that no caller waits for any more, started already or not."""
        if reply.done() and not reply.cancelled() and reply.exception() is None:
            child = reply.result()
            child.kill()
            child.close()
        reply.cancel()

    def kill(self, id: int, pid: int) -> None:
        """Have the zygote send SIGKILL to a process without a pidfd."""
        if self._is_lost:
            linux.kill_orphan(pid)
        elif id in self._listeners:
            with contextlib.suppress(OSError):  # then it is ending, and takes its own with it
                self._control.send(_encode(Kill(id)))

    def _receive(self) -> None:
        messages = self._control.receive()
        if messages is None:
            self._lose()
            return
        for data, fds in messages:
            self._report(data, fds)

    def _report(self, data: bytes, fds: list[int]) -> None:
        match _decode(data):
            case Ready() as report:
                self._ready.set_result(report)
            case Refused(message):
                self._ready.set_exception(SandboxUnavailable(message))
                self._ready.exception()  # no caller has to await it
            case Spawned(id, pid):
                self._spawned(id, pid, fds)
            case SpawnFailed(id, message):
                del self._listeners[id]
                self._requests.pop(id).set_exception(Unavailable(f"fork failed: {message}"))
            case Exited() as report:
                self._listeners.pop(report.id).exited(report)

    def _spawned(self, id: int, pid: int, fds: list[int]) -> None:
        reply = self._requests.pop(id)
        if not fds and linux.has_pidfds():
            # The kernel drops a descriptor for which there is no room. The process goes by itself
            # when its ward, whose start fails here, closes the channel.
            if not reply.cancelled():
                reply.set_exception(Unavailable("too many open files to hold another isolate"))
            return
        child = Child(pid, fds[0] if fds else None, id, self)
        if reply.cancelled():
            child.kill()
            child.close()
        else:
            reply.set_result(child)

    def _lose(self) -> None:
        if self._is_lost:
            return
        self._is_lost = True
        self._loop.remove_reader(self._control)
        self._control.close()
        self._process.kill()
        stderr_tail = self._stderr_tail()
        lost = Unavailable(f"the zygote ended unexpectedly: {stderr_tail or 'killed'}")
        futures: list[asyncio.Future[Any]] = [self._ready, *self._requests.values()]
        for future in futures:
            if not future.done():
                future.set_exception(lost)
                future.exception()
        self._requests.clear()
        listeners, self._listeners = list(self._listeners.values()), {}
        for listener in listeners:
            listener.exited(None)
        if self._pidfd is None:
            self._loop.run_in_executor(None, self._process.wait).add_done_callback(self._waited)
        self._on_lost(self)

    def _waited(self, outcome: asyncio.Future[int]) -> None:
        if not self._loop.is_closed():
            os.close(self._errors)
            self._reaped.set_result(None)

    def _stderr_tail(self) -> str:
        os.set_blocking(self._errors, False)
        with contextlib.suppress(BlockingIOError):
            return os.read(self._errors, 65536).decode(errors="replace").strip()[-2000:]
        return ""

    def _reap(self) -> None:
        """Clean up after the zygote, which has ended."""
        assert self._pidfd is not None
        self._process.wait()
        self._loop.remove_reader(self._pidfd)
        self._lose()
        os.close(self._pidfd)
        os.close(self._errors)
        self._reaped.set_result(None)

    async def close(self) -> None:
        """End the zygote and with it all that it forked; returns when the zygote is gone."""
        self._on_lost = lambda spawner: None
        self._lose()
        await asyncio.shield(self._reaped)
