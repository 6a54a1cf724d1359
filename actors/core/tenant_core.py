"""The core of a tenant: decides everything, does no I/O, and knows no time but `now_us`.

Every entry is synchronous: it decides, takes in the rows it wrote by the same fold that replay
uses, and returns them in a Decision; or it raises a WorkflowsError and has changed nothing."""

from __future__ import annotations

from ..instances.decisions import CoreConfig, Decision
from ..instances.index_entry import WOKEN, IndexEntry
from .attempts import Attempts
from .audit import Audit
from .commands import Commands
from .creation import Creation
from .event_delivery import EventDelivery
from .isolate_losses import IsolateLosses
from .lifetimes import Lifetimes
from .log_replay import LogReplay
from .memory_budget import LoadedInstances
from .messages import MessageHandler
from .mocks import Mocks
from .rollback import Rollbacks
from .run_ends import RunEnds
from .schedules import Schedules
from .starts import LifetimeStarts
from .state import CRON, RETENTION, STEP, SUSPEND, WAKE, CoreState
from .status_views import StatusViews
from .steps import Steps
from .suspension import Suspension
from .waits import Waits

_DUE_MAX = 2_000
"""Timers that one `due` fires; the shell calls it again at once for the rest."""


class TenantCore:
    """What a shell holds and drives; docs/architecture.md has the bargain between the two.

    The core is made of parts. Each is handed the state and the parts below it, and calls no part
    above it. The entries of the core are the entries of its parts, which say what they do.
    """

    def __init__(self, tenant_id: str, config: CoreConfig) -> None:
        self.state = state = CoreState(tenant_id, config)
        self.lifetimes = lifetimes = Lifetimes(state)
        self.suspension = suspension = Suspension(state, lifetimes)
        self.ends = ends = RunEnds(state, lifetimes)
        attempts = Attempts(state, lifetimes, suspension, ends)
        waits = Waits(state, lifetimes, attempts)
        rollbacks = Rollbacks(state, lifetimes, ends, attempts)
        starts = LifetimeStarts(state, lifetimes, attempts, waits)
        self.steps = steps = Steps(state, lifetimes, suspension, attempts, waits)
        self.message_handler = messages = MessageHandler(
            state, lifetimes, suspension, attempts, waits, rollbacks, steps
        )
        creation = Creation(state)
        events = EventDelivery(state, lifetimes, waits, starts)
        commands = Commands(
            state, lifetimes, suspension, ends, attempts, waits, rollbacks, steps, creation
        )
        losses = IsolateLosses(state, lifetimes, suspension, attempts)
        self.cron = schedules = Schedules(state, creation)
        replay = LogReplay(state, ends, attempts, schedules)
        loaded = LoadedInstances(state, lifetimes, attempts)
        views = StatusViews(state, lifetimes)
        audit = Audit(state, lifetimes)

        self.apply, self.recover = replay.apply, replay.recover

        self.create = creation.create
        self.pause, self.resume = commands.pause, commands.resume
        self.terminate, self.restart = commands.terminate, commands.restart
        self.delete, self.delete_batch = commands.delete, commands.delete_batch
        self.park = commands.park
        self.send_event, self.mock_event = events.send_event, events.mock_event
        self.events_read = events.events_read
        self.lives_lost, self.went_on = losses.lives_lost, losses.went_on

        self.runnable, self.start = starts.runnable, starts.start
        self.code_hash, self.pin, self.repin = starts.code_hash, starts.pin, starts.repin
        self.run, self.metadata = starts.run, starts.metadata
        self.workflow_name = starts.workflow_name
        self.note_load_failure = starts.note_load_failure

        self.on_message = messages.on_message
        self.note_reply = lifetimes.note_reply
        self.key_of, self.life_of = lifetimes.key_of, lifetimes.life_of
        self.at_work, self.live_count = lifetimes.at_work, lifetimes.live_count

        self.set_schedules = schedules.set_schedules
        self.remove_schedule = schedules.remove_schedule
        self.crons, self.declared = schedules.crons, schedules.declared
        self.schedules, self.note = schedules.schedules, schedules.note

        self.is_loaded, self.load = loaded.is_loaded, loaded.load
        self.evictable, self.evict = loaded.evictable, loaded.evict
        self.queued_last, self.put_away = loaded.queued_last, loaded.put_away
        self.was_heavy, self.relieve = loaded.was_heavy, loaded.relieve

        self.exists, self.has_ended = views.exists, views.has_ended
        self.status, self.list, self.why = views.status, views.page, views.why
        self.created_seq = views.created_seq
        self.counts, self.open_count = views.counts, views.open_count

        self.audit, self.repair, self.facts = audit.problems, audit.repair, audit.facts

    @property
    def tenant_id(self) -> str:
        """The tenant whose core it is."""
        return self.state.tenant_id

    @property
    def last_seq(self) -> int:
        """The number of the last row that was written or replayed."""
        return self.state.last_seq

    @property
    def loaded_bytes(self) -> int:
        """Estimated bytes of memory that the loaded instances take."""
        return self.state.loaded_bytes

    @property
    def mocks(self) -> Mocks:
        """Testing: outcomes that stand in the place of callbacks, sleeps and events."""
        return self.state.mocks

    @property
    def crash_at_every_step(self) -> bool:
        """Testing: whether the lifetime is dropped after each recorded outcome."""
        return self.state.crash_at_every_step

    @crash_at_every_step.setter
    def crash_at_every_step(self, crash: bool) -> None:
        self.state.crash_at_every_step = crash

    # --- time ------------------------------------------------------------------------------------

    def next_due_us(self) -> int | None:
        """Epoch microseconds at which `due` has to be called next; None: no timer is armed."""
        return self.state.timers.next_due_us()

    def next_wake_us(self) -> int | None:
        """The earliest moment for which this tenant must be awake, in epoch microseconds; None:
        nothing is due ever. 0: there is something to do now."""
        if len(self.state.queues) or self.lifetimes.busy:
            return 0
        return self.state.timers.next_due_us()

    def due(self, now_us: int) -> Decision:
        """Fire timers; when many are due, `next_due_us` stays in the past and the rest comes
        next."""
        d = Decision()
        for _ in range(_DUE_MAX):
            fired = self.state.timers.pop_due(now_us)
            if fired is None:
                break
            kind, owner, step = fired
            if kind == STEP:
                self.steps.on_due(d, owner, step, now_us)
            elif kind == CRON:
                self.cron.fire(d, owner, now_us)
            else:
                owner.timer = None
                self._instance_due(d, kind, owner, now_us)
        return d

    def _instance_due(self, d: Decision, kind: str, entry: IndexEntry, now_us: int) -> None:
        if kind == WAKE:
            self.state.enqueue(entry, WOKEN)
        elif kind == SUSPEND:
            self.suspension.suspend(d, entry, now_us)
        elif kind == RETENTION:
            self.ends.delete(d, entry, now_us)
