import asyncio

import dynamic_workflows as dw

# What a tenant wrote. It is text here; yours may lie in a database, a bucket or a git repository.
TENANT_CODE = """
from dynamic_workflows import WorkflowEntrypoint

PRICES = {"tea": 4, "pot": 25}

class TenantWorkflow(WorkflowEntrypoint):
    async def run(self, event, step):
        total = await step.do("price", lambda: PRICES[event.payload["sku"]])
        await step.sleep("cool off", "2 seconds")
        approval = await step.wait_for_event("approval", type="approved", timeout="7 days")
        return {"total": total, "approved_by": approval.payload["by"]}
"""


async def load(tenant_id: str) -> dw.WorkerCode:  # called when a tenant's code is needed
    return dw.WorkerCode(main_module="index.py", modules={"index.py": TENANT_CODE})


async def main() -> None:
    async with dw.connect("./data/quickstart", load=load) as platform:
        orders = platform.tenant("acme").workflows
        order = await orders.create(params={"sku": "tea"})
        await order.send_event("approved", {"by": "ada"})
        print(await order.result())

        steps = (
            "select kind, step, status, output from steps where instance_id = ? order by started_at"
        )
        for row in platform.query(steps, [order.id]).to_pylist():
            print("{kind:14} {step:9} {status:9} {output}".format(**row))


asyncio.run(main())
