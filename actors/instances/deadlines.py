"""Deadlines: all timers of a tenant in one heap; a cancelled timer leaves no lasting cost."""

from __future__ import annotations

import heapq
import itertools
from typing import Any


class Deadline:
    """A timer that is due at `due_us`. `kind` and the two owners say what it belongs to."""

    __slots__ = ("due_us", "kind", "owner", "step")

    def __init__(self, due_us: int, kind: str, owner: object, step: object) -> None:
        self.due_us = due_us
        self.kind = kind
        self.owner = owner
        self.step = step


_REBUILD_MIN = 256


class DeadlineHeap:
    """A heap of timers, ordered by due time and then by arming.

    A cancelled timer stays in the heap without its kind; when more than half of the heap is
    cancelled it is rebuilt, so it is never much larger than the number of live timers (a busy
    tenant arms and cancels an attempt timeout for each step).
    """

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, Deadline]] = []
        self._order = itertools.count()
        self._cancelled = 0

    def __len__(self) -> int:
        return len(self._heap) - self._cancelled

    def arm(self, due_us: int, kind: str, owner: object, step: object = None) -> Deadline:
        """Add and return a timer of this kind."""
        timer = Deadline(due_us, kind, owner, step)
        heapq.heappush(self._heap, (due_us, next(self._order), timer))
        return timer

    def cancel(self, timer: Deadline) -> None:
        """Cancel the timer; harmless when it has fired."""
        if not timer.kind:
            return
        timer.kind, timer.owner, timer.step = "", None, None
        self._cancelled += 1
        if self._cancelled > _REBUILD_MIN and self._cancelled * 2 > len(self._heap):
            self._heap = [entry for entry in self._heap if entry[2].kind]
            heapq.heapify(self._heap)
            self._cancelled = 0

    def next_due_us(self) -> int | None:
        """Return when the earliest live timer is due."""
        while self._heap and not self._heap[0][2].kind:
            heapq.heappop(self._heap)
            self._cancelled -= 1
        return self._heap[0][0] if self._heap else None

    def pop_due(self, now_us: int) -> tuple[str, Any, Any] | None:
        """Fire the earliest timer due by `now_us` and return (kind, owner, step); None if there is
        none."""
        due_us = self.next_due_us()
        if due_us is None or due_us > now_us:
            return None
        timer = heapq.heappop(self._heap)[2]
        fired = timer.kind, timer.owner, timer.step
        timer.kind, timer.owner, timer.step = "", None, None
        return fired

    def earliest(self, kinds: frozenset[str]) -> int | None:
        """Return when the earliest live timer of these kinds is due; scans every timer."""
        return min((due for due, _, timer in self._heap if timer.kind in kinds), default=None)
