"""TenantSupervisor: the shell around one tenant's core: it owns the log, isolates and calls.

The core decides, the pipeline appends, and only then does anything happen. Tenant code is reached
through isolates alone, and what comes back is checked before the core sees it. The supervisor stops
for good when its log fails (`failed`); its owner opens the tenant again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from dynamic_workflows.eventlog.clock import Clock
from dynamic_workflows.eventlog.errors import WorkflowsError
from dynamic_workflows.eventlog.events import row_bytes
from dynamic_workflows.eventlog.heap_trim import release_memory
from dynamic_workflows.eventlog.ids import Ids
from dynamic_workflows.eventlog.log.event_log import EventLog
from dynamic_workflows.eventlog.tracing import mark
from dynamic_workflows.loaders.isolates.interface import Isolates
from dynamic_workflows.loaders.protocol.calls import AwaitResult, GetEvents

from ..background_tasks import BackgroundTasks
from ..code.code_resolver import CodeSource
from ..core.tenant_core import TenantCore
from ..hosting.code_cache import CodeCache
from ..hosting.code_hosts import Hosts
from ..settings.platform_config import PlatformConfig
from .code_operations import CodeOperations
from .commit_effects import CommitEffects
from .commit_pipeline import CommitPipeline
from .due_timers import DueTimers
from .env_calls import EnvCallHandler
from .history_paging import HistoryReader
from .instance_commands import InstanceCommands
from .instance_keys import InstanceKeys
from .instance_loader import InstanceLoader
from .instance_reads import InstanceReads
from .instance_starter import InstanceStarter
from .isolate_events import IsolateEvents
from .maintenance import TenantMaintenance
from .operations import Operations
from .subscriptions import Subscriptions
from .supervisor_state import SupervisorState
from .tenant_logs import TenantLogs
from .waiting_calls import WaitingCalls

_GIVE_BACK_BYTES = 8 * 1024 * 1024
"""An opening that read rows of more bytes than this gives back what it has used."""


class TenantSupervisor:
    """One tenant in memory. Made by `open_tenant`; belongs to one event loop.

    The supervisor is made of parts. Each is handed the state and the parts that it calls.
    """

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
        self._log = log
        self._clock = clock
        self._state = state = SupervisorState(tenant_id, on_failure=self._on_failure)
        self._tasks = tasks = BackgroundTasks()
        self._hosts = hosts = Hosts(isolates, codes, config, clock=clock)
        self._codes = cache = CodeCache(tenant_id, codes, hosts, clock)
        # What the pipeline calls needs the pipeline: it is found when it is called.
        self._commits = commits = CommitPipeline(
            log,
            ids,
            before=lambda: starter.start_runnable(),
            committed=lambda batch: effects.run(batch),
            failed=state.fail,
        )
        self._subscriptions = subscriptions = Subscriptions()
        self._keys = keys = InstanceKeys(core)
        self._timers = timers = DueTimers(state, core, commits, clock)
        self._loader = loader = InstanceLoader(state, core, log, commits, clock)
        self._starter = starter = InstanceStarter(
            state, core, commits, hosts, cache, loader, timers, clock
        )
        self._maintenance = maintenance = TenantMaintenance(
            tenant_id,
            log=log,
            core=core,
            clock=clock,
            erase_within_s=config.erase_within_seconds,
            is_off=not has_maintenance,
            sweep=subscriptions.feeds.sweep,
            mended=commits.kick,
            failed=state.fail,
        )
        self._effects = effects = CommitEffects(
            state, core, log, commits, loader, starter, subscriptions, maintenance, clock
        )
        waiting = WaitingCalls(
            {
                GetEvents: (config.subscriptions_max, "subscriptions_max"),
                AwaitResult: (config.results_waiting_max, "results_waiting_max"),
            }
        )
        reads = InstanceReads(
            state,
            core,
            commits,
            keys,
            loader,
            HistoryReader(log, core),
            subscriptions,
            waiting,
            clock,
        )
        commands = InstanceCommands(
            state, core, commits, keys, loader, cache, tasks, config, clock, ids
        )
        code = CodeOperations(state, core, commits, hosts, cache, keys, clock)
        self._operations = operations = Operations(state, reads, commands, code, waiting)
        self._env_calls = EnvCallHandler(core, commits, operations, codes)
        self.tails = TenantLogs(tenant_id, clock)
        """Where what its code prints goes."""
        self._isolate_events = hosts.listener = IsolateEvents(
            state,
            core,
            commits,
            hosts,
            cache,
            code,
            self._env_calls,
            timers,
            tasks,
            self.tails,
            clock,
        )
        self.call = operations.call
        self.watch, self.rows_of = reads.watch, reads.rows_of
        self.instance_ids, self.mock_event = reads.instance_ids, commands.mock_event
        self.caught_up = commits.caught_up
        self._wake_us: int | None = None
        self._is_asleep = False
        """Whether everything that was decided is in the log, or never will be."""

    @property
    def epoch(self) -> int:
        """The number of this ownership of the log."""
        return self._log.epoch

    @property
    def failed(self) -> BaseException | None:
        """Why it stopped by itself, or None."""
        return self._state.failed

    @property
    def is_over(self) -> bool:
        """Whether it was closed, or stopped by itself."""
        return self._state.is_over

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
        self._isolate_events.deliver_early()

    async def _replay(self) -> None:
        size = 0
        async for rows in self._log.rows():
            for row in rows:
                size += row_bytes(row)
                self.core.apply(row)
                if not row.instance_id:
                    self._codes.apply(row)
                elif row.type == "workflow_queued":
                    self._keys.add_workflow(row.workflow)
        if size > _GIVE_BACK_BYTES:
            release_memory()
        self._state.committed_seq = self.core.last_seq
        self._state.is_open = True
        self._commits.take(self.core.recover(self._clock.now_us()))
        self._maintenance.go_on()

    async def close(self, *, seal: bool = True) -> None:
        """End the isolates, let the log go. What was under way goes on at the next opening."""
        if self._state.is_closed:
            return
        self._state.is_closed = True
        self._maintenance.stop()
        self._timers.close()
        await asyncio.gather(self._tasks.stop(), self._starter.close(), self._loader.close())
        await self._effects.event_reader.close()
        await self._maintenance.finish()
        await self._commits.close()
        if self._state.failed is None:
            # Decisions that the log did not take are no reason to be woken, and none not to be.
            self._state.failed = self._log.failed
        self._wake_us = self.next_wake_us()
        self._is_asleep = True
        await self._hosts.close()
        await self.tails.close()
        self._subscriptions.results.wake_all()
        self._subscriptions.feeds.waiters.wake_all()
        await self._log.close(seal=seal and self.failed is None)

    # --- what the worker process asks

    def is_idle(self) -> bool:
        """Whether nothing runs, nothing is about to, and nobody waits for an answer."""
        return (
            self._state.is_open
            and self._commits.is_idle
            and self._operations.is_idle
            and not self._tasks
            and self._effects.event_reader.is_idle
            and self._maintenance.is_resting
            and self._loader.is_idle
            and not self._state.hosts_by_life
            and self.tails.is_idle
            and next(iter(self.core.runnable()), None) is None
            and all(host.is_unused() or host.error is not None for host in self._hosts)
        )

    def next_wake_us(self) -> int | None:
        """The earliest time at which the tenant has to be awake, or None."""
        if self._is_asleep:
            return self._wake_us
        due_us, erase_us = self.core.next_wake_us(), self._maintenance.erase_us
        if erase_us is None or due_us is None:
            return erase_us if due_us is None else due_us
        return min(due_us, erase_us)

    def _prepare_soon(self) -> None:
        """Get the newest code ready, for an instance that is likely to come."""
        if not self._codes.is_app:
            self._tasks.begin(self._prepare())

    async def _prepare(self) -> None:
        try:
            await self._codes.prepare()
        except WorkflowsError:
            pass  # the next create is told

    @property
    def services_out(self) -> Mapping[object, object]:
        """Calls of services that have no answer yet, each with what it calls."""
        return self._env_calls.services_out

    @property
    def commits(self) -> int:
        """Batches that have taken effect since it was opened."""
        return self._effects.commits

    def isolate_pids(self) -> list[int]:
        """The processes that run this tenant's code, for operators and tests."""
        pids = (host.isolate.pid for host in self._hosts if host.isolate is not None)
        return [pid for pid in pids if pid is not None]

    def _on_failure(self) -> None:
        self._maintenance.stop()
        self._tasks.begin(self._hosts.close())
        self._subscriptions.wake_all()
