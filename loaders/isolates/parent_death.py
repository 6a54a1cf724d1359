"""Parent death: ends isolates without a sandbox where the kernel does not end them with the
zygote.

A thread of the isolate waits for the end of a pipe that only the zygote holds, and then ends the
process. It also writes to the heartbeat page what the process has used, where its supervisor cannot
look that up. Tenant code could stop it, and native code that does not let other threads run holds
it up: it is for hosts that trust their tenants' code.
"""

from __future__ import annotations

import os
import resource
import select
import signal
import threading
import time

from ..protocol.heartbeat import HeartbeatWriter
from ..sandbox import linux

_BUSY_S, _IDLE_S = 0.02, 0.25


class Lifeline:
    """A pipe that the zygote makes, and whose other end each isolate holds."""

    def __init__(self) -> None:
        fd, self._zygotes_end = os.pipe()
        self.fd = linux.move_up(fd)

    def hold(self, page_fd: int) -> HeartbeatWriter:
        """End with the zygote, and report usage; to be called in an isolate without the zygote's
        end."""
        writer = _AccountingWriter(page_fd)
        thread = threading.Thread(target=self._watch, args=(writer,), name="lifeline", daemon=True)
        thread.start()
        return writer

    def _watch(self, writer: _AccountingWriter) -> None:
        while not select.select([self.fd], [], [], _BUSY_S if writer.is_busy else _IDLE_S)[0]:
            if writer.is_busy:  # else it would count its own looking
                writer.account()
        os.kill(os.getpid(), signal.SIGKILL)


class _AccountingWriter(HeartbeatWriter):
    """Reports usage at the begin of every turn, so that no turn counts for the one before.

    Memory counts from here on, since what was there already is the zygote's as well.
    """

    def __init__(self, fd: int) -> None:
        super().__init__(fd)
        self._bytes_before = linux.peak_bytes(resource.getrusage(resource.RUSAGE_SELF))

    def begin_turn(self) -> None:
        self.account()
        super().begin_turn()

    def resume(self, life: int) -> None:
        self.account()
        super().resume(life)

    def account(self) -> None:
        """Write what this process has used so far."""
        usage = resource.getrusage(resource.RUSAGE_SELF)
        self.write_usage(time.process_time(), linux.peak_bytes(usage) - self._bytes_before)
