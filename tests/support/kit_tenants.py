"""Tenant code for the tests of the testing kit and of the platform."""

from __future__ import annotations

import dynamic_workflows as dw
from dynamic_workflows import testing
from dynamic_workflows.eventlog.store.memory import MemoryStore

ORDER = """
from dynamic_workflows import WorkflowEntrypoint, NonRetryableError

class TenantWorkflow(WorkflowEntrypoint):
    async def run(self, event, step):
        retries = {"limit": 2, "delay": "1 minute", "backoff": "constant"}
        reserved = await step.do("reserve", lambda: "real", config={"retries": retries})
        await step.sleep("cool off", "3 days")
        approval = await step.wait_for_event("approval", type="approved", timeout="7 days")
        return {"reserved": reserved, "by": approval.payload["by"]}
"""

MONTH = """
from dynamic_workflows import WorkflowEntrypoint

class TenantWorkflow(WorkflowEntrypoint):
    async def run(self, event, step):
        total = 0
        for day in range(30):
            async def bill(ctx):
                if day % 7 == 3 and ctx.attempt == 1:
                    raise RuntimeError("declined")
                return day
            total += await step.do(f"bill day {day}", bill)
            await step.sleep("until tomorrow", "1 day")
        return total
"""

TWICE = """
from dynamic_workflows import WorkflowEntrypoint, WorkflowTimeoutError

class TenantWorkflow(WorkflowEntrypoint):
    async def run(self, event, step):
        retries = {"limit": 1, "delay": "1 hour", "backoff": "constant"}
        first = await step.do("work", lambda: 1, config={"retries": retries})
        second = await step.do("work", lambda: 2, config={"retries": retries})
        secret = await step.do("secret", lambda: "hush", config={"sensitive": "output"})
        try:
            event = await step.wait_for_event("go", type="go", timeout="1 hour")
            went = event.payload
        except WorkflowTimeoutError:
            went = "timed out"
        return [first, second, len(secret), went]
"""

SOURCES = {"order": ORDER, "month": MONTH, "twice": TWICE}


async def load(tenant_id: str) -> dw.WorkerCode:
    return dw.WorkerCode(main_module="index.py", modules={"index.py": SOURCES[tenant_id]})


def stored_objects(platform: testing.TestPlatform) -> dict[str, bytes]:
    """What lies in the memory of a platform under test, by key."""
    store = platform._local.store
    assert isinstance(store, MemoryStore)
    return store.objects
