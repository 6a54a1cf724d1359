"""Quiescence: sends a guest's messages in bursts, and notices when a lifetime has become quiet.

A lifetime is quiet when no handle of the event loop carries it: nothing is ready to run for it and
no timer of its own is pending. (A handle carries the lifetime in its context, whoever made it:
gather, TaskGroup, a Queue, asyncio.sleep.) What a thread does cannot be seen here.
"""

from __future__ import annotations

import asyncio
from contextvars import Context, ContextVar
from typing import Any, Protocol

from dynamic_workflows.eventlog.asyncio_internals import (
    carried,
    carries_any,
    context_of,
    ready_handles,
    timer_handles,
)

TURNS_MAX = 8
"""A burst is sent after so many turns of a loop that is never done."""
STEPS_MAX = 32
"""A burst is sent after so many outcomes that one lifetime after another goes on with."""
MESSAGES_MAX = 48
"""A burst is sent when it has so many messages: enough for what each costs in calls and commits to
be shared, few enough for the supervisor to work on one while the guest makes the next."""


class QuiescenceListener(Protocol):
    """A lifetime, as the pulse sees it."""

    is_dirty: bool

    def on_still(self) -> bool:
        """Nothing is ready to run for it, though a timer may be pending. True: it goes on now."""
        ...

    def on_timed(self) -> None:
        """Nothing is ready to run for it, but a timer of it is pending."""
        ...

    def on_quiet(self) -> None:
        """Nothing is ready to run for it, and no timer of it is pending."""
        ...


CURRENT: ContextVar[Any] = ContextVar("current_scope", default=None)
"""The lifetime or call on whose behalf code runs."""


class Pulse:
    """Looks at the event loop of a guest, and at the lifetimes for which something happened."""

    def __init__(self, loop: asyncio.AbstractEventLoop, flush: Any) -> None:
        self._loop = loop
        self._ready = ready_handles(loop)
        self._flush = flush
        self._dirty: list[QuiescenceListener] = []
        self._context = Context()
        self._is_set = False
        self._turns = 0
        self._steps = 0
        self._timer: asyncio.TimerHandle | None = None

    def touch(self, life: QuiescenceListener | None) -> None:
        """Look at a lifetime, and send the burst, when the loop has nothing else to do."""
        if life is not None and not life.is_dirty:
            life.is_dirty = True
            self._dirty.append(life)
        if not self._is_set:
            self._is_set = True
            self._loop.call_soon(self._beat, context=self._context)

    def close(self) -> None:
        """Stop looking, and cancel the timer."""
        self._dirty.clear()
        if self._timer is not None:
            self._timer.cancel()

    def _beat(self) -> None:
        self._is_set = False
        ready = self._ready
        self._turns += 1
        if self._turns < TURNS_MAX and ready and carries_any(ready, CURRENT):
            self._again()
            return
        self._turns = 0
        if self._dirty and self._look(ready):
            # A lifetime goes on with the next of several outcomes: what it says joins the burst.
            self._steps += 1
            if self._steps < STEPS_MAX:
                return
        self._steps = 0
        self._flush()

    def _again(self) -> None:
        if not self._is_set:
            self._is_set = True
            self._loop.call_soon(self._beat, context=self._context)

    def _look(self, ready: Any) -> bool:
        """Tell lifetimes that they are still or quiet; True when one of them goes on."""
        dirty, self._dirty = self._dirty, []
        busy = carried(ready, CURRENT) if ready else _NONE
        scheduled = timer_handles(self._loop)
        timed: set[Any] | frozenset[Any] = carried(scheduled, CURRENT) if scheduled else _NONE
        counted = len(scheduled)
        kept = []
        goes_on = False
        for life in dirty:
            if life in busy:
                kept.append(life)
                continue
            life.is_dirty = False
            if life.on_still():
                goes_on = True
                self.touch(life)
                continue
            if len(scheduled) != counted:  # A replay that was over just now has set its timers.
                timed, counted = carried(scheduled, CURRENT), len(scheduled)
            if life in timed:
                life.on_timed()
                if not life.is_dirty:  # Else it is on the list for the next look.
                    life.is_dirty = True
                    kept.append(life)
            else:
                life.on_quiet()
        if kept:
            self._dirty += kept
            if any(life in busy for life in kept):
                self._again()
            else:
                self._wait_for_timers(kept)
        return goes_on

    def _wait_for_timers(self, kept: list[QuiescenceListener]) -> None:
        """Look again after the next of the timers that keep lifetimes from being quiet."""
        due = min(
            handle.when()
            for handle in timer_handles(self._loop)
            if not handle.cancelled() and context_of(handle).get(CURRENT) in kept
        )
        if self._timer is not None:
            if self._loop.time() < self._timer.when() <= due:
                return
            self._timer.cancel()
        self._timer = self._loop.call_at(due, self._on_timer, context=self._context)

    def _on_timer(self) -> None:
        self._timer = None
        self.touch(None)


_NONE: frozenset[Any] = frozenset()
