"""Local platform: a platform in one process, with its log in memory and a clock that tests move.

The same tenants, cores, logs and guests as on Ray; what differs is where isolates run (in this
event loop), where bytes lie, and what time is. Nothing here waits in real time, except for tenant
code that does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable, Iterator
from datetime import datetime
from typing import Any, cast

import msgspec

from dynamic_workflows.eventlog.asyncio_internals import are_threads_busy
from dynamic_workflows.eventlog.clock import (
    US,
    SystemClock,
    VirtualClock,
    from_datetime,
    to_datetime,
)
from dynamic_workflows.eventlog.errors import Fenced, InvalidError, PlatformClosed, Unavailable
from dynamic_workflows.eventlog.ids import SeededIds
from dynamic_workflows.eventlog.store.base import Store
from dynamic_workflows.eventlog.store.memory import MemoryStore
from dynamic_workflows.loaders.guest.virtual_clock import stand_ins
from dynamic_workflows.loaders.isolates.inline import InlineIsolates
from dynamic_workflows.loaders.protocol.calls import (
    WAITING_CALLS,
    AnswerT,
    Calls,
    GetEvents,
    TenantCall,
    TerminateInstance,
)
from dynamic_workflows.loaders.sdk import durations
from dynamic_workflows.loaders.sdk.service import App

from ..code.code_resolver import CodeResolver
from ..core.tenant_core import TenantCore
from ..settings.platform_config import PlatformConfig
from ..tenant.open_tenant import open_tenant
from ..tenant.tenant import TenantSupervisor
from .loop_idle import LoopIdle
from .real_time_budget import RealTimeBudget
from .virtual_sleep import VirtualSleeps

_FOREVER_US = 2**62
_BLINK_S = 0.0002
_GRACE_US = US
"""Tenant code that wakes within this much real time is waited for when time has arrived; what rests
for longer rests in virtual time."""


class LocalPlatform:
    """All tenants of a platform, in one event loop."""

    def __init__(
        self,
        *,
        load: Callable[[str], object] | None = None,
        app: App | None = None,
        config: PlatformConfig | None = None,
        auto_advance: bool = False,
        crash_at_every_step: bool = False,
        store: Store | None = None,
        clock: VirtualClock | None = None,
    ) -> None:
        self.config = config or PlatformConfig()
        self.store: Store = store or MemoryStore()
        self.virtual = clock or VirtualClock(SystemClock().now_us())
        self.ids = SeededIds(0)
        self.clock = TestClock(self)
        self.codes = CodeResolver(
            self.store,
            clock=self.virtual,
            ttl_s=self.config.code_ttl_seconds,
            keys=self.config.keys(),
            load=load,
            app=app,
            peer=self.calls,
        )
        self._isolates = InlineIsolates(stand_ins=stand_ins(self.virtual.now_us))
        self._virtual_sleeps = VirtualSleeps(self.virtual, self._isolates)
        self._real_time_budget = RealTimeBudget()
        self._auto_advance = auto_advance
        self._crash_at_every_step = crash_at_every_step
        self._tenants: dict[str, asyncio.Future[TenantSupervisor]] = {}
        self._waiting = 0
        self._pilot: asyncio.Task[None] | None = None
        self.sessions: set[tuple[str, ...]] = set()
        """What is under introspection."""
        self._is_closed = False
        self._loop: asyncio.AbstractEventLoop | None = None
        """The loop that all of it lives in, once it was used."""

    @property
    def is_closed(self) -> bool:
        """Whether the platform was closed."""
        return self._is_closed

    def calls(self, tenant_id: str) -> LocalCalls:
        """Return the calls of a tenant."""
        return LocalCalls(self, tenant_id)

    async def tenant(self, tenant_id: str) -> TenantSupervisor:
        """Return the tenant, opened if it is not, or again if it stopped."""
        if self._is_closed:
            raise PlatformClosed("the platform was closed: connect again")
        loop = asyncio.get_running_loop()
        if self._loop is None:
            self._loop = loop
        elif self._loop is not loop:
            raise InvalidError(
                "this platform lives in another event loop: give the fixture that opened it and "
                "the test the same loop (with pytest-asyncio: the same loop_scope)"
            )
        opening = self._tenants.get(tenant_id)
        if opening is None or (opening.done() and _has_stopped(opening)):
            opening = self._tenants[tenant_id] = asyncio.ensure_future(self._open(tenant_id))
        return await asyncio.shield(opening)

    async def _open(self, tenant_id: str) -> TenantSupervisor:
        def prepare(core: TenantCore) -> None:
            core.crash_at_every_step = self._crash_at_every_step

        return await open_tenant(
            tenant_id,
            store=self.store,
            isolates=self._isolates,
            codes=self.codes,
            clock=self.virtual,
            ids=self.ids,
            config=self.config,
            has_maintenance=False,
            prepare=prepare,
        )

    def opened(self) -> list[TenantSupervisor]:
        """Return the tenants that are in memory."""
        return [
            opening.result()
            for opening in self._tenants.values()
            if opening.done() and not _has_stopped(opening)
        ]

    async def crash(self, tenant_id: str) -> None:
        """Stop the tenant without closing it, and open it again from its log."""
        tenant = await self.tenant(tenant_id)
        mocks = tenant.core.mocks
        del self._tenants[tenant_id]
        # The new owner fences the dead one, whatever that one still has under way.
        reopened = await self.tenant(tenant_id)
        reopened.core.mocks.take_over(mocks)
        await tenant.close(seal=False)

    async def close(self) -> None:
        """End every tenant."""
        if self._is_closed:
            return
        self._is_closed = True
        if self._pilot is not None:
            self._pilot.cancel()
        for tenant in self.opened():
            await tenant.close(seal=False)
        await self._isolates.close()

    # --- time

    def waits(self) -> _Waiting:
        """Let virtual time jump by itself during the block (if the platform does so at all)."""
        return _Waiting(self)

    def _begin_waiting(self) -> None:
        self._waiting += 1
        if self._auto_advance and (self._pilot is None or self._pilot.done()):
            self._pilot = asyncio.ensure_future(self._jump_while_awaited())

    async def _jump_while_awaited(self) -> None:
        """Jump from timer to timer while a caller waits and nothing else happens."""
        while self._waiting:
            await self.settle()
            if not self._waiting:
                return
            if not self.virtual.fire_next(until_us=_FOREVER_US):
                await asyncio.sleep(_BLINK_S)  # only the driver's own doing can change anything

    async def settle(self, *, until_us: int = _FOREVER_US) -> None:
        """Wait until nothing more happens unless time moves on (and it may move to `until_us`).

        Tenant code that sleeps in real time (asyncio.sleep in a callback) is waited for, unless
        something else is due before it would wake: the attempt's own timeout, say.
        """
        loop: object = asyncio.get_running_loop()
        await LoopIdle.here().until(lambda: self._is_quiescent(until_us, loop))

    def _is_quiescent(self, until_us: int, loop: Any) -> bool:
        """Return whether nothing can happen in real time, when the loop is idle."""
        if are_threads_busy(loop) or self._is_code_awake_before(until_us, loop):
            return False
        return not self._real_time_budget.is_left(self._calls_out(), loop.time())

    def _calls_out(self) -> Iterator[tuple[Hashable, Hashable]]:
        """Return the pending calls of the platform's own code (`load`, services)."""
        for key, task in self.codes.under_way.items():
            yield task, key
        for tenant in self.opened():
            for call, target in tenant.services_out.items():
                yield call, (tenant.tenant_id, target)

    def _is_code_awake_before(self, until_us: int, loop: Any) -> bool:
        """Return whether tenant code that waits in real time wakes before the next virtual
        timer."""
        wakes_s = self._virtual_sleeps.next_s(loop, longest_s=_GRACE_US / US)
        if wakes_s is None:
            return False
        rest_us: float = (wakes_s - loop.time()) * US
        now_us, due_us = self.virtual.now_us(), self.virtual.next_due_us()
        if due_us is not None and due_us <= until_us:
            return rest_us < due_us - now_us
        return rest_us < max(until_us - now_us, _GRACE_US)


def _has_stopped(opening: asyncio.Future[TenantSupervisor]) -> bool:
    return (
        opening.cancelled()
        or opening.exception() is not None
        or opening.result().failed is not None
    )


class _Waiting:
    def __init__(self, platform: LocalPlatform) -> None:
        self._platform = platform

    def __enter__(self) -> None:
        self._platform._begin_waiting()

    def __exit__(self, *failure: object) -> None:
        self._platform._waiting -= 1


class LocalCalls(Calls):
    """The calls of one tenant, made directly."""

    def __init__(self, platform: LocalPlatform, tenant_id: str) -> None:
        self.platform = platform
        self.tenant_id = tenant_id

    async def call(self, call: TenantCall[AnswerT]) -> AnswerT:
        """Carry out one operation; raises WorkflowsError, TimeoutError."""
        if not isinstance(call, WAITING_CALLS):
            answer = await (await self.platform.tenant(self.tenant_id)).call(call)
            if isinstance(call, TerminateInstance) and call.rollback:
                # A test looks at the outcome next; handlers that rest for a retry stay at rest.
                await self.platform.settle(until_us=self.platform.virtual.now_us())
            return answer
        # Nobody is in between who could lose a long poll.
        if isinstance(call, GetEvents):
            call = cast(TenantCall[AnswerT], msgspec.structs.replace(call, wait_s=None))
        with self.platform.waits():
            while True:
                tenant = await self.platform.tenant(self.tenant_id)
                try:
                    return await tenant.call(call)
                except (PlatformClosed, Fenced, Unavailable):
                    # As a client on Ray does: the tenant died, so ask where it lives now.
                    if self.platform.is_closed or not tenant.is_over:
                        raise


class TestClock:
    """The platform's clock in tests, which moves only when the test moves it."""

    __test__ = False

    def __init__(self, platform: LocalPlatform) -> None:
        self._platform = platform

    def now(self) -> datetime:
        """Return the time, aware, in UTC."""
        return to_datetime(self.now_us())

    def now_us(self) -> int:
        """Return the time in microseconds since 1970."""
        return self._platform.virtual.now_us()

    async def advance(self, duration: object) -> None:
        """Move the clock, through every timer on the way, in order, with all effects of each.

        `duration`: a number of milliseconds, text as "3 days", or a timedelta.
        """
        await self.advance_to_us(self.now_us() + durations.parse_ms(duration) * 1000)

    async def advance_to(self, when: datetime) -> None:
        """Move the clock to a moment (an aware datetime)."""
        await self.advance_to_us(from_datetime(when))

    async def advance_to_us(self, until_us: int) -> None:
        """Move the clock to a moment (microseconds since 1970)."""
        virtual, settle = self._platform.virtual, self._platform.settle
        await settle(until_us=until_us)
        while virtual.fire_next(until_us=until_us):
            await settle(until_us=until_us)
        virtual.move_to(until_us)
        await settle(until_us=until_us)

    async def settle(self) -> None:
        """Run everything that can happen without time moving."""
        await self._platform.settle()
