"""History reader: reads the rows of single instances from segments and tail, many at once."""

from __future__ import annotations

import asyncio
import itertools
from typing import Protocol

from ..events import Row
from ..manifest import Manifest
from ..store.base import Store
from ..wal.tail import Tail
from .lean_rows import lean

Key = tuple[str, str]
"""Workflow, instance id."""


class ReadableLog(Protocol):
    """The parts of a log that its histories are read from."""

    store: Store
    tail: Tail
    tail_lock: asyncio.Lock
    """Held while the tail or the manifest changes."""

    @property
    def manifest(self) -> Manifest:
        """The newest manifest, which names the segments."""
        ...

    async def written(self) -> None:
        """Wait until every row that was appended before is written."""
        ...


class Histories:
    """Reads histories of instances; calls that arrive during a reading share the next one."""

    def __init__(self, log: ReadableLog, *, is_lean: bool = False) -> None:
        """`is_lean`: without the payloads of events, which are dropped as they are read."""
        self._log = log
        self._trim = lean if is_lean else None
        self._wanted: dict[Key, list[asyncio.Future[list[Row]]]] = {}
        self._answering: asyncio.Task[None] | None = None

    async def of(self, workflow: str, instance_id: str) -> list[Row]:
        """Return what `EventLog.history` does."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[list[Row]] = loop.create_future()
        self._wanted.setdefault((workflow, instance_id), []).append(future)
        if self._answering is None:
            self._answering = loop.create_task(self._answer())
        return await future

    async def _answer(self) -> None:
        wanted: dict[Key, list[asyncio.Future[list[Row]]]] = {}
        try:
            while self._wanted:
                wanted, self._wanted = self._wanted, {}
                found = await self._read(set(wanted))
                for key, futures in wanted.items():
                    rows = since_deletion(found[key])
                    for future in futures:
                        if not future.done():
                            future.set_result(list(rows))
        except Exception as error:
            for future in itertools.chain(*wanted.values(), *self._wanted.values()):
                if not future.done():
                    future.set_exception(error)
            self._wanted = {}
        finally:
            self._answering = None

    async def _read(self, keys: set[Key]) -> dict[Key, list[Row]]:
        log = self._log
        await log.written()
        async with log.tail_lock:
            manifest = log.manifest
            while log.tail.wants_index():
                await asyncio.to_thread(log.tail.index_some)
            found = await asyncio.to_thread(log.tail.histories, keys, self._trim)
        if manifest.rows:
            from ..segments.segment import read_instances  # not before there are segments

            sealed = await read_instances(log.store, manifest.segments, keys, self._trim)
            return {key: sealed[key] + found[key] for key in keys}
        return found


def since_deletion(rows: list[Row]) -> list[Row]:
    """Return the rows after the last deletion, since an id may be used again."""
    for place in range(len(rows) - 1, -1, -1):
        if rows[place].type == "workflow_deleted":
            return rows[place + 1 :]
    return rows
