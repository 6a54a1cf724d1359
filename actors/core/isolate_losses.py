"""Isolate losses: what becomes of the instances of an isolate that died."""

from __future__ import annotations

from dynamic_workflows.eventlog.backoff import Backoff
from dynamic_workflows.loaders.protocol.contract import PAUSED, PAUSING
from dynamic_workflows.loaders.protocol.messages import Error

from ..instances.decisions import Decision, Key
from ..instances.index_entry import IndexEntry, Lifetime
from ..instances.row_payloads import own_error
from .attempts import Attempts
from .lifetimes import Lifetimes
from .state import CoreState
from .suspension import Suspension

DEATHS_MAX = 5
"""An instance that ends its isolate so many times without progress is parked."""
BACKOFF = Backoff(0.2, 30.0)
"""Rests of an instance that ended its isolate."""


class IsolateLosses:
    """Ends the lifetimes of dead isolates, and parks the instances that cause too many deaths."""

    def __init__(
        self, state: CoreState, lifetimes: Lifetimes, suspension: Suspension, attempts: Attempts
    ) -> None:
        self._state = state
        self._lifetimes = lifetimes
        self._suspension = suspension
        self._attempts = attempts

    def lives_lost(
        self,
        lives: list[int],
        *,
        reason: str,
        own: bool,
        culprit: int,
        now_us: int,
        elsewhere: bool = False,
    ) -> Decision:
        """These lifetimes died with their isolate.

        `own`: the tenant's code caused it, which uses up a retry of the attempts that the `culprit`
        (a lifetime; 0: unknown) had in flight. All other attempts are recorded as cut off. They do
        not count towards `lost_in_a_row_max` where another lifetime is known to have caused it, or
        none of these (`elsewhere`). A culprit that had nothing in flight is started again after a
        growing delay, and parked after DEATHS_MAX deaths without progress.
        """
        d = Decision(durable=True)
        is_others, own = own and elsewhere, own and not elsewhere
        error = own_error("WorkflowInternalError", f"the isolate died: {reason}")
        lost = [
            self._lifetimes.by_number[life] for life in lives if life in self._lifetimes.by_number
        ]
        suspects = [life.number for life in lost if not life.idle]
        if own and culprit not in suspects:
            culprit = suspects[0] if len(suspects) == 1 else 0
        for life in lost:
            is_suspect = own and not life.idle and culprit in (0, life.number)
            is_culprit = own and culprit == life.number
            exempt = is_others or (own and culprit not in (0, life.number))
            self._lose_life(d, life, error, is_suspect, is_culprit, exempt, now_us)
        return d

    def went_on(self, key: Key, *, reason: str, now_us: int) -> Decision:
        """Code of this instance ran on after its lifetime was dropped, and its isolate was killed
        for it. After DEATHS_MAX times without progress the instance is parked."""
        d = Decision()
        entry = self._state.index.get(key)
        if entry is not None and entry.instance is not None and entry.lifetime is None:
            if not entry.is_ended and entry.status != PAUSED:
                self._count_death(d, entry, f"the isolate died: {reason}", now_us)
        return d

    def _lose_life(
        self,
        d: Decision,
        life: Lifetime,
        error: Error,
        is_suspect: bool,
        is_culprit: bool,
        exempt: bool,
        now_us: int,
    ) -> None:
        entry = life.entry
        had_in_flight = life.running > 0
        self._lifetimes.end(d, entry)
        self._attempts.lose_in_flight(d, entry, error, now_us, own=is_culprit, exempt=exempt)
        if entry.status == PAUSING:
            self._suspension.pause(d, entry, now_us)
        elif had_in_flight or not is_suspect:
            self._state.rest(entry, now_us)
        else:
            self._count_death(d, entry, error.message, now_us)

    def _count_death(self, d: Decision, entry: IndexEntry, what: str, now_us: int) -> None:
        entry.deaths += 1
        if entry.deaths < DEATHS_MAX:
            self._state.rest(entry, now_us, not_before_us=now_us + BACKOFF.rest_us(entry.deaths))
            return
        text = f"{what}; {entry.deaths} times in a row without progress. "
        self._attempts.park(d, entry, "isolate.died", text + "Fix the code, then resume.", now_us)
