"""Tenant: the shell around one tenant's core; it owns the log, the isolates and who waits.

The core decides, the pump appends, and only then does anything happen. Tenant code is reached
through isolates alone, and what comes back is checked before the core sees it. The shell stops for
good when its log fails (`failed`); whoever opened it opens the tenant again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec

from ..eventlog import marks
from ..eventlog.clock import US, Clock, TimerHandle
from ..eventlog.compaction import CompactionConfig
from ..eventlog.errors import (
    WorkflowsError,
)
from ..eventlog.events import span
from ..eventlog.ids import Ids
from ..eventlog.log import EventLog, LogConfig, tenant_stream
from ..eventlog.marks import mark
from ..eventlog.store import Store
from ..loaders import wire
from ..loaders.isolate import Exit, Isolates
from .code_cache import CodeCache
from .codes import CodeSource
from .config import PlatformConfig
from .core import TenantCore
from .decisions import DropLife, Finished, ForgetBlobs, Key, Send
from .guest_calls import GuestCalls
from .host import Host
from .hosts import Hosts
from .pump import Batch, Pump
from .streams import Feeds, Waiters
from .tails import Tails
from .tenant_starts import TenantStarts

_LOADS_AT_ONCE_MAX = 16
_SWEEP_US = 60 * US
_AUDIT_MAX = 50_000
"""Instances up to which the auditor looks at all of them; it would hold up others beyond that."""
_EVICT_EVERY = 32
"""Batches between two looks at what rests."""
_logger = logging.getLogger("dynamic_workflows.tenant")


async def open_tenant(
    tenant_id: str,
    *,
    store: Store,
    isolates: Isolates,
    codes: CodeSource,
    clock: Clock,
    ids: Ids,
    config: PlatformConfig,
    has_maintenance: bool = True,
    is_wanted: bool = False,
    prepare: Callable[[TenantCore], None] = lambda core: None,
) -> Tenant:
    """Become the owner of the tenant's log and go on with its instances.

    `has_maintenance`: seal and compact the log in the background. `is_wanted`: somebody is about to
    create something, so get the newest code ready meanwhile. `prepare` sees the core before
    anything runs, for tests. Raises Corrupt, Fenced or Unavailable when the log cannot be opened.
    """
    mine = config.of(tenant_id)
    log = EventLog(
        store,
        tenant_stream(tenant_id),
        tenant_id,
        clock,
        ids,
        LogConfig(
            wal_bytes_max=mine.wal_bytes_max,
            seal_age_s=min(mine.seal_age_seconds, mine.erase_within_seconds / 4),
            compaction=CompactionConfig(
                erase_delay_s=min(300.0, mine.erase_within_seconds / 4),
                grace_s=min(60.0, mine.erase_within_seconds / 8),
            ),
            auto_seal=has_maintenance,
        ),
    )
    core = TenantCore(tenant_id, config.core(tenant_id), ids)
    prepare(core)
    tenant = Tenant(
        tenant_id,
        log=log,
        core=core,
        isolates=isolates,
        codes=codes,
        clock=clock,
        ids=ids,
        config=mine,
        has_maintenance=has_maintenance,
    )
    try:
        await tenant.open(is_wanted=is_wanted)
    except BaseException:
        await tenant.close(seal=False)
        raise
    return tenant


class Tenant(TenantStarts):
    """One tenant in memory. Made by `open_tenant`; belongs to one event loop."""

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
        self._has_maintenance = has_maintenance
        self._hosts = Hosts(isolates, codes, config, clock=clock, listener=self)
        self._codes = CodeCache(tenant_id, codes, self._hosts, clock)
        self._guest_calls = GuestCalls(self, codes)
        self.tails = Tails(tenant_id, clock)
        """Where what its code prints goes."""
        self._pump = Pump(
            log, ids, before=self._start_runnable, landed=self._landed, failed=self._fail
        )
        self._lives: dict[int, Host] = {}
        self._results = Waiters()
        self._changes = Waiters()
        self._feeds = Feeds()
        self._landed_seq = 0
        self._loads: dict[Key, asyncio.Task[None]] = {}
        self._load_slots = asyncio.Semaphore(_LOADS_AT_ONCE_MAX)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._asking: dict[Any, asyncio.Task[None]] = {}
        self._timer: TimerHandle | None = None
        self._timer_us: int | None = None
        self._retry: TimerHandle | None = None
        self._retry_us: int | None = None
        self._sweep: TimerHandle | None = None
        self._landings = 0
        self._upkeep: asyncio.Task[None] | None = None
        self._upkeep_until_us = 0
        self._erase_us: int | None = None
        self._workflows: dict[str, None] = {}
        self._failing: set[Key] = set()
        self._calls = 0
        self._is_open = False
        self._early: list[Callable[[], None]] = []
        """What isolates said before the log was open."""
        self._is_closed = False
        self._wake_us: int | None = None

    async def open(self, *, is_wanted: bool = False) -> None:
        """Take the log over, replay it into the core, and go on."""

        def found(last_seq: int) -> None:
            # A new log holds no deployed code: what the platform's callback says will rule.
            if is_wanted and not last_seq and not self._tasks:
                self._prepare_soon()

        await self._log.take_over(found=found)
        mark("slot: owns the log")
        await self._replay()
        if is_wanted and self.core.last_seq:
            self._prepare_soon()
        early, self._early = self._early, []
        for hear in early:
            hear()

    async def _replay(self) -> None:
        async for rows in self._log.rows():
            for row in rows:
                self.core.apply(row)
                if not row.instance_id:
                    self._codes.apply(row)
                elif row.type == "workflow_queued":
                    self._workflows[row.workflow] = None
        self._landed_seq = self.core.last_seq
        self._is_open = True
        self._pump.take(self.core.recover(self._clock.now_us()))
        self._upkeep_until_us = self._clock.now_us() + self._upkeep_us()
        self._sweep_later()

    async def close(self, *, seal: bool = True) -> None:
        """End the isolates, let the log go. What was under way goes on at the next opening."""
        if self._is_closed:
            return
        self._wake_us = self.next_wake_us()
        self._is_closed = True
        for timer in (self._timer, self._retry, self._sweep):
            if timer is not None:
                timer.cancel()
        tasks = [*self._tasks, *self._asking.values(), *self._loads.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._upkeep is not None:
            await self._upkeep  # a seal that is under way is better finished than cut off
        await self._pump.close()
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
            and (self._upkeep is None or self._upkeep.done())
            and not self._loads
            and not self._lives
            and self.tails.is_idle
            and next(iter(self.core.runnable()), None) is None
            and all(host.is_unused() or host.error is not None for host in self._hosts)
        )

    @property
    def is_over(self) -> bool:
        """Whether it was closed, or stopped by itself."""
        return self._is_closed or self.failed is not None

    def next_wake_us(self) -> int | None:
        """The earliest time at which the tenant has to be awake, or None."""
        if self._is_closed:
            return self._wake_us
        due_us = self.core.next_wake_us()
        if self._erase_us is None or due_us is None:
            return self._erase_us if due_us is None else due_us
        return min(due_us, self._erase_us)

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
    def services_out(self) -> int:
        """Calls of services that have no answer yet."""
        return self._guest_calls.services_out

    @property
    def commits(self) -> int:
        """Batches that have taken effect since it was opened."""
        return self._landings

    def isolate_pids(self) -> list[int]:
        """The processes that run this tenant's code, for operators and tests."""
        pids = (host.isolate.pid for host in self._hosts if host.isolate is not None)
        return [pid for pid in pids if pid is not None]

    # --- what guests say

    def on_messages(self, host: Host, messages: list[tuple[int, msgspec.Struct]]) -> None:
        """Messages about lifetimes, each decided at once."""
        if self._is_closed or self.failed is not None:
            return
        now_us = self._clock.now_us()
        lives, core, take = self._lives, self.core, self._pump.take
        life = 0
        try:
            for life, message in messages:
                if lives.get(life) is not host:
                    if life in host.leavers:
                        continue  # a lifetime that has ended meanwhile
                    raise wire.ProtocolViolation(f"{life} is not in this isolate")
                kind = type(message)
                if kind is wire.Done or kind is wire.End:
                    self._hosts.check(message.value)  # type: ignore[attr-defined]
                    self._hosts.made_progress(host)
                elif kind is wire.Failed:
                    self._check_error(message.error)  # type: ignore[attr-defined]
                take(core.on_message(life, message, now_us=now_us))
        except wire.ProtocolViolation as violation:
            violation.life = life
            raise

    def _check_error(self, error: wire.Error) -> None:
        try:
            self._hosts.check(error.args)
        except wire.ProtocolViolation:
            error.args = None

    def on_call(self, host: Host, life: int, call: wire.Call) -> None:
        """The guest calls a binding; what it did before takes effect first."""
        if self.is_over:
            return
        if not self._is_open:
            self._early.append(partial(self.on_call, host, life, call))
            return
        if not host.may_call(life) or (life in host.lives and self.core.key_of(life) is None):
            host.send([wire.pack(wire.Reply(call.call, error=_OVER), life=life)])
            return
        task = self._spawn(self._guest_calls.answer(host, life, call))
        if call.method in ("result", "events"):
            waits = host.waits.setdefault(life, set())
            waits.add(task)
            task.add_done_callback(waits.discard)

    def on_log(self, host: Host, life: int, log: wire.Log) -> None:
        """The guest printed."""
        self.tails.log(host, self.core.key_of(life), log)

    def on_ready(self, host: Host) -> None:
        """The code of a host is loaded, or is not to be had for now."""
        if not self._is_open:
            self._early.append(partial(self.on_ready, host))
            return
        self._codes.learn(host)
        if host.bundle is not None and self._codes.rules(host):
            known = {
                name: crons
                for name, crons in host.bundle.schedules.items()
                if self._codes.has_workflow(host.code_hash, name)
            }
            self._follow_schedules(host.code_hash, known)
        if host.error is not None:
            self._retry_at(host.retry_us)
        self._pump.kick()

    def on_lost(self, host: Host, lives: list[int], exit: Exit) -> None:
        """The isolate died, or was closed."""
        if self._is_closed or self.failed is not None:
            return
        lives = [life for life in lives if self._lives.pop(life, None) is not None]
        if exit.kind != "closed":
            # The core alone says whose fault it was; this is where it most likely happened.
            step, attempt = self.core.at_work(exit.life)
            key = self.core.key_of(exit.life) or host.leavers.key(exit.life)
            self.tails.ended(host, key, exit, step, attempt)
        left = host.leavers.key(exit.life)
        if left is not None and exit.is_tenants_own:
            now_us = self._clock.now_us()
            self._pump.take(self.core.went_on(left, reason=exit.reason, now_us=now_us))
        if lives:
            decision = self.core.lives_lost(
                lives,
                reason=exit.reason,
                own=exit.is_tenants_own and not host.is_elsewhere(exit.life),
                culprit=exit.life,
                now_us=self._clock.now_us(),
            )
            self._pump.take(decision)

    def on_mistake(self, mistake: Exception) -> None:
        """Memory can no longer be trusted; the log can: start again from it."""
        _logger.error("tenant %r: a mistake of ours", self.tenant_id, exc_info=mistake)
        self._fail(mistake)

    def on_room(self) -> None:
        """A lifetime that found no isolate with room may find one now."""
        self._pump.kick()

    async def caught_up(self) -> None:
        """Wait until everything that was decided has taken effect."""
        await self._pump.caught_up()

    def _spawn(self, work: Any) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # --- effects and timers

    def _landed(self, batch: Batch) -> None:
        """The rows of a batch are safe: do what was decided."""
        rows = batch.rows
        if rows:
            self._landed_seq = rows[-1].seq + span(rows[-1]) - 1
        frames: dict[Host, list[wire.Frame]] = {}
        for effect in batch.effects:
            if type(effect) is Send:
                host = self._lives.get(effect.life)
                if host is not None:
                    message = effect.message
                    if type(message) is wire.Cancel:
                        host.leavers.add_attempt(effect.life, message.token, message.attempt)
                    frame = wire.pack(message, life=effect.life)
                    frames.setdefault(host, []).append(frame)
            elif type(effect) is DropLife:
                host = self._lives.pop(effect.life, None)
                if host is not None:
                    host.drop(effect.life)
                    frame = wire.pack(wire.Drop(), life=effect.life)
                    frames.setdefault(host, []).append(frame)
            else:
                self._changed(effect)
        for host, out in frames.items():
            host.send(out)
        self._feeds.publish(rows)
        if marks.is_on and rows:
            mark(f"slot: landed {', '.join(row.type for row in rows)}")
        self._landings += 1
        if self._landings % _EVICT_EVERY == 0:
            self._evict()
        if rows and self._has_maintenance:
            self._upkeep_until_us = self._clock.now_us() + self._upkeep_us()
            self._sweep_later()

    def _changed(self, effect: Any) -> None:
        self._changes.wake(effect.key)
        if type(effect) is Finished or type(effect) is ForgetBlobs:
            self._results.wake(effect.key)
            self._failing.discard(effect.key)
        if type(effect) is ForgetBlobs and self._erase_us is None and self._has_maintenance:
            self._erase_us = self._clock.now_us() + self._upkeep_us()

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

    def _upkeep_us(self) -> int:
        """How long after the last row there may be something left to seal, merge or erase."""
        return round(min(self.config.erase_within_seconds * 0.75, 900.0) * US)

    def _sweep_later(self) -> None:
        if self._sweep is None and self._has_maintenance and not self._is_closed:
            sweep_us = min(_SWEEP_US, round(self.config.erase_within_seconds / 16 * US))
            self._sweep = self._clock.call_at(self._clock.now_us() + sweep_us, self._sweep_now)

    def _sweep_now(self) -> None:
        self._sweep = None
        now_us = self._clock.now_us()
        self._feeds.sweep(now_us)
        if self._is_closed or self.failed is not None:
            return
        if self._upkeep is None or self._upkeep.done():
            self._upkeep = asyncio.ensure_future(self._maintain())
        self._audit(now_us)
        if now_us < self._upkeep_until_us:
            self._sweep_later()
        elif self._erase_us is not None and self._erase_us <= now_us:
            self._erase_us = None

    def _audit(self, now_us: int) -> None:
        """Prove that nothing has stopped silently, and mend it if our own mistake made it so."""
        if sum(self.core.counts().values()) <= _AUDIT_MAX:
            for problem in self.core.audit():
                _logger.error("tenant %r: %s", self.tenant_id, problem)
                self.core.repair(now_us)
                self._pump.kick()

    async def _maintain(self) -> None:
        try:
            await self._log.maintain()
        except WorkflowsError as error:
            _logger.warning("tenant %r: maintenance failed: %s", self.tenant_id, error)
            if self._log.failed is not None:
                self._fail(error)

    def _fail(self, error: BaseException) -> None:
        """The log cannot go on from here: stop, and let the owner open the tenant again."""
        if self.failed is None and not self._is_closed:
            _logger.error("tenant %r stops: %s", self.tenant_id, error)
            self.failed = error
            self._spawn(self._hosts.close())
            self._results.wake_all()
            self._changes.wake_all()
            self._feeds.waiters.wake_all()


_OVER = wire.Error(
    "WorkflowFatalError",
    "this lifetime is over: nothing can be called any more",
    "dynamic_workflows",
)
