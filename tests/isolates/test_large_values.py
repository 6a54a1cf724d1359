"""Values that take more memory than an isolate has end their instance by the memory limit."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from real_tenants import real_tenant

CODE = """
import asyncio
from dynamic_workflows import WorkflowEntrypoint

def x(i=0):
    return chr(97 + i) * 50_000_000

class TenantWorkflow(WorkflowEntrypoint):
    async def run(self, event, step):
        once = {{"retries": {{"limit": 0}}}}
        {body}
"""
BODIES = {
    "side by side": "await asyncio.gather(*(step.do(f's{i}', x, config=once) for i in range(6)))",
    "by reference": "await step.do('s', lambda: ['x' * 1_000_000] * 2000, config=once)",
    "tagged": "await step.do('s', lambda: tuple(x(i) for i in range(6)), config=once)",
    "calls": "await asyncio.gather(*(self.env.WORKFLOWS.create(params=x(i)) for i in range(6)))",
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES.keys())
async def test_too_much_at_once_is_told_as_memory(body: str) -> None:
    async with real_tenant({"index.py": CODE.format(body=body)}, turn_cpu_seconds=60) as tenant:
        instance = await tenant.workflows.create(id="top")
        async with asyncio.timeout(120):
            while (status := await instance.status()).status not in ("errored", "paused"):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        told: Any = status.error or status.reason
        assert "memory limit of" in told.message or "more than the limit of" in told.message
        assert "SIGSEGV" not in told.message
