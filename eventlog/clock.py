"""Clock: the only source of time. Nothing below the shells reads the time by itself.

Instants are integers: microseconds since 1970 in UTC (`_us`). A virtual clock moves only when told
to, and goes through every timer on the way, in order of due time and then of registration.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Protocol

US = 1_000_000


class TimerHandle(Protocol):
    """A timer that its owner can cancel."""

    def cancel(self) -> None:
        """Cancel the timer; harmless when it has fired."""
        ...


class Clock(Protocol):
    """Time, and timers on it."""

    def now_us(self) -> int:
        """Return the time in microseconds since 1970, UTC."""
        ...

    def call_at(self, due_us: int, callback: Callable[[], None]) -> TimerHandle:
        """Call back in the running event loop at `due_us`, or as soon as possible if it is past."""
        ...


def to_datetime(us: int) -> datetime:
    """Return the instant as an aware UTC datetime."""
    return datetime.fromtimestamp(0, UTC) + timedelta(microseconds=us)


def from_datetime(when: datetime) -> int:
    """Microseconds since 1970, exact; `when` must be aware."""
    return (when - datetime.fromtimestamp(0, UTC)) // timedelta(microseconds=1)


async def sleep(clock: Clock, seconds: float) -> None:
    """Wait on the clock until `seconds` have passed."""
    future = asyncio.get_running_loop().create_future()
    handle = clock.call_at(
        clock.now_us() + round(seconds * US),
        lambda: None if future.done() else future.set_result(None),
    )
    try:
        await future
    finally:
        handle.cancel()


# The loop's own timers may fire late after a suspend and cannot reach far: look again at least once
# a minute, so that a step of the wall clock is noticed.
_LOOK_AGAIN_S = 60.0


class _SystemTimer:
    def __init__(self, due_us: int, callback: Callable[[], None]) -> None:
        self._due_us = due_us
        self._callback = callback
        self._handle: asyncio.Handle | None = None
        self._arm()

    def _arm(self) -> None:
        rest_s = (self._due_us - time.time_ns() // 1000) / US  # noqa: TID251
        loop = asyncio.get_running_loop()
        if rest_s <= 0:
            self._handle = loop.call_soon(self._callback)
        else:
            again = self._callback if rest_s <= _LOOK_AGAIN_S else self._arm
            self._handle = loop.call_later(min(rest_s, _LOOK_AGAIN_S), again)

    def cancel(self) -> None:
        if self._handle is not None:
            self._handle.cancel()


class SystemClock:
    """The clock of the operating system."""

    def now_us(self) -> int:
        """Return the time in microseconds since 1970, UTC."""
        return time.time_ns() // 1000  # noqa: TID251

    def call_at(self, due_us: int, callback: Callable[[], None]) -> TimerHandle:
        """Call back in the running event loop at `due_us`."""
        return _SystemTimer(due_us, callback)


class _VirtualTimer:
    __slots__ = ("callback",)

    def __init__(self, callback: Callable[[], None]) -> None:
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        self.callback = None


class VirtualClock:
    """A clock that stands still until it is moved."""

    def __init__(self, start_us: int = 1_767_225_600 * US) -> None:
        self._now_us = start_us  # 2026-01-01T00:00:00Z unless told otherwise
        self._order = itertools.count()
        self._timers: list[tuple[int, int, _VirtualTimer]] = []

    def now_us(self) -> int:
        """Return the time in microseconds since 1970, UTC."""
        return self._now_us

    def call_at(self, due_us: int, callback: Callable[[], None]) -> TimerHandle:
        """Call back when the clock reaches `due_us`; if that is past, at the next move or fire."""
        timer = _VirtualTimer(callback)
        heapq.heappush(self._timers, (due_us, next(self._order), timer))
        return timer

    def next_due_us(self) -> int | None:
        """When the next timer is due, or None."""
        while self._timers and self._timers[0][2].callback is None:
            heapq.heappop(self._timers)
        return self._timers[0][0] if self._timers else None

    def fire_next(self, *, until_us: int) -> bool:
        """Move to the next timer due by `until_us` and fire it; False when there is none."""
        due_us = self.next_due_us()
        if due_us is None or due_us > until_us:
            return False
        self._now_us = max(self._now_us, due_us)
        callback = heapq.heappop(self._timers)[2].callback
        assert callback is not None, "next_due_us drops cancelled timers"
        callback()
        return True

    def move_to(self, now_us: int) -> None:
        """Set the time, never back; fires nothing."""
        self._now_us = max(self._now_us, now_us)
