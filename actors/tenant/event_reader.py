"""EventReader: reads the payloads of kept events from a log, a bounded number at a time."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from dynamic_workflows.eventlog.log.event_log import EventLog
from dynamic_workflows.eventlog.log.numbered_rows import numbered_rows

from ..background_tasks import stop_all
from ..instances.decisions import Key, ReadEvents
from ..instances.row_payloads import EventReceived, decode
from .commit_pipeline import whole

_BYTES_AT_ONCE = 8 * 1024 * 1024
"""Of payloads that are read together; one that is larger is read alone."""
_EVENTS_AT_ONCE = 4_096


class EventReader:
    """Answers `ReadEvents` in the order in which they came; several share one reading."""

    def __init__(
        self,
        log: EventLog,
        *,
        read: Callable[[Key, tuple[int, ...], dict[int, bytes]], None],
        failed: Callable[[BaseException], None],
    ) -> None:
        """`read` gets the key, the numbers asked for, and the payloads that the log has."""
        self._log = log
        self._read = read
        self._failed = failed
        self._wanted: deque[ReadEvents] = deque()
        self._task: asyncio.Task[None] | None = None

    @property
    def is_idle(self) -> bool:
        """Whether everything that was asked for has been read."""
        return self._task is None

    def ask(self, wanted: ReadEvents) -> None:
        """Read these soon."""
        self._wanted.append(wanted)
        if self._task is None:
            self._task = asyncio.ensure_future(self._answer())

    async def close(self) -> None:
        """Read nothing more."""
        self._wanted.clear()
        if self._task is not None:
            await stop_all([self._task])

    async def _answer(self) -> None:
        try:
            while self._wanted:
                await self._answer_some(self._next())
        except Exception as error:  # a log that cannot be read: the tenant cannot go on with it
            self._failed(error)
        finally:
            self._task = None

    def _next(self) -> list[ReadEvents]:
        some: list[ReadEvents] = []
        size = count = 0
        while self._wanted:
            size += sum(self._wanted[0].sizes)
            count += len(self._wanted[0].seqs)
            if some and (size > _BYTES_AT_ONCE or count > _EVENTS_AT_ONCE):
                break
            some.append(self._wanted.popleft())
        return some

    async def _answer_some(self, some: list[ReadEvents]) -> None:
        places = [(seq, wanted.key[1]) for wanted in some for seq in wanted.seqs]
        rows = await numbered_rows(self._log, places)
        for wanted in some:
            found = [rows[seq] for seq in wanted.seqs if seq in rows]
            payloads: dict[int, bytes] = {}
            for row in await whole(self._log, found, secrets=False):
                body = decode(row)
                if isinstance(body, EventReceived):
                    payloads[row.seq] = bytes(body.payload)
            self._read(wanted.key, wanted.seqs, payloads)
