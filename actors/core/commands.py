"""Commands: what a platform or a tenant asks of instances. Each raises before it changes
anything.

A command may carry a token, which lies in the row that it writes. One whose token is known was
carried out before and only its reply was lost: it changes nothing and is answered as done."""

from __future__ import annotations

from typing import Any

from msgspec import Raw

from dynamic_workflows.eventlog.codec import values
from dynamic_workflows.eventlog.errors import InstanceError, LimitExceededError, WorkflowsError
from dynamic_workflows.loaders.protocol.messages import Error, ProtocolViolation

from ..instances.decisions import CreateItem, Decision, Finished, ForgetBlobs, Key
from ..instances.identifiers import (
    check_batch,
    check_event_type,
    check_id,
    check_new_id,
    check_workflow_name,
)
from ..instances.index_entry import WOKEN, IndexEntry
from ..instances.instance import Instance, first_wait
from ..instances.lifetime import Lifetime
from ..instances.row_payloads import (
    Deleted,
    EventReceived,
    Paused,
    Queued,
    Restarted,
    Resumed,
    RollbackBody,
    error_body,
    own_error,
    raw,
    size_to_tell,
)
from ..instances.state_machine import ENDED, PAUSED, PAUSING, QUEUED, RUNNING, WAITING
from ..instances.step_state import WAIT, StepState
from .restart import kept, parse_from
from .rollback import Rollbacks, eligible


class Commands(Rollbacks):
    """Creates instances and steers them."""

    # --- create ----------------------------------------------------------------------------------

    def create(self, items: list[CreateItem], *, strict: bool, now_us: int) -> Decision:
        """Create instances, all or none. The answer is the list of ids that were created, in order;
        an id that exists is left out, or raises `instance.already_exists` if `strict`. The same
        create again (same id, same token) is answered as the first time."""
        fresh, answer = self._new_items(items, strict)
        d = Decision(durable=True, answer=answer)
        if fresh:
            self._check_instances(len(fresh))
            self._admit(len(fresh), now_us)
            for item in fresh:
                self._create(d, item, now_us)
        return d

    def _new_items(
        self, items: list[CreateItem], strict: bool
    ) -> tuple[list[CreateItem], list[str]]:
        check_batch(items)
        fresh: list[CreateItem] = []
        answer: list[str] = []
        seen: set[Key] = set()
        for item in items:
            check_workflow_name(item.workflow)
            check_new_id(item.instance_id)
            key = (item.workflow, item.instance_id)
            known = self._directory.get(key)
            is_again = known is not None and item.token is not None and known.token == item.token
            if key in seen or (known is not None and not is_again):
                if strict:
                    raise _already_exists(key)
                continue
            seen.add(key)
            answer.append(item.instance_id)
            if known is None:
                fresh.append(item)
        return fresh, answer

    def _check_instances(self, n: int) -> None:
        most = self.config.instances_max
        if len(self._directory) + n > most:
            raise LimitExceededError(
                f"tenant {self.tenant_id!r} has {len(self._directory):,} instances, ended ones "
                f"among them, and may have {most:,} (instances_max): delete what is over, or let "
                "`retention` be shorter",
                retry_after=60.0,
                limit="instances_max",
            )

    def _admit(self, n: int, now_us: int) -> None:
        """Room in the queue and in the rate, or LimitExceededError."""
        queued = self._directory.counts[QUEUED]
        if queued + n > self.config.queued_max:
            raise LimitExceededError(
                f"tenant {self.tenant_id!r} has {queued} queued instances and may have "
                f"{self.config.queued_max}: wait until some have started",
                retry_after=1.0,
            )
        wait_s = self._bucket.take(n, now_us)
        if wait_s > 0:
            raise LimitExceededError(
                f"tenant {self.tenant_id!r} may create {self.config.creates_per_second_max:g} "
                f"instances a second: try again in {wait_s:.3f} s",
                retry_after=wait_s,
            )

    def _create(self, d: Decision, item: CreateItem, now_us: int) -> IndexEntry:
        summary = IndexEntry((item.workflow, item.instance_id))
        body = Queued(
            Raw(item.params),
            item.trigger,
            item.pin,
            item.retention,
            raw(item.schedule),
            item.token,
            item.workflow_name,
        )
        self._emit(
            d,
            summary,
            "workflow_queued",
            body,
            now_us=now_us,
            code_hash=item.code_hash,
            metadata=item.metadata,
        )
        if self.mocks:
            self.mocks.created(summary.key)
        self._rest(summary, now_us)
        return summary

    # --- pause and resume ------------------------------------------------------------------------

    def pause(self, key: Key, *, token: str | None = None, now_us: int) -> Decision:
        """Stop gently: callbacks in flight finish first. No-op where there is nothing to pause."""
        d = Decision(durable=True)
        summary = self._find(key)
        if (
            _is_again(summary, token)
            or summary.status not in (QUEUED, RUNNING, WAITING)
            or summary.rolling_back
        ):
            return d
        life = summary.lifetime
        if life is None or life.idle:
            self._pause_now(d, summary, now_us, token)
        else:
            body = None if token is None else Paused(token=token)
            self._emit(d, summary, "workflow_waiting_for_pause", body, now_us=now_us)
        return d

    def resume(self, key: Key, *, token: str | None = None, now_us: int) -> Decision:
        """Go on: cancels a pending pause, or moves every timer by the length of the pause and
        queues the instance. No-op where nothing is paused."""
        d = Decision(durable=True)
        summary = self._find(key)
        if _is_again(summary, token):
            return d
        if summary.status == PAUSING:
            self._emit(d, summary, "workflow_resumed", Resumed(0, token=token), now_us=now_us)
            assert summary.lifetime is not None
            self._release(d, summary.lifetime, now_us)
        elif summary.status == PAUSED:
            self._loaded(key)
            shift_us = max(now_us - summary.paused_us, 0)
            body = Resumed(shift_us, token=token)
            self._emit(d, summary, "workflow_resumed", body, now_us=now_us)
            summary.deaths = 0
            self._rest(summary, now_us)
        return d

    def _release(self, d: Decision, life: Lifetime, now_us: int) -> None:
        """Let go on what a pending pause held back."""
        summary = life.summary
        instance = summary.instance
        assert instance is not None
        late, life.late = life.late, []
        held, life.held = life.held, {}
        for step in late:
            self._step_due(d, summary, step, now_us)
        for step in list(instance.open.values()):
            if step.kind == WAIT and step.token is not None and summary.lifetime is life:
                self._deliver(d, summary, step, now_us)
        for message in held.values():
            if summary.lifetime is not life:
                return
            try:
                self._on_ask(d, life, message, now_us)
            except ProtocolViolation as violation:  # Seen late, for it was held back.
                self._interrupt(d, summary, str(violation), now_us)

    # --- events ----------------------------------------------------------------------------------

    def send_event(
        self,
        key: Key,
        event_type: str,
        payload: bytes,
        *,
        token: str | None = None,
        now_us: int,
    ) -> Decision:
        """Deliver an event to the wait of its type that began first, or keep it for the next
        one."""
        check_event_type(event_type)
        summary, instance = self._loaded(key)
        if _is_again(summary, token):
            return Decision(durable=True)
        if summary.status in ENDED:
            raise InstanceError(
                f"instance {key[1]!r} is {summary.status} and takes no events: "
                "restart it first, or send the event to another",
                code="instance.finished",
            )
        if not self._would_be_taken(summary, event_type, len(payload), now_us):
            self._kept.check(key, summary.kept, values.size(payload))
        d = Decision(durable=True)
        if summary.may_wake and summary.lifetime is None:
            self._settle(d, summary, now_us)  # A wait whose time is up must not take this event.
            if d.rows:
                self._enqueue(summary, WOKEN)
        size = size_to_tell(payload)
        body = EventReceived(event_type, Raw(payload), size=size, token=token)
        row = self._emit(d, summary, "event_received", body, now_us=now_us)
        self._kept.hold(row.seq, payload)
        if summary.may_wake and not summary.rolling_back:
            wait = first_wait(instance, event_type)
            # A replay that has not asked for its wait again takes the event when it does.
            if wait is not None and (summary.lifetime is None or wait.token is not None):
                self._hand_over(d, summary, wait, now_us)
        self._kept.trim((row.seq,))
        return d

    def _would_be_taken(self, summary: IndexEntry, event_type: str, size: int, now_us: int) -> bool:
        """Whether a wait takes an event of this type in the moment in which it comes."""
        instance = summary.instance
        assert instance is not None
        if not summary.may_wake or summary.rolling_back or event_type in instance.events:
            return False
        if summary.weight + size > self.config.state_bytes_max:
            return False
        return any(
            step.event_type == event_type
            and (summary.lifetime is not None or (step.until_us or 0) > now_us)
            for step in instance.open.values()
        )

    def events_read(
        self, key: Key, seqs: tuple[int, ...], payloads: dict[int, bytes], *, now_us: int
    ) -> Decision:
        """Kept events (`ReadEvents`) were read: give them to the waits that are open for them."""
        d = Decision()
        self._kept.have_read(seqs, payloads)
        summary = self._directory.get(key)
        if summary is not None and summary.may_wake and not summary.rolling_back:
            if summary.instance is not None:
                self._hand_over_read(d, summary, summary.instance, now_us)
            else:
                self._enqueue(summary, WOKEN)  # It has been put away: it asks again when it starts.
        self._kept.trim(seqs)
        return d

    def _hand_over_read(
        self, d: Decision, summary: IndexEntry, instance: Instance, now_us: int
    ) -> None:
        for step in list(instance.open.values()):
            kept = instance.events.get(step.event_type or "")
            if not kept or (summary.lifetime is not None and step.token is None):
                continue
            if self._kept.holds(kept[0].seq):
                self._hand_over(d, summary, step, now_us)
            else:
                self._read_events(d, summary, kept)

    def _hand_over(self, d: Decision, summary: IndexEntry, wait: StepState, now_us: int) -> None:
        if summary.lifetime is not None:
            self._active(d, summary.lifetime, now_us, may_drop=True)
        self._deliver(d, summary, wait, now_us)
        if summary.lifetime is None:
            self._enqueue(summary, WOKEN)

    def mock_event(self, key: Key, event_type: str, payload: bytes, *, now_us: int) -> Decision:
        """Testing: give a live wait of this type this payload, or keep it for the next one."""
        d = Decision(durable=True)
        self.mocks.of_instance(key).mock_event(event_type, payload)
        summary = self._directory.get(key)
        if summary is None or summary.instance is None or not summary.may_wake:
            return d
        wait = first_wait(summary.instance, event_type)
        if wait is not None and wait.token is not None:
            self._hand_over(d, summary, wait, now_us)
        return d

    # --- terminate and restart -------------------------------------------------------------------

    def terminate(
        self, key: Key, *, rollback: bool, token: str | None = None, now_us: int
    ) -> Decision:
        """Stop for good, with `rollback` after the handlers of what was started. Raises
        `instance.cannot_terminate` where the run has ended."""
        summary = self._find(key)
        if _is_again(summary, token):
            return Decision(durable=True)
        if summary.status in ENDED:
            raise InstanceError(
                f"instance {key[1]!r} is {summary.status} already: there is nothing to terminate",
                code="instance.cannot_terminate",
            )
        d = Decision(durable=True)
        if summary.rolling_back:
            if not rollback:
                cut = error_body(own_error("Terminated", "terminated during its rollback"))
                self._terminate(d, summary, RollbackBody("failed", cut), now_us, token)
            return d
        total = len(eligible(self._loaded(key)[1])) if rollback else 0
        if total:
            self._terminate_rolling_back(d, summary, total, now_us, token)
        else:
            self._terminate(d, summary, None, now_us, token)
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
        summary, instance = self._loaded(key)
        if _is_again(summary, token):
            return Decision(durable=True)
        target = None if from_ is None else parse_from(from_)
        keeps = None if target is None else kept(instance, target)
        self._admit(1, now_us)
        d = Decision(durable=True)
        self._end_life(d, summary)
        if keeps:
            # What goes on in the new run has its attempts closed in the old one.
            lost = own_error("WorkflowInternalError", "the attempt was cut off by a restart")
            self._lose_attempts(d, summary, lost, now_us)
        restarted = Restarted(target, keeps, token=token)
        self._emit(d, summary, "workflow_restarted", restarted, now_us=now_us)
        body = Queued(
            Raw(instance.params),
            "restart",
            summary.get("pin") or "hash",
            summary.get("retention"),
            raw(instance.schedule),
            summary.token,
            summary.get("workflow_name"),
            summary.created_us,
            target,
        )
        self._emit(
            d,
            summary,
            "workflow_queued",
            body,
            now_us=now_us,
            code_hash=summary.code_hash,
            metadata=instance.metadata,
            run=summary.run + 1,
        )
        self._rest(summary, now_us)
        return d

    # --- delete ----------------------------------------------------------------------------------

    def delete(self, key: Key, *, token: str | None = None, now_us: int) -> Decision:
        """Remove it and all that is known of it; no rollback runs."""
        check_id(key[1])
        d = Decision(durable=True)
        if not self._is_deleted_by(token, key):
            self._delete(d, self._find(key), now_us, token)
        return d

    def _is_deleted_by(self, token: str | None, key: Key) -> bool:
        return token is not None and (token, key) in self._deletions

    def _delete(
        self, d: Decision, summary: IndexEntry, now_us: int, token: str | None = None
    ) -> None:
        self._end_life(d, summary)
        body = None if token is None else Deleted(token=token)
        self._emit(d, summary, "workflow_deleted", body, now_us=now_us)
        self._forget(summary)
        d.durable = True
        d.effects += [ForgetBlobs(summary.key), Finished(summary.key)]

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
                    self._delete(d, self._find(key), now_us, token)
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

    # --- by the platform -------------------------------------------------------------------------

    def park(self, key: Key, code: str, message: str, *, now_us: int) -> Decision:
        """Pause an instance with a reason; `resume` releases it. No-op where it has ended."""
        d = Decision(durable=True)
        summary = self._directory.get(key)
        if summary is not None and summary.status not in ENDED:
            self._park(d, summary, code, message, now_us)
        return d

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
        """These lifetimes died with their isolate. `own`: the tenant's code caused it, which uses
        up a retry of what the `culprit` (0: unknown) had in flight; everything else is cut off, and
        that without end where somebody else is known to have caused it: another lifetime, or none
        of them at all (`elsewhere`). A culprit that had nothing in flight is started again later
        and later, and parked after some deaths."""
        d = Decision(durable=True)
        is_others, own = own and elsewhere, own and not elsewhere
        error = own_error("WorkflowInternalError", f"the isolate died: {reason}")
        lost = [self._lives[life] for life in lives if life in self._lives]
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
        """Code of this instance ended its isolate by going on after it was dropped. One that does
        so at every rest is parked after some deaths, as if it had died of it."""
        d = Decision()
        summary = self._directory.get(key)
        if summary is not None and summary.instance is not None and summary.lifetime is None:
            if not summary.is_ended and summary.status != PAUSED:
                self._count_death(d, summary, f"the isolate died: {reason}", now_us)
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
        summary = life.summary
        had_in_flight = life.running > 0
        self._end_life(d, summary)
        self._lose_attempts(d, summary, error, now_us, own=is_culprit, exempt=exempt)
        if summary.status == PAUSING:
            self._pause_now(d, summary, now_us)
        elif had_in_flight or not is_suspect:
            self._rest(summary, now_us)
        else:
            self._count_death(d, summary, error.message, now_us)

    def _count_death(self, d: Decision, summary: IndexEntry, what: str, now_us: int) -> None:
        summary.deaths += 1
        if summary.deaths < DEATHS_MAX:
            self._rest(summary, now_us, not_before_us=now_us + _backoff_us(summary.deaths))
            return
        text = f"{what}; {summary.deaths} times in a row without progress. "
        self._park(d, summary, "isolate.died", text + "Fix the code, then resume.", now_us)


DEATHS_MAX = 5
"""An instance that ends its isolate so many times without progress is parked."""


def _is_again(summary: IndexEntry, token: str | None) -> bool:
    """Whether the command with this token was carried out before."""
    if token is None:
        return False
    assert summary.instance is not None, f"{summary.key} has to be loaded for this"
    return token in summary.instance.tokens


def _backoff_us(deaths: int) -> int:
    return min(100_000 << deaths, 30_000_000)


def _already_exists(key: Key) -> InstanceError:
    return InstanceError(
        f"workflow {key[0]!r} has an instance {key[1]!r} already: get it, delete it, or choose "
        "another id",
        code="instance.already_exists",
    )
