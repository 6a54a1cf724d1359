"""InstanceLoader: reads instances from the log into the core's memory, and unloads those at rest
when they take too much of it."""

from __future__ import annotations

import asyncio

from dynamic_workflows.eventlog.clock import Clock
from dynamic_workflows.eventlog.errors import InstanceError
from dynamic_workflows.eventlog.events import Row
from dynamic_workflows.eventlog.log.event_log import EventLog

from ..background_tasks import stop_all
from ..core.memory_budget import MemoryBudget
from ..core.tenant_core import TenantCore
from ..instances.decisions import Key
from .commit_pipeline import CommitPipeline, whole
from .instance_keys import not_found
from .supervisor_state import SupervisorState

_LOADS_AT_ONCE_MAX = 16
_RUNNING_BYTES_ABOVE = 32 * 1024 * 1024
"""Bytes above their budget to which instances that run may grow before some have to wait."""
_RESTING_MAX = 4_096
"""Instances at rest that stay in memory; beyond it half of them go."""


class InstanceLoader:
    """Loads and unloads the instances of one tenant, within a memory budget."""

    def __init__(
        self,
        state: SupervisorState,
        core: TenantCore,
        log: EventLog,
        commits: CommitPipeline,
        clock: Clock,
    ) -> None:
        self._state = state
        self._core = core
        self._log = log
        self._commits = commits
        self._clock = clock
        self.memory_budget = MemoryBudget()
        self._loads: dict[Key, asyncio.Task[None]] = {}
        self._load_slots = asyncio.Semaphore(_LOADS_AT_ONCE_MAX)
        self._large_load = asyncio.Lock()
        """Held while an instance is loaded that may take much memory."""

    @property
    def is_idle(self) -> bool:
        """Whether nothing is being loaded."""
        return not self._loads

    async def load(self, key: Key) -> None:
        """Load an instance. Raises `instance.not_found`, and what reading the log raised."""
        await asyncio.shield(self.load_soon(key))

    def load_soon(self, key: Key) -> asyncio.Task[None]:
        """Begin to load an instance; return the task that does, which several callers share."""
        task = self._loads.get(key)
        if task is None:
            task = self._loads[key] = asyncio.ensure_future(self._load(key))
            task.add_done_callback(lambda done: self._on_load_done(key, done))
        return task

    async def _load(self, key: Key) -> None:
        async with self._load_slots:
            if not self._commits.written():
                await self._commits.caught_up()
            if not self._core.exists(key):
                raise not_found(self._state.tenant_id, key[1])
            if self._core.is_loaded(key):
                return
            if self._core.was_heavy(key):
                async with self._large_load:
                    self._take_in(key, await self._read(key))
                return
            rows = await self._log.lean_history(*key)
            if any(row.blob is not None and row.type != "event_received" for row in rows):
                async with self._large_load:
                    self._take_in(key, await whole(self._log, rows, secrets=True, has_events=False))
            else:
                self._take_in(key, rows)

    async def _read(self, key: Key) -> list[Row]:
        rows = await self._log.lean_history(*key)
        return await whole(self._log, rows, secrets=True, has_events=False)

    def _take_in(self, key: Key, rows: list[Row]) -> None:
        if self._core.exists(key) and not self._core.is_loaded(key):
            self._core.load(key, rows)
            if self.memory_budget.is_too_much(self._core):
                self.evict(but=key)

    def _on_load_done(self, key: Key, task: asyncio.Task[None]) -> None:
        self._loads.pop(key, None)
        if task.cancelled():
            return
        error = task.exception()
        if error is not None and not isinstance(error, InstanceError):
            self._state.fail(error)
        self._commits.kick()

    def has_memory(self) -> bool:
        """Return whether one more lifetime may start; the first always may."""
        return not self.memory_budget.is_too_much(self._core) or not self._core.live_count()

    def evict(self, but: Key | None = None) -> None:
        """Unload the instances that have rested longest, if they are many or take too much, except
        `but`, which was just loaded. If those that run take too much, some of them have to wait."""
        core, budget = self._core, self.memory_budget
        resting = list(core.evictable())
        if len(resting) > _RESTING_MAX and self._commits.written():
            for key in resting[: len(resting) - _RESTING_MAX // 2]:
                core.evict(key)
        if budget.is_too_much(core) and self._commits.written():
            budget.relieve(core, but=but)
        if core.loaded_bytes > budget.bytes_max + _RUNNING_BYTES_ABOVE:
            now_us = self._clock.now_us()
            self._commits.take(core.relieve(budget.bytes_max // 2, now_us=now_us))

    async def close(self) -> None:
        """Cancel what is being loaded."""
        await stop_all(self._loads.values())
