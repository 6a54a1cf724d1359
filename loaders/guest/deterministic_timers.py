"""Deterministic timers: the timers of asyncio that `run` sets, outside of callbacks.

`asyncio.sleep`, `timeout`, `wait_for` and the like set them. Each has a number, in the order in
which the code sets them. One that comes due is told to the supervisor, which records it in one
order with the ends of steps, and then handed to the code in its turn. In a replay none comes due by
the clock: those that are recorded do in their turn, and the others are set when the replay is over.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from contextvars import Context
from typing import Any, Protocol

from dynamic_workflows.eventlog.asyncio_internals import ready_handles

from ..protocol import messages
from ..sdk.entrypoints import WorkflowFatalError
from .guest_services import GuestServices
from .outcome_order import Outcomes
from .replay import Replay


class TimerHost(Protocol):
    """A lifetime, as the timers of its `run` see it."""

    guest: GuestServices
    run: messages.Run
    replay: Replay
    outcomes: Outcomes
    heard: int
    """Answers to requests for steps that have come."""
    is_plain: bool
    is_rollback: bool

    @property
    def is_over(self) -> bool:
        """Whether nothing of `run` is to be recorded any more."""
        ...

    def send(self, message: object) -> None:
        """Send a message to the supervisor, unless nothing of it is to be recorded any more."""
        ...

    def touch(self) -> None:
        """Look whether the lifetime is quiet when the loop has nothing else to do."""
        ...


class RunTimer(asyncio.TimerHandle):
    """A timer of `run`, as asyncio hands it to the code that set it."""

    __slots__ = ("_timers", "at", "number", "real")

    def __init__(
        self,
        timers: RunTimers,
        number: int,
        at: str | None,
        when: float,
        callback: Callable[..., Any],
        args: tuple[Any, ...],
        loop: asyncio.AbstractEventLoop,
        context: Context,
    ) -> None:
        super().__init__(when, callback, args, loop, context)
        self._timers = timers
        self.number = number
        self.at = at
        self.real: asyncio.TimerHandle | None = None
        """The loop's own timer, once there is one."""

    @property
    def context(self) -> Context:
        """The context that the callback runs in."""
        context: Context = self._context  # type: ignore[attr-defined]
        return context

    def cancel(self) -> None:
        """Cancel the timer, as `TimerHandle.cancel`."""
        self._timers.pending.pop(self.number, None)
        if self.real is not None:
            self.real.cancel()
        super().cancel()

    def wake(self, outcome: object) -> bool:
        """Run the callback in the next turn of the loop. Return False if it was cancelled."""
        if self._timers.pending.pop(self.number, None) is None:
            return False
        self._timers.run(self)
        return True


class RunTimers:
    """The timers that the `run` of one lifetime has set."""

    def __init__(self, life: TimerHost) -> None:
        self._life = life
        self._last = 0
        self.pending: dict[int, RunTimer] = {}
        """Timers that are neither due nor cancelled, by number."""
        self._call_at: Any = None

    def arm(
        self,
        call_at: Callable[..., asyncio.TimerHandle],
        when: float,
        callback: Callable[..., Any],
        args: tuple[Any, ...],
        context: Context,
    ) -> asyncio.TimerHandle:
        """Set a timer; `call_at` is the loop's own. Raises WorkflowFatalError for one too many."""
        life = self._life
        if life.is_over:
            return call_at(when, callback, *args, context=context)
        life.is_plain = False
        self._last += 1
        if self._last > life.run.waits_max:
            raise WorkflowFatalError(
                f"the limit of {life.run.waits_max:,} timers of asyncio is reached: wait with"
                " step.sleep, or inside a step"
            )
        at = life.guest.place(sys._getframe(2))
        timer = RunTimer(self, self._last, at, when, callback, args, life.guest.loop, context)
        self.pending[timer.number] = timer
        self._call_at = call_at
        if not life.replay.is_incomplete:
            self._set(timer)
        return timer

    def _set(self, timer: RunTimer) -> None:
        if not self._life.is_rollback:
            timer.real = self._call_at(timer.when(), self._due, timer, context=timer.context)

    def go_live(self) -> None:
        """The replay is over: pending timers come due by the clock from now on."""
        for timer in list(self.pending.values()):
            self._set(timer)

    def fire(self, number: int) -> bool | None:
        """Let a recorded timer come due. Return False if it was cancelled, None if it is not set
        yet."""
        timer = self.pending.get(number)
        if timer is None:
            return False if number <= self._last else None
        return timer.wake(None)

    def drop(self) -> None:
        """The lifetime is dropped: timers come due by the clock, for code that cleans up."""
        for timer in list(self.pending.values()):
            if timer.real is None:
                timer.real = self._call_at(timer.when(), self._due, timer, context=timer.context)

    def _due(self, timer: RunTimer) -> None:
        life = self._life
        if life.is_over:
            timer.wake(None)
            return
        life.send(messages.RunTimerFired(timer.number, timer.at, life.heard))
        life.outcomes.add(timer, (None, None))

    def run(self, timer: RunTimer) -> None:
        """Let the loop call what the timer was set for."""
        ready_handles(self._life.guest.loop).append(timer)
        self._life.touch()
