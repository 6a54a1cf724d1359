"""W2: how long does one durable step take, alone, as the workflow itself sees it?

One instance, steps in a row, each timed in the tenant's own code: from calling `step.do` to holding
its result. A step's result is recorded and synced before anything that follows it takes effect.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

from measure import Run, arguments, cluster, main, percentile

import dynamic_workflows as dw

CODE = """
import time

from dynamic_workflows import WorkflowEntrypoint

class TenantWorkflow(WorkflowEntrypoint):
    async def run(self, event, step):
        spent_ms = []
        start = time.perf_counter()
        for n in range((event.payload or {}).get("steps", 1)):

            async def one(n=n):
                return {"ok": True, "n": n}

            before = time.perf_counter()
            await step.do("one", one)
            spent_ms.append((time.perf_counter() - before) * 1e3)
        return {"spent_ms": spent_ms, "all_s": time.perf_counter() - start}
"""

QUESTION = "W2: one instance, steps in a row"
options = arguments(QUESTION)
options.add_argument("--steps", type=int, default=1_000)
chosen = options.parse_args()


def code(tenant_id: str) -> dw.WorkerCode:
    """The same code for every tenant."""
    return dw.WorkerCode(main_module="index.py", modules={"index.py": CODE})


@contextlib.asynccontextmanager
async def measured(folder: Path) -> AsyncIterator[Run]:
    """The workload on a warm platform."""
    async with cluster(code, folder) as platform:

        async def run() -> dict[tuple[str, str], float]:
            workflows = platform.tenant("rows").workflows
            instance = await workflows.create(params={"steps": chosen.steps})
            output = await instance.result(timeout=300)
            assert len(output["spent_ms"]) == chosen.steps
            return {
                ("step p50", "ms"): percentile(output["spent_ms"], 50),
                ("step p99", "ms"): percentile(output["spent_ms"], 99),
                ("all steps / number of steps", "ms"): output["all_s"] * 1e3 / chosen.steps,
            }

        yield run


if __name__ == "__main__":
    main(QUESTION, chosen, measured)
