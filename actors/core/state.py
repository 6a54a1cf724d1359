"""The state that the parts of a tenant's core share, and the one way to write a row.

Always true after an entry of the core returns: every open instance has a lifetime, or is queued to
get one, or has a timer, or is paused; and the state equals the fold of the rows written so far.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Protocol

from dynamic_workflows.eventlog.bounded_dict import BoundedDict
from dynamic_workflows.eventlog.codec import values
from dynamic_workflows.eventlog.errors import InstanceError
from dynamic_workflows.eventlog.events import Row, span
from dynamic_workflows.loaders.protocol.messages import Error

from ..instances.deadlines import DeadlineHeap
from ..instances.decisions import Changed, CoreConfig, Decision, Key
from ..instances.fold import fold
from ..instances.index_entry import NEW, WOKEN, IndexEntry
from ..instances.instance import Instance
from ..instances.instance_index import Directory
from ..instances.kept_events import NOTHING_KEPT, KeptEvents
from ..instances.row_payloads import (
    Body,
    Deleted,
    EventReceived,
    WaitCompleted,
    encode,
    event_payload,
)
from ..instances.state_machine import ENDED, NONE, PAUSED, QUEUED, RUNNING, WAITING
from .admission import Queues
from .mocks import Mocks

STEP, WAKE, SUSPEND, RETENTION, CRON = "step", "wake", "suspend", "retention", "cron"
"""What a deadline is of."""

DELETIONS_MAX = 10_000
"""Deletes with a token that a tenant remembers, the newest ones: as many as a full batch has."""
HEAVY_BYTES = 1024 * 1024
"""An instance that takes more bytes is loaded while no other one of that kind is."""


class NamedStep(Protocol):
    """A step, or an isolate's request for one."""

    name: str
    count: int


class CoreState:
    """The instances of a tenant, their timers and queues, and the number of the last row.

    Each part of the core is handed this state when it is made. A part changes an instance by
    `emit`, which writes a row and folds it, and then says by `rest` or `enqueue` what wakes it.
    """

    def __init__(self, tenant_id: str, config: CoreConfig) -> None:
        self.tenant_id = tenant_id
        self.config = config
        self.last_seq = 0
        """Of the last row that was written or replayed."""
        self.mocks = Mocks()
        self.crash_at_every_step = False
        """Testing: drop the lifetime after each recorded outcome, so that everything is
        replayed."""
        self.directory = Directory()
        self.timers = DeadlineHeap()
        self.queues = Queues()
        self.resting: OrderedDict[Key, IndexEntry] = OrderedDict()
        """Loaded instances that nothing will happen to soon: they may be evicted."""
        self.loaded_queued: OrderedDict[Key, IndexEntry] = OrderedDict()
        """Loaded instances that wait for a slot, in the order in which they came."""
        self.loaded_bytes = 0
        """Estimated bytes of memory that the loaded instances take."""
        self.kept = KeptEvents(tenant_id, config)
        self.load_failures: dict[Key, tuple[str, str]] = {}
        """(code, message) of instances whose code could not be loaded when they were to start."""
        self.deletions: BoundedDict[tuple[str, Key], None] = BoundedDict(DELETIONS_MAX)
        """(token, instance) of the newest deletes, the oldest first."""

    # --- rows -------------------------------------------------------------------------------------

    def emit(
        self,
        d: Decision,
        summary: IndexEntry,
        kind: str,
        body: Body | None = None,
        *,
        now_us: int,
        step: NamedStep | None = None,
        attempt: int = 0,
        code_hash: str | None = None,
        metadata: bytes | None = None,
        shown: Body | None = None,
        run: int | None = None,
    ) -> Row:
        """Write a row and take it in at once. `shown`: the payload to write instead of `body`,
        which is then handed out as a secret."""
        workflow, instance_id = summary.key
        row = Row(
            type=kind,
            workflow=workflow,
            instance_id=instance_id,
            run=summary.run if run is None else run,
            ts=now_us,
            step=None if step is None else step.name,
            count=0 if step is None else step.count,
            attempt=attempt,
            payload=None if body is None else encode(body if shown is None else shown),
            code_hash=code_hash,
            metadata=metadata,
            seq=self.last_seq + 1,
        )
        self.last_seq += span(row)
        if shown is not None:
            d.secrets.append((row, encode(body)))
        d.rows.append(row)
        self.take_in(summary, row, body, d)
        return row

    def take_in(self, summary: IndexEntry, row: Row, body: Body | None, d: Decision | None) -> None:
        """Fold a row into the state: of `emit`, with its decision, or of the log, with None."""
        before, kept, instance = summary.status, summary.kept, summary.instance
        weight = 0 if instance is None else instance.weight
        fold(summary, row, body)
        instance = summary.instance
        self.loaded_bytes += (0 if instance is None else instance.weight) - weight
        now = summary.status
        if now == NONE:
            summary.kept = NOTHING_KEPT
        if summary.kept is not kept:
            self.kept.moved(kept, summary.kept)
        if before != now:
            if before == NONE:
                self.directory.add(summary)
            self.directory.moved(before, now)
            if now == NONE:
                self.directory.remove(summary)
                self.note_deletion(summary.key, body)
            if d is not None:
                d.effects.append(Changed(summary.key))

    def note_deletion(self, key: Key, body: Body | None) -> None:
        """Remember the token of a delete, so that the same delete is known when it comes again."""
        if isinstance(body, Deleted) and body.token is not None:
            self.deletions[body.token, key] = None

    def note_event(self, row: Row, body: Body | None) -> None:
        """Keep the payload of an event row of the log in memory if it is small, and let go of one
        that a wait has taken."""
        if isinstance(body, EventReceived):
            self.kept.hold_if_small(row.seq, event_payload(body))
        elif isinstance(body, WaitCompleted):
            self.kept.take(body.event_seq)

    # --- instances --------------------------------------------------------------------------------

    def find(self, key: Key) -> IndexEntry:
        """The index entry of an instance. Raises `instance.not_found`."""
        summary = self.directory.get(key)
        if summary is None:
            raise InstanceError(
                f"tenant {self.tenant_id!r} has no instance {key[1]!r} of workflow {key[0]!r}: "
                "it was never created, or it was deleted",
                code="instance.not_found",
            )
        return summary

    def loaded(self, key: Key) -> tuple[IndexEntry, Instance]:
        """The index entry and the full state. Raises `instance.not_found`; the shell has loaded the
        instance before it calls an entry that needs this."""
        summary = self.find(key)
        assert summary.instance is not None, f"{key} has to be loaded for this"
        return summary, summary.instance

    def state_error(self, summary: IndexEntry, size: int) -> Error | None:
        """The error of a run that may not hold `size` bytes more, or None where it may."""
        most = self.config.state_bytes_max
        instance = summary.instance
        if instance is None or instance.weight + size <= most:
            return None
        text = (
            f"the run may hold {most:,} bytes (state_bytes_max), and would hold "
            f"{summary.weight + size:,}: keep large values elsewhere, or split the work over "
            "several instances"
        )
        args = values.encode([text, "limit.exceeded", {"limit": "state_bytes_max"}])
        return Error("LimitExceededError", text, "dynamic_workflows", args, fatal=True)

    def forget(self, summary: IndexEntry) -> None:
        """Drop every reference to an instance that is deleted."""
        self.cancel_timer(summary)
        self.queues.remove(summary)
        self.resting.pop(summary.key, None)
        self.load_failures.pop(summary.key, None)
        self.mocks.forget(summary.key)
        self.unload(summary)

    def unload(self, summary: IndexEntry) -> None:
        """Drop the full state of an instance and keep its index entry."""
        self.loaded_bytes -= summary.weight
        self.loaded_queued.pop(summary.key, None)
        summary.was_heavy = summary.weight > HEAVY_BYTES
        summary.instance = None

    # --- rest -------------------------------------------------------------------------------------

    def rest(self, summary: IndexEntry, now_us: int, *, not_before_us: int = 0) -> None:
        """Give an instance without lifetime its wake source: a queue, a timer that is due no
        earlier than `not_before_us`, or none if it is paused."""
        assert summary.lifetime is None
        self.cancel_timer(summary)
        status = summary.status
        if status == QUEUED and not summary.rolling_back:
            self.enqueue(summary, WOKEN if summary.started_us else NEW)
            return
        if status in ENDED:
            self._retire(summary)
        elif status != PAUSED:
            due_us = max(self.wake_us(summary), not_before_us)
            if due_us <= now_us:
                self.enqueue(summary, WOKEN)
                return
            summary.timer = self.timers.arm(due_us, WAKE, summary)
        self.queues.remove(summary)
        self.loaded_queued.pop(summary.key, None)
        if summary.instance is not None:
            self.resting[summary.key] = summary

    def enqueue(self, summary: IndexEntry, queue: int) -> None:
        """Let an instance without lifetime wait for a slot, in the queue `WOKEN` or `NEW`."""
        self.cancel_timer(summary)
        self.resting.pop(summary.key, None)
        if summary.instance is not None:
            self.loaded_queued[summary.key] = summary
        self.queues.add(summary, queue)

    def wake_us(self, summary: IndexEntry) -> int:
        """Epoch microseconds at which an open instance that is not paused has something to do; 0:
        now."""
        if summary.rolling_back or summary.status == RUNNING:
            return 0
        if summary.instance is None:
            return summary.get("wake_us") or 0
        assert summary.status == WAITING
        earliest: int | None = None
        for step in summary.instance.open.values():
            if step.until_us is None or summary.instance.has_event_for(step):
                return 0
            if earliest is None or step.until_us < earliest:
                earliest = step.until_us
        return earliest or 0

    def cancel_timer(self, summary: IndexEntry) -> None:
        """Disarm the timer of an instance, if it has one."""
        if summary.timer is not None:
            self.timers.cancel(summary.timer)
            summary.timer = None

    def _retire(self, summary: IndexEntry) -> None:
        """Arm the timer that deletes an ended instance when its retention is over."""
        retention = summary.get("retention") or {}
        if summary.status == "complete":
            keep_us = retention.get("success_us", self.config.retention_success_us)
        else:
            keep_us = retention.get("error_us", self.config.retention_error_us)
        summary.timer = self.timers.arm(summary.ended_us + keep_us, RETENTION, summary)


def is_repeated(summary: IndexEntry, token: str | None) -> bool:
    """Whether the command with this token was carried out before. The instance has to be loaded."""
    if token is None:
        return False
    assert summary.instance is not None, f"{summary.key} has to be loaded for this"
    return token in summary.instance.tokens
