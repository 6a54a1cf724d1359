"""Audit: the rules that the state of a tenant's core keeps are checked, and repaired."""

from __future__ import annotations

from ..instances.decisions import Key
from ..instances.index_entry import NOT_QUEUED, IndexEntry
from ..instances.state_machine import PAUSED
from .lifetimes import Lifetimes
from .state import CoreState


class Audit:
    """Checks that every open instance has a wake source, and that counters are right."""

    def __init__(self, state: CoreState, lifetimes: Lifetimes) -> None:
        self._state = state
        self._lifetimes = lifetimes

    def problems(self) -> list[str]:
        """Return a sentence for each counter that is wrong, and for each open instance that nothing
        will wake."""
        found = []
        busy = self._lifetimes.slots_taken()
        loaded = sum(summary.weight for summary in self._state.directory)
        if loaded != self._state.loaded_bytes:
            found.append(f"{self._state.loaded_bytes} bytes are counted and {loaded} are loaded")
        if busy != self._lifetimes.busy:
            found.append(f"{self._lifetimes.busy} slots are counted and {busy} are taken")
        for summary in self._state.directory:
            problem = _problem(summary)
            if problem:
                found.append(f"{summary.key}: status {summary.status}, {problem}")
        return found

    def repair(self, now_us: int) -> None:
        """Count the slots anew, and give every open instance that has no wake source one."""
        self._lifetimes.busy = self._lifetimes.slots_taken()
        self._state.loaded_bytes = sum(summary.weight for summary in self._state.directory)
        for summary in self._state.directory:
            if summary.lifetime is None and _problem(summary):
                self._state.rest(summary, now_us)

    def facts(self) -> dict[Key, tuple[object, ...]]:
        """Everything that the log decides, for comparing a live core with a replayed one."""
        return {summary.key: _facts(summary) for summary in self._state.directory}


def _facts(summary: IndexEntry) -> tuple[object, ...]:
    instance = summary.instance
    return (
        summary.run, summary.status, summary.created_seq, summary.created_us, summary.started_us,
        summary.ended_us, summary.paused_us, summary.code_hash, summary.rolling_back, summary.kept,
        dict(summary.extra or {}), instance and instance.facts(),
    )  # fmt: skip


def _problem(summary: IndexEntry) -> str | None:
    life = summary.lifetime
    if summary.is_ended:
        return None if summary.timer is not None else "no end of retention"
    if summary.status == PAUSED:
        return None if life is None and not summary.queue else "paused but under way"
    if life is None:
        has_source = summary.queue != NOT_QUEUED or summary.timer is not None
        return None if has_source else "nothing will wake it"
    if not life.idle:
        return None  # Running: its isolate's death would be reported.
    steps = life.tokens.values()
    if any(step.timer is not None for step in steps if step.until_us is not None):
        return None
    return "idle without a timer"
