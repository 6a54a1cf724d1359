"""The ends of a run: complete, errored or terminated, rolled back or not; and deletion."""

from __future__ import annotations

from msgspec import Raw

from dynamic_workflows.loaders.protocol.contract import DO

from ..instances.decisions import Decision, Finished, ForgetBlobs
from ..instances.index_entry import IndexEntry
from ..instances.instance import Instance
from ..instances.row_payloads import (
    Completed,
    Deleted,
    ErrorBody,
    Errored,
    RollbackBody,
    RollbackEnded,
    Terminated,
    error_body,
)
from ..instances.step_state import StepState
from .lifetimes import Lifetimes
from .state import CoreState


def eligible(instance: Instance) -> list[StepState]:
    """The steps that a rollback undoes, in order of start."""
    return [step for step in instance.steps.values() if step.kind == DO and step.has_rollback]


class RunEnds:
    """Ends the lifetime of a run, writes its last row, and arms the end of its retention."""

    def __init__(self, state: CoreState, lifetimes: Lifetimes) -> None:
        self._state = state
        self._lifetimes = lifetimes

    def complete(self, d: Decision, entry: IndexEntry, output: bytes, now_us: int) -> None:
        """End a run that returned this output, as codec text."""
        self._lifetimes.end(d, entry)
        body = Completed(Raw(output))
        self._state.emit(d, entry, "workflow_completed", body, now_us=now_us)
        self._finish(d, entry, now_us)

    def error(
        self,
        d: Decision,
        entry: IndexEntry,
        error: ErrorBody,
        now_us: int,
        rollback: RollbackBody | None = None,
    ) -> None:
        """End a run that raised this error; `rollback` says how its rollback went, if any."""
        self._lifetimes.end(d, entry)
        body = Errored(error, rollback)
        self._state.emit(d, entry, "workflow_errored", body, now_us=now_us)
        self._finish(d, entry, now_us)

    def _finish(self, d: Decision, entry: IndexEntry, now_us: int) -> None:
        """The run has ended: tell who waits for it, and let it rest until its retention is over."""
        d.durable = True
        d.effects.append(Finished(entry.key))
        self._state.rest(entry, now_us)

    def terminate(
        self,
        d: Decision,
        entry: IndexEntry,
        rollback: RollbackBody | None,
        now_us: int,
        token: str | None = None,
    ) -> None:
        """Stop a run for good; `rollback` says how its rollback went, if any."""
        self._lifetimes.end(d, entry)
        is_plain = rollback is None and token is None
        body = None if is_plain else Terminated(rollback, token=token)
        self._state.emit(d, entry, "workflow_terminated", body, now_us=now_us)
        self._finish(d, entry, now_us)

    def stop_rollback(self, d: Decision, entry: IndexEntry, undo: StepState, now_us: int) -> None:
        """A rollback handler failed for good: steps that started earlier are not compensated."""
        instance = entry.instance
        assert instance is not None
        assert undo.error is not None
        error = error_body(undo.error)
        ended = RollbackEnded(len(eligible(instance)), instance.undone, error)
        self._state.emit(d, entry, "rollback_errored", ended, now_us=now_us)
        self.end_rollback(d, entry, RollbackBody("failed", error), now_us)

    def end_rollback(
        self, d: Decision, entry: IndexEntry, rollback: RollbackBody, now_us: int
    ) -> None:
        """The rollback is over: end the run as terminated, or with the error that caused it."""
        instance = entry.instance
        assert instance is not None
        if instance.terminating:
            self.terminate(d, entry, rollback, now_us)
            return
        assert instance.cause is not None
        self.error(d, entry, error_body(instance.cause), now_us, rollback)

    def delete(self, d: Decision, entry: IndexEntry, now_us: int, token: str | None = None) -> None:
        """Remove an instance and all that is known of it."""
        self._lifetimes.end(d, entry)
        body = None if token is None else Deleted(token=token)
        self._state.emit(d, entry, "workflow_deleted", body, now_us=now_us)
        self._state.forget(entry)
        d.durable = True
        d.effects += [ForgetBlobs(entry.key), Finished(entry.key)]
