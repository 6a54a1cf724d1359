"""The base of a tenant's core: its state, the one way to write a row, and where an instance rests.

Always true after an entry returns: every open instance has a lifetime, or is queued to get one, or
has a timer, or is paused; and the state equals the fold of the rows written so far.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Protocol

import msgspec

from dynamic_workflows.eventlog.errors import InstanceError
from dynamic_workflows.eventlog.events import Row, span
from dynamic_workflows.eventlog.ids import Ids

from ..instances.deadlines import DeadlineHeap
from ..instances.decisions import Changed, CoreConfig, Decision, DropLife, Key, Send
from ..instances.index_entry import NEW, WOKEN, IndexEntry
from ..instances.instance import Instance, fold
from ..instances.instance_index import Directory
from ..instances.kept_events import NOTHING_KEPT, KeptEvents
from ..instances.lifetime import Lifetime
from ..instances.row_payloads import Body, Deleted, encode
from ..instances.state_machine import ENDED, NONE, PAUSED, QUEUED, RUNNING, WAITING
from ..instances.step_state import StepState
from .admission import Bucket, Queues
from .memory_budget import HEAVY_BYTES
from .mocks import Mocks

STEP, WAKE, SUSPEND, RETENTION, CRON = "step", "wake", "suspend", "retention", "cron"

DELETIONS_MAX = 10_000
"""A tenant knows so many of its newest deletes when they come again: a full batch."""


class Named(Protocol):
    """A step, or a guest's request for one."""

    name: str
    count: int


class CoreBase:
    """State of a tenant's core, and the moves that every entry shares."""

    def __init__(self, tenant_id: str, config: CoreConfig, ids: Ids) -> None:
        self.tenant_id = tenant_id
        self.config = config
        self.last_seq = 0
        self.mocks = Mocks()
        self.crash_at_every_step = False
        """Testing: drop the lifetime after each recorded outcome, so that everything is
        replayed."""
        self._ids = ids
        self._directory = Directory()
        self._lives: dict[int, Lifetime] = {}
        self._last_life = 0
        self._busy = 0
        """Lifetimes that take a slot."""
        self._replayed_sleepers = 0
        self._timers = DeadlineHeap()
        self._queues = Queues()
        self._bucket = Bucket(config.creates_per_second_max, config.creates_burst_max)
        self._resting: OrderedDict[Key, IndexEntry] = OrderedDict()
        """Loaded instances that nothing will happen to soon: they may be evicted."""
        self._loaded_queued: OrderedDict[Key, IndexEntry] = OrderedDict()
        """Loaded instances that wait for a slot, in the order in which they came."""
        self.loaded_bytes = 0
        """What the loaded instances take in memory, roughly."""
        self._kept = KeptEvents(tenant_id, config)
        self._load_failures: dict[Key, tuple[str, str]] = {}
        self._deletions: dict[tuple[str, Key], None] = {}
        """Tokens of the newest deletes, and what they deleted."""

    # --- rows ------------------------------------------------------------------------------------

    def _emit(
        self,
        d: Decision,
        summary: IndexEntry,
        kind: str,
        body: Body | None = None,
        *,
        now_us: int,
        step: Named | None = None,
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
        self._take_in(summary, row, body, d)
        return row

    def _take_in(
        self, summary: IndexEntry, row: Row, body: Body | None, d: Decision | None
    ) -> None:
        before, kept, instance = summary.status, summary.kept, summary.instance
        weight = 0 if instance is None else instance.weight
        fold(summary, row, body)
        instance = summary.instance
        self.loaded_bytes += (0 if instance is None else instance.weight) - weight
        now = summary.status
        if now == NONE:
            summary.kept = NOTHING_KEPT
        if summary.kept is not kept:
            self._kept.moved(kept, summary.kept)
        if before != now:
            if before == NONE:
                self._directory.add(summary)
            self._directory.moved(before, now)
            if now == NONE:
                self._directory.remove(summary)
                self._note_deletion(summary.key, body)
            if d is not None:
                d.effects.append(Changed(summary.key))

    def _note_deletion(self, key: Key, body: Body | None) -> None:
        if isinstance(body, Deleted) and body.token is not None:
            self._deletions[body.token, key] = None
            if len(self._deletions) > DELETIONS_MAX:
                del self._deletions[next(iter(self._deletions))]

    def _send(self, d: Decision, life: Lifetime, message: msgspec.Struct) -> None:
        life.sent += 1
        d.effects.append(Send(life.number, message))

    # --- instances -------------------------------------------------------------------------------

    def _find(self, key: Key) -> IndexEntry:
        summary = self._directory.get(key)
        if summary is None:
            raise InstanceError(
                f"tenant {self.tenant_id!r} has no instance {key[1]!r} of workflow {key[0]!r}: "
                "it was never created, or it was deleted",
                code="instance.not_found",
            )
        return summary

    def _loaded(self, key: Key) -> tuple[IndexEntry, Instance]:
        summary = self._find(key)
        assert summary.instance is not None, f"{key} has to be loaded for this"
        return summary, summary.instance

    # --- lifetimes -------------------------------------------------------------------------------

    def _free_slots(self) -> int:
        return self.config.running_max - self._busy

    def _begin_life(self, summary: IndexEntry, mode: str) -> Lifetime:
        self._last_life += 1
        life = Lifetime(self._last_life, summary, mode)
        self._lives[life.number] = life
        summary.lifetime = life
        self._busy += 1
        self._cancel_timer(summary)
        self._queues.remove(summary)
        self._resting.pop(summary.key, None)
        self._loaded_queued.pop(summary.key, None)
        return life

    def _end_life(self, d: Decision, summary: IndexEntry) -> None:
        """Forget the lifetime, if there is one, and tell its isolate."""
        life = summary.lifetime
        if life is None:
            return
        summary.lifetime = None
        del self._lives[life.number]
        if not life.idle:
            self._busy -= 1
        self._cancel_timer(summary)
        for step in life.tokens.values():
            if step.timer is not None:
                self._timers.cancel(step.timer)
                step.timer = None
            step.token = None
        d.effects.append(DropLife(life.number))

    def _arm(self, life: Lifetime, step: StepState, due_us: int) -> None:
        """The one timer of a step: end of sleep, deadline, retry, or attempt timeout."""
        if step.timer is not None:
            self._timers.cancel(step.timer)
        step.timer = self._timers.arm(due_us, STEP, life.summary, step)

    def _disarm(self, step: StepState) -> None:
        if step.timer is not None:
            self._timers.cancel(step.timer)
            step.timer = None

    def _cancel_timer(self, summary: IndexEntry) -> None:
        if summary.timer is not None:
            self._timers.cancel(summary.timer)
            summary.timer = None

    # --- rest ------------------------------------------------------------------------------------

    def _rest(self, summary: IndexEntry, now_us: int, *, not_before_us: int = 0) -> None:
        """Give an instance without lifetime its wake source: a queue, a timer, or none if
        paused."""
        assert summary.lifetime is None
        self._cancel_timer(summary)
        status = summary.status
        if status == QUEUED and not summary.rolling_back:
            self._enqueue(summary, WOKEN if summary.started_us else NEW)
            return
        if status in ENDED:
            self._retire(summary)
        elif status != PAUSED:
            due_us = max(self._wake_us(summary), not_before_us)
            if due_us <= now_us:
                self._enqueue(summary, WOKEN)
                return
            summary.timer = self._timers.arm(due_us, WAKE, summary)
        self._queues.remove(summary)
        self._loaded_queued.pop(summary.key, None)
        if summary.instance is not None:
            self._resting[summary.key] = summary

    def _enqueue(self, summary: IndexEntry, queue: int) -> None:
        self._cancel_timer(summary)
        self._resting.pop(summary.key, None)
        if summary.instance is not None:
            self._loaded_queued[summary.key] = summary
        self._queues.add(summary, queue)

    def _wake_us(self, summary: IndexEntry) -> int:
        """When an open instance that is not paused has something to do; 0: now."""
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

    def _retire(self, summary: IndexEntry) -> None:
        """Arm the end of retention."""
        retention = summary.get("retention") or {}
        if summary.status == "complete":
            keep_us = retention.get("success_us", self.config.retention_success_us)
        else:
            keep_us = retention.get("error_us", self.config.retention_error_us)
        summary.timer = self._timers.arm(summary.ended_us + keep_us, RETENTION, summary)

    def _forget(self, summary: IndexEntry) -> None:
        """The instance is deleted: nothing refers to it any more."""
        self._cancel_timer(summary)
        self._queues.remove(summary)
        self._resting.pop(summary.key, None)
        self._load_failures.pop(summary.key, None)
        self.mocks.forget(summary.key)
        self._unload(summary)

    def _unload(self, summary: IndexEntry) -> None:
        """Keep the summary only."""
        self.loaded_bytes -= summary.weight
        self._loaded_queued.pop(summary.key, None)
        summary.was_heavy = summary.weight > HEAVY_BYTES
        summary.instance = None
