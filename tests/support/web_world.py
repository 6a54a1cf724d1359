"""A platform of tests over HTTP, without a socket."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx

import dynamic_workflows as dw
from dynamic_workflows import testing
from dynamic_workflows.web import create_app

CODE = """
from decimal import Decimal
from dynamic_workflows import WorkerEntrypoint, WorkflowEntrypoint

class TenantWorkflow(WorkflowEntrypoint):
    async def run(self, event, step):
        async def price():
            return {"amount": Decimal("1.50"), "asked": event.payload}

        priced = await step.do("price", price)
        approved = await step.wait_for_event("approval", type="approval", timeout="1 hour")
        return [priced, approved.payload]

class Failing(WorkflowEntrypoint):
    async def run(self, event, step):
        async def fail():
            raise ValueError("<b>no</b> \\x1b[31m")

        await step.do("fail", fail, config={"retries": {"limit": 1, "delay": "1 second"}})

class Default(WorkerEntrypoint):
    async def fetch(self, request):
        return {"url": request.url, "method": request.method, "headers": sorted(request.headers)}
"""
INSTANCES = "/v1/tenants/acme/workflows/TenantWorkflow/instances"


@asynccontextmanager
async def served(keys: Any = None, **more: Any) -> AsyncIterator[tuple[Any, httpx.AsyncClient]]:
    """A platform whose tenants all run CODE, and a client of its application."""

    async def load(tenant_id: str) -> dw.WorkerCode:
        return dw.WorkerCode("index.py", {"index.py": CODE})

    async with testing.connect(load=load, auto_advance=True) as platform:
        transport = httpx.ASGITransport(app=create_app(platform, keys=keys, **more))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            yield platform, client


def bearer(key: str) -> dict[str, str]:
    """The header that carries a key."""
    return {"Authorization": f"Bearer {key}"}
