"""Cancellation: the tasks and threads of a lifetime, call or attempt that was told to end.

Cancelling is a request: code may clean up for a while, and some goes on for ever. So the tasks and
threads are tracked until all have ended, those included that they start meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import Context
from types import CoroutineType
from typing import Any, Protocol

from dynamic_workflows.eventlog.asyncio_internals import context_of, ready_handles, timer_handles

from .quiescence import CURRENT

GRACE_S = 5.0
"""Seconds that code may go on after it was told to end, unless the supervisor sets others."""

_AWAITED_MAX = 64
_NOBODY = Context()
"""The platform's own callbacks run in no lifetime's context."""


class TrackedWork(Protocol):
    """A task, or a function in a thread."""

    def done(self) -> bool:
        """Whether it has ended."""
        ...

    def cancel(self) -> object:
        """Request that it ends."""
        ...

    def add_done_callback(self, function: Callable[[Any], Any], *, context: Context) -> None:
        """Call a function, with this, when it has ended."""
        ...


class PendingEnd:
    """The work of a lifetime or call (`token` None), or of one attempt, until all has ended."""

    __slots__ = (
        "_on_gone", "_work", "attempt", "calls", "due_s", "gone_s", "is_expected", "is_gone",
        "is_spared", "number", "strikes", "told_s", "token",
    )  # fmt: skip

    def __init__(
        self,
        number: int,
        on_gone: Callable[[PendingEnd], None],
        token: int | None = None,
        attempt: int = 0,
    ) -> None:
        self.number = number
        self.token = token
        self.attempt = attempt
        self.is_gone = False
        self.is_expected = True
        """Whether the supervisor is to be told of its end; if not, it has to say so first."""
        self.strikes = 0
        self.calls = 0
        """Calls of services that it waits for while it tidies up."""
        self.is_spared = False
        self.told_s = 0.0
        """The loop's time at which it was told to end."""
        self.due_s = 0.0
        self.gone_s = 0.0
        self._on_gone = on_gone
        self._work: set[TrackedWork] = set()

    def take(self, work: TrackedWork) -> None:
        """Track this work too. It is cancelled if everything else has ended already."""
        if self.is_gone:
            work.cancel()
        elif work not in self._work:
            self._work.add(work)
            work.add_done_callback(self._ended, context=_NOBODY)

    def cancel(self) -> None:
        """Cancel all of the work."""
        for work in list(self._work):
            work.cancel()

    def leave_with(self, last: TrackedWork) -> bool:
        """Whether all work but `last` has ended, which ends by itself: then all counts as ended."""
        if self._work <= {last}:
            self.is_gone = True
        return self.is_gone

    def settle(self) -> None:
        """Report the end if all work has ended."""
        if not self._work and not self.is_gone:
            self.is_gone = True
            self._on_gone(self)

    def _ended(self, work: TrackedWork) -> None:
        self._work.discard(work)
        self.settle()

    def frames(self) -> list[object]:
        """Where its tasks wait: of each the frames from the inside out."""
        found: list[object] = []
        for work in self._work:
            if isinstance(work, asyncio.Task):
                found += frames_of(work)
        return found


class CancellationTracker:
    """Everything in a guest that was told to end and has not; reports what ignores that."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        on_gone: Callable[[PendingEnd], None],
        on_stubborn: Callable[[PendingEnd], None],
    ) -> None:
        self.grace_s = GRACE_S
        self._loop = loop
        self._on_gone = on_gone
        self._on_stubborn = on_stubborn
        self._watched: dict[PendingEnd, None] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._sweep_timer: asyncio.TimerHandle | None = None
        self._is_closed = False

    def leaving(self, number: int, token: int | None = None, attempt: int = 0) -> PendingEnd:
        """To count the work of something in."""
        leaving = PendingEnd(number, self._gone, token, attempt)
        leaving.told_s = self._loop.time()
        return leaving

    def may_tidy(self, leaving: PendingEnd) -> bool:
        """Whether what was told to end may still call services."""
        return not leaving.is_gone and self._loop.time() < leaving.told_s + self.grace_s

    def watch(self, leaving: PendingEnd) -> None:
        """It was told to end: cancel what is left of it, and again after half of the grace."""
        if leaving.is_expected:
            leaving.cancel()
            leaving.settle()
        else:  # It was told before, and may be tidying up.
            leaving.is_expected = True
            if leaving.is_gone:
                self._on_gone(leaving)
        if not leaving.is_gone:
            self._wait_for(leaving)

    def close(self) -> None:
        """Stop watching, and cancel the timers."""
        self._is_closed = True
        self._watched.clear()
        for timer in (self._timer, self._sweep_timer):
            if timer is not None:
                timer.cancel()

    def _wait_for(self, leaving: PendingEnd) -> None:
        leaving.due_s = self._loop.time() + self.grace_s / 2
        self._watched[leaving] = None
        self._arm()

    def _arm(self) -> None:
        if self._timer is None and self._watched:
            first = next(iter(self._watched))  # they lie in the order in which they are due
            self._timer = self._loop.call_at(first.due_s, self._look, context=Context())

    def _gone(self, leaving: PendingEnd) -> None:
        self._watched.pop(leaving, None)
        if not self._is_closed:
            self.note_gone(leaving)
            if leaving.is_expected:
                self._on_gone(leaving)

    def note_gone(self, leaving: PendingEnd) -> None:
        """All its tasks and threads have ended; cancel its timers and callbacks after the grace."""
        leaving.gone_s = self._loop.time()
        self._sweep_at(leaving.gone_s + self.grace_s)

    def _look(self) -> None:
        now_s = self._loop.time()
        for leaving in [one for one in self._watched if one.due_s <= now_s]:
            del self._watched[leaving]
            if leaving.calls and not leaving.is_spared:
                # It tidies up: it has all of the grace for that before it is cancelled again.
                leaving.is_spared = True
                self._wait_for(leaving)
                continue
            leaving.strikes += 1
            if leaving.strikes == 1:
                leaving.cancel()
                self._wait_for(leaving)
            else:
                self._on_stubborn(leaving)
        self._timer = None
        self._arm()

    # --- timers and callbacks that outlive their tasks

    def _sweep_at(self, when_s: float) -> None:
        if self._sweep_timer is None:
            self._sweep_timer = self._loop.call_at(when_s, self._sweep, context=Context())

    def _sweep(self) -> None:
        """Cancel what is still scheduled for lifetimes that ended longer ago than the grace."""
        self._sweep_timer = None
        loop = self._loop
        now_s = loop.time()
        later_s = 0.0
        for handle in (*timer_handles(loop), *ready_handles(loop)):
            scope = context_of(handle).get(CURRENT)
            leaving = None if scope is None else scope.leaving
            if leaving is None or not leaving.is_gone or handle.cancelled():
                continue
            if leaving.gone_s + self.grace_s <= now_s:
                handle.cancel()
            else:
                later_s = max(later_s, leaving.gone_s)
        if later_s:
            self._sweep_at(later_s + self.grace_s)


def frames_of(task: asyncio.Task[object]) -> list[object]:
    """The frames of a task that waits, the innermost first. What it awaits may be the tenant's."""
    found: list[object] = []
    awaited: object = task.get_coro()
    for _ in range(_AWAITED_MAX):
        if not isinstance(awaited, CoroutineType):
            break
        if awaited.cr_frame is not None:
            found.insert(0, awaited.cr_frame)
        awaited = awaited.cr_await
    return found
