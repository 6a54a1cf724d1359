"""Commands: what a platform or a tenant asks of instances. Each raises before it changes
anything.

A command may carry a token, which lies in the row that it writes. One whose token is known was
carried out before and only its reply was lost: it changes nothing and is answered as done."""

from __future__ import annotations

from typing import Any

from msgspec import Raw

from dynamic_workflows.eventlog.errors import InstanceError, WorkflowsError
from dynamic_workflows.loaders.protocol.contract import (
    ENDED,
    PAUSED,
    PAUSING,
    QUEUED,
    RUNNING,
    WAIT,
    WAITING,
)
from dynamic_workflows.loaders.protocol.messages import ProtocolViolation

from ..instances.decisions import Decision, Key
from ..instances.identifiers import check_batch, check_id
from ..instances.index_entry import Lifetime
from ..instances.row_payloads import (
    Paused,
    Queued,
    Restarted,
    Resumed,
    RollbackBody,
    error_body,
    own_error,
    raw,
)
from .attempts import Attempts
from .creation import Creation
from .lifetimes import Lifetimes
from .restart import kept, parse_from
from .rollback import Rollbacks
from .run_ends import RunEnds, eligible
from .state import CoreState, is_repeated
from .steps import Steps
from .suspension import Suspension
from .waits import Waits


class Commands:
    """Pauses, resumes, terminates, restarts, deletes and parks instances."""

    def __init__(
        self,
        state: CoreState,
        lifetimes: Lifetimes,
        suspension: Suspension,
        ends: RunEnds,
        attempts: Attempts,
        waits: Waits,
        rollbacks: Rollbacks,
        steps: Steps,
        creation: Creation,
    ) -> None:
        self._state = state
        self._lifetimes = lifetimes
        self._suspension = suspension
        self._ends = ends
        self._attempts = attempts
        self._waits = waits
        self._rollbacks = rollbacks
        self._steps = steps
        self._creation = creation

    def pause(self, key: Key, *, token: str | None = None, now_us: int) -> Decision:
        """Stop gently: callbacks in flight finish first. No-op where there is nothing to pause."""
        d = Decision(durable=True)
        entry = self._state.find(key)
        if (
            is_repeated(entry, token)
            or entry.status not in (QUEUED, RUNNING, WAITING)
            or entry.rolling_back
        ):
            return d
        life = entry.lifetime
        if life is None or life.idle:
            self._suspension.pause(d, entry, now_us, token)
        else:
            body = None if token is None else Paused(token=token)
            self._state.emit(d, entry, "workflow_waiting_for_pause", body, now_us=now_us)
        return d

    def resume(self, key: Key, *, token: str | None = None, now_us: int) -> Decision:
        """Go on: cancels a pending pause, or moves every timer by the length of the pause and
        queues the instance. No-op where nothing is paused."""
        d = Decision(durable=True)
        entry = self._state.find(key)
        if is_repeated(entry, token):
            return d
        if entry.status == PAUSING:
            self._state.emit(d, entry, "workflow_resumed", Resumed(0, token=token), now_us=now_us)
            assert entry.lifetime is not None
            self._release(d, entry.lifetime, now_us)
        elif entry.status == PAUSED:
            self._state.loaded(key)
            shift_us = max(now_us - entry.paused_us, 0)
            body = Resumed(shift_us, token=token)
            self._state.emit(d, entry, "workflow_resumed", body, now_us=now_us)
            entry.deaths = 0
            self._state.rest(entry, now_us)
        return d

    def _release(self, d: Decision, life: Lifetime, now_us: int) -> None:
        """Let go on what a pending pause held back."""
        entry = life.entry
        instance = entry.instance
        assert instance is not None
        late, life.late = life.late, []
        held, life.held = life.held, {}
        for step in late:
            if entry.lifetime is not life:
                return  # It gave its slot back; the next lifetime finds what is due.
            self._steps.on_due(d, entry, step, now_us)
        for step in list(instance.open.values()):
            if step.kind == WAIT and step.token is not None and entry.lifetime is life:
                self._waits.deliver(d, entry, step, now_us)
        for message in held.values():
            if entry.lifetime is not life:
                return
            try:
                self._steps.on_request(d, life, message, now_us)
            except ProtocolViolation as violation:  # Seen late, for it was held back.
                self._attempts.interrupt(d, entry, str(violation), now_us)

    def terminate(
        self, key: Key, *, rollback: bool, token: str | None = None, now_us: int
    ) -> Decision:
        """Stop for good, with `rollback` after the handlers of what was started. Raises
        `instance.cannot_terminate` where the run has ended."""
        entry = self._state.find(key)
        if is_repeated(entry, token):
            return Decision(durable=True)
        if entry.status in ENDED:
            raise InstanceError(
                f"instance {key[1]!r} is {entry.status} already: there is nothing to terminate",
                code="instance.cannot_terminate",
            )
        d = Decision(durable=True)
        if entry.rolling_back:
            if not rollback:
                cut = error_body(own_error("Terminated", "terminated during its rollback"))
                self._ends.terminate(d, entry, RollbackBody("failed", cut), now_us, token)
            return d
        total = len(eligible(self._state.loaded(key)[1])) if rollback else 0
        if total:
            self._rollbacks.begin_terminate(d, entry, total, now_us, token)
        else:
            self._ends.terminate(d, entry, None, now_us, token)
        return d

    def restart(
        self,
        key: Key,
        *,
        from_: dict[str, Any] | None,
        token: str | None = None,
        now_us: int,
    ) -> Decision:
        """Run again with the same params, from the top or from a step of history; counts as a
        create. Raises `instance.cannot_restart` where there is no such step."""
        entry, instance = self._state.loaded(key)
        if is_repeated(entry, token):
            return Decision(durable=True)
        target = None if from_ is None else parse_from(from_)
        keeps = None if target is None else kept(instance, target)
        self._creation.admit(1, now_us)
        d = Decision(durable=True)
        self._lifetimes.end(d, entry)
        if keeps:
            # What goes on in the new run has its attempts closed in the old one.
            lost = own_error("WorkflowInternalError", "the attempt was cut off by a restart")
            self._attempts.lose_in_flight(d, entry, lost, now_us)
        restarted = Restarted(target, keeps, token=token)
        self._state.emit(d, entry, "workflow_restarted", restarted, now_us=now_us)
        body = Queued(
            Raw(instance.params),
            "restart",
            entry.get("pin") or "hash",
            entry.get("retention"),
            raw(instance.schedule),
            entry.token,
            entry.get("workflow_name"),
            entry.created_us,
            target,
        )
        self._state.emit(
            d,
            entry,
            "workflow_queued",
            body,
            now_us=now_us,
            code_hash=entry.code_hash,
            metadata=instance.metadata,
            run=entry.run + 1,
        )
        self._state.rest(entry, now_us)
        return d

    def delete(self, key: Key, *, token: str | None = None, now_us: int) -> Decision:
        """Remove it and all that is known of it; no rollback runs."""
        check_id(key[1])
        d = Decision(durable=True)
        if not self._is_deleted_by(token, key):
            self._ends.delete(d, self._state.find(key), now_us, token)
        return d

    def _is_deleted_by(self, token: str | None, key: Key) -> bool:
        return token is not None and (token, key) in self._state.deletions

    def delete_batch(
        self, workflow: str, ids: list[str], *, token: str | None = None, now_us: int
    ) -> Decision:
        """Delete many; the answer has {"deleted": ids, "errors": [{"id", "code", "message"}]},
        where an id that stands twice is answered twice. Ids are checked before anything is
        deleted."""
        check_batch(ids)
        for instance_id in ids:
            check_id(instance_id)
        d = Decision(durable=True)
        outcome: dict[str, WorkflowsError | None] = {}
        for instance_id in ids:
            if instance_id in outcome:
                continue
            key = (workflow, instance_id)
            try:
                if not self._is_deleted_by(token, key):
                    self._ends.delete(d, self._state.find(key), now_us, token)
                outcome[instance_id] = None
            except InstanceError as error:
                outcome[instance_id] = error
        d.answer = {
            "deleted": [one for one in ids if outcome[one] is None],
            "errors": [
                {"id": one, "code": failed.code, "message": failed.message}
                for one in ids
                if (failed := outcome[one]) is not None
            ],
        }
        return d

    def park(self, key: Key, code: str, message: str, *, now_us: int) -> Decision:
        """Pause an instance with a reason; `resume` releases it. No-op where it has ended."""
        d = Decision(durable=True)
        entry = self._state.index.get(key)
        if entry is not None and entry.status not in ENDED:
            self._attempts.park(d, entry, code, message, now_us)
        return d
