"""Tenants that ask for what lies outside."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import dynamic_workflows as dw
from dynamic_workflows import testing

SECRET = "Bearer s3cr3t"


TENANT = """
from dynamic_workflows import WorkerEntrypoint, WorkflowEntrypoint, fetch

class Default(WorkerEntrypoint):
    async def go(self, url, method="GET", headers=None, body=None):
        response = await fetch(url, method=method, headers=headers, body=body)
        return [response.status, dict(response.headers), await response.text()]

    async def caught(self, url):
        try:
            await fetch(url)
        except Exception as error:
            return [type(error).__name__, str(error)]

class TenantWorkflow(WorkflowEntrypoint):
    async def run(self, event, step):
        return await step.do("ask", lambda: self.ask(event.payload["url"]))

    async def ask(self, url):
        return await (await fetch(url)).json()
"""


def code(gateway: dw.Service | None) -> dw.WorkerCode:
    return dw.WorkerCode("index.py", {"index.py": TENANT}, global_outbound=gateway)


@asynccontextmanager
async def tenant(gateway: dw.Service | None) -> AsyncIterator[dw.Tenant]:
    async with testing.connect(load=lambda tenant_id: code(gateway)) as platform:
        yield platform.tenant("acme")
