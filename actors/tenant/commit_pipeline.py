"""CommitPipeline: decisions go in, one append a loop turn goes out, effects follow in order.

Rows are handed to the log in the order in which the core stamped them. A batch with a large or a
sensitive value first stores those as blobs, and later batches wait behind it. Effects are carried
out when the batch is as durable as its decisions ask for, and never before those of earlier ones.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import msgspec

from dynamic_workflows.eventlog.events import Row
from dynamic_workflows.eventlog.ids import Ids

from ..instances.decisions import Decision, Effect

INLINE_MAX = 64 * 1024
"""Payloads above this many bytes lie in a blob."""
_KEPT_MAX = 4 * 1024
"""Of such a payload, values above this many bytes are null in the row."""
_VALUES = frozenset({"params", "output", "payload", "schedule"})
_MESSAGE_CHARACTERS_KEPT = 500
_SECRET_NAME_MAX = 63
"""Names of blobs with sensitive values are shorter than a hash."""


class RowLog(Protocol):
    """The part of an event log that a pump needs."""

    def append(self, rows: Sequence[Row], *, durable: bool = True) -> asyncio.Future[None]:
        """Append; the future resolves in the order of calls."""
        ...

    async def put_blob(self, data: bytes, *, name: str | None = None) -> str:
        """Store bytes durably."""
        ...

    async def get_blob(self, ref: str) -> bytes:
        """Read them back."""
        ...


class Batch:
    """What was decided in one loop turn."""

    __slots__ = ("_future", "durable", "effects", "error", "is_done", "rows", "secrets")

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.effects: list[Effect] = []
        self.secrets: list[tuple[Row, bytes]] = []
        self.durable = False
        self.is_done = False
        self.error: BaseException | None = None
        self._future: asyncio.Future[None] | None = None

    async def done(self) -> None:
        """Wait until it is appended and its effects have begun; raises what went wrong."""
        if not self.is_done:
            if self._future is None:
                self._future = asyncio.get_running_loop().create_future()
            # Shared by everybody who waits: one who gives up must not cancel it for the others.
            await asyncio.shield(self._future)
        elif self.error is not None:
            raise self.error

    def finish(self, error: BaseException | None = None) -> None:
        """Wake who waits."""
        self.is_done, self.error = True, error
        if self._future is not None and not self._future.done():
            if error is None:
                self._future.set_result(None)
            else:
                self._future.set_exception(error)
                self._future.exception()


class CommitPipeline:
    """Takes decisions to their effects, through the log."""

    def __init__(
        self,
        log: RowLog,
        ids: Ids,
        *,
        before: Callable[[], None],
        committed: Callable[[Batch], None],
        failed: Callable[[BaseException], None],
    ) -> None:
        """`before` runs at the end of each turn and may add decisions; `committed` gets batches."""
        self._log = log
        self._ids = ids
        self._before = before
        self._committed = committed
        self._failed = failed
        self._open = Batch()
        self._is_flushing = False
        self._under_way: deque[Batch] = deque()
        """Batches that are not done, in order."""
        self._writer: asyncio.Task[None] | None = None
        self._queue: deque[Batch] = deque()
        """Batches that wait for blobs, or behind one that does."""
        self._last: asyncio.Future[None] | None = None
        self._error: BaseException | None = None

    @property
    def is_idle(self) -> bool:
        """Whether everything that was decided has taken effect."""
        return not self._under_way and not self._open.rows and not self._open.effects

    def take(self, decision: Decision) -> Batch:
        """Add a decision to the batch of this turn."""
        batch = self._open
        if decision.rows:
            batch.rows += decision.rows
        if decision.effects:
            batch.effects += decision.effects
        if decision.durable:
            batch.durable = True
        if decision.secrets:
            batch.secrets += decision.secrets
        self.kick()
        return batch

    async def commit(self, decision: Decision) -> Any:
        """Add a decision, wait until it has taken effect, and return its answer."""
        await self.take(decision).done()
        return decision.answer

    def kick(self) -> None:
        """Flush at the end of this turn."""
        if not self._is_flushing:
            self._is_flushing = True
            asyncio.get_running_loop().call_soon(self._flush)

    async def caught_up(self) -> None:
        """Wait until everything that was decided so far has taken effect."""
        if self._open.rows or self._open.effects:
            await self._open.done()
        elif self._under_way:
            await self._under_way[-1].done()

    def written(self) -> bool:
        """Hand everything that can be handed to the log; False where a blob comes first."""
        if self._open.rows:
            self._hand_over()
        return not self._queue

    async def close(self) -> None:
        """Wait for every batch under way, whatever becomes of it."""
        while not self.is_idle and self._error is None:
            try:
                await self.caught_up()
            except Exception:
                pass
        if self._writer is not None:
            self._writer.cancel()
            await asyncio.gather(self._writer, return_exceptions=True)

    def _flush(self) -> None:
        self._is_flushing = False
        if self._error is not None:
            batch, self._open = self._open, Batch()
            batch.finish(self._error)
            return
        try:
            self._before()
        except Exception as mistake:  # ours, as below
            self._fail(mistake)
            raise
        if self._open.rows or self._open.effects or self._open.secrets:
            self._hand_over()
        else:
            self._finish_empty()

    def _finish_empty(self) -> None:
        """Whoever awaits a batch in which nothing was decided waits for those before it alone."""
        batch = self._open
        if not self._under_way and not (batch.rows or batch.effects or batch.secrets):
            self._open = Batch()
            batch.finish()

    def _hand_over(self) -> None:
        batch, self._open = self._open, Batch()
        self._under_way.append(batch)
        if self._queue or batch.secrets or any(_is_large(row) for row in batch.rows):
            self._queue.append(batch)
            if self._writer is None:
                self._writer = asyncio.ensure_future(self._write())
        else:
            self._append(batch)

    async def _write(self) -> None:
        """Batches with blobs, and what queued up behind them, one by one."""
        try:
            while self._queue:
                await self._store_blobs(self._queue[0])
                self._append(self._queue.popleft())
        except Exception as error:  # the log cannot go on without these rows
            self._fail(error)
        finally:
            self._writer = None

    async def _store_blobs(self, batch: Batch) -> None:
        for row, payload in batch.secrets:
            row.blob = await self._log.put_blob(payload, name=self._ids.token())
        for row in batch.rows:
            if row.blob is None and _is_large(row):
                assert row.payload is not None
                row.blob = await self._log.put_blob(row.payload)
                row.payload = _outline(row.payload)

    def _append(self, batch: Batch) -> None:
        if batch.rows:
            self._last = self._log.append(batch.rows, durable=batch.durable)
        if self._last is None or (
            self._last.done() and not batch.rows and self._under_way[0] is batch
        ):
            self._on_appended(batch, None)
        else:
            self._last.add_done_callback(lambda done: self._on_appended(batch, done))

    def _on_appended(self, batch: Batch, done: asyncio.Future[None] | None) -> None:
        if self._error is not None:
            batch.finish(self._error)
            return
        error = None
        if done is not None:
            error = asyncio.CancelledError() if done.cancelled() else done.exception()
        if error is not None:
            self._fail(error)
            return
        assert self._under_way[0] is batch, "batches are committed in order"
        self._under_way.popleft()
        try:
            self._committed(batch)
        except Exception as mistake:  # ours: what was decided did not happen, so start over
            self._fail(mistake)
            raise
        batch.finish()
        self._finish_empty()

    def _fail(self, error: BaseException) -> None:
        if self._error is None:
            self._error = error
            self._queue.clear()
            under_way, self._under_way = self._under_way, deque()
            for batch in (*under_way, self._open):
                batch.finish(error)
            self._failed(error)


def _is_large(row: Row) -> bool:
    return row.payload is not None and len(row.payload) > INLINE_MAX and row.blob is None


def _outline(payload: bytes) -> bytes:
    """The payload with null in place of large values, and with short errors: what a replay needs to
    know of a row whose blob it does not read. What is no value stays as it is."""
    members = msgspec.json.decode(payload, type=dict[str, msgspec.Raw])
    for name, raw in members.items():
        if len(raw) <= _KEPT_MAX:
            continue
        if name in _VALUES:
            members[name] = msgspec.Raw(b"null")
        elif name in ("error", "rollback"):
            members[name] = msgspec.Raw(_outline_of_error(raw))
    return msgspec.json.encode(members)


def _outline_of_error(raw: msgspec.Raw) -> bytes:
    facts: dict[str, Any] = msgspec.json.decode(raw, type=dict[str, Any])
    error = facts.get("error") if "outcome" in facts else facts
    if isinstance(error, dict):
        error.pop("args", None)
        error["message"] = str(error.get("message", ""))[:_MESSAGE_CHARACTERS_KEPT]
    return msgspec.json.encode(facts)


def is_secret(row: Row) -> bool:
    """Whether the row's blob holds a sensitive value, for replay alone."""
    return row.blob is not None and len(row.blob) <= _SECRET_NAME_MAX


async def whole(
    log: RowLog, rows: Sequence[Row], *, secrets: bool, has_events: bool = True
) -> list[Row]:
    """The rows with the payloads that lie in blobs; sensitive ones only where asked for, those of
    events (event_received) unless they are not."""
    return [
        row
        if row.blob is None
        or (is_secret(row) and not secrets)
        or (row.type == "event_received" and not has_events)
        else msgspec.structs.replace(row, payload=await log.get_blob(row.blob))
        for row in rows
    ]
