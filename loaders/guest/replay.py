"""Replay: what history holds of a run, asked for again by kind, name and occurrence.

`run` is told what it was told live, in the same order: the ends of steps and the timers of asyncio
that came due, one at a time, each when the code has gone as far as it can with the one before. So a
race has the same winner again, and a time-out that fired fires again at the same point, whatever
the clock says. Where the code is alone (it has one task, and no timer) it goes on at once.

Nothing new starts before all of it was told. If the code stands still without having asked for what
comes next, it takes another way than it took, and the instance is parked instead of going on
silently. A step that the code cancelled is never told: the code has to cancel it again.

A step that ran inside another step's callback need not be asked for again: the outer step answers
from history without its callback. Its occurrence stays taken, so that those which are asked for
keep theirs; a callback that runs again finds the nested steps that it left.
"""

from __future__ import annotations

import asyncio
import heapq
import zlib
from operator import attrgetter
from typing import Any, Protocol, TypeAlias

from ..protocol.contract import CANCELLED, DO, SLEEP, TIMER, VALUE, WAIT
from ..protocol.messages import Cancelled, Mismatch, RecordedStep

StepKey: TypeAlias = tuple[str, str, int]
"""(kind, name, count)"""

NESTED = " in step "
"""In a recorded place, what sets the place apart from the step whose callback asked."""

LABEL_CHARACTERS_MAX = 60


class UnansweredStep(Protocol):
    """A step that history does not answer."""

    kind: str
    name: str
    count: int
    at: str | None
    is_resumed: bool
    """History knows it as unfinished."""
    is_nested: bool
    is_finished: bool


class ReplayedTimers(Protocol):
    """The timers of asyncio that `run` has set."""

    def fire(self, number: int) -> bool | None:
        """Let one come due; False: it was cancelled; None: it was not set yet."""
        ...

    def go_live(self) -> None:
        """The replay is over: the others come due by the clock."""
        ...


class Replaying(Protocol):
    """The lifetime, as its replay sees it."""

    timers: Any
    is_replaying: bool

    def is_alone(self) -> bool:
        """Whether the code can do nothing but go on with what it asks for now."""
        ...

    def touch(self) -> None:
        """Look whether it is still when the loop has nothing else to do."""
        ...

    def ask(self, asked: Any, message: Any) -> None:
        """Send the message that asks for a step."""
        ...

    def send(self, message: object) -> None:
        """Say something to the supervisor."""
        ...


class Replay:
    """The history of one lifetime, and what waits until it has been gone through."""

    def __init__(self, life: Replaying, history: list[RecordedStep], told: int = -1) -> None:
        self._life = life
        self._told = told
        self.known: dict[StepKey, RecordedStep] = {}
        """Steps that have not been asked for yet."""
        self._order: list[RecordedStep] = []
        """What the code was told, in order; of cancelled steps when they were cancelled."""
        self._next = 0
        self._turns: dict[StepKey, asyncio.Future[None]] = {}
        """Who waits to be told."""
        self._given_up: set[StepKey] = set()
        self._held: list[tuple[UnansweredStep | None, Any]] = []
        self._rerun: list[UnansweredStep] = []
        self._counts: dict[str, dict[str, int]] = {DO: {}, SLEEP: {}, WAIT: {}}
        self._nested: set[StepKey] = set()
        self._nested_turns: list[tuple[int, int, asyncio.Future[None]]] = []
        self._nested_asked = 0
        self._left: dict[tuple[str, str, str], list[int]] = {}
        for known in history:
            key = (known.kind, known.name, known.count)
            if known.kind != TIMER:
                self.known[key] = known
            if known.at is not None and NESTED in known.at:
                self._nested.add(key)
                if known.outcome != CANCELLED:
                    outer = known.at.rpartition(NESTED)[2]
                    self._left.setdefault((known.kind, known.name, outer), []).append(known.count)
            elif known.outcome:
                self._order.append(known)
        self._order.sort(key=attrgetter("ended"))

    def occurrence(self, kind: str, name: str, outer: str | None) -> int:
        """The number of a step that is asked for now; `outer` labels the step it is nested in."""
        counts = self._counts[kind]
        if self._nested:
            left = self._left.get((kind, name, outer)) if outer is not None else None
            if left:
                return left.pop(0)
            count = counts.get(name, 0) + 1
            while (kind, name, count) in self._nested:
                count += 1
        else:
            count = counts.get(name, 0) + 1
        counts[name] = count
        return count

    def take(self, key: StepKey) -> RecordedStep | None:
        """What history holds of a step that the code asks for now."""
        return self.known.pop(key, None)

    # --- telling ---------------------------------------------------------------------------------

    def comes_next(self, known: RecordedStep) -> bool:
        """Whether the code may be told at once; then it is."""
        order, at = self._order, self._next
        if at < len(order) and order[at] is known and self._life.is_alone():
            self._advance(known)
            return True
        return False

    async def wait_for_turn(self, known: RecordedStep) -> None:
        """Wait until what was told before has been told; of a cancelled step: for ever."""
        key = (known.kind, known.name, known.count)
        if key in self._nested and known.outcome != CANCELLED:
            inner: asyncio.Future[None] = asyncio.Future(loop=asyncio.get_running_loop())
            self._nested_asked += 1
            heapq.heappush(self._nested_turns, (known.ended, self._nested_asked, inner))
            self._life.touch()
            await inner
            return
        turn: asyncio.Future[None] = asyncio.Future(loop=asyncio.get_running_loop())
        self._turns[key] = turn
        self._life.touch()
        try:
            await turn
        except asyncio.CancelledError:
            if self._turns.pop(key, None) is not None:
                self._give_up(known)
            raise

    def answer_nested(self) -> bool:
        """The code stands still: tell a callback that runs again of the first of what it left."""
        while self._nested_turns:
            inner = heapq.heappop(self._nested_turns)[2]
            if not inner.done():
                inner.set_result(None)
                return True
        return False

    def _give_up(self, known: RecordedStep) -> None:
        """The code does not wait for it any more."""
        self._given_up.add((known.kind, known.name, known.count))
        if known.kind == WAIT and known.outcome == VALUE:
            # Live, this and the event crossed each other: the event is somebody else's.
            self.say(Cancelled(0, known.kind, known.name, known.count))

    def answer_next(self) -> bool:
        """The code stands still: tell it what comes next; False when it has not asked for that."""
        while self._next < len(self._order):
            known = self._order[self._next]
            key = (known.kind, known.name, known.count)
            if known.kind == TIMER:
                fired = self._life.timers.fire(known.count)
                if fired is None:
                    return False
                self._advance(known)
                if fired:
                    return True
            elif key in self._given_up:
                self._advance(known)
            elif known.outcome != CANCELLED and (turn := self._turns.pop(key, None)) is not None:
                self._advance(known)
                turn.set_result(None)
                return True
            else:
                return False
        return False

    def _advance(self, known: RecordedStep) -> None:
        self._next += 1
        self._life.is_replaying = known.ended <= self._told
        if self._next == len(self._order):
            self._order.clear()
            self._next = 0
            self._release()

    # --- asking ----------------------------------------------------------------------------------

    def ask(self, asked: Any, message: Any) -> None:
        """Send the message that asks, now or when the replay is over."""
        if self._order and not asked.is_nested:
            self._held.append((asked, message))
        else:
            self._life.ask(asked, message)

    def say(self, message: object) -> None:
        """Send a message, now or when the replay is over."""
        if self._order:
            self._held.append((None, message))
        else:
            self._life.send(message)

    def withdraw(self, asked: object) -> bool:
        """The code cancelled a step: True when it is only held here, and not asked for yet."""
        for at, (held, _) in enumerate(self._held):
            if held is not None and held is asked:
                del self._held[at]
                if asked.is_resumed:
                    self.say(Cancelled(0, asked.kind, asked.name, asked.count))
                return True
        return False

    @property
    def is_incomplete(self) -> bool:
        """Whether the code has not been told all that history holds."""
        return bool(self._order)

    def settle(self) -> Mismatch | None:
        """The code stands still without having asked for what comes next: what does not fit."""
        # A callback that a crash cut off may hold the steps that are missing; it has to run again.
        resumed = [
            (asked, message)
            for asked, message in self._held
            if asked is not None and asked.is_resumed and asked.kind == DO
        ]
        if resumed:
            again = {id(asked) for asked, _ in resumed}
            self._held = [held for held in self._held if id(held[0]) not in again]
            for asked, message in resumed:
                self._rerun.append(asked)
                self._life.ask(asked, message)
        if any(not asked.is_finished for asked in self._rerun):
            return None
        return self._mismatch()

    def _release(self) -> None:
        self._life.timers.go_live()
        held, self._held = self._held, []
        for asked, message in held:
            if asked is None:
                self._life.send(message)
            else:
                self._life.ask(asked, message)

    def _mismatch(self) -> Mismatch:
        missing = self._order[self._next]
        asked = next((asked for asked, _ in self._held if asked is not None), None)
        return Mismatch(
            missing.kind,
            missing.name,
            missing.count,
            missing.at,
            asked.kind if asked else None,
            asked.name if asked else None,
            asked.count if asked else 0,
            asked.at if asked else None,
            missing.outcome == CANCELLED
            and (missing.kind, missing.name, missing.count) in self._turns,
        )


def label(name: str, count: int) -> str:
    """A step as the place of another names it; short, and different for different steps."""
    if len(name) > LABEL_CHARACTERS_MAX:
        name = f"{name[:LABEL_CHARACTERS_MAX]}… {zlib.crc32(name.encode()):08x}"
    return f"{name!r} {count}"
