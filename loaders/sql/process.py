"""SQL process: the platform's end of the zygote and of the processes that it forks.

One zygote serves all readers of a program and ends with the last of them. Everything here blocks,
with a limit, and may be called from any thread.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import subprocess
import sys
import tempfile
import threading
import time

import msgspec

from dynamic_workflows.eventlog.bounded_dict import BoundedDict
from dynamic_workflows.eventlog.errors import SandboxUnavailable, Unavailable

from ..isolates import fresh_python
from ..isolates.fork_server import Exited, Kill, Spawned, SpawnFailed
from ..protocol import control_socket
from ..sandbox import linux
from .messages import DONE, FAILED, SqlFailure, SqlFrames, SqlOpening, SqlSpawn

START_S = 60.0
"""A zygote imports for half a second, on a machine that has nothing else to do."""
_ENDED_S = 2.0
_ENDS_KEPT = 1024
_failure = msgspec.msgpack.Decoder(SqlFailure).decode
_report = msgspec.msgpack.Decoder(Spawned | SpawnFailed | Exited).decode
_encode = msgspec.msgpack.Encoder().encode
# Arrow's own allocators reserve more than a process may have.
_ENVIRONMENT = {"ARROW_DEFAULT_MEMORY_POOL": "system", "OMP_NUM_THREADS": "1"}
_BOOT = (
    "import sys; sys.path += sys.argv[3:]; "
    "from dynamic_workflows.loaders.sql.zygote import main; main(int(sys.argv[1]), sys.argv[2])"
)


class SqlZygote:
    """The process from which SQL processes are forked."""

    def __init__(self, isolation: str) -> None:
        self.isolation = isolation
        self.owner_pid = os.getpid()
        self._lock = threading.Lock()
        self._next_id = 0
        self._ended: BoundedDict[int, int] = BoundedDict(_ENDS_KEPT)
        self._stderr = tempfile.TemporaryFile()
        ours, theirs = control_socket.pair()
        with theirs:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-I", "-S", "-B", "-X", "utf8", "-c", _BOOT),
                    *(str(theirs.fileno()), isolation, *fresh_python.search_path()),
                ],
                pass_fds=[theirs.fileno()],
                env=fresh_python.environment(**_ENVIRONMENT),
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._stderr,
                start_new_session=True,
            )
        ours.setblocking(False)
        self._control = control_socket.over(ours)

    def spawn(self, opening: SqlOpening) -> SqlProcess:
        """Fork a process and wait until it is sandboxed; raises SandboxUnavailable, Unavailable."""
        ours, theirs = _socket_pair()
        with self._lock, theirs:
            self._next_id += 1
            id = self._next_id
            try:
                self._control.send(_encode(SqlSpawn(id, opening)), [theirs.fileno()])
            except OSError as error:
                ours.close()
                raise Unavailable(f"the SQL zygote has ended: {self._stderr_tail()}") from error
            spawned, fds = self._wait_for(id)
        if isinstance(spawned, SpawnFailed):
            ours.close()
            raise Unavailable(f"no process could be started for this query: {spawned.message}")
        made = SqlProcess(self, id, spawned.pid, fds[0] if fds else None, SqlFrames(ours))
        made.wait_until_ready()
        return made

    def _wait_for(self, id: int) -> tuple[Spawned | SpawnFailed, list[int]]:
        until_s = time.monotonic() + START_S
        while True:
            for report, fds in self._reports(until_s):
                if not isinstance(report, Exited) and report.id == id:
                    return report, fds

    def _reports(self, until_s: float) -> list[tuple[Spawned | SpawnFailed | Exited, list[int]]]:
        poll = select.poll()
        poll.register(self._control, select.POLLIN)
        if not poll.poll(max(0.0, until_s - time.monotonic()) * 1000):
            raise Unavailable("the SQL zygote did not answer in time: the machine is overloaded")
        messages = self._control.receive()
        if messages is None:
            raise Unavailable(f"the SQL zygote has ended: {self._stderr_tail()}")
        reports = [(_report(data), fds) for data, fds in messages]
        self._ended.update({one.id: one.status for one, _ in reports if isinstance(one, Exited)})
        return reports

    def status_of(self, id: int) -> int | None:
        """Return a process's wait(2) status; None where it is not known in time."""
        until_s = time.monotonic() + _ENDED_S
        with self._lock, contextlib.suppress(Unavailable):
            while id not in self._ended:
                self._reports(until_s)
            return self._ended.pop(id)
        return None

    def kill(self, id: int) -> None:
        """Have the zygote send SIGKILL to a process without a pidfd."""
        with self._lock, contextlib.suppress(OSError):
            self._control.send(_encode(Kill(id)))

    def _stderr_tail(self) -> str:
        self._stderr.seek(0)
        return self._stderr.read().decode(errors="replace").strip()[-2000:] or "killed"

    @property
    def has_ended(self) -> bool:
        """Return whether the zygote has ended, so that it cannot fork."""
        return self.owner_pid != os.getpid() or self._process.poll() is not None

    def close(self) -> None:
        """End the zygote, with all that it forked."""
        self._process.kill()
        self._process.wait()
        self.forget()

    def forget(self) -> None:
        """Close the descriptors of a zygote that has ended, or that a parent program owns."""
        self._control.close()
        self._stderr.close()


class SqlProcess:
    """A process that answers one tenant's statements."""

    def __init__(
        self, zygote: SqlZygote, id: int, pid: int, pidfd: int | None, frames: SqlFrames
    ) -> None:
        self.pid = pid
        self.frames = frames
        self._zygote = zygote
        self._id = id
        self._pidfd = pidfd
        self._closing = threading.Lock()
        self._is_closed = False

    def wait_until_ready(self) -> None:
        """Return when the process takes statements; raises SandboxUnavailable, Unavailable."""
        try:
            kind, data = self.frames.receive(until_s=time.monotonic() + START_S, small=True)
        except (EOFError, OSError):
            self.kill()
            ended_by = self.how_ended()
            self.close()
            raise Unavailable(
                f"a process for this query ended before it could begin (signal {ended_by})"
            ) from None
        if kind == DONE:
            return
        self.close()
        if kind == FAILED:
            raise SandboxUnavailable(_failure(data).message)
        raise Unavailable("a process for this query does not say what it should")

    @property
    def is_ours(self) -> bool:
        """Return whether this program started the process; after a fork it is the parent's."""
        return self._zygote.owner_pid == os.getpid()

    def kill(self) -> None:
        """Send SIGKILL; harmless when the process has ended, or is another program's."""
        with self._closing:
            if self._is_closed or not self.is_ours:
                return
            if self._pidfd is not None:
                linux.kill(self._pidfd)
            else:
                self._zygote.kill(self._id)

    def how_ended(self) -> int | None:
        """Return the signal that ended the process, or None."""
        status = self._zygote.status_of(self._id)
        return os.WTERMSIG(status) if status is not None and os.WIFSIGNALED(status) else None

    def close(self) -> None:
        """End the process if this program started it, and close its descriptors."""
        self.kill()
        with self._closing:
            if not self._is_closed:
                self._is_closed = True
                self.frames.close()
                if self._pidfd is not None:
                    os.close(self._pidfd)


_sharing = threading.Lock()
_shared: dict[str, tuple[SqlZygote, int]] = {}


def hold_zygote(isolation: str) -> SqlZygote:
    """Return the zygote of this program, started on first use; to be released once per call."""
    with _sharing:
        zygote, holders = _shared.get(isolation, (None, 0))
        if zygote is not None and (zygote.has_ended or zygote.owner_pid != os.getpid()):
            zygote.forget()
            zygote = None
        if zygote is None:
            zygote, holders = SqlZygote(isolation), 0
        _shared[isolation] = zygote, holders + 1
        return zygote


def release_zygote(zygote: SqlZygote) -> None:
    """Release the zygote once; the last release ends it."""
    with _sharing:
        held, holders = _shared.get(zygote.isolation, (None, 0))
        if held is not zygote:
            return  # it ended, and was replaced
        if holders > 1:
            _shared[zygote.isolation] = zygote, holders - 1
            return
        del _shared[zygote.isolation]
    if zygote.owner_pid == os.getpid():
        zygote.close()


def _socket_pair() -> tuple[socket.socket, socket.socket]:
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
