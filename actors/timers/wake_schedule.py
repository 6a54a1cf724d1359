"""Wake schedule: which tenants have to be opened now, and when each is tried again. No I/O.

A tenant wants to be opened when it sleeps and is due, or when it is listed as open and lives
nowhere. It goes on wanting until its entry in the index has become a newer one: what the loader
answers decides only how soon it is asked again, and why the tenant is late. So no answer, wrong
answer, or lost message can lose a wake-up.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable

import msgspec

from dynamic_workflows.eventlog.clock import US

from .tenant_entry import OPEN, TenantEntry
from .timer_index import TimerIndex

HORIZON_US = 60 * US
"""How far ahead due times are kept in order; the index is looked through as often."""
IN_FLIGHT_S = 15.0
"""When a tenant is tried again of which nothing is heard at all."""
AGAIN_S = (1.0, 2.0, 5.0)
"""Rests after the loader has it in hand, or says that it is open, and its entry says otherwise."""
REFUSED_S = (0.2, 1.0, 5.0, 15.0, 60.0)
"""Rests after a tenant could not be opened."""


class WakeTry(msgspec.Struct):
    """A tenant that is wanted and was tried, or is about to be."""

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

    def look(self, now_us: int) -> None:
        """Notice that time has passed, or that the clock was set back."""
        if now_us < self._seen_us:
            for tried in self._tries.values():
                tried.next_us = min(tried.next_us, now_us + US)
            self._fill(now_us)
        elif now_us >= self._until_us:
            self._fill(now_us)
        self._seen_us = now_us

    def _fill(self, now_us: int) -> None:
        """Take the near future out of the index; the rest of it needs no second place in memory."""
        self._until_us = now_us + HORIZON_US
        self._heap = [(t.next_us, name) for name, t in self._tries.items()]
        self._heap += [
            (due_us, name)
            for name, due_us in self._index.due.items()
            if due_us <= self._until_us and name not in self._tries
        ]
        heapq.heapify(self._heap)

    def changed(self, names: Iterable[str]) -> None:
        """The entries of these tenants may be newer ones now."""
        for name in names:
            tried = self._tries.get(name)
            if tried is not None and tried.entry != self._index.entry(name):
                del self._tries[name]
            due_us = self._index.due.get(name)
            if due_us is not None and due_us <= self._until_us and name not in self._tries:
                heapq.heappush(self._heap, (due_us, name))

    def lost(self, names: Iterable[str], now_us: int) -> int:
        """These are listed as open and live nowhere; answers how many are news."""
        news = 0
        for name in names:
            entry = self._index.entry(name)
            if entry is not None and entry.is_open and name not in self._tries:
                self._plan(name, WakeTry(entry, 0, now_us, ""))
                news += 1
        return news

    def take(self, now_us: int, limit: int) -> list[str]:
        """Whom to ask for now, those that have waited longest first; `answered` tells the rest."""
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
        """The loader could not open it, for this reason: it is asked again, ever more seldom."""
        self._again(name, now_us, reason, REFUSED_S)

    def not_yet(self, name: str, now_us: int, reason: str) -> None:
        """It is not open so far, for this reason: the loader is asked again soon."""
        self._again(name, now_us, reason, AGAIN_S)

    def said_open(self, name: str, now_us: int) -> None:
        """The loader says that it is open: believed of one that is listed so, and of no other."""
        tried = self._tries.get(name)
        if tried is not None and tried.entry.is_open:
            del self._tries[name]
        else:
            reason = "the loader says that it is open, its owner has not said so"
            self._again(name, now_us, reason, AGAIN_S)

    def _again(self, name: str, now_us: int, reason: str, rests_s: tuple[float, ...]) -> None:
        tried = self._tries.get(name)
        if tried is not None:  # else its entry has moved on
            tried.reason = reason
            rest_s = rests_s[min(tried.count, len(rests_s)) - 1]
            tried.rest_s = rest_s
            tried.next_us = now_us + round(rest_s * US)
            self._plan(name, tried)
            # Each is written down at its 2nd, 4th, 8th, … try: a first one says little.
            if tried.count > 1 and not tried.count & (tried.count - 1):
                self._index.note(name, tried.count, reason, rest_s=rest_s, now_us=now_us)

    def next_us(self) -> int | None:
        """When `take` may have somebody, or `look` something to do; None: never."""
        while self._heap and self._at(self._heap[0][1]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        if self._heap:
            return min(self._heap[0][0], self._until_us)
        return self._until_us if self._index.due else None

    def get(self, name: str) -> WakeTry | None:
        """How the wake-up of a tenant fares; None: it was not wanted yet, or is open."""
        return self._tries.get(name)

    def is_first_try(self, name: str) -> bool:
        """Whether a tenant that `take` has just given was never asked for before, and slept."""
        tried = self._tries[name]
        return tried.count == 1 and tried.entry.due_us != OPEN

    def _plan(self, name: str, tried: WakeTry) -> None:
        self._tries[name] = tried
        heapq.heappush(self._heap, (tried.next_us, name))

    def _at(self, name: str) -> int | None:
        """When a tenant has to be looked at; None: it wants nothing."""
        tried = self._tries.get(name)
        return self._index.due.get(name) if tried is None else tried.next_us
