"""Isolate pool: isolates that are sandboxed processes, forked from their supervisor's own
zygote.

`ProcessIsolates` keeps the zygote and a few blank isolates; `ProcessIsolate` (`isolate_process.py`)
is one of them. Starting, watching, killing and reaping happen in the background of the event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
import time
from collections import Counter, deque
from collections.abc import Sequence

from dynamic_workflows.eventlog.backoff import Backoff
from dynamic_workflows.eventlog.errors import PlatformClosed, SandboxUnavailable, Unavailable

from ..protocol.messages import Frame
from ..sandbox import linux
from ..sandbox.sandbox import SandboxPlan
from .interface import Exit, Isolation, Limits, OnExit, OnFrames
from .isolate_process import ProcessIsolate
from .zygote import GUEST, Ready
from .zygote_client import Spawner

_log = logging.getLogger("dynamic_workflows.isolates")

_ZYGOTE_ATTEMPTS = 5
_ZYGOTE_BACKOFF = Backoff(0.05, 5.0)
# A zygote that has lived so long was no part of a crash loop.
_SETTLED_S = 30.0
# While nothing happens at all, a look four times a second is enough to see a spin begin.
_TICK_S, _IDLE_TICK_S, _IDLE_AFTER_S = 0.025, 0.25, 1.0
_REFILL_AFTER_S = 0.01


class ProcessIsolates:
    """The isolates of one supervisor; implements `Isolates`. To be made in a running event loop."""

    def __init__(
        self,
        isolation: Isolation | None = None,
        *,
        limits: Limits | None = None,
        guest: str = GUEST,
        path: tuple[str, ...] = (),
        sandbox: SandboxPlan | None = None,
    ) -> None:
        """`limits`: of the first blank isolates. `path`: where to import `guest` from, in tests."""
        self._isolation = isolation or Isolation()
        self._guest = guest
        self._path = path
        self._sandbox = sandbox or SandboxPlan(
            level=self._isolation.level,
            jail=self._isolation.jail,
            threads=self._isolation.threads,
            uid=self._isolation.uid,
            uids_first=self._isolation.uids_first,
        )
        self._loop = asyncio.get_running_loop()
        self._spawner: Spawner | None = None
        self._spawner_began_s = 0.0
        self._losses = 0
        self._lock = asyncio.Lock()
        self._isolates: set[ProcessIsolate] = set()
        self._given: set[ProcessIsolate] = set()
        """Those that have run tenant code, or are about to."""
        self._blanks: deque[ProcessIsolate] = deque()
        self._blank_limits = limits or Limits()
        self._last_limits = self._blank_limits
        self._refill: asyncio.Task[None] | None = None
        self._refill_timer: asyncio.TimerHandle | None = None
        self._tick_timer: asyncio.TimerHandle | None = None
        self._tick_count = 0
        self._moved_s = 0.0
        self._is_closed = False
        self.level = "starting"
        """The walls reached, for people, once the zygote is ready."""
        self.counts: Counter[str] = Counter()
        """Metrics: `started`, `started_warm`, `zygotes`, `ended_<kind>`."""
        if self._sandbox.level == "sandbox" and not linux.IS_LINUX:
            raise SandboxUnavailable(
                f"refusing to run tenant code: its walls need Linux, not {sys.platform}. Run this "
                "in a Linux container, or set isolation='unsafe-none' for code that you trust."
            )
        if self._isolation.hide_supervisor:
            with contextlib.suppress(OSError):  # not on every system, and the least of the walls
                linux.set_dumpable(False)
        self._plan_refill(0.0)

    @property
    def alive(self) -> int:
        """How many isolates exist, blank ones included."""
        return len(self._isolates)

    async def ready(self) -> str:
        """Wait until the zygote is sandboxed; return the level. Raises SandboxUnavailable."""
        _, ready = await self._zygote()
        return ready.level

    async def start(
        self,
        *,
        limits: Limits,
        on_frames: OnFrames,
        on_exit: OnExit,
        first: Sequence[Frame] = (),
    ) -> ProcessIsolate:
        """Return a fresh isolate; Load is the first message that it takes, of `first` or sent
        later.

        Raises SandboxUnavailable where the walls cannot be built, Unavailable where no process can
        be started for now, PlatformClosed after `close`.
        """
        isolate = self._pop_blank(limits)
        if isolate is None:
            isolate = await self._make(limits, is_blank=False, first=first)
        else:
            self._given.add(isolate)
            isolate.send(list(first))
        isolate.attach(on_frames, on_exit)
        self.counts["started"] += 1
        self._moved_s = time.monotonic()
        self._watch(soon=True)
        self._plan_refill(_REFILL_AFTER_S)
        return isolate

    def _pop_blank(self, limits: Limits) -> ProcessIsolate | None:
        last, self._last_limits = self._last_limits, limits
        if limits != self._blank_limits:
            # Asked for twice: the blank ones had better be of this kind.
            if limits == last:
                self._blank_limits = limits
                for blank in self._blanks:
                    blank.kill(_CLOSED)
                self._blanks.clear()
            return None
        while self._blanks:
            blank = self._blanks.popleft()
            if not blank.has_ended:
                self.counts["started_warm"] += 1
                return blank
        return None

    async def _make(
        self, limits: Limits, *, is_blank: bool, first: Sequence[Frame] = ()
    ) -> ProcessIsolate:
        for attempts_left in range(_ZYGOTE_ATTEMPTS - 1, -1, -1):
            spawner, ready = await self._zygote()
            try:
                isolate = ProcessIsolate(
                    limits, level=ready.level, shared_bytes=ready.rss_bytes, on_ended=self._ended
                )
            except OSError as error:
                raise Unavailable(f"no isolate can be made for now: {error}") from error
            self._isolates.add(isolate)
            if not is_blank:
                self._given.add(isolate)
            try:
                await isolate.spawn(spawner, is_blank=is_blank, first=first)
            except Unavailable:
                if not attempts_left:
                    raise
            else:
                return isolate
        raise AssertionError("the last attempt returns or raises")

    def _ended(self, isolate: ProcessIsolate, exit: Exit) -> None:
        self._isolates.discard(isolate)
        self._given.discard(isolate)
        self.counts[f"ended_{exit.kind}"] += 1
        if isolate in self._blanks:
            self._blanks.remove(isolate)
            self._plan_refill(_IDLE_TICK_S)

    # --- the zygote -----------------------------------------------------------------------------

    async def _zygote(self) -> tuple[Spawner, Ready]:
        for attempts_left in range(_ZYGOTE_ATTEMPTS - 1, -1, -1):
            async with self._lock:
                if self._is_closed:
                    raise PlatformClosed("the isolates of this supervisor are closed")
                spawner = self._spawner
                if spawner is None or spawner.is_lost:
                    spawner = self._spawner = await self._new_spawner()
            try:
                ready = await spawner.ready()
            except SandboxUnavailable:
                raise
            except Unavailable:
                if not attempts_left:
                    raise
            else:
                if self.level != ready.level:
                    self._announce(ready)
                return spawner, ready
        raise AssertionError("the last attempt returns or raises")

    async def _new_spawner(self) -> Spawner:
        if self._losses > 1:
            await asyncio.sleep(_ZYGOTE_BACKOFF.rest_s(self._losses - 1))
        self._spawner_began_s = time.monotonic()
        self.counts["zygotes"] += 1
        try:
            return Spawner(
                sandbox=self._sandbox,
                packages=self._isolation.packages,
                guest=self._guest,
                path=self._path,
                on_lost=self._lost,
            )
        except OSError as error:
            raise Unavailable(f"no zygote can be started for now: {error}") from error

    def _lost(self, spawner: Spawner) -> None:
        if time.monotonic() - self._spawner_began_s > _SETTLED_S:
            self._losses = 0
        self._losses += 1
        self._blanks.clear()
        self._plan_refill(_IDLE_TICK_S)

    def _announce(self, ready: Ready) -> None:
        self.level = ready.level
        if self._isolation.level == "unsafe-none":
            _log.warning("tenant code runs WITHOUT walls (isolation='unsafe-none')")
        else:
            _log.info("isolates stand behind %s", ready.level)
        for note in ready.notes:
            _log.warning("%s", note)

    # --- blank isolates -------------------------------------------------------------------------

    def _plan_refill(self, after_s: float) -> None:
        if self._is_closed or self._refill_timer is not None or self._refill is not None:
            return
        self._refill_timer = self._loop.call_later(after_s, self._begin_refill)

    def _begin_refill(self) -> None:
        self._refill_timer = None
        self._refill = self._loop.create_task(self._refill_blanks())
        self._refill.add_done_callback(self._refilled)

    async def _refill_blanks(self) -> None:
        if self._isolation.warm <= 0:
            await self._zygote()
        while len(self._blanks) < self._isolation.warm and not self._is_closed:
            limits = self._blank_limits
            blank = await self._make(limits, is_blank=True)
            if limits == self._blank_limits and not blank.has_ended:
                self._blanks.append(blank)
            else:
                blank.kill(_CLOSED)

    def _refilled(self, task: asyncio.Task[None]) -> None:
        self._refill = None
        # Starting an isolate raises the same error, to the caller that needs it.
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.debug("no blank isolate: %s", error)

    # --- the watch ------------------------------------------------------------------------------

    def _watch(self, *, soon: bool) -> None:
        if self._tick_timer is not None:
            if not soon or self._tick_timer.when() - self._loop.time() <= _TICK_S:
                return
            self._tick_timer.cancel()
        self._tick_timer = self._loop.call_later(_TICK_S if soon else _IDLE_TICK_S, self._tick)

    def _tick(self) -> None:
        self._tick_timer = None
        self._tick_count += 1
        now_s = time.monotonic()
        for isolate in list(self._isolates):
            if isolate.check_limits(now_s, samples_memory=self._tick_count % 8 == 0):
                self._moved_s = now_s
        if self._isolates and not self._is_closed:
            self._watch(soon=now_s - self._moved_s < _IDLE_AFTER_S)

    # --- the end --------------------------------------------------------------------------------

    async def given_back(self, within_s: float) -> bool:
        """Wait until the isolates that were given out are gone; return whether they are in time."""
        if self._given:
            await asyncio.wait([isolate.ended for isolate in self._given], timeout=within_s)
        return not self._given

    async def close(self) -> None:
        """End every isolate and the zygote; returns when the processes are gone."""
        self._is_closed = True
        for timer in (self._refill_timer, self._tick_timer):
            if timer is not None:
                timer.cancel()
        if self._refill is not None:
            self._refill.cancel()
            await asyncio.wait([self._refill])
        isolates = list(self._isolates)
        for isolate in isolates:
            isolate.kill(_CLOSED)
        if isolates:
            await asyncio.wait([isolate.ended for isolate in isolates], timeout=2.0)
        async with self._lock:
            if self._spawner is not None:
                await self._spawner.close()


_CLOSED = Exit("closed", is_tenants_own=False, kind="closed")
