"""Timer: wakes tenants that sleep, and opens again those that stopped without going to sleep.

Its durable index has one entry a tenant: the time at which the tenant must be awake, or that it is
open. A tenant's own log knows its timers; so a wake-up may come twice or for nothing, and does no
harm. A tenant is listed as open before it accepts work, and leaves the list only by going to sleep,
acknowledged here: whatever dies, what was open is opened again, and recovery costs what was open.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from typing import Protocol

import msgspec

from ..eventlog.clock import US, Clock, TimerHandle
from ..eventlog.errors import Unavailable, WorkflowsError
from ..eventlog.events import Row
from .peers import Lost, Peer

BATCH_MAX = 200
"""Tenants in one message to the loader."""
BATCHES_IN_FLIGHT_MAX = 4
"""More would only queue at the loader, in front of the calls of clients."""
WATCH_S = 2.0
"""How often the open tenants are compared with those that live."""
_RETRY_S = (0.2, 1.0, 5.0, 15.0, 60.0)
_OPEN = -1


class Journal(Protocol):
    """The part of an event log that the timer needs."""

    def append(self, rows: Sequence[Row], *, durable: bool = True) -> asyncio.Future[None]:
        """Append; the future resolves when the rows are safe."""
        ...

    def rows(self, *, after: int = 0) -> AsyncIterator[list[Row]]:
        """Everything, in order."""
        ...


class TimerStats(msgspec.Struct):
    """What the timer has done since it started."""

    open: int = 0
    asleep: int = 0
    woken: int = 0
    reopened: int = 0
    failed: int = 0
    late_ms_max: float = 0.0
    """From a due time to the message that wakes its tenant."""


class Timer:
    """One shard of the index, and its wake-ups. Its methods are what peers call."""

    def __init__(
        self, *, log: Journal, clock: Clock, loader: Callable[[], Awaitable[Peer]]
    ) -> None:
        self._log = log
        self._clock = clock
        self._loader = loader
        self._due: dict[str, int] = {}
        self._open: set[str] = set()
        self._heap: list[tuple[int, str]] = []
        self._tries: dict[str, int] = {}
        self._waking: set[str] = set()
        self._in_flight: set[asyncio.Task[None]] = set()
        self._alarm: TimerHandle | None = None
        self._watch: TimerHandle | None = None
        self._watching: asyncio.Task[None] | None = None
        self._is_closed = False
        self._stats = TimerStats()

    async def open(self) -> None:
        """Read the index and start: due tenants and those found open are woken at once."""
        async for batch in self._log.rows():
            for row in batch:
                self._apply(row)
        self._heap = [(due_us, name) for name, due_us in self._due.items()]
        heapq.heapify(self._heap)
        self._watch_now()
        self._set_alarm()

    # --- what tenants and the loader call

    async def opened(self, tenant_ids: Sequence[str]) -> None:
        """These tenants are awake, or about to be; durable on return."""
        await self._record([(name, _OPEN) for name in tenant_ids])
        self._waking.difference_update(tenant_ids)
        for name in tenant_ids:
            self._tries.pop(name, None)

    async def slept(self, tenants: Sequence[tuple[str, int | None]]) -> None:
        """These tenants have closed and must be awake at (µs, None: never); durable on return."""
        await self._record([(name, 0 if due_us is None else due_us) for name, due_us in tenants])
        self._waking.difference_update(name for name, _ in tenants)
        self._set_alarm()

    async def stats(self) -> TimerStats:
        """What the timer holds and has done."""
        return msgspec.structs.replace(self._stats, open=len(self._open), asleep=len(self._due))

    async def due(self, tenant_id: str) -> int | None:
        """When a tenant will be woken (µs); -1 if it is open, None if it sleeps for good."""
        return _OPEN if tenant_id in self._open else self._due.get(tenant_id)

    async def close(self) -> None:
        """Stop waking anybody. The log is its owner's to close."""
        self._is_closed = True
        for handle in (self._alarm, self._watch):
            if handle is not None:
                handle.cancel()
        tasks = [*self._in_flight, *([self._watching] if self._watching else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # --- the index

    async def _record(self, entries: Iterable[tuple[str, int]]) -> None:
        now_us = self._clock.now_us()
        rows = [_row(name, due_us, now_us) for name, due_us in entries]
        if rows:
            # The futures of appends resolve in order, so that what is applied is always a prefix.
            await self._log.append(rows)
            for row in rows:
                self._apply(row)
                if row.instance_id in self._due:
                    heapq.heappush(self._heap, (self._due[row.instance_id], row.instance_id))

    def _apply(self, row: Row) -> None:
        name = row.instance_id
        if row.type == "tenant_opened":
            self._open.add(name)
            self._due.pop(name, None)
        elif row.type == "tenant_slept":
            self._open.discard(name)
            due_us = _due_us(row)
            if due_us:
                self._due[name] = due_us
            else:
                self._due.pop(name, None)

    # --- wake-ups

    def _set_alarm(self) -> None:
        while self._heap and self._is_stale(*self._heap[0]):
            heapq.heappop(self._heap)
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        if self._heap and not self._is_closed:
            self._alarm = self._clock.call_at(self._heap[0][0], self._ring)

    def _is_stale(self, due_us: int, name: str) -> bool:
        return self._due.get(name) != due_us or name in self._waking

    def _ring(self) -> None:
        """Send what is due, oldest first; what does not fit waits for a batch to come back."""
        self._alarm = None
        now_us = self._clock.now_us()
        while len(self._in_flight) < BATCHES_IN_FLIGHT_MAX:
            batch = self._take_due(now_us)
            if not batch:
                self._set_alarm()
                return
            self._stats.woken += len(batch)
            self._send(batch)

    def _take_due(self, now_us: int) -> list[str]:
        batch: list[str] = []
        while self._heap and self._heap[0][0] <= now_us and len(batch) < BATCH_MAX:
            due_us, name = heapq.heappop(self._heap)
            if not self._is_stale(due_us, name):
                self._stats.late_ms_max = max(self._stats.late_ms_max, (now_us - due_us) / 1000)
                batch.append(name)
        return batch

    def _send(self, names: list[str]) -> None:
        self._waking.update(names)
        task = asyncio.ensure_future(self._wake(names))
        self._in_flight.add(task)
        task.add_done_callback(self._sent)

    def _sent(self, task: asyncio.Task[None]) -> None:
        self._in_flight.discard(task)
        if not self._is_closed and self._alarm is None:
            self._ring()

    async def _wake(self, names: list[str]) -> None:
        try:
            loader = await self._loader()
            failed: list[str] = await loader.call("wake", names)
        except (Lost, WorkflowsError):
            failed = names
        self._waking.difference_update(names)
        self._stats.failed += len(failed)
        for name in failed:
            self._try_again(name)

    def _try_again(self, name: str) -> None:
        """Look again later: a tenant that cannot be opened now must not be forgotten."""
        tries = self._tries.get(name, 0)
        self._tries[name] = tries + 1
        rest_us = round(_RETRY_S[min(tries, len(_RETRY_S) - 1)] * US)
        self._waking.add(name)
        self._clock.call_at(self._clock.now_us() + rest_us, lambda: self._again(name))

    def _again(self, name: str) -> None:
        if self._is_closed or name not in self._waking:
            return
        self._waking.discard(name)
        if name in self._due or name in self._open:
            self._send([name])

    # --- tenants that stopped without going to sleep

    def _watch_now(self) -> None:
        self._watching = asyncio.ensure_future(self._compare())

    async def _compare(self) -> None:
        if self._open:
            try:
                loader = await self._loader()
                alive = await loader.call("residents", timeout_s=WATCH_S * 5)
                self._reopen(sorted(self._open.difference(alive, self._waking)))
            except (Lost, Unavailable):
                pass  # no loader at the moment: the next look will find one
        self._watch = self._clock.call_at(
            self._clock.now_us() + round(WATCH_S * US), self._watch_now
        )

    def _reopen(self, dead: list[str]) -> None:
        self._stats.reopened += len(dead)
        for first in range(0, len(dead), BATCH_MAX):
            self._send(dead[first : first + BATCH_MAX])


def _row(tenant_id: str, due_us: int, now_us: int) -> Row:
    if due_us == _OPEN:
        return Row(type="tenant_opened", workflow="", instance_id=tenant_id, ts=now_us)
    payload = b'{"due_us":%d}' % due_us
    return Row(type="tenant_slept", workflow="", instance_id=tenant_id, ts=now_us, payload=payload)


class _Due(msgspec.Struct):
    due_us: int = 0


_decode_due = msgspec.json.Decoder(_Due).decode


def _due_us(row: Row) -> int:
    return _decode_due(row.payload or b"{}").due_us
