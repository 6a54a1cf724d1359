"""W3: how many durable steps does one tenant record in a second, with many instances at once?

First submit to last result in the driver's hands; creating and completing the instances included.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator
from pathlib import Path

from measure import Run, arguments, cluster, main

import dynamic_workflows as dw

CODE = """
from dynamic_workflows import WorkflowEntrypoint

class TenantWorkflow(WorkflowEntrypoint):
    async def run(self, event, step):
        steps = (event.payload or {}).get("steps", 1)
        for n in range(steps):

            async def one(n=n):
                return {"ok": True, "n": n}

            await step.do("one", one)
        return steps
"""

QUESTION = "W3: instances at once, steps in a row each, one tenant"
options = arguments(QUESTION)
options.add_argument("--instances", type=int, default=100)
options.add_argument("--steps", type=int, nargs="+", default=[50, 500])
chosen = options.parse_args()


def code(tenant_id: str) -> dw.WorkerCode:
    """The same code for every tenant."""
    return dw.WorkerCode(main_module="index.py", modules={"index.py": CODE})


@contextlib.asynccontextmanager
async def measured(folder: Path) -> AsyncIterator[Run]:
    """The workload on a warm platform."""
    numbers = itertools.count(1)
    async with cluster(code, folder) as platform:

        async def run() -> dict[tuple[str, str], float]:
            figures = {}
            for steps in chosen.steps:
                workflows = platform.tenant(f"tenant-{next(numbers)}").workflows
                await (await workflows.create(params={"steps": 1})).result(timeout=60)
                items = [{"params": {"steps": steps}}] * chosen.instances
                start = time.perf_counter()
                instances = await workflows.create_batch(items)
                results = await asyncio.gather(*(one.result(timeout=300) for one in instances))
                spent_s = time.perf_counter() - start
                assert results == [steps] * chosen.instances
                name = f"{chosen.instances:,} instances of {steps:,} steps"
                figures[(name, "steps/s")] = chosen.instances * steps / spent_s
            return figures

        yield run


if __name__ == "__main__":
    main(QUESTION, chosen, measured)
