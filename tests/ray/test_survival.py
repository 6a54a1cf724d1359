"""kill -9 of everything while instances run and sleep: results are right, nothing runs twice."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from paths import SUPPORT
from ray_world import (
    check_effects,
    effects,
    eventually,
    expected,
    is_alive,
    kill,
    loader_of,
    processes,
)

import dynamic_workflows as dw
from dynamic_workflows.actors.rpc.services import LoaderApi, remote

pytestmark = [pytest.mark.ray, pytest.mark.asyncio(loop_scope="module")]

CONFIG = dw.PlatformConfig(isolation="unsafe-none", instance_idle_seconds=0.2)
STEPS = 5
PARAMS = {"steps": STEPS, "sleep": "0.4 seconds", "busy": 0.1}


class Site:
    """A platform, and the file that its tenants write to."""

    def __init__(self, platform: dw.Platform, path: Path) -> None:
        self.platform = platform
        self.path = path

    async def begin(self, tenant_id: str, count: int = 10) -> list[dw.WorkflowInstance]:
        """Start instances, and wait until some have done something."""
        items = [{"id": f"{tenant_id}-{n}", "params": PARAMS} for n in range(count)]
        instances = await self.platform.tenant(tenant_id).workflows.create_batch(items)
        await eventually(lambda: self.ran(tenant_id) >= count // 2, what="the first steps")
        return instances

    def ran(self, tenant_id: str) -> int:
        return sum(instance_id.startswith(tenant_id) for instance_id, _, _ in effects(self.path))

    async def goes_on(self, tenant_id: str) -> None:
        """Wait for one more step."""
        before = self.ran(tenant_id)
        await eventually(lambda: self.ran(tenant_id) > before, what="another step")

    async def finish(self, tenant_id: str, instances: list[dw.WorkflowInstance]) -> None:
        """Everybody ends with the right result, and no step ran again."""
        results = await asyncio.gather(*(i.result(timeout=90) for i in instances))
        assert results == [expected(i.id, STEPS) for i in instances]
        workflows = self.platform.tenant(tenant_id).workflows
        await check_effects(workflows, self.path, [i.id for i in instances])

    async def stats(self, tenant_id: str) -> Any:
        backend: Any = self.platform._backend
        peer = await remote(backend.loader, LoaderApi.resolve)(tenant_id, None)
        return await peer.call("stats")


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def site(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Site]:
    folder = tmp_path_factory.mktemp("survival")
    path = folder / "effects"
    async with dw.connect(folder / "log", load=loader_of(path), config=CONFIG) as platform:
        yield Site(platform, path)


async def test_instances_survive_the_death_of_their_isolate(site: Site) -> None:
    instances = await site.begin("isolate")
    for _ in range(3):
        pids = (await site.stats("isolate")).isolate_pids
        for pid in pids:
            await kill(pid)
        await site.goes_on("isolate")
    await site.finish("isolate", instances)


async def test_instances_survive_the_death_of_their_tenant_actor(site: Site) -> None:
    instances = await site.begin("tenant")
    stats = await site.stats("tenant")
    await kill(stats.pid)
    await eventually(
        lambda: not any(is_alive(pid) for pid in stats.isolate_pids), what="the isolates' end"
    )
    await site.finish("tenant", instances)


async def test_a_tenant_actor_that_dies_comes_back_though_nobody_calls(site: Site) -> None:
    instances = await site.begin("quiet")
    await kill((await site.stats("quiet")).pid)
    total = len(instances) * STEPS
    # Some steps were cut off and ran again, under the next number: so at least this many.
    await eventually(lambda: site.ran("quiet") >= total, what="every step")
    await site.finish("quiet", instances)


async def test_calls_go_on_while_the_tenant_actor_dies_again_and_again(site: Site) -> None:
    workflows = site.platform.tenant("calls").workflows
    await workflows.create(id="calls-0", params={"steps": 1})
    created = ["calls-0"]
    for round_number in range(2):
        pid = (await site.stats("calls")).pid
        creating = []
        for n in range(20):
            name = f"calls-{round_number}-{n}"
            creating.append(asyncio.ensure_future(workflows.create(id=name, params={"steps": 1})))
            created.append(name)
            await asyncio.sleep(0.002)
            if n == 10:
                os.kill(pid, signal.SIGKILL)
        await asyncio.gather(*creating)
    instances = [await workflows.get(name) for name in created]
    results = await asyncio.gather(*(i.result(timeout=90) for i in instances))
    assert results == [expected(name, 1) for name in created]
    await check_effects(workflows, site.path, created)


async def test_instances_survive_the_death_of_loader_and_timer(site: Site) -> None:
    instances = await site.begin("both")
    for title in ("ray::TimerActor", "ray::LoaderActor"):
        (pid,) = processes(title)
        await kill(pid)
    fresh = await site.begin("fresh", 4)
    await site.finish("both", instances)
    await site.finish("fresh", fresh)


async def test_a_tenant_that_dies_together_with_its_loader_and_timer_goes_on(site: Site) -> None:
    instances = await site.begin("three")
    pids = [(await site.stats("three")).pid]
    for title in ("ray::TimerActor", "ray::LoaderActor"):
        pids += processes(title)
    for pid in pids:
        await kill(pid)
    total = len(instances) * STEPS
    await eventually(lambda: site.ran("three") >= total, what="every step", limit_s=90)
    await site.finish("three", instances)


DRIVER = """
import asyncio, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import dynamic_workflows as dw
from ray_world import loader_of

async def main():
    config = dw.PlatformConfig(
        isolation="unsafe-none", instance_idle_seconds=0.2, tenant_idle_seconds=1
    )
    async with dw.connect({log!r}, load=loader_of(Path({path!r})), config=config) as platform:
        for name in ("busy", "other"):
            items = [
                dict(id=f"{{name}}-{{n}}", params={params!r}) for n in range(10)
            ]
            await platform.tenant(name).workflows.create_batch(items)
        await platform.tenant("asleep").workflows.create(
            id="asleep-0", params=dict(steps=1, sleep="14 seconds")
        )
        print("created", flush=True)
        await asyncio.sleep(600)

asyncio.run(main())
"""


def _has_run(path: Path, instance_id: str, step: str) -> bool:
    return any((i, s) == (instance_id, step) for i, s, _ in effects(path))


def _folders(pid: int) -> set[str]:
    """The folders of embedded clusters that a process has files open in."""
    try:
        links = [os.readlink(file) for file in Path(f"/proc/{pid}/fd").iterdir()]
    except OSError:
        return set()
    return {str(Path(link).parents[-3]) for link in links if "/dw-" in link and "/session_" in link}


def _start(code: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)


async def test_everything_goes_on_after_the_driver_and_its_whole_ray_were_killed(
    tmp_path: Path,
) -> None:
    path, log = tmp_path / "effects", tmp_path / "log"
    code = DRIVER.format(tests=str(SUPPORT), log=str(log), path=str(path), params=PARAMS)
    driver = _start(code)
    assert driver.stdout is not None
    try:
        assert await asyncio.to_thread(driver.stdout.readline) == b"created\n"
        await eventually(lambda: len(effects(path)) > 25, what="some steps")
        await eventually(
            lambda: not processes("TenantActor: asleep", driver.pid), what="the sleeper's sleep"
        )
        family = processes("", driver.pid)
        assert len(family) > 6, "Ray, the actors, zygotes and isolates"
        folders = {f for pid in family for f in _folders(pid)}
        assert len(folders) == 1
    finally:
        driver.kill()
        driver.wait()
        driver.stdout.close()
    # Nothing is left of it, the folder of its Ray included.
    await eventually(lambda: not any(is_alive(pid) for pid in family), what="its end", limit_s=30)

    await eventually(lambda: not any(Path(f).exists() for f in folders), what="the folder's end")

    async with dw.connect(log, load=loader_of(path), config=CONFIG) as platform:
        began = time.monotonic()
        for name in ("busy", "other"):
            # Nobody has called these tenants: the timer's list opened them.
            await eventually(partial(_has_run, path, f"{name}-9", "step 4"), what=name)
        print(f"went on after {time.monotonic() - began:.1f} s")
        for name, count, steps in (("busy", 10, 5), ("other", 10, 5), ("asleep", 1, 1)):
            workflows = platform.tenant(name).workflows
            ids = [f"{name}-{n}" for n in range(count)]
            instances = [await workflows.get(instance_id) for instance_id in ids]
            results = await asyncio.gather(*(i.result(timeout=60) for i in instances))
            assert results == [expected(i, steps) for i in ids]
            await check_effects(workflows, path, ids)
