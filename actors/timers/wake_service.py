"""Wake service: wakes sleeping tenants that are due, and reopens those that ended without going
to sleep.

Its durable index has one entry a tenant: the time at which the tenant must be awake, or that it is
open. A tenant's own log knows its timers; so a wake-up may come twice or for nothing, and does no
harm. A tenant is registered as open before it accepts work, and unregistered only by going to
sleep, acknowledged here: after any crash, what was open is opened again, and recovery costs what
was open.

A wake-up is over when the tenant's owner has sent a newer entry, and not before: until then the
loader is asked again, whatever it answered.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import msgspec

from dynamic_workflows.eventlog.backoff import Backoff, FailureStreak
from dynamic_workflows.eventlog.clock import US, Clock, TimerHandle
from dynamic_workflows.eventlog.errors import WorkflowsError

from ..background_tasks import stop_all
from ..rpc.actor_ref import ActorRef, ActorUnreachable
from ..rpc.services import LoaderApi, WakeAnswer, WakeState, remote
from .tenant_entry import OPEN, TenantEntry
from .timer_index import TimerIndex, TimerRowLog
from .wake_schedule import WakeSchedule

BATCH_MAX = 200
"""Tenants in one message to the loader."""
BATCHES_IN_FLIGHT_MAX = 4
"""More would only queue at the loader, in front of the calls of clients."""
WATCH_S = 2.0
"""How often the open tenants are compared with those that live."""
LOOK_S = 5.0
"""How often it is looked what is due, at least: the clock may be set."""
ANSWER_S = 10.0
"""How long the loader may take to answer; it promises half of that."""
_LOADER_BACKOFF = Backoff(0.5, 2.0)
"""Rests after a loader that cannot be reached, which everybody waits for alike."""


class TimerStats(msgspec.Struct):
    """What the timer has done since it started."""

    open: int = 0
    asleep: int = 0
    woken: int = 0
    reopened: int = 0
    failed: int = 0
    late_ms_max: float = 0.0
    """From a due time to the message that wakes its tenant."""


class Overdue(msgspec.Struct):
    """The sleeping tenants that are past due, as the index has them."""

    count: int = 0
    oldest_s: float = 0.0
    """Seconds since the earliest of their due times."""


class WakeService:
    """One shard of the index, and its wake-ups. Its methods are called by other actors."""

    def __init__(
        self, *, log: TimerRowLog, clock: Clock, loader: Callable[[], Awaitable[ActorRef]]
    ) -> None:
        self._index = TimerIndex(log)
        self._schedule = WakeSchedule(self._index)
        self._clock = clock
        self._loader = loader
        self._in_flight: set[asyncio.Task[None]] = set()
        self._losses = FailureStreak(_LOADER_BACKOFF, clock)
        """Batches in a row that did not reach the loader."""
        self._alarm: TimerHandle | None = None
        self._watch: TimerHandle | None = None
        self._watching: asyncio.Task[None] | None = None
        self._is_closed = False
        self._stats = TimerStats()

    async def open(self) -> None:
        """Read the index and start: due tenants and those found open are woken at once."""
        await self._index.load()
        self._watch_now()
        self._wake_due()

    # --- what tenants call

    async def opened(self, tenants: Sequence[tuple[str, int]]) -> dict[str, int]:
        """Register tenants whose logs are owned, or about to be, under these epochs.

        Durable on return. Returns the tenants of which a higher epoch is known, with that epoch:
        the caller has lost the log to another owner, or its log is an older copy.
        """
        entries = [(name, TenantEntry(epoch, OPEN)) for name, epoch in tenants]
        await self._record(entries)
        self._watch_later()
        known = ((name, self._index.entry(name), epoch) for name, epoch in tenants)
        return {name: e.epoch for name, e, epoch in known if e is not None and e.epoch > epoch}

    async def slept(self, tenants: Sequence[tuple[str, int, int | None]]) -> None:
        """Record that the owners of these epochs have closed, and when their tenants are due
        (µs, None: never).

        Durable on return. Changes nothing for a tenant of which something newer is known.
        """
        await self._record([(name, TenantEntry(epoch, due_us)) for name, epoch, due_us in tenants])

    async def _record(self, entries: Sequence[tuple[str, TenantEntry]]) -> None:
        await self._index.record(entries, now_us=self._clock.now_us())
        self._schedule.changed(name for name, _ in entries)
        self._set_alarm()

    # --- what people ask

    async def stats(self) -> TimerStats:
        """Return what the timer holds and has done."""
        index = self._index
        return msgspec.structs.replace(self._stats, open=len(index.open), asleep=len(index.due))

    async def overdue(self) -> Overdue:
        """Return the sleeping tenants that are past due. Scans the whole index."""
        now_us = self._clock.now_us()
        due = self._index.overdue(now_us)
        return Overdue(len(due), (now_us - min(due)) / US if due else 0.0)

    async def due(self, tenant_id: str) -> int | None:
        """Return when a tenant will be woken (µs); -1 if it is open, None if it sleeps for good."""
        return self._index.get(tenant_id)

    async def wake_state(self, tenant_id: str) -> WakeState:
        """Return when a tenant is due, and the state of its wake-up."""
        due_us, tried = self._index.get(tenant_id), self._schedule.get(tenant_id)
        if tried is None:
            return WakeState(due_us, 0, due_us if due_us != OPEN else None, "", 0.0)
        return WakeState(due_us, tried.count, tried.next_us, tried.reason, tried.rest_s)

    async def close(self) -> None:
        """Stop waking tenants. The caller closes the log."""
        self._is_closed = True
        for handle in (self._alarm, self._watch):
            if handle is not None:
                handle.cancel()
        await stop_all([*self._in_flight, *([self._watching] if self._watching else [])])
        await self._index.close()

    # --- wake-ups

    def _set_alarm(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        next_us = self._schedule.next_us()
        # Another timer answers for these tenants where this one has lost its log.
        if next_us is None or self._is_closed or self._index.has_lost_its_log:
            return
        latest_us = self._clock.now_us() + round(LOOK_S * US)
        if self._is_full:
            next_us = latest_us  # a batch that comes back looks by itself
        due_us = min(max(next_us, self._losses.retry_us), latest_us)
        self._alarm = self._clock.call_at(due_us, self._wake_due)

    @property
    def _is_full(self) -> bool:
        return len(self._in_flight) >= BATCHES_IN_FLIGHT_MAX

    def _wake_due(self) -> None:
        """Ask the loader for the due tenants, oldest first; more than the limit wait for a batch to
        return."""
        now_us = self._clock.now_us()
        self._schedule.advance(now_us)
        while not self._is_full and now_us >= self._losses.retry_us:
            if self._is_closed or self._index.has_lost_its_log:
                return
            names = self._schedule.next_batch(now_us, BATCH_MAX)
            if not names:
                break
            self._count(names, now_us)
            task = asyncio.ensure_future(self._wake(names))
            self._in_flight.add(task)
            task.add_done_callback(self._returned)
        self._set_alarm()

    def _count(self, names: list[str], now_us: int) -> None:
        for name in filter(self._schedule.is_first_try, names):
            late_us = now_us - self._index.due[name]
            self._stats.woken += 1
            self._stats.late_ms_max = max(self._stats.late_ms_max, late_us / 1000)

    def _returned(self, task: asyncio.Task[None]) -> None:
        self._in_flight.discard(task)
        if not self._is_closed:
            self._wake_due()

    async def _wake(self, names: list[str]) -> None:
        try:
            loader = await asyncio.wait_for(self._loader(), ANSWER_S)
            answer = await remote(loader, LoaderApi.wake, timeout_s=ANSWER_S)(names)
            self._losses.ended()
        except Exception as error:  # whatever it is, these tenants are still wanted
            self._losses.failed()
            text = str(error) or type(error).__name__
            answer = WakeAnswer({}, dict.fromkeys(names, f"the loader did not answer: {text}"))
        now_us = self._clock.now_us()
        for name in names:
            if name in answer.refused:
                self._schedule.refused(name, now_us, answer.refused[name])
            elif name in answer.not_yet:
                self._schedule.not_yet(name, now_us, answer.not_yet[name])
            else:
                self._schedule.reported_open(name, now_us)
        self._stats.failed += len(answer.refused) + len(answer.not_yet)

    # --- tenants that stopped without going to sleep

    def _watch_now(self) -> None:
        self._watch = None
        self._watching = asyncio.ensure_future(self._compare())

    def _watch_later(self) -> None:
        if self._watch is None and self._watching is None and not self._is_closed:
            due_us = self._clock.now_us() + round(WATCH_S * US)
            self._watch = self._clock.call_at(due_us, self._watch_now)

    async def _compare(self) -> None:
        # Who is listed from now on has a place that the loader may not have counted.
        listed = set(self._index.open)
        try:
            loader = await asyncio.wait_for(self._loader(), ANSWER_S)
            alive = set(await remote(loader, LoaderApi.residents, timeout_s=ANSWER_S)())
            lost = sorted((listed & self._index.open) - alive)
            self._stats.reopened += self._schedule.lost(lost, self._clock.now_us())
        except (ActorUnreachable, TimeoutError, WorkflowsError):
            pass  # no loader at the moment: the next look will find one
        finally:
            self._watching = None
            # Without an open tenant there is none to watch.
            if self._index.open:
                self._watch_later()
        self._wake_due()
