"""TenantStarts: which instances get a lifetime now, and which have to be read or loaded first.

An instance starts only where its code is loaded, so nothing is recorded of a start that could not
be. Whoever cannot start keeps its place, and shows why.
"""

from __future__ import annotations

import asyncio
from itertools import islice
from typing import Any

from dynamic_workflows.eventlog.errors import InstanceError, WorkflowsError
from dynamic_workflows.eventlog.events import Row
from dynamic_workflows.loaders.protocol import messages

from ..core.memory_budget import Heft
from ..hosting.code_cache import unwrapped
from ..hosting.code_host import Host
from ..instances.decisions import Decision, Key, Send
from .commit_pipeline import whole
from .operations import TenantCalls, not_found

_STARTS_A_TURN_MAX = 512
_HEFT_SLACK = 32 * 1024 * 1024
"""Bytes above their budget to which instances that run may grow before some have to wait."""
_RESTING_MAX = 4_096
"""Instances at rest that stay in memory; beyond it half of them go."""


class TenantStarts(TenantCalls):
    """The starting half of `Tenant`."""

    _is_open: bool
    _lives: dict[int, Host]
    _failing: set[Key]
    _asking: dict[Any, asyncio.Task[None]]
    _loads: dict[Key, asyncio.Task[None]]
    _load_slots: asyncio.Semaphore
    _heavy_load: asyncio.Lock
    """Held while an instance is loaded that may take much memory."""
    _heft: Heft

    def _arm(self) -> None:
        raise NotImplementedError

    def _retry_at(self, due_us: int) -> None:
        raise NotImplementedError

    def _fail(self, error: BaseException) -> None:
        raise NotImplementedError

    def _start_runnable(self) -> None:
        """Start lifetimes, as far as slots and loaded code reach; at the end of each turn."""
        if self._is_closed or not self._is_open:
            return
        keys = list(islice(self.core.runnable(), _STARTS_A_TURN_MAX))
        if self._is_full():
            keys = []  # Each end of a lifetime looks again.
        moved = [self._has_memory() and self._try_to_start(key) for key in keys]
        if len(keys) == _STARTS_A_TURN_MAX and any(moved):
            self._pump.kick()  # there may be more behind them
        self._arm()

    def _is_full(self) -> bool:
        """Whether what runs takes so much memory that nothing more may start beside it."""
        if self._has_memory():
            return False
        self._evict()
        return not self._has_memory()

    def _has_memory(self) -> bool:
        return not self._heft.is_too_much(self.core) or not self.core.live_count()

    def _try_to_start(self, key: Key) -> bool:
        """Start one, or note why not; False: it stands where it stood, something is under way."""
        follows = self.core.pin(key) == "latest"
        is_loaded = self.core.is_loaded(key)
        if follows and is_loaded:
            latest = self._latest(key)
            if latest is None:
                return False
            if latest != self.core.code_hash(key):
                self.core.repin(key, latest)
        if not is_loaded and follows:
            self._load_soon(key)  # its metadata says what it follows
            return False
        code_hash = self.core.code_hash(key)
        assert code_hash is not None, "every instance is created with code"
        host = self._hosts.get((code_hash, None, ()))
        if not host.is_ready or not self._codes.has_workflow(code_hash, key[0]):
            return self._note_failure(key, host)
        if not is_loaded:
            self._load_soon(key)
            return False
        place = self._hosts.place(host)
        if place is None:
            return False
        self._start(key, place)
        return True

    def _note_failure(self, key: Key, host: Host) -> bool:
        """Show why an instance cannot start, if there is a reason beyond a little patience."""
        if host.error is not None:
            self.core.note_load_failure(key, host.error.code, host.error.message)
            self._retry_at(host.retry_us)
        elif host.is_ready:
            self.core.note_load_failure(
                key, "code.class_missing", f"the code has no workflow class {key[0]!r}"
            )
        else:
            return False
        is_news = key not in self._failing
        self._failing.add(key)
        return is_news

    def _start(self, key: Key, host: Host) -> None:
        decision = self.core.start(key, now_us=self._clock.now_us())
        self._failing.discard(key)
        life = decision.answer
        steps_max = host.limits.get("steps")
        if steps_max is not None:
            _lower_steps(decision, steps_max)
        if life is not None:
            self._lives[life] = host
            host.lives[life] = key
        self._pump.take(decision)

    def _latest(self, key: Key) -> str | None:
        """The newest code for an instance that follows it; None: it is being asked for."""
        binding, metadata = unwrapped(self.core.metadata(key))
        held = self._codes.held(binding, metadata)
        if held is not None:
            return held.code_hash
        if self._codes.retry_us > self._clock.now_us():
            return None
        name = ("latest", metadata)
        if name not in self._asking:
            task = self._asking[name] = asyncio.ensure_future(
                self._find_latest(key, binding, metadata)
            )
            task.add_done_callback(lambda done: self._asking.pop(name, None))
        return None

    async def _find_latest(self, key: Key, binding: str | None, metadata: bytes | None) -> None:
        try:
            await self._codes.current(binding, metadata)
        except WorkflowsError as error:
            if self.core.exists(key):
                self.core.note_load_failure(key, error.code, error.message)
            self._retry_at(self._codes.retry_us)
        self._pump.kick()

    # --- instances that are not in memory

    async def _load(self, key: Key) -> None:
        await asyncio.shield(self._load_soon(key))

    def _load_soon(self, key: Key) -> asyncio.Task[None]:
        task = self._loads.get(key)
        if task is None:
            task = self._loads[key] = asyncio.ensure_future(self._load_now(key))
            task.add_done_callback(lambda done: self._loaded_now(key, done))
        return task

    async def _load_now(self, key: Key) -> None:
        async with self._load_slots:
            if not self._pump.written():
                await self._pump.caught_up()
            if not self.core.exists(key):
                raise not_found(self.tenant_id, key[1])
            if self.core.is_loaded(key):
                return
            if self.core.was_heavy(key):
                async with self._heavy_load:
                    self._take_in(key, await self._read(key))
                return
            rows = await self._log.lean_history(*key)
            if any(row.blob is not None and row.type != "event_received" for row in rows):
                async with self._heavy_load:
                    self._take_in(key, await whole(self._log, rows, secrets=True, has_events=False))
            else:
                self._take_in(key, rows)

    async def _read(self, key: Key) -> list[Row]:
        rows = await self._log.lean_history(*key)
        return await whole(self._log, rows, secrets=True, has_events=False)

    def _take_in(self, key: Key, rows: list[Row]) -> None:
        if self.core.exists(key) and not self.core.is_loaded(key):
            self.core.load(key, rows)
            if self._heft.is_too_much(self.core):
                self._evict(but=key)

    def _loaded_now(self, key: Key, task: asyncio.Task[None]) -> None:
        self._loads.pop(key, None)
        if task.cancelled():
            return
        error = task.exception()
        if error is not None and not isinstance(error, InstanceError):
            self._fail(error)
        self._pump.kick()

    def _evict(self, but: Key | None = None) -> None:
        """Forget what has rested longest, once there is much of it; not the one that was just
        loaded for somebody. Where what runs takes too much, some of it has to wait."""
        resting = list(self.core.evictable())
        if len(resting) > _RESTING_MAX and self._pump.written():
            for key in resting[: len(resting) - _RESTING_MAX // 2]:
                self.core.evict(key)
        if self._heft.is_too_much(self.core) and self._pump.written():
            self._heft.relieve(self.core, but=but)
        if self.core.loaded_bytes > self._heft.bytes_max + _HEFT_SLACK:
            now_us = self._clock.now_us()
            self._pump.take(self.core.relieve(self._heft.bytes_max // 2, now_us=now_us))


def _lower_steps(decision: Decision, steps_max: int) -> None:
    """The code's own limit holds where it is below the platform's."""
    for effect in decision.effects:
        if type(effect) is Send and isinstance(effect.message, messages.Run):
            effect.message.steps_max = min(effect.message.steps_max, steps_max)
