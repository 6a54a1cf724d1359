"""Attempts: how one begins, succeeds, fails, is tried again or given up, and is cut off."""

from __future__ import annotations

import msgspec

from dynamic_workflows.loaders.guest.sanitize import plain
from dynamic_workflows.loaders.protocol.messages import Error, Go, Undo

from ..instances.decisions import Decision
from ..instances.index_entry import IndexEntry
from ..instances.lifetime import Lifetime
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
from ..instances.state_machine import PAUSING
from ..instances.step_state import (
    DO,
    OPEN,
    YEAR_MS,
    StepState,
    is_final,
    retry_delay_ms,
    timeout_error,
)
from .suspension import Rests


class Attempts(Rests):
    """Attempts of steps and, by the same rules, of rollback handlers (steps of kind "undo")."""

    def _attempt(self, d: Decision, life: Lifetime, step: StepState, now_us: int) -> None:
        """The next attempt of a step that history knows."""
        kind = "rollback_attempt_started" if step.kind == "undo" else "attempt_started"
        number = step.attempt + 1
        self._emit(d, life.summary, kind, now_us=now_us, step=step, attempt=number)
        self._go(d, life, step, now_us)

    def _go(self, d: Decision, life: Lifetime, step: StepState, now_us: int) -> None:
        """The attempt is recorded: let the callback run, or let a mock stand for it."""
        life.running += 1
        if self.mocks and step.kind == DO and self._mocked(d, life, step, now_us):
            return
        if step.kind == "undo":
            self._send(d, life, self._undo_message(life, step))
        else:
            assert step.token is not None
            config = None if step.attempt == 1 else step.config_text
            self._send(d, life, Go(step.token, step.attempt, config))
        self._arm(life, step, now_us + round(min(step.config.timeout_ms, YEAR_MS) * 1_000))

    def _mocked(self, d: Decision, life: Lifetime, step: StepState, now_us: int) -> bool:
        mocks = self.mocks.get(life.summary.key)
        if mocks is None:
            return False
        if (error := mocks.take_error(step)) is not None:
            self._fail(d, life.summary, step, error, now_us)
        elif mocks.take_timeout(step):
            self._fail(d, life.summary, step, timeout_error(step), now_us)
        elif (value := mocks.result(step)) is not None:
            self._complete(d, life, step, value, now_us)
            if life.summary.lifetime is life:
                self._answer(d, life, step)
        else:
            return False
        return True

    def _complete(
        self,
        d: Decision,
        life: Lifetime,
        step: StepState,
        value: bytes,
        now_us: int,
        before: int = 0,
    ) -> None:
        summary = life.summary
        error = self._state_error(summary, len(value))
        if error is not None:
            # The guest has handed the value on: it is replayed, with the error in its place.
            life.running -= 1
            self._disarm(step)
            self._give_up(d, summary, step, error, now_us)
            self._interrupt(d, summary, error.message, now_us, exempt=True)
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
            summary,
            "step_completed",
            body,
            now_us=now_us,
            step=step,
            attempt=step.attempt,
            shown=shown,
        )
        d.durable = True
        self._after_outcome(d, life, now_us)

    def _after_outcome(self, d: Decision, life: Lifetime, now_us: int) -> None:
        life.summary.deaths = 0
        if life.summary.status == PAUSING:
            self._try_pause(d, life, now_us)
        elif self.crash_at_every_step and not life.ended:
            self._interrupt(d, life.summary, "crash_at_every_step", now_us, exempt=True)

    def _fail(
        self,
        d: Decision,
        summary: IndexEntry,
        step: StepState,
        error: Error,
        now_us: int,
        *,
        answered_ms: float | None = None,
        delay_error: Error | None = None,
    ) -> None:
        """An attempt failed and used up a retry: try again later, or give up."""
        life = summary.lifetime
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
            self._give_up(d, summary, step, error, now_us, final=delay_error)
        else:
            self._retry_later(d, summary, step, error, now_us, answered_ms)
        if life is not None and summary.lifetime is life:
            self._after_failure(d, life, step, now_us)

    def _after_failure(self, d: Decision, life: Lifetime, step: StepState, now_us: int) -> None:
        if step.kind == "undo":
            if step.outcome != OPEN:
                self._undo_failed(d, life, step, now_us)
        elif step.outcome != OPEN:
            self._answer(d, life, step)
            self._after_outcome(d, life, now_us)
        elif life.summary.status == PAUSING:
            self._try_pause(d, life, now_us)

    def _retry_later(
        self,
        d: Decision,
        summary: IndexEntry,
        step: StepState,
        error: Error,
        now_us: int,
        answered_ms: float | None,
    ) -> None:
        delay_ms = retry_delay_ms(step.config, step.failures + 1, answered_ms)
        mocks = self.mocks.get(summary.key) if self.mocks else None
        is_skipped = mocks is not None and mocks.skips_delay(step)
        due_us = now_us if is_skipped else now_us + delay_ms * 1_000
        body = AttemptErrored(error_body(error), delay_ms, due_us)
        self._emit_attempt_errored(d, summary, step, body, now_us)
        if summary.lifetime is not None:
            self._arm(summary.lifetime, step, due_us)

    def _emit_attempt_errored(
        self, d: Decision, summary: IndexEntry, step: StepState, body: AttemptErrored, now_us: int
    ) -> None:
        kind = "rollback_attempt_errored" if step.kind == "undo" else "attempt_errored"
        self._emit(d, summary, kind, body, now_us=now_us, step=step, attempt=step.attempt)

    def _give_up(
        self,
        d: Decision,
        summary: IndexEntry,
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
            self._emit_attempt_errored(d, summary, step, cut, now_us)
            attempt = 0
        body = Errored(error_body(error if final is None else final))
        self._emit(d, summary, kind, body, now_us=now_us, step=step, attempt=attempt)
        d.durable = True

    # --- cut off ----------------------------------------------------------------------------------

    def _lose_attempts(
        self,
        d: Decision,
        summary: IndexEntry,
        error: Error,
        now_us: int,
        *,
        own: bool = False,
        exempt: bool = False,
    ) -> None:
        """Record every attempt in flight of an instance without lifetime as cut off. `own`: by the
        tenant's code, which uses up a retry; `exempt`: however often, by a test or by another
        instance's code."""
        instance = summary.instance
        assert summary.lifetime is None
        if instance is None:
            return
        for step in list(instance.open.values()):
            if step.in_flight:
                self._lose(d, summary, step, error, now_us, own, exempt)
        if summary.rolling_back:
            for step in list(instance.steps.values()):
                if step.undo is not None and step.undo.in_flight:
                    self._lose(d, summary, step.undo, error, now_us, own, exempt)

    def _lose(
        self,
        d: Decision,
        summary: IndexEntry,
        step: StepState,
        error: Error,
        now_us: int,
        own: bool,
        exempt: bool,
    ) -> None:
        is_last = not exempt and step.lost_in_a_row >= self.config.lost_in_a_row_max
        if own:
            error = own_error(error.name, f'{error.message} in step "{plain(step.name)}"')
        if step.config.lost == "fail":
            self._give_up(d, summary, step, error, now_us, lost=not own)
        elif own:
            self._fail(d, summary, step, error, now_us)
        elif is_last:
            self._give_up(d, summary, step, error, now_us, lost=True)
        else:
            body = AttemptErrored(error_body(error), lost=True, exempt=exempt)
            self._emit_attempt_errored(d, summary, step, body, now_us)

    def _interrupt(
        self, d: Decision, summary: IndexEntry, reason: str, now_us: int, *, exempt: bool = False
    ) -> None:
        """End the lifetime, and let another go on."""
        self._end_life(d, summary)
        lost = own_error("WorkflowInternalError", f"the attempt was cut off: {reason}")
        self._lose_attempts(d, summary, lost, now_us, exempt=exempt)
        if summary.status == PAUSING:
            self._pause_now(d, summary, now_us)
        else:
            self._rest(summary, now_us)

    def _park(self, d: Decision, summary: IndexEntry, code: str, message: str, now_us: int) -> None:
        self._end_life(d, summary)
        lost = own_error("WorkflowInternalError", f"the attempt was cut off: {message[:1_000]}")
        self._lose_attempts(d, summary, lost, now_us)
        body = Parked(code, message)
        self._emit(d, summary, "workflow_parked", body, now_us=now_us)
        d.durable = True
        self._rest(summary, now_us)

    # --- rollback, in core_rollback.py ------------------------------------------------------------

    def _undo_message(self, life: Lifetime, undo: StepState) -> Undo:
        raise NotImplementedError

    def _undone(self, d: Decision, life: Lifetime, undo: StepState, now_us: int) -> None:
        raise NotImplementedError

    def _undo_failed(self, d: Decision, life: Lifetime, undo: StepState, now_us: int) -> None:
        raise NotImplementedError
