"""Replay: what history holds of a run, asked for again by kind, name and occurrence.

Nothing new starts before every finished step of history was asked for, or the lifetime has settled:
it waits for nothing but what is held back here. If finished steps are left by then, the code has
changed under the instance, and it is parked instead of going on silently.

Steps that were in flight together are answered in the order in which they ended, each when the
code has gone as far as it can with the one before: so a race has the same winner again. A step
that nothing overlapped is answered at once.

A step that ran inside another step's callback need not be asked for again: the outer step answers
from history without its callback. Its occurrence stays taken, so that those which are asked for
keep theirs; a callback that runs again finds the nested steps that it left.
"""

from __future__ import annotations

import asyncio
import heapq
import zlib
from collections.abc import Callable
from operator import itemgetter
from typing import Any, Protocol, TypeAlias, TypeVar

from .wire import Known, Mismatch

StepKey: TypeAlias = tuple[str, str, int]
"""(kind, name, count)"""

NESTED = " in step "
"""In a recorded place, what sets the place apart from the step whose callback asked."""

LABEL_CHARACTERS_MAX = 60

DO, SLEEP, WAIT = "do", "sleep", "wait_for_event"


class Asked(Protocol):
    """A step that history does not answer."""

    kind: str
    name: str
    count: int
    at: str | None
    is_resumed: bool
    """History knows it as unfinished."""
    is_finished: bool


A = TypeVar("A", bound=Asked)


def _nowhere(asked: Any, message: Any) -> None:
    raise AssertionError("nothing is held")


class Replay:
    """The history of one lifetime, and what waits until it has been gone through."""

    def __init__(self, history: list[Known]) -> None:
        self.known: dict[StepKey, Known] = {(k.kind, k.name, k.count): k for k in history}
        """What has not been asked for yet."""
        self._rest = sum(1 for known in history if _must_be_asked(known))
        self._held: list[tuple[Asked, Any]] = []
        self._send: Callable[[Any, Any], None] = _nowhere
        self._rerun: list[Asked] = []
        self.overlapped = _overlapped(history)
        """Steps that have to wait for their turn: they were not alone in flight."""
        self._unanswered = 0
        self._waiting: list[tuple[int, asyncio.Future[None]]] = []
        self._counts: dict[str, dict[str, int]] = {DO: {}, SLEEP: {}, WAIT: {}}
        self._nested: dict[StepKey, str] = {}
        self._left: dict[tuple[str, str, str], list[int]] = {}
        for known in history:
            if known.at is not None and NESTED in known.at:
                outer = known.at.rpartition(NESTED)[2]
                self._nested[known.kind, known.name, known.count] = outer
                self._left.setdefault((known.kind, known.name, outer), []).append(known.count)

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

    def take(self, key: StepKey) -> Known | None:
        """What history holds of a step that the code asks for now."""
        known = self.known.pop(key, None)
        if known is not None and known.outcome:
            if _must_be_asked(known):
                self._rest -= 1
            if self._unanswered:
                # What ended before it has not been answered yet.
                self.overlapped.add(key)
            if key in self.overlapped:
                self._unanswered += 1
            elif not self._rest and not self._unanswered and self._held:
                self._release()
        return known

    async def wait_for_turn(self, known: Known) -> None:
        """Wait until what ended before an overlapped step has been answered."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (known.ended, turn))
        await turn

    def answer_next(self) -> bool:
        """Let the next overlapped step have its answer; False when none waits for it."""
        while self._waiting:
            turn = heapq.heappop(self._waiting)[1]
            self._unanswered -= 1
            if not turn.done():
                turn.set_result(None)
                if not self._rest and not self._unanswered:
                    self._release()
                return True
        return False

    def ask(self, asked: A, message: Any, send: Callable[[A, Any], None]) -> None:
        """Send the message that asks, now or when the replay has settled."""
        if self._rest or self._unanswered:
            self._held.append((asked, message))
            self._send = send
        else:
            send(asked, message)

    @property
    def is_holding(self) -> bool:
        """Whether something waits for the replay to settle."""
        return bool(self._held)

    @property
    def is_incomplete(self) -> bool:
        """Whether finished steps of history have not been asked for."""
        return self._rest > 0 or self._unanswered > 0

    def settle(self) -> Mismatch | None:
        """The lifetime waits only for what is held: let it go on, or say what does not fit."""
        # A callback that a crash cut off may hold the steps that are missing; it has to run again.
        resumed = [held for held in self._held if held[0].is_resumed and held[0].kind == DO]
        if resumed:
            self._held = [held for held in self._held if held not in resumed]
            for asked, message in resumed:
                self._rerun.append(asked)
                self._send(asked, message)
        if any(not asked.is_finished for asked in self._rerun):
            return None
        if not self._rest:
            # What is left of the answers was asked for and then not awaited.
            self._unanswered = 0
            self._release()
            return None
        return self._mismatch()

    def _release(self) -> None:
        held, self._held = self._held, []
        for asked, message in held:
            self._send(asked, message)

    def _mismatch(self) -> Mismatch:
        missing = next(known for known in self.known.values() if _must_be_asked(known))
        asked = self._held[0][0] if self._held else None
        return Mismatch(
            missing.kind,
            missing.name,
            missing.count,
            missing.at,
            asked.kind if asked else None,
            asked.name if asked else None,
            asked.count if asked else 0,
            asked.at if asked else None,
        )


def label(name: str, count: int) -> str:
    """A step as the place of another names it; short, and different for different steps."""
    if len(name) > LABEL_CHARACTERS_MAX:
        name = f"{name[:LABEL_CHARACTERS_MAX]}… {zlib.crc32(name.encode()):08x}"
    return f"{name!r} {count}"


def _overlapped(history: list[Known]) -> set[StepKey]:
    """The steps that were in flight together with another one, or in a chain of such."""
    marks = []
    last_end = 0
    is_a_row = True
    for known in history:
        if known.started:
            is_a_row = is_a_row and known.started > last_end
            last_end = known.ended if known.outcome else _NEVER
            marks.append(known)
    if is_a_row:
        return set()
    moments = [(known.started, 1, known) for known in marks]
    moments += [(known.ended, -1, known) for known in marks if known.outcome]
    moments.sort(key=itemgetter(0))
    found: set[StepKey] = set()
    group: list[StepKey] = []
    in_flight = 0
    for _, change, known in moments:
        in_flight += change
        if change > 0:
            group.append((known.kind, known.name, known.count))
        elif not in_flight:
            if len(group) > 1:
                found.update(group)
            group.clear()
    if len(group) > 1:
        found.update(group)
    return found


_NEVER = 1 << 62


def _must_be_asked(known: Known) -> bool:
    return known.outcome != 0 and not (known.at is not None and NESTED in known.at)
