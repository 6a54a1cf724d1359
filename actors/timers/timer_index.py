"""Timer index: which tenants are open, and when the sleeping ones are due; durable, one entry
each.

It is a fold over the rows of the timer's log: of each tenant the newest entry (`TenantEntry`). A
tenant that sleeps for good has none: an old message can make it an entry again, and does no more
harm than to have it opened for nothing. Now and then it is stored whole beside the log, so that
opening reads the newest such checkpoint and the rows after it, however long the log is by then. A
checkpoint is a cache: damaged or missing, the rows answer.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Protocol

import msgspec

from dynamic_workflows.eventlog.errors import Unavailable
from dynamic_workflows.eventlog.events import Row
from dynamic_workflows.eventlog.store.base import NotFound, Store

from ..background_tasks import seen
from .tenant_entry import OPEN, TenantEntry

TIMER_STREAM = "timers/0"
LATE = "tenant_late"
"""The type of rows that say why a tenant is late."""
CHECKPOINT_ROWS = 100_000
"""Rows after which the index is stored anew."""
CHECKPOINTS_KEPT = 2

_log = logging.getLogger("dynamic_workflows.timer")


class TimerRowLog(Protocol):
    """The part of an event log that the timer needs."""

    store: Store
    stream: str

    @property
    def failed(self) -> BaseException | None:
        """Why nothing more can be appended, or None."""
        ...

    def append(self, rows: Sequence[Row], *, durable: bool = True) -> asyncio.Future[None]:
        """Append; stamps `seq`. The future resolves, in order, when the rows are safe."""
        ...

    def rows(self, *, after: int = 0) -> AsyncIterator[list[Row]]:
        """Everything after a number, in order."""
        ...


class _Checkpoint(msgspec.Struct, array_like=True):
    seq: int
    due: dict[str, int]
    open: list[str]
    epochs: dict[str, int] = {}


class TimerIndex:
    """The entries of all tenants, and the log that makes them durable."""

    def __init__(self, log: TimerRowLog) -> None:
        self.due: dict[str, int] = {}
        """Sleeping tenants that have to be awake at some time (µs)."""
        self.open: set[str] = set()
        self._epochs: dict[str, int] = {}
        """Of every tenant in `due` or `open`."""
        self._log = log
        self._seq = 0
        self._stored_seq = 0
        self._storing: asyncio.Task[None] | None = None

    async def load(self) -> None:
        """Read the newest checkpoint and the rows after it."""
        await self._load_checkpoint()
        async for batch in self._log.rows(after=self._seq):
            for row in batch:
                self._apply(row)
        self._store_later()

    @property
    def has_lost_its_log(self) -> bool:
        """Whether another owner took the log over, or the log failed."""
        return self._log.failed is not None

    def get(self, tenant_id: str) -> int | None:
        """Return when the tenant is due (µs); OPEN, or None if it sleeps for good."""
        return OPEN if tenant_id in self.open else self.due.get(tenant_id)

    def entry(self, tenant_id: str) -> TenantEntry | None:
        """Return the newest entry of a tenant; None if it sleeps for good, or is unknown."""
        epoch = self._epochs.get(tenant_id)
        return None if epoch is None else TenantEntry(epoch, self.get(tenant_id))

    def overdue(self, now_us: int) -> list[int]:
        """Return the passed due times (µs) of sleeping tenants. Scans all of them."""
        return [due_us for due_us in self.due.values() if due_us <= now_us]

    async def record(self, entries: Iterable[tuple[str, TenantEntry]], *, now_us: int) -> None:
        """Store entries that are newer than those of their tenants; durable on return."""
        rows = [
            _row(name, entry, now_us)
            for name, entry in entries
            if entry.is_newer_than(self.entry(name))
        ]
        if rows:
            # Futures of appends resolve in order, so that what is applied is always a prefix.
            await self._log.append(rows)
            for row in rows:
                self._apply(row)
            self._store_later()

    def note(self, tenant_id: str, tries: int, reason: str, *, rest_s: float, now_us: int) -> None:
        """Append why a tenant is late, for people who read the log; not awaited."""
        payload = msgspec.json.encode({"tries": tries, "reason": reason, "rest_s": rest_s})
        row = Row(type=LATE, workflow="", instance_id=tenant_id, ts=now_us, payload=payload)
        self._log.append([row], durable=False).add_done_callback(seen)

    async def close(self) -> None:
        """Wait for a checkpoint that is being stored."""
        if self._storing is not None:
            await asyncio.wait({self._storing})

    def _apply(self, row: Row) -> None:
        name, self._seq = row.instance_id, row.seq
        if row.type not in ("tenant_opened", "tenant_slept"):
            return
        payload_entry = _decode(row.payload or b"{}")
        due_us = OPEN if row.type == "tenant_opened" else payload_entry.due_us
        if not TenantEntry(payload_entry.epoch, due_us).is_newer_than(self.entry(name)):
            return
        self.open.discard(name)
        self.due.pop(name, None)
        self._epochs.pop(name, None)
        if due_us is None:
            return
        self._epochs[name] = payload_entry.epoch
        if due_us == OPEN:
            self.open.add(name)
        else:
            self.due[name] = due_us

    # --- checkpoints

    def _store_later(self) -> None:
        if self._storing is None and self._seq - self._stored_seq >= CHECKPOINT_ROWS:
            self._stored_seq = self._seq
            kept = _Checkpoint(self._seq, self.due, sorted(self.open), self._epochs)
            body = msgspec.msgpack.encode(kept)
            self._storing = asyncio.ensure_future(self._store(self._key(self._seq), body))
            self._storing.add_done_callback(self._stored)

    def _stored(self, task: asyncio.Task[None]) -> None:
        self._storing = None
        if not task.cancelled() and task.exception() is not None:
            _log.warning("the timer's index was not stored: %s", task.exception())

    async def _store(self, key: str, body: bytes) -> None:
        store = self._log.store
        await store.put(key, hashlib.sha256(body).digest() + body)
        for entry in (await store.list(self._key()))[:-CHECKPOINTS_KEPT]:
            await store.delete(entry.key)

    async def _load_checkpoint(self) -> None:
        store = self._log.store
        for entry in reversed(await store.list(self._key())):
            try:
                data = await store.get(entry.key)
            except (NotFound, Unavailable):
                continue
            if hashlib.sha256(data[32:]).digest() == data[:32]:
                found = msgspec.msgpack.decode(data[32:], type=_Checkpoint)
                self.due, self.open, self._seq = found.due, set(found.open), found.seq
                # Older checkpoints know no epochs: whatever is said from now on is newer.
                self._epochs = dict.fromkeys([*found.due, *found.open], 0) | found.epochs
                self._stored_seq = found.seq
                return
            _log.warning("%s is damaged and passed over: the log has all of it", entry.key)

    def _key(self, seq: int | None = None) -> str:
        return f"{self._log.stream}/index/" + ("" if seq is None else f"{seq:020d}")


class _EntryPayload(msgspec.Struct, omit_defaults=True):
    epoch: int = 0
    due_us: int | None = None


_decode = msgspec.json.Decoder(_EntryPayload).decode


def _row(tenant_id: str, entry: TenantEntry, now_us: int) -> Row:
    kind = "tenant_opened" if entry.is_open else "tenant_slept"
    payload_entry = _EntryPayload(entry.epoch, None if entry.is_open else entry.due_us)
    payload = msgspec.json.encode(payload_entry)
    return Row(type=kind, workflow="", instance_id=tenant_id, ts=now_us, payload=payload)
