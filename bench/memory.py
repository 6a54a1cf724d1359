"""Memory of one tenant at all its limits at once: of the process that its actor is.

`python bench/memory.py [SHARE]` fills a tenant that lies on a disk of this machine, with real
isolates, up to SHARE (1.0) of each number that has a default limit, and prints what the process
takes after each part (VmRSS, and VmHWM as the highest so far; MB of 10^6 bytes).
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import dynamic_workflows as dw
from dynamic_workflows.actors.code.code_resolver import CodeResolver
from dynamic_workflows.actors.placement.isolate_setup import isolates_of
from dynamic_workflows.actors.tenant.open_tenant import open_tenant
from dynamic_workflows.actors.tenant.tenant import TenantSupervisor
from dynamic_workflows.eventlog.clock import SystemClock
from dynamic_workflows.eventlog.ids import SystemIds
from dynamic_workflows.eventlog.store.open_store import open_store
from dynamic_workflows.loaders.protocol.calls import (
    AwaitResult,
    ChangeSchedule,
    CreateBatch,
    GetEvents,
    NewInstance,
    SendEvent,
)

CODE = """
import asyncio
from dynamic_workflows import WorkflowEntrypoint

class TenantWorkflow(WorkflowEntrypoint):
    async def run(self, event, step):
        plan = event.payload
        if "large" in plan:
            await step.do("large", lambda: "x" * plan["large"])
            return await step.do("hold", lambda: asyncio.sleep(10_000), config={"timeout": "1 day"})
        if "timers" in plan:
            naps = (step.sleep(f"nap {n}", "300 days") for n in range(plan["timers"]))
            return await asyncio.gather(*naps)
        await step.wait_for_event("w", type="never", timeout="300 days")
"""
SETTINGS = dw.PlatformConfig(
    warm_isolates=0,
    instance_idle_seconds=0.5,
    creates_burst_max=10**7,
    turn_cpu_seconds=60,
    turn_wall_seconds=120,
    silent_cpu_seconds=120,
)


def memory(name: str) -> int:
    """A line of /proc/self/status, in MB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024 // 1_000_000
    return 0


class Filler:
    """One tenant, and the things that it is filled with."""

    def __init__(self, tenant: TenantSupervisor, share: float) -> None:
        self.tenant = tenant
        self.config = tenant.config
        self.share = share
        self.ids: list[str] = []
        self.waiting: list[asyncio.Future[Any]] = []
        self.begun_s = time.monotonic()

    def tell(self, what: str) -> None:
        loaded = self.tenant.core.loaded_bytes / 1e6
        passed_s = time.monotonic() - self.begun_s
        print(
            f"{what:42} {memory('VmRSS'):6} MB now {memory('VmHWM'):6} MB at most"
            f" {loaded:8.1f} MB loaded {passed_s:6.0f} s",
            flush=True,
        )

    def number(self, most: int) -> int:
        return max(1, round(most * self.share))

    async def create(self, params: dict[str, Any], n: int, prefix: str) -> list[str]:
        from dynamic_workflows.eventlog.codec import values

        made: list[str] = []
        for start in range(0, n, 10_000):
            items = [
                NewInstance(id=f"{prefix}{at:06d}".ljust(100, "x"), params=values.encode(params))
                for at in range(start, min(start + 10_000, n))
            ]
            create = CreateBatch(workflow="TenantWorkflow", items=items, strict=True)
            names = await self.tenant.call(create)
            made += names
        return made

    async def instances(self) -> None:
        others = 200
        self.ids = await self.create({}, self.number(self.config.instances_max) - others, "i")
        self.tell(f"{len(self.ids):,} instances created")
        while self.tenant.core.counts()["waiting"] < len(self.ids):  # noqa: ASYNC110
            await asyncio.sleep(1)
        await asyncio.sleep(5)
        self.tell("they all wait")

    async def events(self) -> None:
        most = self.number(self.config.events_kept_tenant_max)
        each = 100
        ids = self.ids[: most // each + 1]

        async def send(n: int) -> None:
            await self.tenant.call(
                SendEvent(
                    workflow="TenantWorkflow",
                    id=ids[n // each],
                    type="other",
                    payload=b'"%s"' % (b"x" * 50),
                )
            )

        for start in range(0, most, 2_000):
            await asyncio.gather(*(send(n) for n in range(start, min(start + 2_000, most))))
        self.tell(f"{most:,} events kept")

    async def flood(self) -> None:
        one = (await self.create({}, 1, "flooded"))[0]
        event = SendEvent(
            workflow="TenantWorkflow", id=one, type="other", payload=b'"%s"' % (b"x" * 60_000)
        )
        refused = 0
        for _ in range(40):
            calls = [self.tenant.call(event) for _ in range(50)]
            outcomes = await asyncio.gather(*calls, return_exceptions=True)
            refused += sum(isinstance(one, dw.LimitExceededError) for one in outcomes)
        self.tell(f"2,000 of 60 KB to one, {refused:,} refused")

    async def large(self) -> None:
        await self.create({"large": 50_000_000}, 6, "large")
        await asyncio.sleep(20)
        self.tell("6 that hold 50 MB each")

    async def timers(self) -> None:
        await self.create({"timers": self.number(100_000)}, 2, "timers")
        await asyncio.sleep(30)
        self.tell("2 with 100,000 timers each")

    async def followers(self) -> None:
        ids = self.ids
        last = self.tenant.core.last_seq
        for n in range(self.number(self.config.subscriptions_max)):
            events = GetEvents(workflow="TenantWorkflow", id=ids[n % len(ids)], cursor=last)
            self.waiting.append(asyncio.ensure_future(self.tenant.call(events)))
        for n in range(self.number(self.config.results_waiting_max)):
            result = AwaitResult(workflow="TenantWorkflow", id=ids[n % len(ids)])
            self.waiting.append(asyncio.ensure_future(self.tenant.call(result)))
        await asyncio.sleep(2)
        self.tell(f"{len(self.waiting):,} calls that wait")

    async def schedules(self) -> None:
        crons = [f"{n % 60} {n // 60 % 24} 1 1 *" for n in range(self.config.schedules_max)]
        for cron in crons[: self.number(len(crons)) // 10]:
            await self.tenant.call(ChangeSchedule(workflow="TenantWorkflow", cron=cron))
        self.tell("schedules")

    async def end(self) -> None:
        for one in self.waiting:
            one.cancel()
        await asyncio.gather(*self.waiting, return_exceptions=True)


async def main(share: float) -> None:
    """Fill one tenant, and open it again."""
    with tempfile.TemporaryDirectory() as folder:
        store, clock = open_store(folder), SystemClock()
        code = dw.WorkerCode("index.py", {"index.py": CODE})
        codes = CodeResolver(store, clock=clock, ttl_s=60, load=lambda tenant_id: code)
        isolates = isolates_of(SETTINGS)

        async def opened() -> TenantSupervisor:
            return await open_tenant(
                "acme", store=store, isolates=isolates, codes=codes, clock=clock,
                ids=SystemIds(), config=SETTINGS,
            )  # fmt: skip

        filler = Filler(await opened(), share)
        filler.tell("an empty tenant")
        for part in ("instances", "events", "flood", "followers", "schedules", "large", "timers"):
            await getattr(filler, part)()
        await filler.end()
        await filler.tenant.close(seal=False)
        filler.tell("closed")
        filler.tenant = await opened()
        filler.tell("opened again")
        await filler.tenant.close(seal=False)
        await isolates.close()
        await store.close()


if __name__ == "__main__":
    asyncio.run(main(float(sys.argv[1]) if len(sys.argv) > 1 else 1.0))
