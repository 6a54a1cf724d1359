"""Waits: sleeps and waits for events, from their beginning to their outcome."""

from __future__ import annotations

from collections import deque

import msgspec

from dynamic_workflows.loaders.protocol.contract import OPEN, SLEEP, WAIT, YEAR_MS
from dynamic_workflows.loaders.protocol.messages import Error, Sleep, Wait

from ..instances.decisions import Decision, ReadEvents
from ..instances.index_entry import IndexEntry, Lifetime
from ..instances.kept_events import KeptEvent
from ..instances.row_payloads import (
    Body,
    Errored,
    SleepStarted,
    WaitCompleted,
    WaitStarted,
    error_body,
    own_error,
    size_to_tell,
)
from ..instances.step_state import StepState, timeout_error
from .attempts import Attempts
from .lifetimes import Lifetimes
from .state import CoreState

_LOOK_AGAIN_US = 1_000_000
"""Microseconds between two looks at a wait whose time is up while its event is being read."""


class Waits:
    """Begins sleeps and waits, ends them, and delivers events to them."""

    def __init__(self, state: CoreState, lifetimes: Lifetimes, attempts: Attempts) -> None:
        self._state = state
        self._emit = state.emit
        self._lifetimes = lifetimes
        self._attempts = attempts
        self._mocks = state.mocks

    def ask_sleep(
        self, d: Decision, life: Lifetime, step: StepState | None, message: Sleep, now_us: int
    ) -> None:
        """A lifetime asks for a sleep: `step`, if it is recorded."""
        if step is None:
            error = _misplaced(message, life.entry.created_us, now_us)
            if error is not None:
                self._lifetimes.refuse(d, life, message.token, error)
                return
            step = self._begin_sleep(d, life, message, now_us)
        self._await(d, life, step, now_us)

    def _begin_sleep(self, d: Decision, life: Lifetime, message: Sleep, now_us: int) -> StepState:
        until_us = message.until_us
        if until_us is None:
            until_us = now_us + (message.duration_ms or 0) * 1_000
        duration_ms = max(until_us - now_us, 0) // 1_000
        step = StepState(SLEEP, message.name, message.count, 0)
        mocks = self._mocks.get(life.entry.key) if self._mocks.were_set else None
        if mocks is not None and mocks.skips_sleep(step):
            until_us = now_us
        body = SleepStarted(until_us, duration_ms, message.at)
        return self._begin(d, life, step, "sleep_started", body, message.token, now_us)

    def ask_wait(
        self, d: Decision, life: Lifetime, step: StepState | None, message: Wait, now_us: int
    ) -> None:
        """A lifetime asks for a wait: `step`, if it is recorded."""
        if step is None:
            step = self._begin_wait(d, life, message, now_us)
        self._await(d, life, step, now_us)

    def _begin_wait(self, d: Decision, life: Lifetime, message: Wait, now_us: int) -> StepState:
        until_us = now_us + message.timeout_ms * 1_000
        step = StepState(WAIT, message.name, message.count, 0)
        mocks = self._mocks.get(life.entry.key) if self._mocks.were_set else None
        if mocks is not None and mocks.times_out(step):
            until_us = now_us
        body = WaitStarted(message.type, until_us, message.timeout_ms, message.at)
        return self._begin(d, life, step, "wait_started", body, message.token, now_us)

    def _begin(
        self,
        d: Decision,
        life: Lifetime,
        probe: StepState,
        kind: str,
        body: Body,
        token: int,
        now_us: int,
    ) -> StepState:
        self._emit(d, life.entry, kind, body, now_us=now_us, step=probe)
        instance = life.entry.instance
        assert instance is not None
        step = instance.steps[probe.key]
        self._lifetimes.bind(life, step, token)
        return step

    def _await(self, d: Decision, life: Lifetime, step: StepState, now_us: int) -> None:
        """A sleep or wait was asked for: answer it if it is over, else arm its timer."""
        if step.outcome != OPEN:
            self._lifetimes.answer(d, life, step)
            return
        if step.kind == WAIT and self.deliver(d, life.entry, step, now_us):
            return
        assert step.until_us is not None
        if step.until_us <= now_us:
            self.come_due(d, life.entry, step, now_us)
        else:
            self._lifetimes.arm(life, step, step.until_us)

    def come_due(self, d: Decision, entry: IndexEntry, step: StepState, now_us: int) -> None:
        """A sleep ends, or a wait times out, unless an event came for it that is being read."""
        instance = entry.instance
        assert instance is not None
        if instance.has_event_for(step):
            if not self.deliver(d, entry, step, now_us) and entry.lifetime is not None:
                self._lifetimes.arm(entry.lifetime, step, now_us + _LOOK_AGAIN_US)
            return
        if step.kind == SLEEP:
            self._emit(d, entry, "sleep_completed", now_us=now_us, step=step)
        else:
            body = Errored(error_body(timeout_error(step)))
            self._emit(d, entry, "wait_timed_out", body, now_us=now_us, step=step)
            d.durable = True
        self._outcome_of_wait(d, entry, step, now_us)

    def deliver(self, d: Decision, entry: IndexEntry, step: StepState, now_us: int) -> bool:
        """Give an open wait the oldest kept event of its type, or a mock. False without one, or
        where it has to be read first: then it is given by `events_read`."""
        instance = entry.instance
        assert instance is not None
        assert step.event_type is not None
        mocks = self._mocks.get(entry.key) if self._mocks.were_set else None
        mock = None if mocks is None else mocks.take_event(step.event_type)
        if mock is not None:
            body = WaitCompleted(step.event_type, 0, msgspec.Raw(mock), now_us)
        elif kept := instance.events.get(step.event_type):
            event = kept[0]
            payload = self._state.kept.take(event.seq)
            if payload is None:
                self.read_events(d, entry, kept)
                return False
            error = self._state.state_error(entry, len(payload))
            if error is not None:
                self._state.kept.hold(event.seq, payload)
                self._state.kept.trim((event.seq,))
                errored = Errored(error_body(error))
                self._emit(d, entry, "wait_timed_out", errored, now_us=now_us, step=step)
                d.durable = True
                self._outcome_of_wait(d, entry, step, now_us)
                return True
            size = size_to_tell(payload)
            raw = msgspec.Raw(payload)
            body = WaitCompleted(step.event_type, event.seq, raw, event.received_us, size)
        else:
            return False
        self._emit(d, entry, "wait_completed", body, now_us=now_us, step=step)
        d.durable = True
        self._outcome_of_wait(d, entry, step, now_us)
        return True

    def read_events(self, d: Decision, entry: IndexEntry, kept: deque[KeptEvent]) -> None:
        """Have the first of these kept events read from the log, unless that is under way."""
        events = self._state.kept.to_read(kept)
        if events:
            seqs = tuple(event.seq for event in events)
            sizes = tuple(event.size for event in events)
            d.effects.append(ReadEvents(entry.key, seqs, sizes))

    def _outcome_of_wait(
        self, d: Decision, entry: IndexEntry, step: StepState, now_us: int
    ) -> None:
        life = entry.lifetime
        if life is None:
            return
        self._lifetimes.answer(d, life, step)
        if step.token is not None:
            self._attempts.after_outcome(d, life, now_us)


def _misplaced(message: Sleep, created_us: int, now_us: int) -> Error | None:
    """What `sleep_until` raises for a moment that no sleep can begin towards. One that the run has
    overtaken is none of these: its sleep is over at once."""
    if message.until_us is None:
        return None
    if message.until_us < min(created_us, now_us):
        return Error("ValueError", f"the end of sleep {message.name!r} lies in the past")
    if message.until_us > now_us + YEAR_MS * 1_000:
        text = f"the end of sleep {message.name!r} lies more than 365 days ahead"
        return own_error("WorkflowFatalError", text, fatal=True)
    return None
