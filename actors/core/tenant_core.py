"""The core of a tenant: decides everything, does no I/O, and knows no time but `now_us`.

Every entry is synchronous: it decides, takes in the rows it wrote by the same fold that replay
uses, and returns them in a Decision; or it raises a WorkflowsError and has changed nothing."""

from __future__ import annotations

import builtins
from collections.abc import Iterator
from typing import Any

from dynamic_workflows.eventlog.errors import InvalidError
from dynamic_workflows.eventlog.events import Row, span
from dynamic_workflows.loaders.protocol.calls import StatusData

from ..instances.decisions import Decision, Key
from ..instances.identifiers import check_statuses
from ..instances.index_entry import NOT_QUEUED, WOKEN, IndexEntry
from ..instances.instance import EVENT_KINDS, Instance, fold
from ..instances.row_payloads import (
    Body,
    EventReceived,
    WaitCompleted,
    decode,
    event_payload,
    own_error,
)
from ..instances.state_machine import ENDED, NONE, PAUSED, PAUSING, QUEUED, WAITING
from .explanation import LOADS_AGAIN, explain
from .schedules import Schedules
from .state import CRON, RETENTION, STEP, SUSPEND, WAKE

_DUE_MAX = 2_000
"""Timers fired by one `due`; the shell comes back at once for the rest."""
_SLEEPERS_LOADED_MAX = 20_000
"""Rests that a replay keeps in full; of later ones it keeps the wake time."""


class TenantCore(Schedules):
    """What a shell holds and drives; docs/architecture.md has the bargain between the two."""

    # --- replay ----------------------------------------------------------------------------------

    def apply(self, row: Row) -> None:
        """Take in a row of the log, folded or unfolded; at opening, in order of `seq`."""
        assert row.seq > self.last_seq, "rows come in the order of the log"
        self.last_seq = row.seq + span(row) - 1
        body = decode(row)
        if not row.instance_id:
            self._take_in_tenant_row(row, body)
            return
        key = (row.workflow, row.instance_id)
        summary = self._directory.get(key)
        if summary is None:
            if row.type != "workflow_queued":
                self._note_deletion(key, body)
                return  # What is left of a deleted instance.
            summary = IndexEntry(key)
        self._take_in(summary, row, body, None)
        if row.type in EVENT_KINDS:
            self._note_event(row, body)
        if summary.status == NONE:
            self._forget(summary)
        elif summary.instance is None:
            summary.set("wake_us", None)  # It has moved on, unseen: `recover` will wake it.
        elif summary.status in ENDED:
            self._unload_in_replay(summary)
        elif row.blob is not None and row.type != "event_received":
            summary.instance.is_partial = True
        elif row.type == "workflow_waiting":
            self._rested_in_replay(summary)

    def _note_event(self, row: Row, body: Body | None) -> None:
        if isinstance(body, EventReceived):
            self._kept.hold_if_small(row.seq, event_payload(body))
        elif isinstance(body, WaitCompleted):
            self._kept.take(body.event_seq)

    def _rested_in_replay(self, summary: IndexEntry) -> None:
        """Keep the memory of an opening bounded: of many sleepers only the wake time stays."""
        self._replayed_sleepers += 1
        if self._replayed_sleepers > _SLEEPERS_LOADED_MAX:
            wake_us = self._wake_us(summary)
            self._unload_in_replay(summary)
            summary.set("wake_us", wake_us)

    def _unload_in_replay(self, summary: IndexEntry) -> None:
        """Keep of it what rows that follow may build on."""
        assert summary.instance is not None
        summary.set("tokens", summary.instance.tokens or None)
        self._unload(summary)

    def recover(self, now_us: int) -> Decision:
        """After the replay: close attempts that were in flight, and give everything open its wake
        source."""
        d = Decision(durable=True)
        lost = own_error("WorkflowInternalError", "the attempt was cut off by a crash")
        for summary in self._directory:
            if summary.instance is not None:
                self._lose_attempts(d, summary, lost, now_us)
                if summary.instance.is_partial:
                    self._unload(summary)
            summary.set("tokens", None)  # Who loads it finds them in its history.
            if summary.status == PAUSING:
                self._emit(d, summary, "workflow_paused", now_us=now_us)
            self._rest(summary, now_us)
            if summary.is_ended and summary.timer is not None and summary.timer.due_us <= now_us:
                self._delete(d, summary, now_us)  # Its id is free from the first call on.
        self._arm_schedules()
        return d

    # --- running ---------------------------------------------------------------------------------

    def runnable(self) -> Iterator[Key]:
        """Who may start now, in order: woken before new, within the free slots; then those whose
        code could not be loaded. Nothing changes until `start`; an instance may have to be loaded
        first."""
        for summary in self._queues.first(self._free_slots()):
            yield summary.key

    def code_hash(self, key: Key) -> str | None:
        """The content hash of the code that the instance is pinned to."""
        return self._find(key).code_hash

    def pin(self, key: Key) -> str:
        """ "hash", or "latest": `repin` before each start."""
        return self._find(key).get("pin") or "hash"

    def run(self, key: Key) -> int:
        """The number of the present run."""
        return self._find(key).run

    def created_seq(self, key: Key) -> int:
        """The number of the row that created the instance."""
        return self._find(key).created_seq

    def repin(self, key: Key, code_hash: str) -> None:
        """Run this code from the next lifetime on; the row of its start says so."""
        self._find(key).code_hash = code_hash

    def key_of(self, life: int) -> Key | None:
        """The instance that a lifetime is of, while it lasts."""
        lifetime = self._lives.get(life)
        return None if lifetime is None else lifetime.summary.key

    def life_of(self, key: Key) -> int | None:
        """The lifetime that the instance is in, or None."""
        lifetime = self._find(key).lifetime
        return None if lifetime is None else lifetime.number

    def at_work(self, life: int) -> tuple[str | None, int]:
        """The step and attempt that a lifetime is at, or (None, 0) where that is not one alone."""
        lifetime = self._lives.get(life)
        instance = None if lifetime is None else lifetime.summary.instance
        steps = [] if instance is None else [s for s in instance.open.values() if s.in_flight]
        return (steps[0].name, steps[0].attempt) if len(steps) == 1 else (None, 0)

    def metadata(self, key: Key) -> bytes | None:
        """The dispatcher's metadata of a loaded instance."""
        return self._loaded(key)[1].metadata

    def workflow_name(self, key: Key) -> str:
        """What `run` sees as `event.workflow_name`."""
        return self._find(key).get("workflow_name") or key[0]

    def note_load_failure(self, key: Key, code: str, message: str) -> None:
        """The code of an instance that wants to run cannot be loaded: show it as the reason, and
        let others go first. The next `start` clears it."""
        summary = self._directory.get(key)
        if summary is not None and summary.queue != NOT_QUEUED:
            self._load_failures[key] = (code, message)
            self._queues.note_failing(summary)

    def next_due_us(self) -> int | None:
        """When `due` has to be called next."""
        return self._timers.next_due_us()

    def due(self, now_us: int) -> Decision:
        """Fire timers; when many are due, `next_due_us` stays in the past and the rest comes
        next."""
        d = Decision()
        for _ in range(_DUE_MAX):
            fired = self._timers.pop_due(now_us)
            if fired is None:
                break
            kind, owner, step = fired
            if kind == STEP:
                self._step_due(d, owner, step, now_us)
            elif kind == CRON:
                self._fire(d, owner, now_us)
            else:
                owner.timer = None
                self._summary_due(d, kind, owner, now_us)
        return d

    def _summary_due(self, d: Decision, kind: str, summary: IndexEntry, now_us: int) -> None:
        if kind == WAKE:
            self._enqueue(summary, WOKEN)
        elif kind == SUSPEND:
            self._suspend(d, summary, now_us)
        elif kind == RETENTION:
            self._delete(d, summary, now_us)

    # --- memory ----------------------------------------------------------------------------------

    def is_loaded(self, key: Key) -> bool:
        """Whether the full state is in memory."""
        return self._find(key).instance is not None

    def load(self, key: Key, rows: builtins.list[Row]) -> bool:
        """Take in the whole history of an instance, blobs resolved. False, and nothing is loaded,
        when the instance has moved on since the history was read: read it again."""
        summary = self._find(key)
        assert summary.instance is None
        copy = IndexEntry(key)
        for row in rows:
            body = decode(row)
            fold(copy, row, body)
            self._note_event(row, body)
        said = (copy.status, copy.run, copy.created_us)
        if said != (summary.status, summary.run, summary.created_us):
            return False
        summary.instance = copy.instance
        self.loaded_bytes += summary.weight
        summary.set("tokens", None)
        if summary.lifetime is None:
            resting = summary.queue == NOT_QUEUED
            (self._resting if resting else self._loaded_queued)[key] = summary
        return True

    def evictable(self) -> Iterator[Key]:
        """Loaded instances that nothing will happen to soon, the longest at rest first. Take what
        is wanted out of it before evicting."""
        return iter(self._resting)

    def evict(self, key: Key) -> None:
        """Keep the summary only; no-op for an instance that is under way."""
        summary = self._directory.get(key)
        if summary is not None and self._resting.pop(key, None) is not None:
            self._unload(summary)

    def queued_last(self) -> Iterator[Key]:
        """Loaded instances that wait for a slot, the last first. Take what is wanted out of it
        before putting one away."""
        return reversed(self._loaded_queued)

    def put_away(self, key: Key) -> None:
        """Keep the summary only of one that waits for a slot; no-op for any other."""
        summary = self._loaded_queued.get(key)
        if summary is not None:
            self._unload(summary)

    def was_heavy(self, key: Key) -> bool:
        """Whether the instance took much memory when it was last loaded."""
        return self._find(key).was_heavy

    def relieve(self, bytes_max: int, *, now_us: int) -> Decision:
        """End lifetimes of instances that take more than the average, the youngest first, until
        those that are left take no more than `bytes_max`. The oldest goes on; the others go on
        when they are started again, and what they had in flight is tried again."""
        d = Decision()
        oldest_first = builtins.list(self._lives.values())
        held = sum(life.summary.weight for life in oldest_first)
        average = held // max(len(oldest_first), 1)
        for life in reversed(oldest_first[1:]):
            if held <= bytes_max:
                break
            summary = life.summary
            if summary.weight >= average and summary.lifetime is life:
                held -= summary.weight
                self._interrupt(d, summary, "the tenant's memory is full", now_us, exempt=True)
        return d

    def open_count(self) -> int:
        """Instances whose run has not ended."""
        return len(self._directory) - sum(self._directory.counts[status] for status in ENDED)

    def live_count(self) -> int:
        """Lifetimes in isolates."""
        return len(self._lives)

    def next_wake_us(self) -> int | None:
        """The earliest moment for which this tenant must be awake; None: nothing is due ever. 0:
        there is something to do now."""
        if len(self._queues) or self._busy:
            return 0
        return self._timers.next_due_us()

    # --- questions -------------------------------------------------------------------------------

    def exists(self, key: Key) -> bool:
        """Whether there is such an instance."""
        return key in self._directory

    def has_ended(self, key: Key) -> bool:
        """Whether its run has ended."""
        return self._find(key).is_ended

    def status(self, key: Key) -> StatusData | None:
        """The status as data, or None where the instance has to be loaded for it."""
        summary = self._find(key)
        instance = summary.instance
        if instance is None and summary.is_ended:
            return None
        data = StatusData(status=self._shown_status(summary))
        reason = self._load_failures.get(key) or summary.get("reason")
        if reason is not None:
            data.reason_code, data.reason_message = reason
        if instance is not None and summary.is_ended:
            _add_outcome(data, instance)
        return data

    def _shown_status(self, summary: IndexEntry) -> str:
        """A woken instance without a slot counts as queued."""
        is_held_up = summary.status == WAITING and summary.queue == WOKEN
        if is_held_up and self._free_slots() <= 0:
            return QUEUED
        return summary.status

    def list(
        self, workflow: str | None, status: Any, limit: int, cursor: str | None
    ) -> dict[str, Any]:
        """A page of summaries, newest first: {"items", "cursor"}."""
        wanted = check_statuses(status)
        if isinstance(limit, bool) or not isinstance(limit, int) or not 1 <= limit <= 10_000:
            raise InvalidError(f"limit is a number from 1 to 10,000, not {limit!r}")
        if cursor is not None and not (isinstance(cursor, str) and cursor.isdecimal()):
            raise InvalidError("this cursor was not given out by list()")
        items: builtins.list[dict[str, Any]] = []
        last_seq = 0
        for summary in self._directory.newest_before(None if cursor is None else int(cursor)):
            shown = self._shown_status(summary)
            if workflow not in (None, summary.key[0]) or (wanted and shown not in wanted):
                continue
            if len(items) == limit:
                return {"items": items, "cursor": str(last_seq)}
            items.append(_item(summary, shown))
            last_seq = summary.created_seq
        return {"items": items, "cursor": None}

    def why(self, key: Key, now_us: int = 0) -> tuple[str, str]:
        """(code, sentence): what the instance waits for, or has waited for until now."""
        summary = self._find(key)
        failure = self._load_failures.get(key)
        if failure is not None:
            return failure[0], f"{failure[1]}; {LOADS_AGAIN}"
        return explain(summary, self._shown_status(summary), now_us)

    def counts(self) -> dict[str, int]:
        """How many instances have each status."""
        return dict(self._directory.counts)

    def audit(self) -> builtins.list[str]:
        """Every open instance has a live wake source or a reason; returns what breaks that."""
        found = []
        busy = self._slots_taken()
        loaded = sum(summary.weight for summary in self._directory)
        if loaded != self.loaded_bytes:
            found.append(f"{self.loaded_bytes} bytes are counted and {loaded} are loaded")
        if busy != self._busy:
            found.append(f"{self._busy} slots are counted and {busy} are taken")
        for summary in self._directory:
            problem = _problem(summary)
            if problem:
                found.append(f"{summary.key}: status {summary.status}, {problem}")
        return found

    def repair(self, now_us: int) -> None:
        """Count the slots anew, and give every open instance that `audit` complains about a wake
        source."""
        self._busy = self._slots_taken()
        self.loaded_bytes = sum(summary.weight for summary in self._directory)
        for summary in self._directory:
            if summary.lifetime is None and _problem(summary):
                self._rest(summary, now_us)

    def _slots_taken(self) -> int:
        return sum(not life.idle for life in self._lives.values())

    def facts(self) -> dict[Key, tuple[object, ...]]:
        """Everything that the log decides, for comparing a live core with a replayed one."""
        return {summary.key: _facts(summary) for summary in self._directory}


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


def _add_outcome(data: StatusData, instance: Instance) -> None:
    data.output = instance.output
    data.error = instance.outcome_error
    data.rollback_outcome = instance.rollback_outcome
    data.rollback_error = instance.rollback_error


def _item(summary: IndexEntry, shown: str) -> dict[str, Any]:
    return {
        "id": summary.key[1],
        "workflow": summary.key[0],
        "status": shown,
        "created_us": summary.created_us,
        "ended_us": summary.ended_us or None,
    }
