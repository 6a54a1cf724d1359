"""Rollback: compensating the steps of a run that failed or is terminated, newest start first.

Handlers are functions of the tenant's code and are in no log. A run that failed has them in its
lifetime; for anything else a lifetime in mode "rollback" registers them again, and ends with End.
"""

from __future__ import annotations

from msgspec import Raw

from dynamic_workflows.loaders.protocol.messages import End, Error, ProtocolViolation, Undo

from ..instances.decisions import Decision, Finished
from ..instances.index_entry import IndexEntry
from ..instances.instance import Instance
from ..instances.lifetime import Lifetime
from ..instances.row_payloads import (
    Completed,
    Errored,
    RollbackBody,
    RollbackEnded,
    RollbackStarted,
    StepStarted,
    Terminated,
    error_body,
    own_error,
)
from ..instances.step_state import DO, ERROR, NULL, OPEN, StepState
from .messages import Running

DEFAULT_CONFIG = (
    b'{"retries":{"limit":5,"delay_ms":10000,"backoff":"exponential"},"timeout_ms":600000}'
)


_SMALL_OUTPUT_BYTES = 64 * 1024


def eligible(instance: Instance) -> list[StepState]:
    """The steps that a rollback undoes, in order of start."""
    return [step for step in instance.steps.values() if step.kind == DO and step.has_rollback]


class Rollbacks(Running):
    """Ends runs, rolling back where there is something to roll back."""

    # --- the end of run --------------------------------------------------------------------------

    def _on_end(self, d: Decision, life: Lifetime, message: End, now_us: int) -> None:
        summary = life.summary
        if life.ended:
            raise ProtocolViolation("the run ended before")
        if life.mode == "rollback":
            life.ended = True
            self._next_undo(d, life, now_us)
        elif message.error is None:
            output = message.value or NULL
            # A run that was told of the limit may still say what became of it.
            is_small = len(output) <= _SMALL_OUTPUT_BYTES
            error = None if is_small else self._state_error(summary, len(output))
            if error is None:
                self._complete_run(d, summary, output, now_us)
            else:
                self._fail_run(d, life, error, now_us)
        else:
            self._fail_run(d, life, message.error, now_us)

    def _complete_run(self, d: Decision, summary: IndexEntry, output: bytes, now_us: int) -> None:
        self._end_life(d, summary)
        body = Completed(Raw(output))
        self._emit(d, summary, "workflow_completed", body, now_us=now_us)
        self._finish(d, summary, now_us)

    def _fail_run(self, d: Decision, life: Lifetime, error: Error, now_us: int) -> None:
        summary = life.summary
        instance = summary.instance
        assert instance is not None
        total = len(eligible(instance))
        if total == 0:
            self._end_life(d, summary)
            body = Errored(error_body(error))
            self._emit(d, summary, "workflow_errored", body, now_us=now_us)
            self._finish(d, summary, now_us)
            return
        self._active(d, life, now_us)
        life.ended = True
        for step in instance.open.values():
            if not step.in_flight:
                self._disarm(step)
        started = RollbackStarted(error_body(error), total)
        self._emit(d, summary, "rollback_started", started, now_us=now_us)
        d.durable = True
        self._next_undo(d, life, now_us)

    def _finish(self, d: Decision, summary: IndexEntry, now_us: int) -> None:
        """The run has ended: tell who waits for it, and let it rest until its retention is over."""
        d.durable = True
        d.effects.append(Finished(summary.key))
        self._rest(summary, now_us)

    def _terminate(
        self,
        d: Decision,
        summary: IndexEntry,
        rollback: RollbackBody | None,
        now_us: int,
        token: str | None = None,
    ) -> None:
        self._end_life(d, summary)
        is_plain = rollback is None and token is None
        body = None if is_plain else Terminated(rollback, token=token)
        self._emit(d, summary, "workflow_terminated", body, now_us=now_us)
        self._finish(d, summary, now_us)

    def _terminate_rolling_back(
        self, d: Decision, summary: IndexEntry, total: int, now_us: int, token: str | None
    ) -> None:
        """Begin the rollback of a terminate: a fresh lifetime will register the handlers."""
        self._end_life(d, summary)
        cause = own_error("Terminated", "the instance was terminated")
        self._lose_attempts(d, summary, cause, now_us)
        body = RollbackStarted(error_body(cause), total, terminate=True, token=token)
        self._emit(d, summary, "rollback_started", body, now_us=now_us)
        d.durable = True
        self._rest(summary, now_us)

    # --- undoing ---------------------------------------------------------------------------------

    def _next_undo(self, d: Decision, life: Lifetime, now_us: int) -> None:
        summary = life.summary
        instance = summary.instance
        assert instance is not None
        if life.to_undo is None:
            life.to_undo = eligible(instance)
        while life.to_undo:
            step = life.to_undo[-1]
            if step.undo is None:
                self._begin_undo(d, life, step, now_us)
                return
            if step.undo.outcome == OPEN:
                self._resume_undo(d, life, step.undo, now_us)
                return
            if step.undo.outcome == ERROR:  # Its last attempt was cut off.
                self._stop_rollback(d, summary, step.undo, now_us)
                return
            life.to_undo.pop()
        total = len(eligible(instance))
        ended = RollbackEnded(total, instance.undone)
        self._emit(d, summary, "rollback_completed", ended, now_us=now_us)
        self._end_rollback(d, summary, RollbackBody("complete"), now_us)

    def _begin_undo(self, d: Decision, life: Lifetime, step: StepState, now_us: int) -> None:
        body = StepStarted(Raw(step.rollback_config or DEFAULT_CONFIG))
        self._emit(
            d,
            life.summary,
            "rollback_step_started",
            body,
            now_us=now_us,
            step=step,
            attempt=1,
        )
        assert step.undo is not None
        self._bind_undo(life, step.undo)
        self._go(d, life, step.undo, now_us)

    def _resume_undo(self, d: Decision, life: Lifetime, undo: StepState, now_us: int) -> None:
        if undo.token is None:
            self._bind_undo(life, undo)
        if undo.until_us is not None and undo.until_us > now_us:
            self._arm(life, undo, undo.until_us)
        else:
            self._attempt(d, life, undo, now_us)

    def _bind_undo(self, life: Lifetime, undo: StepState) -> None:
        # Tokens of a guest are positive: ours cannot meet them.
        self._bind(life, undo, -1 - undo.index)

    def _undo_message(self, life: Lifetime, undo: StepState) -> Undo:
        instance = life.summary.instance
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

    def _undone(self, d: Decision, life: Lifetime, undo: StepState, now_us: int) -> None:
        life.running -= 1
        self._disarm(undo)
        self._emit(
            d,
            life.summary,
            "rollback_step_completed",
            Completed(Raw(NULL)),
            now_us=now_us,
            step=undo,
            attempt=undo.attempt,
        )
        d.durable = True
        self._next_undo(d, life, now_us)

    def _undo_failed(self, d: Decision, life: Lifetime, undo: StepState, now_us: int) -> None:
        self._stop_rollback(d, life.summary, undo, now_us)

    def _stop_rollback(
        self, d: Decision, summary: IndexEntry, undo: StepState, now_us: int
    ) -> None:
        """A handler failed for good: what started earlier is not compensated."""
        instance = summary.instance
        assert instance is not None
        assert undo.error is not None
        error = error_body(undo.error)
        ended = RollbackEnded(len(eligible(instance)), instance.undone, error)
        self._emit(d, summary, "rollback_errored", ended, now_us=now_us)
        self._end_rollback(d, summary, RollbackBody("failed", error), now_us)

    def _end_rollback(
        self, d: Decision, summary: IndexEntry, rollback: RollbackBody, now_us: int
    ) -> None:
        instance = summary.instance
        assert instance is not None
        if instance.terminating:
            self._terminate(d, summary, rollback, now_us)
            return
        assert instance.cause is not None
        self._end_life(d, summary)
        body = Errored(error_body(instance.cause), rollback)
        self._emit(d, summary, "workflow_errored", body, now_us=now_us)
        self._finish(d, summary, now_us)
