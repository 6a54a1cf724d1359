"""Rollback: compensating the steps of a run that failed or is terminated, newest start first.

Handlers are functions of the tenant's code and are in no log. A run that failed has them in its
lifetime; for anything else a lifetime in mode "rollback" registers them again, and ends with End.
"""

from __future__ import annotations

from msgspec import Raw

from dynamic_workflows.loaders.protocol.contract import ERROR, OPEN
from dynamic_workflows.loaders.protocol.messages import End, Error, ProtocolViolation

from ..instances.decisions import Decision
from ..instances.index_entry import IndexEntry, Lifetime
from ..instances.row_payloads import (
    Completed,
    RollbackBody,
    RollbackEnded,
    RollbackStarted,
    StepStarted,
    error_body,
    own_error,
)
from ..instances.step_state import NULL, StepState
from .attempts import Attempts
from .lifetimes import Lifetimes
from .run_ends import RunEnds, eligible
from .state import CoreState

DEFAULT_CONFIG = (
    b'{"retries":{"limit":5,"delay_ms":10000,"backoff":"exponential"},"timeout_ms":600000}'
)


_SMALL_OUTPUT_BYTES = 64 * 1024


class Rollbacks:
    """Rolls back a run that failed or is terminated, step by step, and then ends it."""

    def __init__(
        self, state: CoreState, lifetimes: Lifetimes, ends: RunEnds, attempts: Attempts
    ) -> None:
        self._state = state
        self._lifetimes = lifetimes
        self._ends = ends
        self._attempts = attempts

    def end_run(self, d: Decision, life: Lifetime, message: End, now_us: int) -> None:
        """`run` of the lifetime returned or raised, or has registered the rollback handlers."""
        entry = life.entry
        if life.ended:
            raise ProtocolViolation("the run ended before")
        if life.mode == "rollback":
            life.ended = True
            self._next_undo(d, life, now_us)
        elif message.error is None:
            output = message.value or NULL
            # A run that was told of the limit may still say what became of it.
            is_small = len(output) <= _SMALL_OUTPUT_BYTES
            error = None if is_small else self._state.state_error(entry, len(output))
            if error is None:
                self._ends.complete(d, entry, output, now_us)
            else:
                self._fail_run(d, life, error, now_us)
        else:
            self._fail_run(d, life, message.error, now_us)

    def _fail_run(self, d: Decision, life: Lifetime, error: Error, now_us: int) -> None:
        entry = life.entry
        instance = entry.instance
        assert instance is not None
        total = len(eligible(instance))
        if total == 0:
            self._ends.error(d, entry, error_body(error), now_us)
            return
        self._lifetimes.take_slot(d, life, now_us)
        life.ended = True
        for step in instance.open.values():
            if not step.in_flight:
                self._lifetimes.disarm(step)
        started = RollbackStarted(error_body(error), total)
        self._state.emit(d, entry, "rollback_started", started, now_us=now_us)
        d.durable = True
        self._next_undo(d, life, now_us)

    def begin_terminate(
        self, d: Decision, entry: IndexEntry, total: int, now_us: int, token: str | None
    ) -> None:
        """Begin the rollback of a terminate: the next lifetime registers the handlers."""
        self._lifetimes.end(d, entry)
        cause = own_error("Terminated", "the instance was terminated")
        self._attempts.lose_in_flight(d, entry, cause, now_us)
        body = RollbackStarted(error_body(cause), total, terminate=True, token=token)
        self._state.emit(d, entry, "rollback_started", body, now_us=now_us)
        d.durable = True
        self._state.rest(entry, now_us)

    def _next_undo(self, d: Decision, life: Lifetime, now_us: int) -> None:
        entry = life.entry
        instance = entry.instance
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
                self._ends.stop_rollback(d, entry, step.undo, now_us)
                return
            life.to_undo.pop()
        total = len(eligible(instance))
        ended = RollbackEnded(total, instance.undone)
        self._state.emit(d, entry, "rollback_completed", ended, now_us=now_us)
        self._ends.end_rollback(d, entry, RollbackBody("complete"), now_us)

    def _begin_undo(self, d: Decision, life: Lifetime, step: StepState, now_us: int) -> None:
        body = StepStarted(Raw(step.rollback_config or DEFAULT_CONFIG))
        self._state.emit(
            d,
            life.entry,
            "rollback_step_started",
            body,
            now_us=now_us,
            step=step,
            attempt=1,
        )
        assert step.undo is not None
        self._bind_undo(life, step.undo)
        self._attempts.go(d, life, step.undo, now_us)

    def _resume_undo(self, d: Decision, life: Lifetime, undo: StepState, now_us: int) -> None:
        if undo.token is None:
            self._bind_undo(life, undo)
        if undo.until_us is not None and undo.until_us > now_us:
            self._lifetimes.arm(life, undo, undo.until_us)
        else:
            self._attempts.begin_next(d, life, undo, now_us)

    def _bind_undo(self, life: Lifetime, undo: StepState) -> None:
        # Tokens of a guest are positive: ours cannot meet them.
        self._lifetimes.bind(life, undo, -1 - undo.index)

    def undone(self, d: Decision, life: Lifetime, undo: StepState, now_us: int) -> None:
        """A rollback handler succeeded: go on with the step that started before its step."""
        life.running -= 1
        self._lifetimes.disarm(undo)
        self._state.emit(
            d,
            life.entry,
            "rollback_step_completed",
            Completed(Raw(NULL)),
            now_us=now_us,
            step=undo,
            attempt=undo.attempt,
        )
        d.durable = True
        self._next_undo(d, life, now_us)
