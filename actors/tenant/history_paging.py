"""HistoryReader: what callers are shown of an instance's history, in answers of bounded size."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import msgspec

from dynamic_workflows.eventlog.errors import LimitExceededError
from dynamic_workflows.eventlog.events import Row, row_bytes
from dynamic_workflows.eventlog.log.event_log import EventLog
from dynamic_workflows.eventlog.log.history_pages import history_page

from ..core.restart import present_run
from ..core.tenant_core import TenantCore
from ..instances.decisions import Key
from .commit_pipeline import is_secret

PAGE_BYTES_MAX = 1024 * 1024
"""Bytes of rows in one answer to a subscription; the row that fills it is the last."""
PAGES_BYTES_MAX = 32 * 1024 * 1024
"""Bytes of such answers to all subscriptions together; each then gets its part."""
_PAGE_BYTES_MIN = 16 * 1024
HISTORY_BYTES_MAX = 128 * 1024 * 1024
"""Bytes of rows in the answer to `history()`; a history that is larger is refused."""
_READINGS_AT_ONCE = 2


def page_bytes(subscriptions: int) -> int:
    """Bytes of rows in one answer, where so many subscriptions are to be answered."""
    share = PAGES_BYTES_MAX // max(subscriptions, 1)
    return min(PAGE_BYTES_MAX, max(_PAGE_BYTES_MIN, share))


class HistoryReader:
    """Reads histories for answers, few at a time."""

    def __init__(self, log: EventLog, core: TenantCore) -> None:
        self._log = log
        self._core = core
        self._readings = asyncio.Semaphore(_READINGS_AT_ONCE)
        self._large = asyncio.Lock()

    async def history(self, key: Key, *, all_runs: bool) -> list[Row]:
        """The rows of the present run, or of every run, whole. Raises LimitExceededError."""
        async with self._large:
            after = self._core.created_seq(key) - 1
            rows, has_more = await history_page(
                self._log, *key, after=after, bytes_max=HISTORY_BYTES_MAX
            )
            if has_more:
                raise _too_large(key)
            if not all_runs:
                rows = present_run(rows)
            whole, is_cut = await self._whole(rows, HISTORY_BYTES_MAX)
            if is_cut:
                raise _too_large(key)
            return whole

    async def after(self, key: Key, cursor: int, *, upto: int, bytes_max: int) -> list[Row]:
        """Some rows after the cursor, and up to `upto`: the next ones, at least one if there is
        one. At 0, those of the present run, in which a restart's kept steps come first."""
        created = self._core.created_seq(key)
        if cursor <= 0 and self._core.run(key) > 1:
            async with self._large:
                rows = await self._log.history(*key)
                return _first(present_run([row for row in rows if row.seq <= upto]), bytes_max)
        async with self._readings:
            rows, _ = await history_page(
                self._log, *key, after=max(cursor, created - 1), bytes_max=bytes_max
            )
            return [row for row in rows if row.seq <= upto]

    async def whole_page(
        self, rows: Sequence[Row], cursor: int, bytes_max: int
    ) -> tuple[list[Row], bool]:
        """The first of the rows, as many as an answer holds, with what lies in blobs; and whether
        that left some out. What `after` answered at 0 of earlier runs stays whole."""
        if all(row.blob is None for row in rows):
            return list(rows), False
        first_run = rows[-1].run if cursor <= 0 else 0
        async with self._readings:
            return await self._whole(rows, bytes_max, first_run)

    async def _whole(
        self, rows: Sequence[Row], bytes_max: int, first_run: int = 0
    ) -> tuple[list[Row], bool]:
        """Cut where it is too much, but not before the first row of the run `first_run`."""
        found: list[Row] = []
        left = bytes_max
        for row in rows:
            if left < 0 and found[-1].run >= first_run:
                return found, True
            if row.blob is not None and not is_secret(row):
                payload = await self._log.get_blob(row.blob)
                row = msgspec.structs.replace(row, payload=payload)
            left -= row_bytes(row)
            found.append(row)
        return found, False


def _first(rows: list[Row], bytes_max: int) -> list[Row]:
    """A page of the rows. Those of earlier runs are never cut: a cursor says nothing of them."""
    newest = rows[-1].run if rows else 0
    left = bytes_max
    for place, row in enumerate(rows):
        left -= row_bytes(row)
        if left < 0 and row.run == newest:
            return rows[: place + 1]
    return rows


def _too_large(key: Key) -> LimitExceededError:
    return LimitExceededError(
        f"the history of instance {key[1]!r} is larger than {HISTORY_BYTES_MAX:,} bytes: "
        "read it in parts with subscribe(), or with SQL",
        limit="history_bytes",
        retry_after=None,
    )
