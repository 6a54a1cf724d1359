"""W7: how long does a tenant nobody has seen before wait for its first step?

A new tenant id with new code, from `create` to the result of a one-step workflow in the driver's
hands: loading the code, an actor for the tenant, a log, an isolate, and the step, synced.
With the warm pool full, and with no warm pool at all.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator
from pathlib import Path

from measure import Run, arguments, cluster, main, percentile

import dynamic_workflows as dw

CODE = """
from dynamic_workflows import WorkflowEntrypoint

TENANT = {tenant!r}

class TenantWorkflow(WorkflowEntrypoint):
    async def run(self, event, step):
        async def one():
            return {{"ok": True, "tenant": TENANT}}

        return await step.do("one", one)
"""

QUESTION = "W7: a tenant never seen before, create to first result"
options = arguments(QUESTION)
options.add_argument("--tenants", type=int, default=20, help="how many a run, one after the other")
options.add_argument("--pause", type=float, default=1.5, help="seconds for the pool to fill again")
chosen = options.parse_args()


def code(tenant_id: str) -> dw.WorkerCode:
    """Other code for every tenant."""
    return dw.WorkerCode(
        main_module="index.py", modules={"index.py": CODE.format(tenant=tenant_id)}
    )


async def spent_ms(platform: dw.Platform, tenants: list[str], *, pause_s: float) -> list[float]:
    """The wait of each tenant, one after the other."""
    spent = []
    for tenant in tenants:
        await asyncio.sleep(pause_s)
        start = time.perf_counter()
        instance = await platform.tenant(tenant).workflows.create()
        result = await instance.result(timeout=60)
        spent.append((time.perf_counter() - start) * 1e3)
        assert result == {"ok": True, "tenant": tenant}
    return spent


@contextlib.asynccontextmanager
async def measured(folder: Path) -> AsyncIterator[Run]:
    """Each run starts a platform of each kind, since both share the machine's one Ray."""
    numbers = itertools.count(1)

    async def run() -> dict[tuple[str, str], float]:
        figures = {}
        for kind, pool in (("pool warm", 4), ("pool empty", 0)):
            tenants = [f"new-{next(numbers)}" for _ in range(chosen.tenants if pool else 5)]
            config = dw.PlatformConfig(pool_size=pool)
            async with cluster(code, folder / f"{next(numbers)}", config) as platform:
                spent = await spent_ms(platform, tenants, pause_s=chosen.pause if pool else 0)
            figures[(f"{kind} p50", "ms")] = percentile(spent, 50)
            figures[(f"{kind} p99", "ms")] = percentile(spent, 99)
        return figures

    yield run


if __name__ == "__main__":
    main(QUESTION, chosen, measured)
