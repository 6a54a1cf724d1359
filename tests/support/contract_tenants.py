"""Tenant code and a `load` callback for the contract tests, as an outsider would write them."""

import dynamic_workflows as dw

FIRST = """
from dynamic_workflows import WorkflowEntrypoint, WorkerEntrypoint, NonRetryableError

async def charge(ctx):
    return {"charged": ctx.attempt}

async def refund(undo):
    return None

class TenantWorkflow(WorkflowEntrypoint):
    async def run(self, event, step):
        retries = {"limit": 3, "delay": "2 seconds", "backoff": "exponential"}
        @step.do("reserve stock", config={"retries": retries})
        async def reserve(ctx):
            return {"sku": event.payload["sku"], "attempt": ctx.attempt}
        reserved = await reserve()

        total = await step.do("price", lambda: 42)
        await step.sleep("cool off", "3 days")
        approval = await step.wait_for_event("approval", type="approved", timeout="7 days")
        await step.do("charge", charge, rollback=refund)
        return {"total": total, "by": approval.payload["by"], **reserved}

class Default(WorkerEntrypoint):
    async def fetch(self, request):
        instance = await self.env.WORKFLOWS.create(params=await request.json())
        return {"id": instance.id}
"""

VALUES = """
import datetime, decimal, uuid, math
from zoneinfo import ZoneInfo
from dynamic_workflows import WorkflowEntrypoint

def everything():
    return [
        None, True, False, 0, -1, 2**200, 1.5, float("inf"), "text", "\\u2028 ünï", b"\\x00\\xff",
        datetime.datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=datetime.UTC),
        datetime.datetime(2026, 1, 2, tzinfo=ZoneInfo("Europe/Berlin")),
        datetime.datetime(2026, 1, 2), datetime.date(2026, 1, 2), datetime.time(1, 2, 3),
        datetime.timedelta(days=1, microseconds=7), decimal.Decimal("1.10"),
        uuid.UUID(int=7), (1, (2,)), [1, [2]], {1, 2}, frozenset({3}),
        {"a": 1, 2: "b", (1, 2): "c", None: "d"}, {"$type": "int", "$": 1}, {},
    ]

class TenantWorkflow(WorkflowEntrypoint):
    async def run(self, event, step):
        got = await step.do("everything", everything)
        await step.sleep("nap", "1 hour")
        want = everything()
        assert got == want, (got, want)
        assert [type(v) for v in got] == [type(v) for v in want]
        nan = await step.do("nan", lambda: float("nan"))
        assert math.isnan(nan)
        assert event.payload["back"] == (1, 2)
        return got
"""

FLAKY = """
from dynamic_workflows import WorkflowEntrypoint, NonRetryableError

class TenantWorkflow(WorkflowEntrypoint):
    async def run(self, event, step):
        plan = event.payload
        async def flaky(ctx):
            if ctx.attempt <= plan.get("fail", 0):
                raise KeyError(f"attempt {ctx.attempt}")
            return ctx.attempt
        retries = {"limit": plan.get("limit", 5), "delay": "10 seconds"}
        n = await step.do("flaky", flaky, config={"retries": retries})
        if plan.get("stop"):
            async def stop():
                raise NonRetryableError("enough")
            await step.do("stop", stop)
        return n
"""

TENANTS = {"acme": FIRST, "values": VALUES, "flaky": FLAKY, "globex": FIRST}


async def load(tenant_id: str) -> dw.WorkerCode:
    return dw.WorkerCode(main_module="index.py", modules={"index.py": TENANTS[tenant_id]})
