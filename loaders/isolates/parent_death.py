"""Lifeline: for isolates without walls, on systems where the kernel does not end them by itself.

A thread of the isolate waits for the end of a pipe that only the zygote holds, and then ends the
process. It also says on the heartbeat page what the process has used, where its supervisor cannot
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
    """Made in the zygote; each isolate holds on to it."""

    def __init__(self) -> None:
        self.fd, self._zygotes_end = os.pipe()

    def hold(self, page_fd: int) -> HeartbeatWriter:
        """In an isolate, which has closed the zygote's end: die with it, and keep accounts."""
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
    """Begins every turn with a settled account: no turn pays for the one before.

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
        """Say what this process has used so far."""
        usage = resource.getrusage(resource.RUSAGE_SELF)
        self.say_used(time.process_time(), linux.peak_bytes(usage) - self._bytes_before)
