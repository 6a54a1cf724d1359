"""Log pipe: what an isolate writes to its standard output past Python, as `Log` messages.

Python's own print and logging go over the channel (`guest.py`). This is for what native code, crash
reports and raw writes say: kept at a bounded rate, the rest counted.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable

from .wire import Frame, Log, pack

_READ_BYTES = 64 * 1024
_BYTES_A_SECOND = 64 * 1024
# Who floods waits: else reading what is thrown away would cost the supervisor's time.
_PAUSE_S = 0.05


class LogPipe:
    """The supervisor's end of one isolate's file descriptors 1 and 2."""

    def __init__(self, loop: asyncio.AbstractEventLoop, *, on_log: Callable[[Frame], None]) -> None:
        self._loop = loop
        self._on_log = on_log
        self._read_fd, self.write_fd = os.pipe()
        os.set_blocking(self._read_fd, False)
        self._is_open = True
        self._budget = float(_BYTES_A_SECOND)
        self._filled_s = time.monotonic()
        self._dropped = 0
        self._pause: asyncio.TimerHandle | None = None
        loop.add_reader(self._read_fd, self._read)

    def close_write_fd(self) -> None:
        """Close our copy of the isolate's end."""
        if self.write_fd >= 0:
            os.close(self.write_fd)
            self.write_fd = -1

    def _read_on(self) -> None:
        self._pause = None
        self._loop.add_reader(self._read_fd, self._read)

    def _read(self) -> None:
        try:
            data = os.read(self._read_fd, _READ_BYTES)
        except BlockingIOError:
            return
        if not data:
            self._loop.remove_reader(self._read_fd)
            return
        now_s = time.monotonic()
        self._budget = min(
            _BYTES_A_SECOND, self._budget + (now_s - self._filled_s) * _BYTES_A_SECOND
        )
        self._filled_s = now_s
        kept = data[: int(self._budget)]
        self._budget -= len(kept)
        self._dropped += data.count(b"\n", len(kept))
        if kept:
            text = kept.decode("utf-8", "replace").rstrip("\n")
            self._on_log(pack(Log("info", text, dropped=self._dropped)))
            self._dropped = 0
        if self._budget < 1 and self._is_open and self._pause is None:
            self._loop.remove_reader(self._read_fd)
            self._pause = self._loop.call_later(_PAUSE_S, self._read_on)

    def close(self) -> None:
        """Deliver what was written last, and close."""
        if not self._is_open:
            return
        self._is_open = False
        self.close_write_fd()
        if self._pause is not None:
            self._pause.cancel()
        with contextlib.suppress(OSError):
            self._read()
        self._loop.remove_reader(self._read_fd)
        os.close(self._read_fd)
