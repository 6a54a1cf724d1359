"""Audit: the rules that the state of a tenant's core keeps are checked, and repaired."""

from __future__ import annotations

from dynamic_workflows.loaders.protocol.contract import PAUSED

from ..instances.decisions import Key
from ..instances.index_entry import NOT_QUEUED, IndexEntry
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
        loaded = sum(entry.weight for entry in self._state.index)
        if loaded != self._state.loaded_bytes:
            found.append(f"{self._state.loaded_bytes} bytes are counted and {loaded} are loaded")
        if busy != self._lifetimes.busy:
            found.append(f"{self._lifetimes.busy} slots are counted and {busy} are taken")
        for entry in self._state.index:
            problem = _problem(entry)
            if problem:
                found.append(f"{entry.key}: status {entry.status}, {problem}")
        return found

    def repair(self, now_us: int) -> None:
        """Count the slots anew, and give every open instance that has no wake source one."""
        self._lifetimes.busy = self._lifetimes.slots_taken()
        self._state.loaded_bytes = sum(entry.weight for entry in self._state.index)
        for entry in self._state.index:
            if entry.lifetime is None and _problem(entry):
                self._state.rest(entry, now_us)

    def facts(self) -> dict[Key, tuple[object, ...]]:
        """Everything that the log decides, for comparing a live core with a replayed one."""
        return {entry.key: _facts(entry) for entry in self._state.index}


def _facts(entry: IndexEntry) -> tuple[object, ...]:
    instance = entry.instance
    return (
        entry.run, entry.status, entry.created_seq, entry.created_us, entry.started_us,
        entry.ended_us, entry.paused_us, entry.code_hash, entry.rolling_back, entry.kept,
        dict(entry.extra or {}), instance and instance.facts(),
    )  # fmt: skip


def _problem(entry: IndexEntry) -> str | None:
    life = entry.lifetime
    if entry.is_ended:
        return None if entry.timer is not None else "no end of retention"
    if entry.status == PAUSED:
        return None if life is None and not entry.queue else "paused but under way"
    if life is None:
        has_source = entry.queue != NOT_QUEUED or entry.timer is not None
        return None if has_source else "nothing will wake it"
    if not life.idle:
        return None  # Running: its isolate's death would be reported.
    steps = life.tokens.values()
    if any(step.timer is not None for step in steps if step.until_us is not None):
        return None
    return "idle without a timer"
