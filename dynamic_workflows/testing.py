"""Testing: the same platform in one process, for tests of workflows.

`connect()` gives a platform without Ray, its log in memory, its clock standing still until
`await platform.clock.advance("3 days")`, or jumping by itself with `auto_advance=True`. With
`crash_at_every_step=True` each instance is replayed after each step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any, cast

from .introspection import introspect_instance, introspect_workflow
from .platform import Platform, _settings

if TYPE_CHECKING:
    from .actors.in_process.local_platform import LocalPlatform, TestClock
    from .actors.settings.platform_config import PlatformConfig
    from .loaders.sdk.service import App

__all__ = ["TestPlatform", "connect", "introspect_instance", "introspect_workflow"]


class TestPlatform(Platform):
    """A platform in this process; made by `connect`."""

    __test__ = False

    async def __aenter__(self) -> TestPlatform:
        await super().__aenter__()
        return self

    @property
    def _local(self) -> LocalPlatform:
        return cast("LocalPlatform", self._open())

    @property
    def clock(self) -> TestClock:
        """The platform's clock: `now()`, `await advance(duration)`, `await advance_to(when)`."""
        return self._local.clock

    async def crash(self, tenant_id: str) -> None:
        """Let a tenant die where it stands, as by kill -9, and come back from its log."""
        await self._local.crash(tenant_id)


def connect(
    load: Callable[[str], Any] | None = None,
    *,
    app: App | None = None,
    config: PlatformConfig | Mapping[str, Any] | None = None,
    auto_advance: bool = False,
    crash_at_every_step: bool = False,
    start: datetime | None = None,
) -> TestPlatform:
    """A platform in this process, to be entered: `async with connect(load=load) as platform`.

    `start`: what time it is at first (an aware datetime); None: what time it is now.
    """
    from .actors.in_process.local_platform import LocalPlatform
    from .eventlog.clock import SystemClock, VirtualClock, from_datetime
    from .eventlog.ids import SeededIds
    from .eventlog.store.memory import MemoryStore

    settings = _settings("memory", load, app, config)
    store = MemoryStore()

    async def make() -> LocalPlatform:
        return LocalPlatform(
            load=load,
            app=app,
            config=settings,
            auto_advance=auto_advance,
            crash_at_every_step=crash_at_every_step,
            store=store,
            clock=VirtualClock(SystemClock().now_us() if start is None else from_datetime(start)),
        )

    return TestPlatform(make, log=store, app=app, config=settings, ids=SeededIds(1))
