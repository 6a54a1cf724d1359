"""W1: how many instances of one step does one tenant finish in a second?

First submit to last result in the driver's hands; one driver, one tenant, fresh for each run.
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
        n = (event.payload or {}).get("n", 0)

        async def one():
            return {"ok": True, "n": n}

        return await step.do("one", one)
"""

QUESTION = "W1: instances of one step, one tenant"
options = arguments(QUESTION)
options.add_argument("--instances", type=int, nargs="+", default=[2_000, 10_000])
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
            for size in chosen.instances:
                # The tenant is awake, as one with work every second is; its log is empty.
                workflows = platform.tenant(f"tenant-{next(numbers)}").workflows
                await (await workflows.create(params={"n": 0})).result(timeout=60)
                items = [{"params": {"n": n}} for n in range(size)]
                start = time.perf_counter()
                instances = []
                for first in range(0, size, 10_000):
                    instances += await workflows.create_batch(items[first : first + 10_000])
                results = await asyncio.gather(*(one.result(timeout=300) for one in instances))
                spent_s = time.perf_counter() - start
                assert sorted(result["n"] for result in results) == list(range(size))
                figures[(f"{size:,} instances", "instances/s")] = size / spent_s
            return figures

        yield run


if __name__ == "__main__":
    main(QUESTION, chosen, measured)
