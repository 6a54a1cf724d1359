"""Stdout pipe: reads what an isolate writes to file descriptors 1 and 2, as `Log` messages.

Python's own print and logging go over the channel (`guest.py`). This is for native code, crash
reports and raw writes: kept at a bounded rate, the rest counted. A writer never waits for long, and
reading costs the supervisor little: a flood is polled now and then, not as it comes.
"""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import fcntl
import os
import time
from collections.abc import Callable

from ..protocol.messages import Frame, Log, pack

_READ_BYTES = 64 * 1024
_KEPT_A_SECOND = 64 * 1024
_PIECE_BYTES = 8 * 1024
"""Of one message: longer ones would lose their end on the way."""
_KEEP_FROM = 16 * 1024
"""While there is a flood, nothing is kept until there is room for so much."""

# While there is a flood: so often, so much and so long is it read. So it costs a fifth of a
# processor at most, and in practice a twentieth.
_POLL_S = 0.005
_POLL_BYTES = 1 << 20
_POLL_CPU_S = 0.001
_FLOOD_PIPE_BYTES = 1 << 20
_EMPTY_POLLS_MAX = 20
"""After so many looks at an empty pipe the flood is over."""

_FORGIVEN_A_SECOND = 8 << 20


class LogPipe:
    """The supervisor's end of one isolate's file descriptors 1 and 2."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        on_log: Callable[[Frame], None],
        flood_bytes_max: int,
        on_flood: Callable[[], None],
    ) -> None:
        """`on_flood`: more than `flood_bytes_max` had to be dropped, 8 MiB a second being free."""
        self._loop = loop
        self._on_log = on_log
        self._flood_bytes_max = flood_bytes_max
        self._on_flood = on_flood
        self._read_fd, self.write_fd = os.pipe()
        os.set_blocking(self._read_fd, False)
        self._is_open = True
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._budget = float(_KEPT_A_SECOND)
        self._excess = 0.0
        self._filled_s = time.monotonic()
        self._dropped_lines, self._dropped_bytes = 0, 0
        self._sink: bytearray | None = None
        """While there is a flood: where it goes."""
        self._empty_polls = 0
        self._timer: asyncio.TimerHandle | None = None
        loop.add_reader(self._read_fd, self._readable)

    def close_write_fd(self) -> None:
        """Close our copy of the isolate's end."""
        if self.write_fd >= 0:
            os.close(self.write_fd)
            self.write_fd = -1

    def _readable(self) -> None:
        try:
            data = os.read(self._read_fd, _READ_BYTES)
        except BlockingIOError:
            return
        if not data:
            self._loop.remove_reader(self._read_fd)
            return
        self._fill()
        self._keep(data)
        if self._budget < 1:
            self._begin_flood()

    def _fill(self) -> None:
        now_s = time.monotonic()
        passed_s = now_s - self._filled_s
        self._filled_s = now_s
        self._budget = min(_KEPT_A_SECOND, self._budget + passed_s * _KEPT_A_SECOND)
        self._excess = max(0.0, self._excess - passed_s * _FORGIVEN_A_SECOND)

    def _keep(self, data: bytes) -> None:
        """Pass on as much as the rate allows, and count the rest."""
        kept = data[: int(self._budget)]
        self._budget -= len(kept)
        self._drop(data.count(b"\n", len(kept)), len(data) - len(kept))
        self._pass_on(kept)
        if len(kept) < len(data):
            self._decoder.reset()

    def _pass_on(self, data: bytes) -> None:
        for start in range(0, len(data), _PIECE_BYTES):
            text = self._decoder.decode(data[start : start + _PIECE_BYTES]).rstrip("\n")
            self._on_log(pack(Log("info", text)))

    def _drop(self, lines: int, size: int) -> None:
        self._dropped_lines += lines
        self._dropped_bytes += size
        self._excess += size

    # --- floods ---------------------------------------------------------------------------------

    def _begin_flood(self) -> None:
        self._sink = bytearray(_READ_BYTES)
        self._empty_polls = 0
        self._loop.remove_reader(self._read_fd)
        self._resize(_FLOOD_PIPE_BYTES)
        self._timer = self._loop.call_later(_POLL_S, self._poll)

    def _end_flood(self) -> None:
        self._sink = None
        self._report_dropped()
        self._resize(_READ_BYTES)
        self._loop.add_reader(self._read_fd, self._readable)

    def _resize(self, size: int) -> None:
        # Users have only so much memory in pipes; the size that there is will do as well.
        with contextlib.suppress(AttributeError, OSError):
            fcntl.fcntl(self._read_fd, fcntl.F_SETPIPE_SZ, size)

    def _poll(self) -> None:
        self._timer = None
        self._fill()
        self._empty_polls = 0 if self._swallow() else self._empty_polls + 1
        if self._excess > self._flood_bytes_max:
            self._on_flood()
        if self._empty_polls >= _EMPTY_POLLS_MAX:
            self._end_flood()
        elif self._is_open:
            self._timer = self._loop.call_later(_POLL_S, self._poll)

    def _swallow(self) -> int:
        """Read one poll's share of the flood; return the number of bytes."""
        assert self._sink is not None
        until_s = time.perf_counter() + _POLL_CPU_S
        swallowed = 0
        while swallowed < _POLL_BYTES and time.perf_counter() < until_s:
            try:
                size = os.readv(self._read_fd, [self._sink])
            except BlockingIOError:
                break
            if not size:
                break
            swallowed += size
            if self._budget >= _KEEP_FROM:
                self._report_dropped()
                self._keep(bytes(memoryview(self._sink)[:size]))
            else:
                self._drop(self._sink.count(b"\n", 0, size), size)
        return swallowed

    def _report_dropped(self) -> None:
        if self._dropped_bytes:
            lines, size = self._dropped_lines, self._dropped_bytes
            self._dropped_lines, self._dropped_bytes = 0, 0
            text = f"raw output of {size:,} bytes dropped: more than 64 KiB a second"
            self._on_log(pack(Log("warning", text, dropped=max(1, lines))))

    def close(self) -> None:
        """Deliver the last output, report what was dropped, and close."""
        if not self._is_open:
            return
        self._is_open = False
        self.close_write_fd()
        if self._timer is not None:
            self._timer.cancel()
        self._fill()
        data = self._unread()
        # The last words are the best ones: of a crash they are the report.
        room = max(int(self._budget), _KEEP_FROM)
        self._drop(data.count(b"\n", 0, max(0, len(data) - room)), max(0, len(data) - room))
        self._report_dropped()
        self._pass_on(data[-room:])
        self._loop.remove_reader(self._read_fd)
        os.close(self._read_fd)

    def _unread(self) -> bytes:
        """Return what is still in the pipe."""
        chunks: list[bytes] = []
        with contextlib.suppress(OSError):
            while sum(map(len, chunks)) < _POLL_BYTES:
                chunks.append(os.read(self._read_fd, _READ_BYTES))
                if not chunks[-1]:
                    break
        return b"".join(chunks)
