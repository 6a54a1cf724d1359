"""Attempts: how one begins, succeeds, fails, is tried again or given up, and is cut off."""

from __future__ import annotations

import msgspec

from dynamic_workflows.loaders.guest.sanitize import plain
from dynamic_workflows.loaders.protocol.contract import DO, OPEN, PAUSING, YEAR_MS
from dynamic_workflows.loaders.protocol.messages import Error, Go, Undo

from ..instances.decisions import Decision
from ..instances.index_entry import IndexEntry, Lifetime
from ..instances.row_payloads import (
    REDACTED,
    AttemptErrored,
    Body,
    Completed,
    Errored,
    Parked,
    error_body,
    own_error,
)
from ..instances.step_state import StepState, is_final, retry_delay_ms, timeout_error
from .lifetimes import Lifetimes
from .run_ends import RunEnds
from .state import CoreState
from .suspension import Suspension


class Attempts:
    """Attempts of steps and, by the same rules, of rollback handlers (steps of kind "undo")."""

    def __init__(
        self, state: CoreState, lifetimes: Lifetimes, suspension: Suspension, ends: RunEnds
    ) -> None:
        self._state = state
        self._emit = state.emit
        self._lifetimes = lifetimes
        self._send, self._arm = lifetimes.send, lifetimes.arm
        self._disarm, self._answer = lifetimes.disarm, lifetimes.answer
        self._suspension = suspension
        self._ends = ends
        self._config = state.config
        self._mocks = state.mocks

    def begin_next(self, d: Decision, life: Lifetime, step: StepState, now_us: int) -> None:
        """Record and begin the next attempt of a recorded step."""
        kind = "rollback_attempt_started" if step.kind == "undo" else "attempt_started"
        number = step.attempt + 1
        self._emit(d, life.entry, kind, now_us=now_us, step=step, attempt=number)
        self.go(d, life, step, now_us)

    def go(self, d: Decision, life: Lifetime, step: StepState, now_us: int) -> None:
        """Let the callback of an attempt that is recorded run, or let a mock stand for it."""
        life.running += 1
        if self._mocks.were_set and step.kind == DO and self._mocked(d, life, step, now_us):
            return
        if step.kind == "undo":
            self._send(d, life, _undo_message(life, step))
        else:
            assert step.token is not None
            config = None if step.attempt == 1 else step.config_text
            self._send(d, life, Go(step.token, step.attempt, config))
        self._arm(life, step, now_us + round(min(step.config.timeout_ms, YEAR_MS) * 1_000))

    def _mocked(self, d: Decision, life: Lifetime, step: StepState, now_us: int) -> bool:
        mocks = self._mocks.get(life.entry.key)
        if mocks is None:
            return False
        if (error := mocks.take_error(step)) is not None:
            self.fail(d, life.entry, step, error, now_us)
        elif mocks.take_timeout(step):
            self.fail(d, life.entry, step, timeout_error(step), now_us)
        elif (value := mocks.result(step)) is not None:
            self.complete(d, life, step, value, now_us)
            if life.entry.lifetime is life:
                self._answer(d, life, step)
        else:
            return False
        return True

    def complete(
        self,
        d: Decision,
        life: Lifetime,
        step: StepState,
        value: bytes,
        now_us: int,
        before: int = 0,
    ) -> None:
        """The attempt succeeded with this value. `before`: the end that its code saw after this one
        though it came before it, see Lifetime.overtaken."""
        entry = life.entry
        error = self._state.state_error(entry, len(value))
        if error is not None:
            # The guest has handed the value on: it is replayed, with the error in its place.
            life.running -= 1
            self._disarm(step)
            self._give_up(d, entry, step, error, now_us)
            self.interrupt(d, entry, error.message, now_us, exempt=True)
            return
        life.running -= 1
        self._disarm(step)
        body = Completed(msgspec.Raw(value), before=before)
        shown: Body | None = None
        if step.sensitive:
            body.sensitive = True
            shown = Completed(msgspec.Raw(REDACTED), True, before)
        self._emit(
            d,
            entry,
            "step_completed",
            body,
            now_us=now_us,
            step=step,
            attempt=step.attempt,
            shown=shown,
        )
        d.durable = True
        self.after_outcome(d, life, now_us)

    def after_outcome(self, d: Decision, life: Lifetime, now_us: int) -> None:
        """An outcome of the lifetime is recorded: carry out what waited for it, such as a pause."""
        life.entry.deaths = 0
        if life.entry.status == PAUSING:
            self._suspension.try_pause(d, life, now_us)
        elif self._state.crash_at_every_step and not life.ended:
            self.interrupt(d, life.entry, "crash_at_every_step", now_us, exempt=True)

    def fail(
        self,
        d: Decision,
        entry: IndexEntry,
        step: StepState,
        error: Error,
        now_us: int,
        *,
        answered_ms: float | None = None,
        delay_error: Error | None = None,
    ) -> None:
        """An attempt failed and used up a retry: try again later, or give up."""
        life = entry.lifetime
        if life is not None:
            life.running -= 1
            self._disarm(step)
        is_over = (
            is_final(error)
            or delay_error is not None
            or step.failures >= step.config.retries.limit
            or (life is not None and life.ended and step.kind == DO)
        )
        if is_over:
            self._give_up(d, entry, step, error, now_us, final=delay_error)
        else:
            self._retry_later(d, entry, step, error, now_us, answered_ms)
        if life is not None and entry.lifetime is life:
            self._after_failure(d, life, step, now_us)

    def _after_failure(self, d: Decision, life: Lifetime, step: StepState, now_us: int) -> None:
        if step.kind == "undo":
            if step.outcome != OPEN:
                self._ends.stop_rollback(d, life.entry, step, now_us)
        elif step.outcome != OPEN:
            self._answer(d, life, step)
            self.after_outcome(d, life, now_us)
        elif life.entry.status == PAUSING:
            self._suspension.try_pause(d, life, now_us)

    def _retry_later(
        self,
        d: Decision,
        entry: IndexEntry,
        step: StepState,
        error: Error,
        now_us: int,
        answered_ms: float | None,
    ) -> None:
        delay_ms = retry_delay_ms(step.config, step.failures + 1, answered_ms)
        mocks = self._mocks.get(entry.key) if self._mocks.were_set else None
        is_skipped = mocks is not None and mocks.skips_delay(step)
        due_us = now_us if is_skipped else now_us + delay_ms * 1_000
        body = AttemptErrored(error_body(error), delay_ms, due_us)
        self._emit_attempt_errored(d, entry, step, body, now_us)
        if entry.lifetime is not None:
            self._arm(entry.lifetime, step, due_us)

    def _emit_attempt_errored(
        self, d: Decision, entry: IndexEntry, step: StepState, body: AttemptErrored, now_us: int
    ) -> None:
        kind = "rollback_attempt_errored" if step.kind == "undo" else "attempt_errored"
        self._emit(d, entry, kind, body, now_us=now_us, step=step, attempt=step.attempt)

    def _give_up(
        self,
        d: Decision,
        entry: IndexEntry,
        step: StepState,
        error: Error,
        now_us: int,
        *,
        final: Error | None = None,
        lost: bool = False,
    ) -> None:
        """The step fails for good; with `final`, by another error than its last attempt."""
        kind = "rollback_step_errored" if step.kind == "undo" else "step_errored"
        attempt = step.attempt
        if final is not None or lost:
            cut = AttemptErrored(error_body(error), lost=lost)
            self._emit_attempt_errored(d, entry, step, cut, now_us)
            attempt = 0
        body = Errored(error_body(error if final is None else final))
        self._emit(d, entry, kind, body, now_us=now_us, step=step, attempt=attempt)
        d.durable = True

    def lose_in_flight(
        self,
        d: Decision,
        entry: IndexEntry,
        error: Error,
        now_us: int,
        *,
        own: bool = False,
        exempt: bool = False,
    ) -> None:
        """Record every attempt in flight of an instance without lifetime as cut off. `own`: by the
        tenant's code, which uses up a retry; `exempt`: however often, by a test or by another
        instance's code."""
        instance = entry.instance
        assert entry.lifetime is None
        if instance is None:
            return
        for step in list(instance.open.values()):
            if step.in_flight:
                self._lose(d, entry, step, error, now_us, own, exempt)
        if entry.rolling_back:
            for step in list(instance.steps.values()):
                if step.undo is not None and step.undo.in_flight:
                    self._lose(d, entry, step.undo, error, now_us, own, exempt)

    def _lose(
        self,
        d: Decision,
        entry: IndexEntry,
        step: StepState,
        error: Error,
        now_us: int,
        own: bool,
        exempt: bool,
    ) -> None:
        is_last = not exempt and step.lost_in_a_row >= self._config.lost_in_a_row_max
        if own:
            error = own_error(error.name, f'{error.message} in step "{plain(step.name)}"')
        if step.config.lost == "fail":
            self._give_up(d, entry, step, error, now_us, lost=not own)
        elif own:
            self.fail(d, entry, step, error, now_us)
        elif is_last:
            self._give_up(d, entry, step, error, now_us, lost=True)
        else:
            body = AttemptErrored(error_body(error), lost=True, exempt=exempt)
            self._emit_attempt_errored(d, entry, step, body, now_us)

    def interrupt(
        self, d: Decision, entry: IndexEntry, reason: str, now_us: int, *, exempt: bool = False
    ) -> None:
        """End the lifetime, and let another go on."""
        self._lifetimes.end(d, entry)
        lost = own_error("WorkflowInternalError", f"the attempt was cut off: {reason}")
        self.lose_in_flight(d, entry, lost, now_us, exempt=exempt)
        if entry.status == PAUSING:
            self._suspension.pause(d, entry, now_us)
        else:
            self._state.rest(entry, now_us)

    def park(self, d: Decision, entry: IndexEntry, code: str, message: str, now_us: int) -> None:
        """End the lifetime, and pause the instance with a reason."""
        self._lifetimes.end(d, entry)
        lost = own_error("WorkflowInternalError", f"the attempt was cut off: {message[:1_000]}")
        self.lose_in_flight(d, entry, lost, now_us)
        body = Parked(code, message)
        self._emit(d, entry, "workflow_parked", body, now_us=now_us)
        d.durable = True
        self._state.rest(entry, now_us)


def _undo_message(life: Lifetime, undo: StepState) -> Undo:
    instance = life.entry.instance
    assert instance is not None
    assert instance.cause is not None
    assert undo.token is not None
    step = instance.steps[DO, undo.name, undo.count]
    return Undo(
        undo.token,
        undo.name,
        undo.count,
        undo.attempt,
        step.attempt,
        instance.cause,
        step.value,
        undo.config_text,
    )
