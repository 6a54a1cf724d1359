"""Wake schedule: which tenants have to be opened now, and when each is tried again. No I/O.

A tenant is wanted when it sleeps and is due, or when it is registered as open and has no process.
It stays wanted until its entry in the index has become a newer one: the loader's answer decides
only when it is asked again, and why the tenant is late. So no answer, wrong answer, or lost message
can lose a wake-up.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable

import msgspec

from dynamic_workflows.eventlog.backoff import Backoff
from dynamic_workflows.eventlog.clock import US

from .tenant_entry import OPEN, TenantEntry
from .timer_index import TimerIndex

HORIZON_US = 60 * US
"""How far ahead due times are kept in order; the index is looked through as often."""
IN_FLIGHT_S = 15.0
"""When a tenant is tried again of which nothing is heard at all."""
AGAIN = Backoff(1.0, 5.0)
"""Rests after the loader has it in hand, or says that it is open, and its entry says otherwise."""
REFUSED = Backoff(0.2, 60.0, factor=4.0)
"""Rests after a tenant could not be opened."""


class WakeTry(msgspec.Struct):
    """The attempts to wake one tenant that is wanted."""

    entry: TenantEntry
    count: int
    """How many times the loader was asked."""
    next_us: int
    reason: str
    """What the loader said last, for people; "" while it has said nothing."""
    rest_s: float = 0.0
    """The rest that followed from it."""


class WakeSchedule:
    """The order of the wake-ups of one index."""

    def __init__(self, index: TimerIndex) -> None:
        self._index = index
        self._heap: list[tuple[int, str]] = []
        """When to look at whom, at the latest; an item that `_at` does not confirm is stale."""
        self._until_us = 0
        self._seen_us = 0
        self._tries: dict[str, WakeTry] = {}

    def advance(self, now_us: int) -> None:
        """Account for the time that has passed, or for a clock that was set back."""
        if now_us < self._seen_us:
            for tried in self._tries.values():
                tried.next_us = min(tried.next_us, now_us + US)
            self._fill(now_us)
        elif now_us >= self._until_us:
            self._fill(now_us)
        self._seen_us = now_us

    def _fill(self, now_us: int) -> None:
        """Load the near future from the index; the rest of it stays there only."""
        self._until_us = now_us + HORIZON_US
        self._heap = [(t.next_us, name) for name, t in self._tries.items()]
        self._heap += [
            (due_us, name)
            for name, due_us in self._index.due.items()
            if due_us <= self._until_us and name not in self._tries
        ]
        heapq.heapify(self._heap)

    def changed(self, names: Iterable[str]) -> None:
        """Update these tenants, whose entries may be newer now."""
        for name in names:
            tried = self._tries.get(name)
            if tried is not None and tried.entry != self._index.entry(name):
                del self._tries[name]
            due_us = self._index.due.get(name)
            if due_us is not None and due_us <= self._until_us and name not in self._tries:
                heapq.heappush(self._heap, (due_us, name))

    def lost(self, names: Iterable[str], now_us: int) -> int:
        """Add tenants that are registered as open and have no process; return how many are new."""
        added = 0
        for name in names:
            entry = self._index.entry(name)
            if entry is not None and entry.is_open and name not in self._tries:
                self._plan(name, WakeTry(entry, 0, now_us, ""))
                added += 1
        return added

    def next_batch(self, now_us: int, limit: int) -> list[str]:
        """Return the tenants to wake now, longest waiting first; the caller then reports on
        each."""
        names: list[str] = []
        while self._heap and self._heap[0][0] <= now_us and len(names) < limit:
            at_us, name = heapq.heappop(self._heap)
            if self._at(name) != at_us:
                continue
            tried = self._tries.get(name)
            if tried is None:
                entry = self._index.entry(name)
                assert entry is not None, "what has a due time has an entry"
                tried = WakeTry(entry, 0, at_us, "")
            tried.count += 1
            tried.next_us = now_us + round(IN_FLIGHT_S * US)
            self._plan(name, tried)
            names.append(name)
        return names

    def refused(self, name: str, now_us: int, reason: str) -> None:
        """Record that the loader could not open it, and why; retried with growing delays."""
        self._again(name, now_us, reason, REFUSED)

    def not_yet(self, name: str, now_us: int, reason: str) -> None:
        """Record that it is not open so far, and why; the loader is asked again soon."""
        self._again(name, now_us, reason, AGAIN)

    def reported_open(self, name: str, now_us: int) -> None:
        """Record the loader's report that it is open; valid only with an open entry."""
        tried = self._tries.get(name)
        if tried is not None and tried.entry.is_open:
            del self._tries[name]
        else:
            reason = "the loader says that it is open, its owner has not said so"
            self._again(name, now_us, reason, AGAIN)

    def _again(self, name: str, now_us: int, reason: str, backoff: Backoff) -> None:
        tried = self._tries.get(name)
        if tried is not None:  # else its entry has moved on
            tried.reason = reason
            rest_s = backoff.rest_s(tried.count)
            tried.rest_s = rest_s
            tried.next_us = now_us + round(rest_s * US)
            self._plan(name, tried)
            # Each is written down at its 2nd, 4th, 8th, … try: a first one says little.
            if tried.count > 1 and not tried.count & (tried.count - 1):
                self._index.note(name, tried.count, reason, rest_s=rest_s, now_us=now_us)

    def next_us(self) -> int | None:
        """Return when `next_batch` or `advance` may have work; None: never."""
        while self._heap and self._at(self._heap[0][1]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        if self._heap:
            return min(self._heap[0][0], self._until_us)
        return self._until_us if self._index.due else None

    def get(self, name: str) -> WakeTry | None:
        """Return the attempts to wake a tenant; None: it was never wanted, or is open."""
        return self._tries.get(name)

    def is_first_try(self, name: str) -> bool:
        """Whether `next_batch` gave the tenant for the first time, and the tenant slept."""
        tried = self._tries[name]
        return tried.count == 1 and tried.entry.due_us != OPEN

    def _plan(self, name: str, tried: WakeTry) -> None:
        self._tries[name] = tried
        heapq.heappush(self._heap, (tried.next_us, name))

    def _at(self, name: str) -> int | None:
        """Return when a tenant has to be checked; None: it is not wanted."""
        tried = self._tries.get(name)
        return self._index.due.get(name) if tried is None else tried.next_us
