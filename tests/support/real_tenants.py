"""A tenant in this process whose code runs in real isolates, behind real walls."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from isolates import DEFAULT

import dynamic_workflows as dw
from dynamic_workflows.actors.code.code_resolver import CodeResolver
from dynamic_workflows.actors.placement.isolate_setup import isolates_of
from dynamic_workflows.actors.tenant.open_tenant import open_tenant
from dynamic_workflows.actors.tenant.tenant import TenantSupervisor
from dynamic_workflows.eventlog.clock import SystemClock
from dynamic_workflows.eventlog.ids import SystemIds
from dynamic_workflows.eventlog.store.memory import MemoryStore
from dynamic_workflows.loaders.bundles.worker import EntrypointStub
from dynamic_workflows.loaders.isolates.isolate_pool import ProcessIsolates


class RealTenant:
    """One tenant, as a driver holds it."""

    def __init__(self, shell: TenantSupervisor, isolates: ProcessIsolates) -> None:
        self.shell = shell
        self.isolates = isolates
        self.workflows = dw.WorkflowBinding(shell)

    def entrypoint(self, name: str | None = None, **more: Any) -> EntrypointStub:
        return EntrypointStub(self.shell.call, name, **more)


@asynccontextmanager
async def real_tenant(
    code: dw.WorkerCode | dict[str, Any], **config: Any
) -> AsyncIterator[RealTenant]:
    """A tenant whose code is `code` (a WorkerCode, or modules)."""
    if not isinstance(code, dw.WorkerCode):
        code = dw.WorkerCode("index.py", code)
    settings = dw.PlatformConfig(**({"warm_isolates": 0, "isolation": DEFAULT.level} | config))
    store, clock = MemoryStore(), SystemClock()
    codes = CodeResolver(store, clock=clock, ttl_s=60, load=lambda tenant_id: code)
    isolates = isolates_of(settings)
    shell = await open_tenant(
        "acme", store=store, isolates=isolates, codes=codes, clock=clock, ids=SystemIds(),
        config=settings, has_maintenance=False,
    )  # fmt: skip
    try:
        yield RealTenant(shell, isolates)
    finally:
        await shell.close(seal=False)
        await isolates.close()


async def until(condition: Callable[[], Any], what: str) -> None:
    """Wait until the condition holds; a minute is long enough for a busy machine."""
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


class Tail(dw.Service):
    """Collects records, in this process."""

    def __init__(self) -> None:
        super().__init__(props=None)
        self.records: list[dict[str, Any]] = []

    async def tail(self, records: list[dict[str, Any]]) -> None:
        self.records += records

    def texts(self, **facts: Any) -> list[str]:
        """The texts of the records with these facts."""
        return [
            record["text"]
            for record in self.records
            if all(record[name] == value for name, value in facts.items())
        ]
