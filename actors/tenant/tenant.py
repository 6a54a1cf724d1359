"""Tenant: the shell around one tenant's core; it owns the log, the isolates and who waits.

The core decides, the pump appends, and only then does anything happen. Tenant code is reached
through isolates alone, and what comes back is checked before the core sees it. The shell stops for
good when its log fails (`failed`); whoever opened it opens the tenant again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Any

from dynamic_workflows.eventlog import tracing
from dynamic_workflows.eventlog.clock import Clock, TimerHandle
from dynamic_workflows.eventlog.errors import WorkflowsError
from dynamic_workflows.eventlog.events import row_bytes, span
from dynamic_workflows.eventlog.heap_trim import release_memory
from dynamic_workflows.eventlog.ids import Ids
from dynamic_workflows.eventlog.log.event_log import EventLog
from dynamic_workflows.eventlog.tracing import mark
from dynamic_workflows.loaders.isolates.interface import Isolates
from dynamic_workflows.loaders.protocol import messages

from ..code.code_resolver import CodeSource
from ..config import PlatformConfig
from ..core.memory_budget import Heft
from ..core.tenant_core import TenantCore
from ..hosting.code_cache import CodeCache
from ..hosting.code_host import Host
from ..hosting.code_hosts import Hosts
from ..instances.decisions import DropLife, Finished, ForgetBlobs, Key, ReadEvents, Send
from .commit_pipeline import Batch, Pump
from .env_calls import GuestCalls
from .event_reader import EventReader
from .history_paging import HistoryReader
from .isolate_events import TenantGuests
from .maintenance import Upkeep
from .subscriptions import Feeds, Waiters
from .tenant_logs import Tails
from .waiting_calls import WaitingCalls

_GIVE_BACK_BYTES = 8 * 1024 * 1024
"""An opening that read rows of more bytes than this gives back what it has used."""
_LOADS_AT_ONCE_MAX = 16
_EVICT_EVERY = 32
"""Batches between two looks at what rests."""
_logger = logging.getLogger("dynamic_workflows.tenant")


class TenantSupervisor(TenantGuests):
    """One tenant in memory. Made by `opening.open_tenant`; belongs to one event loop."""

    def __init__(
        self,
        tenant_id: str,
        *,
        log: EventLog,
        core: TenantCore,
        isolates: Isolates,
        codes: CodeSource,
        clock: Clock,
        ids: Ids,
        config: PlatformConfig,
        has_maintenance: bool = True,
    ) -> None:
        self.tenant_id = tenant_id
        self.core = core
        self.config = config
        self.failed: BaseException | None = None
        """Why it stopped by itself, or None."""
        self._log = log
        self._clock = clock
        self._ids = ids
        self._hosts = Hosts(isolates, codes, config, clock=clock, listener=self)
        self._codes = CodeCache(tenant_id, codes, self._hosts, clock)
        self._guest_calls = GuestCalls(self, codes)
        self.tails = Tails(tenant_id, clock)
        """Where what its code prints goes."""
        self._pump = Pump(
            log, ids, before=self._start_runnable, landed=self._landed, failed=self._fail
        )
        self._event_reader = EventReader(log, read=self._events_read, failed=self._fail)
        self._lives: dict[int, Host] = {}
        self._results = Waiters()
        self._changes = Waiters()
        self._feeds = Feeds()
        self._histories = HistoryReader(log, core)
        self._waiting_calls = WaitingCalls(
            {
                "events": (config.subscriptions_max, "subscriptions_max"),
                "result": (config.results_waiting_max, "results_waiting_max"),
            }
        )
        self._upkeep = Upkeep(
            tenant_id,
            log=log,
            core=core,
            clock=clock,
            erase_within_s=config.erase_within_seconds,
            is_off=not has_maintenance,
            sweep=self._feeds.sweep,
            mended=self._pump.kick,
            failed=self._fail,
        )
        self._landed_seq = 0
        self._loads: dict[Key, asyncio.Task[None]] = {}
        self._load_slots = asyncio.Semaphore(_LOADS_AT_ONCE_MAX)
        self._heavy_load = asyncio.Lock()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._asking: dict[Any, asyncio.Task[None]] = {}
        self._timer: TimerHandle | None = None
        self._timer_us: int | None = None
        self._retry: TimerHandle | None = None
        self._retry_us: int | None = None
        self._landings = 0
        self._heft = Heft()
        self._workflows: dict[str, None] = {}
        self._failing: set[Key] = set()
        self._calls = 0
        self._is_open = False
        self._early: list[Callable[[], None]] = []
        """What isolates said before the log was open."""
        self._is_closed = False
        self._is_asleep = False
        """Whether everything that was decided is in the log, or never will be."""
        self._wake_us: int | None = None

    @property
    def epoch(self) -> int:
        """The number of this ownership of the log."""
        return self._log.epoch

    async def open(
        self,
        *,
        is_wanted: bool = False,
        claims: Callable[[int], None] = lambda epoch: None,
        above: int = 0,
    ) -> None:
        """Take the log over, replay it into the core, and go on.

        `claims` and `above` are those of `EventLog.take_over`.
        """

        def found(last_seq: int) -> None:
            # A new log holds no deployed code: what the platform's callback says will rule.
            if is_wanted and not last_seq and not self._tasks:
                self._prepare_soon()

        await self._log.take_over(found=found, claims=claims, above=above)
        mark("worker: owns the log")
        await self._replay()
        if is_wanted and self.core.last_seq:
            self._prepare_soon()
        early, self._early = self._early, []
        for hear in early:
            hear()

    async def _replay(self) -> None:
        size = 0
        async for rows in self._log.rows():
            for row in rows:
                size += row_bytes(row)
                self.core.apply(row)
                if not row.instance_id:
                    self._codes.apply(row)
                elif row.type == "workflow_queued":
                    self._workflows[row.workflow] = None
        if size > _GIVE_BACK_BYTES:
            release_memory()
        self._landed_seq = self.core.last_seq
        self._is_open = True
        self._pump.take(self.core.recover(self._clock.now_us()))
        self._upkeep.go_on()

    async def close(self, *, seal: bool = True) -> None:
        """End the isolates, let the log go. What was under way goes on at the next opening."""
        if self._is_closed:
            return
        self._is_closed = True
        self._upkeep.stop()
        for timer in (self._timer, self._retry):
            if timer is not None:
                timer.cancel()
        tasks = [*self._tasks, *self._asking.values(), *self._loads.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._event_reader.close()
        await self._upkeep.finish()
        await self._pump.close()
        if self.failed is None:
            # Decisions that the log did not take are no reason to be woken, and none not to be.
            self.failed = self._log.failed
        self._wake_us = self.next_wake_us()
        self._is_asleep = True
        await self._hosts.close()
        await self.tails.close()
        self._results.wake_all()
        self._feeds.waiters.wake_all()
        await self._log.close(seal=seal and self.failed is None)

    # --- for whoever keeps tenants in memory

    def is_idle(self) -> bool:
        """Whether nothing runs, nothing is about to, and nobody waits for an answer."""
        return (
            self._is_open
            and self._pump.is_idle
            and not self._calls
            and not self._tasks
            and self._event_reader.is_idle
            and self._upkeep.is_resting
            and not self._loads
            and not self._lives
            and self.tails.is_idle
            and next(iter(self.core.runnable()), None) is None
            and all(host.is_unused() or host.error is not None for host in self._hosts)
        )

    def next_wake_us(self) -> int | None:
        """The earliest time at which the tenant has to be awake, or None."""
        if self._is_asleep:
            return self._wake_us
        due_us, erase_us = self.core.next_wake_us(), self._upkeep.erase_us
        if erase_us is None or due_us is None:
            return erase_us if due_us is None else due_us
        return min(due_us, erase_us)

    def _prepare_soon(self) -> None:
        """Get the newest code ready, for an instance that is likely to come."""
        if not self._codes.is_app:
            self._spawn(self._prepare())

    async def _prepare(self) -> None:
        try:
            await self._codes.prepare()
        except WorkflowsError:
            pass  # whoever creates will be told

    @property
    def services_out(self) -> Mapping[object, object]:
        """Calls of services that have no answer yet, each with what it calls."""
        return self._guest_calls.services_out

    @property
    def commits(self) -> int:
        """Batches that have taken effect since it was opened."""
        return self._landings

    def isolate_pids(self) -> list[int]:
        """The processes that run this tenant's code, for operators and tests."""
        pids = (host.isolate.pid for host in self._hosts if host.isolate is not None)
        return [pid for pid in pids if pid is not None]

    async def caught_up(self) -> None:
        """Wait until everything that was decided has taken effect."""
        await self._pump.caught_up()

    # --- effects and timers

    def _landed(self, batch: Batch) -> None:
        """The rows of a batch are safe: do what was decided."""
        rows = batch.rows
        if rows:
            self._landed_seq = rows[-1].seq + span(rows[-1]) - 1
        frames: dict[Host, list[messages.Frame]] = {}
        for effect in batch.effects:
            if type(effect) is Send:
                host = self._lives.get(effect.life)
                if host is not None:
                    message = effect.message
                    if type(message) is messages.Cancel:
                        host.leavers.add_attempt(effect.life, message.token, message.attempt)
                    frame = messages.pack(message, life=effect.life)
                    frames.setdefault(host, []).append(frame)
            elif type(effect) is DropLife:
                host = self._lives.pop(effect.life, None)
                if host is not None:
                    host.drop(effect.life)
                    frame = messages.pack(messages.Drop(), life=effect.life)
                    frames.setdefault(host, []).append(frame)
            elif type(effect) is ReadEvents:
                self._event_reader.ask(effect)
            else:
                self._changed(effect)
        for host, out in frames.items():
            host.send(out)
        self._feeds.publish(rows)
        if tracing.is_on and rows:
            mark(f"worker: committed {', '.join(row.type for row in rows)}")
        self._landings += 1
        if self._landings % _EVICT_EVERY == 0 or self._heft.is_too_much(self.core):
            self._evict()
        if rows:
            self._upkeep.go_on()

    def _events_read(self, key: Key, seqs: tuple[int, ...], payloads: dict[int, bytes]) -> None:
        if self.is_over:
            return
        now_us = self._clock.now_us()
        self._pump.take(self.core.events_read(key, seqs, payloads, now_us=now_us))

    def _changed(self, effect: Any) -> None:
        self._changes.wake(effect.key)
        if type(effect) is Finished or type(effect) is ForgetBlobs:
            self._results.wake(effect.key)
            self._failing.discard(effect.key)
        if type(effect) is ForgetBlobs:
            self._upkeep.erase_later()

    def _arm(self) -> None:
        """See to it that `_on_due` is called when something is due, or earlier.

        A timer that is armed too early stays: most are attempt timeouts, taken back before they
        matter, and one look too many now and then costs less than a new timer for each.
        """
        due_us = self.core.next_due_us()
        if due_us is None or (self._timer_us is not None and self._timer_us <= due_us):
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._timer_us = due_us
        if due_us <= self._clock.now_us():
            # A clock that stands still would not call back for what is due already.
            asyncio.get_running_loop().call_soon(self._on_due)
        else:
            self._timer = self._clock.call_at(due_us, self._on_due)

    def _on_due(self) -> None:
        self._timer = self._timer_us = None
        if not self.is_over:
            try:
                self._pump.take(self.core.due(self._clock.now_us()))
            except Exception as mistake:
                self.on_mistake(mistake)

    def _retry_at(self, due_us: int) -> None:
        """Look again at what can run then: loading failed."""
        if self._is_closed or (self._retry_us is not None and self._retry_us <= due_us):
            return
        if self._retry is not None:
            self._retry.cancel()
        self._retry_us = due_us
        self._retry = self._clock.call_at(due_us, self._retry_now)

    def _retry_now(self) -> None:
        self._retry = self._retry_us = None
        self._pump.kick()

    def _fail(self, error: BaseException) -> None:
        """The log cannot go on from here: stop, and let the owner open the tenant again."""
        if self.failed is None and not self._is_closed:
            _logger.error("tenant %r stops: %s", self.tenant_id, error)
            self.failed = error
            self._upkeep.stop()
            self._spawn(self._hosts.close())
            self._results.wake_all()
            self._changes.wake_all()
            self._feeds.waiters.wake_all()
