"""Timer: wakes tenants that sleep, and opens again those that stopped without going to sleep.

Its durable index has one entry a tenant: the time at which the tenant must be awake, or that it is
open. A tenant's own log knows its timers; so a wake-up may come twice or for nothing, and does no
harm. A tenant is listed as open before it accepts work, and leaves the list only by going to sleep,
acknowledged here: whatever dies, what was open is opened again, and recovery costs what was open.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Awaitable, Callable, Sequence

import msgspec

from ..eventlog.clock import US, Clock, TimerHandle
from ..eventlog.errors import WorkflowsError
from .peers import Lost, Peer
from .timer_index import OPEN, Journal, TimerIndex

BATCH_MAX = 200
"""Tenants in one message to the loader."""
BATCHES_IN_FLIGHT_MAX = 4
"""More would only queue at the loader, in front of the calls of clients."""
WATCH_S = 2.0
"""How often the open tenants are compared with those that live."""
_RETRY_S = (0.2, 1.0, 5.0, 15.0, 60.0)
HORIZON_US = 600 * US
"""How far ahead due times are kept in order."""


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
        self._index = TimerIndex(log)
        self._clock = clock
        self._loader = loader
        self._heap: list[tuple[int, str]] = []
        self._heap_until_us = 0
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
        await self._index.load()
        self._fill_heap()
        self._watch_now()
        self._set_alarm()

    # --- what tenants and the loader call

    async def opened(self, tenant_ids: Sequence[str]) -> None:
        """These tenants are awake, or about to be; durable on return."""
        await self._index.record([(name, OPEN) for name in tenant_ids], now_us=self._clock.now_us())
        self._waking.difference_update(tenant_ids)
        for name in tenant_ids:
            self._tries.pop(name, None)
        self._watch_later()

    async def slept(self, tenants: Sequence[tuple[str, int | None]]) -> None:
        """These tenants have closed and must be awake at (µs, None: never); durable on return."""
        await self._index.record(tenants, now_us=self._clock.now_us())
        self._waking.difference_update(name for name, _ in tenants)
        for name, due_us in tenants:
            if due_us is not None and due_us <= self._heap_until_us:
                heapq.heappush(self._heap, (due_us, name))
        self._set_alarm()

    async def stats(self) -> TimerStats:
        """What the timer holds and has done."""
        index = self._index
        return msgspec.structs.replace(self._stats, open=len(index.open), asleep=len(index.due))

    async def due(self, tenant_id: str) -> int | None:
        """When a tenant will be woken (µs); -1 if it is open, None if it sleeps for good."""
        return self._index.get(tenant_id)

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
        await self._index.close()

    # --- wake-ups

    def _fill_heap(self) -> None:
        """Take the near future out of the index; the rest of it needs no second place in memory."""
        until_us = self._heap_until_us = self._clock.now_us() + HORIZON_US
        self._heap = [
            (due_us, name) for name, due_us in self._index.due.items() if due_us <= until_us
        ]
        heapq.heapify(self._heap)

    def _set_alarm(self) -> None:
        while self._heap and self._is_stale(*self._heap[0]):
            heapq.heappop(self._heap)
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        if not self._is_closed and (self._heap or self._index.due):
            next_us = self._heap[0][0] if self._heap else self._heap_until_us
            self._alarm = self._clock.call_at(next_us, self._ring)

    def _is_stale(self, due_us: int, name: str) -> bool:
        return self._index.due.get(name) != due_us or name in self._waking

    def _ring(self) -> None:
        """Send what is due, oldest first; what does not fit waits for a batch to come back."""
        self._alarm = None
        now_us = self._clock.now_us()
        if now_us >= self._heap_until_us:
            self._fill_heap()
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
        if self._index.has_lost_its_log:
            return  # another timer answers for these tenants now
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
        if self._index.get(name) is not None:
            self._send([name])

    # --- tenants that stopped without going to sleep

    def _watch_now(self) -> None:
        self._watch = None
        self._watching = asyncio.ensure_future(self._compare())

    def _watch_later(self) -> None:
        if self._watch is None and self._watching is None and not self._is_closed:
            due_us = self._clock.now_us() + round(WATCH_S * US)
            self._watch = self._clock.call_at(due_us, self._watch_now)

    async def _compare(self) -> None:
        try:
            loader = await self._loader()
            alive = await loader.call("residents", timeout_s=WATCH_S * 5)
            self._reopen(sorted(self._index.open.difference(alive, self._waking)))
        except (Lost, WorkflowsError):
            pass  # no loader at the moment: the next look will find one
        finally:
            self._watching = None
        # While nobody is open there is nobody to watch.
        if self._index.open:
            self._watch_later()

    def _reopen(self, dead: list[str]) -> None:
        self._stats.reopened += len(dead)
        for first in range(0, len(dead), BATCH_MAX):
            self._send(dead[first : first + BATCH_MAX])
