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
from dynamic_workflows.loaders.protocol.contract import ENDED, PAUSED, QUEUED, RUNNING, WAITING
from dynamic_workflows.loaders.protocol.messages import Error

from ..instances.deadlines import DeadlineHeap
from ..instances.decisions import Changed, CoreConfig, Decision, Key
from ..instances.fold import fold
from ..instances.index_entry import NEW, WOKEN, IndexEntry
from ..instances.instance import Instance
from ..instances.instance_index import InstanceIndex
from ..instances.kept_events import NOTHING_KEPT, KeptEvents
from ..instances.row_payloads import (
    Body,
    Deleted,
    EventReceived,
    WaitCompleted,
    encode,
    event_payload,
)
from ..instances.state_machine import NONE
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
        self.index = InstanceIndex()
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
        entry: IndexEntry,
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
        workflow, instance_id = entry.key
        row = Row(
            type=kind,
            workflow=workflow,
            instance_id=instance_id,
            run=entry.run if run is None else run,
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
        self.take_in(entry, row, body, d)
        return row

    def take_in(self, entry: IndexEntry, row: Row, body: Body | None, d: Decision | None) -> None:
        """Fold a row into the state: of `emit`, with its decision, or of the log, with None."""
        before, kept, instance = entry.status, entry.kept, entry.instance
        weight = 0 if instance is None else instance.weight
        fold(entry, row, body)
        instance = entry.instance
        self.loaded_bytes += (0 if instance is None else instance.weight) - weight
        now = entry.status
        if now == NONE:
            entry.kept = NOTHING_KEPT
        if entry.kept is not kept:
            self.kept.moved(kept, entry.kept)
        if before != now:
            if before == NONE:
                self.index.add(entry)
            self.index.moved(before, now)
            if now == NONE:
                self.index.remove(entry)
                self.note_deletion(entry.key, body)
            if d is not None:
                d.effects.append(Changed(entry.key))

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
        entry = self.index.get(key)
        if entry is None:
            raise InstanceError(
                f"tenant {self.tenant_id!r} has no instance {key[1]!r} of workflow {key[0]!r}: "
                "it was never created, or it was deleted",
                code="instance.not_found",
            )
        return entry

    def loaded(self, key: Key) -> tuple[IndexEntry, Instance]:
        """The index entry and the full state. Raises `instance.not_found`; the shell has loaded the
        instance before it calls an entry that needs this."""
        entry = self.find(key)
        assert entry.instance is not None, f"{key} has to be loaded for this"
        return entry, entry.instance

    def state_error(self, entry: IndexEntry, size: int) -> Error | None:
        """The error of a run that may not hold `size` bytes more, or None where it may."""
        most = self.config.state_bytes_max
        instance = entry.instance
        if instance is None or instance.weight + size <= most:
            return None
        text = (
            f"the run may hold {most:,} bytes (state_bytes_max), and would hold "
            f"{entry.weight + size:,}: keep large values elsewhere, or split the work over "
            "several instances"
        )
        args = values.encode([text, "limit.exceeded", {"limit": "state_bytes_max"}])
        return Error("LimitExceededError", text, "dynamic_workflows", args, fatal=True)

    def forget(self, entry: IndexEntry) -> None:
        """Drop every reference to an instance that is deleted."""
        self.cancel_timer(entry)
        self.queues.remove(entry)
        self.resting.pop(entry.key, None)
        self.load_failures.pop(entry.key, None)
        self.mocks.forget(entry.key)
        self.unload(entry)

    def unload(self, entry: IndexEntry) -> None:
        """Drop the full state of an instance and keep its index entry."""
        self.loaded_bytes -= entry.weight
        self.loaded_queued.pop(entry.key, None)
        entry.was_heavy = entry.weight > HEAVY_BYTES
        entry.instance = None

    # --- rest -------------------------------------------------------------------------------------

    def rest(self, entry: IndexEntry, now_us: int, *, not_before_us: int = 0) -> None:
        """Give an instance without lifetime its wake source: a queue, a timer that is due no
        earlier than `not_before_us`, or none if it is paused."""
        assert entry.lifetime is None
        self.cancel_timer(entry)
        status = entry.status
        if status == QUEUED and not entry.rolling_back:
            self.enqueue(entry, WOKEN if entry.started_us else NEW)
            return
        if status in ENDED:
            self._retire(entry)
        elif status != PAUSED:
            due_us = max(self.wake_us(entry), not_before_us)
            if due_us <= now_us:
                self.enqueue(entry, WOKEN)
                return
            entry.timer = self.timers.arm(due_us, WAKE, entry)
        self.queues.remove(entry)
        self.loaded_queued.pop(entry.key, None)
        if entry.instance is not None:
            self.resting[entry.key] = entry

    def enqueue(self, entry: IndexEntry, queue: int) -> None:
        """Let an instance without lifetime wait for a slot, in the queue `WOKEN` or `NEW`."""
        self.cancel_timer(entry)
        self.resting.pop(entry.key, None)
        if entry.instance is not None:
            self.loaded_queued[entry.key] = entry
        self.queues.add(entry, queue)

    def wake_us(self, entry: IndexEntry) -> int:
        """Epoch microseconds at which an open instance that is not paused has something to do; 0:
        now."""
        if entry.rolling_back or entry.status == RUNNING:
            return 0
        if entry.instance is None:
            return entry.get("wake_us") or 0
        assert entry.status == WAITING
        earliest: int | None = None
        for step in entry.instance.open.values():
            if step.until_us is None or entry.instance.has_event_for(step):
                return 0
            if earliest is None or step.until_us < earliest:
                earliest = step.until_us
        return earliest or 0

    def cancel_timer(self, entry: IndexEntry) -> None:
        """Disarm the timer of an instance, if it has one."""
        if entry.timer is not None:
            self.timers.cancel(entry.timer)
            entry.timer = None

    def _retire(self, entry: IndexEntry) -> None:
        """Arm the timer that deletes an ended instance when its retention is over."""
        retention = entry.get("retention") or {}
        if entry.status == "complete":
            keep_us = retention.get("success_us", self.config.retention_success_us)
        else:
            keep_us = retention.get("error_us", self.config.retention_error_us)
        entry.timer = self.timers.arm(entry.ended_us + keep_us, RETENTION, entry)


def is_repeated(entry: IndexEntry, token: str | None) -> bool:
    """Whether the command with this token was carried out before. The instance has to be loaded."""
    if token is None:
        return False
    assert entry.instance is not None, f"{entry.key} has to be loaded for this"
    return token in entry.instance.tokens
