"""Admission: who may start next, and how many may be created a second."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from itertools import islice

from ..instances.index_entry import NOT_QUEUED, WOKEN, IndexEntry

_LOOK = 256


class Queues:
    """Instances that could run: woken ones go before new ones, each kind in order of arrival."""

    def __init__(self) -> None:
        # Ordered dicts: taking the first of a plain dict is slow once many in front were deleted.
        self._woken: OrderedDict[int, IndexEntry] = OrderedDict()
        self._new: OrderedDict[int, IndexEntry] = OrderedDict()
        self._failing: OrderedDict[int, IndexEntry] = OrderedDict()

    def __len__(self) -> int:
        return len(self._woken) + len(self._new)

    def add(self, summary: IndexEntry, queue: int) -> None:
        """Put it at the end of `WOKEN` or `NEW`; where it is in that queue already it keeps its
        place."""
        if summary.queue == queue:
            return
        self.remove(summary)
        summary.queue = queue
        (self._woken if queue == WOKEN else self._new)[id(summary)] = summary

    def remove(self, summary: IndexEntry) -> None:
        """Take it out of whatever queue it is in."""
        if summary.queue == NOT_QUEUED:
            return
        del (self._woken if summary.queue == WOKEN else self._new)[id(summary)]
        self._failing.pop(id(summary), None)
        summary.queue = NOT_QUEUED

    def note_failing(self, summary: IndexEntry) -> None:
        """Its code cannot be loaded: offer it after all others."""
        if summary.queue != NOT_QUEUED:
            self._failing[id(summary)] = summary

    def first(self, free: int) -> Iterator[IndexEntry]:
        """Up to `free` of them in order; the caller may start each as it goes."""
        for queue in (self._woken, self._new):
            skipped = 0
            while free > 0:
                chunk = list(islice(queue.values(), skipped, skipped + _LOOK))
                for summary in chunk:
                    if free > 0 and summary.queue and id(summary) not in self._failing:
                        yield summary
                        free -= 1
                    skipped += id(summary) in queue
                if len(chunk) < _LOOK:
                    break
        for summary in list(islice(self._failing.values(), max(free, 0))):
            if summary.queue:
                yield summary


class Bucket:
    """Tokens for creates: `rate` a second, at most `burst` saved up (one second's worth if None).

    A batch is taken whole where a single create would be; the debt it leaves is at most one
    second's worth, so that a batch of 10,000 is possible at any rate."""

    def __init__(self, rate: float, burst: float | None = None) -> None:
        self._rate = rate
        self._burst = max(rate if burst is None else burst, 1.0)
        self._tokens = self._burst
        self._at_us = 0

    def take(self, n: int, now_us: int) -> float:
        """Take n; returns 0.0, or in how many seconds to try again where nothing was taken."""
        capacity = self._burst
        passed_s = max(now_us - self._at_us, 0) / 1e6
        tokens = min(capacity, self._tokens + passed_s * self._rate) if self._at_us else capacity
        if tokens < 1.0:
            self._tokens, self._at_us = tokens, now_us
            return (1.0 - tokens) / self._rate if self._rate > 0 else 60.0
        self._tokens, self._at_us = max(tokens - n, -max(self._rate, 1.0)), now_us
        return 0.0
