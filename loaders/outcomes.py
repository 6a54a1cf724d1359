"""Outcomes: hands the ends of steps to a lifetime's code one at a time, in the order of the log.

The next one is handed over when the code has gone as far as it can with the one before, as in a
replay; so a race between steps has the same winner live and replayed. An error is decided by the
supervisor, while a value is handed over as soon as it is sent: where a failure is likely to be the
last, its place is kept until the answer comes, so that what was sent after it stays behind it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextvars import Context
from typing import Protocol, TypeAlias

from . import wire

Outcome: TypeAlias = tuple[bytes | None, wire.Error | None]

PLACE_KEPT_S = 0.25
"""How long a place is kept; an answer that takes longer is a retry after all."""


class Awaited(Protocol):
    """A step that code may be waiting for."""

    def wake(self, outcome: Outcome) -> None:
        """Hand the outcome over."""
        ...


class _Place:
    __slots__ = ("outcome", "step", "timer")

    def __init__(self, step: Awaited, outcome: Outcome | None) -> None:
        self.step = step
        self.outcome = outcome
        self.timer: asyncio.TimerHandle | None = None


class Outcomes:
    """The ends of steps that one lifetime has not been told of yet."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._places: deque[_Place] = deque()
        self._kept: dict[Awaited, _Place] = {}
        self._is_busy = False
        """The code has been given one and may still go on with it."""

    def __bool__(self) -> bool:
        """Whether something is ready to be handed over, now or after a kept place."""
        return any(place.outcome is not None for place in self._places)

    def add(self, step: Awaited, outcome: Outcome) -> None:
        """A step has ended: hand it over when it is its turn."""
        place = self._kept.pop(step, None) if self._kept else None
        if place is not None:
            place.outcome = outcome
            self._stop(place)
            self._next()
        elif self._is_busy or self._places:
            self._places.append(_Place(step, outcome))
        else:
            self._is_busy = True
            step.wake(outcome)

    def keep_place(self, step: Awaited) -> None:
        """A step has failed, probably for good: what ends after it is handed over after it."""
        place = self._kept[step] = _Place(step, None)
        place.timer = self._loop.call_later(
            PLACE_KEPT_S, self.give_up_place, step, context=Context()
        )
        self._places.append(place)

    def give_up_place(self, step: Awaited) -> None:
        """The step is tried again after all."""
        place = self._kept.pop(step, None) if self._kept else None
        if place is not None:
            self._stop(place)
            self._places.remove(place)
            self._next()

    def on_still(self) -> bool:
        """The code has gone as far as it can; True when it was given the next outcome."""
        self._is_busy = False
        return self._next()

    def close(self) -> None:
        """Nobody is to be told anything any more."""
        for place in self._places:
            self._stop(place)
        self._places.clear()
        self._kept.clear()

    def _next(self) -> bool:
        if self._is_busy or not self._places or self._places[0].outcome is None:
            return False
        place = self._places.popleft()
        self._is_busy = True
        assert place.outcome is not None
        place.step.wake(place.outcome)
        return True

    def _stop(self, place: _Place) -> None:
        if place.timer is not None:
            place.timer.cancel()
