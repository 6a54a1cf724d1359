"""A tenant that floods its supervisor with what has to be kept meets a limit; others go on."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from paths import SUPPORT
from real_tenants import RealTenant, real_tenant

import dynamic_workflows as dw
from dynamic_workflows.actors.core.memory_budget import MemoryBudget
from dynamic_workflows.actors.settings.tenant_limits import TenantLimits
from dynamic_workflows.loaders.protocol.calls import AwaitResult, GetEvents

MIB = 1024 * 1024
CODE = """
import asyncio
from dynamic_workflows import LimitExceededError, WorkflowEntrypoint

ONCE = {"retries": {"limit": 0}, "timeout": "5 minutes"}


async def until_refused(call, at_once=50):
    # Floods until a limit answers; says which, and how often it went well before.
    done = 0
    while done < 100_000:
        outcomes = await asyncio.gather(*(call(done + n) for n in range(at_once)),
                                        return_exceptions=True)
        for one in outcomes:
            if isinstance(one, LimitExceededError):
                return [one.limit, one.retry_after is not None]
            if isinstance(one, BaseException):
                raise one
        done += at_once
    return ["no limit", False]


class TenantWorkflow(WorkflowEntrypoint):
    async def run(self, event, step):
        self.step = step
        how = event.payload["how"]
        if how == "wait":
            return await step.wait_for_event("w", type="never")
        if how.startswith("run_"):
            return await getattr(self, how)(step)
        to = event.payload.get("to")
        return await step.do("attack", lambda: getattr(self, how)(to), config=ONCE)

    async def events_to_one(self, to):
        other = await self.env.WORKFLOWS.get(to[0])
        return await until_refused(lambda n: other.send_event("x", "y" * 10_000))

    async def events_to_many(self, to):
        others = [await self.env.WORKFLOWS.get(one) for one in to]
        return await until_refused(lambda n: others[n % len(others)].send_event("x", n))

    async def events_to_itself(self, to):
        me = await self.env.WORKFLOWS.get("attack")
        return await until_refused(lambda n: me.send_event("x", n))

    async def instances(self, to):
        params = {"how": "wait"}
        return await until_refused(lambda n: self.env.WORKFLOWS.create(params=params), at_once=10)

    async def instances_with_large_params(self, to):
        params = {"how": "wait", "x": "y" * 300_000}
        return await until_refused(lambda n: self.env.WORKFLOWS.create(params=params), at_once=10)

    async def subscriptions(self, to):
        other = await self.env.WORKFLOWS.get(to[0])
        async def drain(stream):
            async for event in stream:
                pass
        tasks = [asyncio.ensure_future(drain(other.subscribe())) for _ in range(200)]
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        error = next(one.exception() for one in done if one.exception())
        for task in tasks:
            task.cancel()
        return [error.limit, error.retry_after is not None]

    async def waiters(self, to):
        other = await self.env.WORKFLOWS.get(to[0])
        tasks = [asyncio.ensure_future(other.result()) for _ in range(200)]
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        error = next(one.exception() for one in done if one.exception())
        for task in tasks:
            task.cancel()
        return [error.limit, error.retry_after is not None]

    async def run_results(self, step):
        try:
            for n in range(1_000):
                await step.do("a result", lambda: "x" * 200_000, config=ONCE)
        except LimitExceededError as error:
            return [error.limit, True]

    async def run_timers(self, step):
        try:
            await asyncio.gather(*(step.sleep(f"{n}" + "s" * 200, "1 day") for n in range(10_000)))
        except LimitExceededError as error:
            return [error.limit, True]

    async def run_waits(self, step):
        try:
            await asyncio.gather(*(step.wait_for_event(f"{n}", type="t") for n in range(10_000)))
        except LimitExceededError as error:
            return [error.limit, True]

    async def run_errors(self, step):
        def fail():
            raise ValueError("x" * 60_000)
        try:
            while True:
                try:
                    await step.do("fails", fail, config=ONCE)
                except ValueError:
                    pass
        except LimitExceededError as error:
            return [error.limit, True]
"""


def loaded(tenant: RealTenant) -> int:
    return tenant.shell.core.loaded_bytes


def kept(tenant: RealTenant) -> int:
    return tenant.shell.core.state.kept.total.number


@dataclass(frozen=True)
class Flood:
    """One attack: what the limits are, which one answers, and what the supervisor then holds."""

    how: str
    limit: str
    config: dict[str, Any]
    holds: Callable[[RealTenant], int] = loaded
    most: int = 3 * MIB


STATE = {"state_bytes_max": MIB}
FLOODS = [
    Flood("events_to_one", "events_kept_max", {"events_kept_max": 120}, kept, 120),
    Flood(
        "events_to_one",
        "events_kept_bytes_max",
        {"events_kept_bytes_max": 500_000},
        lambda tenant: tenant.shell.core.state.kept.total.bytes,
        500_000,
    ),
    Flood("events_to_many", "events_kept_tenant_max", {"events_kept_tenant_max": 300}, kept, 300),
    Flood("events_to_itself", "events_kept_max", {"events_kept_max": 99}, kept, 99),
    Flood(
        "instances",
        "instances_max",
        {"instances_max": 60},
        lambda tenant: len(tenant.shell.core.state.index),
        60,
    ),
    Flood("instances_with_large_params", "instances_max", {"instances_max": 70, "running_max": 3}),
    Flood(
        "subscriptions",
        "subscriptions_max",
        {"subscriptions_max": 30},
        lambda tenant: tenant.shell._operations.waiting.number(GetEvents),
        30,
    ),
    Flood(
        "waiters",
        "results_waiting_max",
        {"results_waiting_max": 30},
        lambda tenant: tenant.shell._operations.waiting.number(AwaitResult),
        30,
    ),
    Flood("run_results", "state_bytes_max", STATE),
    Flood("run_timers", "state_bytes_max", STATE),
    Flood("run_waits", "state_bytes_max", STATE),
    Flood("run_errors", "state_bytes_max", STATE),
]


@pytest.mark.parametrize("flood", FLOODS, ids=lambda flood: f"{flood.how}-{flood.limit}")
async def test_a_flood_meets_its_limit_and_the_tenant_goes_on(flood: Flood) -> None:
    settings = {"turn_cpu_seconds": 30, "turn_wall_seconds": 60, "instance_idle_seconds": 0.2}
    async with real_tenant({"index.py": CODE}, **(settings | flood.config)) as tenant:
        tenant.shell._loader.memory_budget = MemoryBudget(bytes_max=2 * MIB)
        to = [(await tenant.workflows.create(params={"how": "wait"})).id for _ in range(5)]
        params = {"how": flood.how, "to": to}
        attack = await tenant.workflows.create(id="attack", params=params)
        async with asyncio.timeout(100):
            assert await attack.result() == [flood.limit, True]
        assert flood.holds(tenant) <= flood.most
        assert tenant.shell.core.audit() == []
        await (await tenant.workflows.get(to[1])).send_event("never", "still served")
        got = await (await tenant.workflows.get(to[1])).result(timeout=30)
        assert got["payload"] == "still served"


HOSTILE_FILTERS = """
import asyncio
from dynamic_workflows import WorkflowEntrypoint

class Odd:
    def __init__(self, name): self.name = name
    def __hash__(self): raise RuntimeError("no hash")
    def __str__(self): raise RuntimeError("no text")
    __repr__ = __str__

class Text(str):
    def __eq__(self, other): return True
    def __hash__(self): raise RuntimeError("no hash")

FILTERS = [
    5, 3.5, b"workflow_queued", object(), [[]], [{}], [None], [5], [Odd("x")], Odd("y"),
    ["nothing"], ["x" * 1_000_000], [str(n) for n in range(100_000)], {"a": 1}, [Text("x")],
    (one for one in ["workflow_queued"]),
]

class TenantWorkflow(WorkflowEntrypoint):
    async def run(self, event, step):
        if event.payload:
            return await step.do("try", lambda: self.attempts(event.payload))

    async def attempts(self, id):
        other = await self.env.WORKFLOWS.get(id)
        found = []
        for one in FILTERS:
            try:
                async for event in other.subscribe(filter=one):
                    found.append(event.type)
            except Exception as error:
                found.append([type(error).__name__, len(str(error)) < 300])
        good = [e.type async for e in other.subscribe(filter=["workflow_queued"] * 100_000)]
        none = [e.type async for e in other.subscribe(filter=())]
        return [found, good, none]
"""


async def test_no_filter_of_a_subscription_does_more_than_fail_where_it_was_made() -> None:
    settings = {"turn_cpu_seconds": 30, "turn_wall_seconds": 60}
    async with real_tenant({"index.py": HOSTILE_FILTERS}, **settings) as tenant:
        followed = await tenant.workflows.create(params=None)
        attack = await tenant.workflows.create(params=followed.id)
        async with asyncio.timeout(100):
            found, good, none = await attack.result()
        assert (good, none) == (["workflow_queued"], [])
        assert len(found) == 16
        errors = {name for name, _ in found}
        assert errors <= {"TypeError", "InvalidError", "RuntimeError"}
        assert all(is_short for _, is_short in found)


SCRIPT = """
import asyncio, sys
from pathlib import Path
sys.path[:0] = [{tests!r}]
import dynamic_workflows as dw
from dynamic_workflows.actors.in_process.local_platform import LocalPlatform
from dynamic_workflows.eventlog.store.open_store import open_store
from dynamic_workflows.loaders.sdk.binding import WorkflowBinding

CODE = '''
from dynamic_workflows import WorkflowEntrypoint
class TenantWorkflow(WorkflowEntrypoint):
    async def run(self, event, step):
        await step.wait_for_event("w", type="never")
'''

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 // 1_000_000

async def main(folder):
    store = open_store(folder)
    config = dw.PlatformConfig(events_kept_bytes_max=50_000_000)
    load = lambda tenant_id: dw.WorkerCode("index.py", {{"index.py": CODE}})
    platform = LocalPlatform(store=store, load=load, config=config)
    instance = await WorkflowBinding(platform.calls("acme")).create(id="one")
    await instance.send_event("first", 1)
    before, most, kept = resident(), 0, 0
    for _ in range(100):
        calls = [instance.send_event("x", "y" * 60_000) for _ in range(20)]
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        kept += sum(one is None for one in outcomes)
        most = max(most, resident())
    await platform.crash("acme")
    print(kept, most - before, resident() - before)

asyncio.run(main(sys.argv[1]))
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="asks /proc")
def test_a_process_that_keeps_fifty_megabytes_of_events_does_not_hold_them(tmp_path: Path) -> None:
    script = SCRIPT.format(tests=str(SUPPORT))
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True
    )
    kept, flooded_mb, reopened_mb = map(int, done.stdout.split())
    assert kept == 50_000_000 // 60_002
    assert flooded_mb < 40, "of 120 MB that were sent, and 50 MB that are kept"
    assert reopened_mb < 60


def test_a_limit_is_the_tenants_own() -> None:
    config = dw.PlatformConfig(tenants={"acme": TenantLimits(events_kept_max=1)})
    assert config.of("acme").events_kept_max == 1
    assert config.core("acme").events_kept_max == 1
    assert config.core("other").events_kept_max == dw.PlatformConfig().events_kept_max
