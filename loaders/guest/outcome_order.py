"""Outcomes: hands the ends of steps to a lifetime's code one at a time, in a fixed order.

The order is that in which the guest sent `Done` or got `Answer`; the supervisor records the ends in
the same one (`Done` says how many answers had come). The next one is handed over when the code has
gone as far as it can with the one before, as in a replay; so a race between steps, or between a
step and a timer of asyncio, has the same winner live and replayed.
"""

from __future__ import annotations

from collections import deque
from typing import Protocol, TypeAlias

from ..protocol import messages

Outcome: TypeAlias = tuple[bytes | None, messages.Error | None]


class Awaited(Protocol):
    """A step or a timer that code may be waiting for."""

    def wake(self, outcome: Outcome) -> bool:
        """Hand the outcome over; False when nobody waits for it any more."""
        ...


class Taker(Protocol):
    """A lifetime, as its outcomes see it."""

    def is_alone(self) -> bool:
        """Whether the code can do nothing but wait for this one outcome."""
        ...

    def may_tell(self) -> bool:
        """Whether the replay is over."""
        ...

    def tell(self, step: Awaited, outcome: Outcome) -> bool:
        """Hand over what is new to every lifetime."""
        ...

    def touch(self) -> None:
        """Look whether it is still when the loop has nothing else to do."""
        ...


class Outcomes:
    """The ends of steps that one lifetime has not been told of yet."""

    def __init__(self, life: Taker) -> None:
        self._life = life
        self._waiting: deque[tuple[Awaited, Outcome]] = deque()

    def __bool__(self) -> bool:
        """Whether something is to be handed over."""
        return bool(self._waiting)

    def add(self, step: Awaited, outcome: Outcome) -> None:
        """A step has ended: hand it over when it is its turn."""
        life = self._life
        if not self._waiting and life.may_tell() and life.is_alone():
            life.tell(step, outcome)
        else:
            self._waiting.append((step, outcome))
            life.touch()

    def on_still(self) -> bool:
        """The code has gone as far as it can; True when it was given the next outcome."""
        while self._waiting:
            if self._life.tell(*self._waiting.popleft()):
                return True
        return False

    def close(self) -> None:
        """Nobody is to be told anything any more."""
        self._waiting.clear()
