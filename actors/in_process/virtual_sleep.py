"""Virtual sleep: runs tenant code's timers of the event loop (asyncio.sleep, a timeout) in
virtual time.

Tenant code of a testing platform shares the loop of the test, whose timers run in real time. A
timer of tenant code that is due in more than a moment is set on the virtual clock as well, and
fires when the first of the two is due.
"""

from __future__ import annotations

from typing import Any

from dynamic_workflows.eventlog.asyncio_internals import (
    call_of,
    context_of,
    is_set,
    timer_handles,
)
from dynamic_workflows.eventlog.clock import US, TimerHandle, VirtualClock
from dynamic_workflows.loaders.isolates.inline import InlineIsolates


class VirtualSleeps:
    """The event loop's timers of one platform's tenant code."""

    def __init__(self, virtual: VirtualClock, isolates: InlineIsolates) -> None:
        self._virtual = virtual
        self._isolates = isolates
        self._set: dict[int, tuple[Any, TimerHandle]] = {}

    def next_s(self, loop: Any, *, longest_s: float) -> float | None:
        """Return when the next such timer is due that is waited for in real time (loop time).

        The others are on the virtual clock from then on.
        """
        for number, (handle, timer) in list(self._set.items()):
            if not is_set(handle):
                timer.cancel()
                del self._set[number]
        earliest: float | None = None
        for handle in timer_handles(loop):
            if handle.cancelled() or id(handle) in self._set:
                continue
            if not self._isolates.runs(context_of(handle)):
                continue
            rest_s = handle.when() - loop.time()
            if rest_s > longest_s:
                self._put_on_the_clock(loop, handle, rest_s)
            elif earliest is None or handle.when() < earliest:
                earliest = handle.when()
        return earliest

    def _put_on_the_clock(self, loop: Any, handle: Any, rest_s: float) -> None:
        def fire() -> None:
            self._set.pop(id(handle), None)
            if is_set(handle):
                callback, args, context = call_of(handle)
                handle.cancel()
                loop.call_soon(callback, *args, context=context)

        due_us = self._virtual.now_us() + round(rest_s * US)
        self._set[id(handle)] = (handle, self._virtual.call_at(due_us, fire))
