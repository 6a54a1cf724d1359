"""CommitEffects: what follows when a batch of rows is durable: messages to isolates, answers to
waiting calls, and reading of events."""

from __future__ import annotations

from dynamic_workflows.eventlog import tracing
from dynamic_workflows.eventlog.clock import Clock
from dynamic_workflows.eventlog.events import span
from dynamic_workflows.eventlog.log.event_log import EventLog
from dynamic_workflows.eventlog.tracing import mark
from dynamic_workflows.loaders.protocol import messages

from ..core.tenant_core import TenantCore
from ..hosting.code_host import Host
from ..instances.decisions import (
    Changed,
    DropLife,
    Finished,
    ForgetBlobs,
    Key,
    ReadEvents,
    Send,
)
from .commit_pipeline import Batch, CommitPipeline
from .event_reader import EventReader
from .instance_loader import InstanceLoader
from .instance_starter import InstanceStarter
from .maintenance import TenantMaintenance
from .subscriptions import Subscriptions
from .supervisor_state import SupervisorState

_EVICT_EVERY = 32
"""Batches between two checks of what rests."""


class CommitEffects:
    """Carries out the effects of committed batches, in the order of the batches."""

    def __init__(
        self,
        state: SupervisorState,
        core: TenantCore,
        log: EventLog,
        commits: CommitPipeline,
        loader: InstanceLoader,
        starter: InstanceStarter,
        subscriptions: Subscriptions,
        maintenance: TenantMaintenance,
        clock: Clock,
    ) -> None:
        self._state = state
        self._core = core
        self._commits = commits
        self._loader = loader
        self._starter = starter
        self._subscriptions = subscriptions
        self._maintenance = maintenance
        self._clock = clock
        self.event_reader = EventReader(log, read=self._on_events_read, failed=state.fail)
        self.commits = 0
        """Batches that have taken effect."""

    def run(self, batch: Batch) -> None:
        """Do what was decided: the rows of the batch are durable."""
        rows = batch.rows
        if rows:
            self._state.committed_seq = rows[-1].seq + span(rows[-1]) - 1
        hosts = self._state.hosts_by_life
        frames: dict[Host, list[messages.Frame]] = {}
        for effect in batch.effects:
            if isinstance(effect, Send):
                host = hosts.get(effect.life)
                if host is not None:
                    message = effect.message
                    if isinstance(message, messages.Cancel):
                        host.pending_ends.add_attempt(effect.life, message.token, message.attempt)
                    frame = messages.pack(message, life=effect.life)
                    frames.setdefault(host, []).append(frame)
            elif isinstance(effect, DropLife):
                host = hosts.pop(effect.life, None)
                if host is not None:
                    host.drop(effect.life)
                    frame = messages.pack(messages.Drop(), life=effect.life)
                    frames.setdefault(host, []).append(frame)
            elif isinstance(effect, ReadEvents):
                self.event_reader.ask(effect)
            else:
                self._on_changed(effect)
        for host, out in frames.items():
            host.send(out)
        self._subscriptions.feeds.publish(rows)
        if tracing.is_on and rows:
            mark(f"worker: committed {', '.join(row.type for row in rows)}")
        self.commits += 1
        budget = self._loader.memory_budget
        if self.commits % _EVICT_EVERY == 0 or budget.is_too_much(self._core):
            self._loader.evict()
        if rows:
            self._maintenance.go_on()

    def _on_changed(self, effect: Changed | Finished | ForgetBlobs) -> None:
        self._subscriptions.changes.wake(effect.key)
        if isinstance(effect, Finished | ForgetBlobs):
            self._subscriptions.results.wake(effect.key)
            self._starter.forget_failure(effect.key)
        if isinstance(effect, ForgetBlobs):
            self._maintenance.erase_later()

    def _on_events_read(self, key: Key, seqs: tuple[int, ...], payloads: dict[int, bytes]) -> None:
        if not self._state.is_over:
            now_us = self._clock.now_us()
            self._commits.take(self._core.events_read(key, seqs, payloads, now_us=now_us))
