"""The main job on real Ray, real isolates and a real log; one embedded cluster for all tests."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from paths import SUPPORT
from ray_world import eventually, expected, kill, loader_of, processes

import dynamic_workflows as dw
from dynamic_workflows.actors.rpc.client import TenantClient
from dynamic_workflows.actors.rpc.services import LoaderApi, remote
from dynamic_workflows.eventlog.errors import Fenced, Unavailable
from dynamic_workflows.loaders.protocol.calls import GetStatus

pytestmark = [pytest.mark.ray, pytest.mark.asyncio(loop_scope="module")]

CONFIG = dw.PlatformConfig(isolation="unsafe-none", tenant_idle_seconds=2, pool_size=1)


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def platform(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[dw.Platform]:
    log = tmp_path_factory.mktemp("log")
    async with dw.connect(log, load=loader_of(), config=CONFIG) as platform:
        yield platform


def cluster_of(platform: dw.Platform) -> Any:
    return platform._backend


async def slot_stats(platform: dw.Platform, tenant_id: str) -> Any:
    peer = await remote(cluster_of(platform).loader, LoaderApi.resolve)(tenant_id, None)
    return await peer.call("stats")


async def test_four_tenants_step_sleep_wait_and_complete(platform: dw.Platform) -> None:
    params = {"steps": 2, "sleep": "0.3 seconds", "wait": True}
    instances = {}
    for name in ("one", "two", "three", "four"):
        instances[name] = await platform.tenant(name).workflows.create(id="job", params=params)
    for name, instance in instances.items():
        await instance.send_event("approved", {"by": name})
    for name, instance in instances.items():
        assert await instance.result(timeout=60) == {"id": "job", "done": [0, 10, {"by": name}]}
        assert (await instance.status()).status == "complete"
    rows = platform.query(
        "select tenant_id, count(*) n from events where type = 'step_completed' "
        "and tenant_id in ('one', 'two', 'three', 'four') group by 1 order by 1"
    ).to_pylist()
    assert rows == [{"tenant_id": n, "n": 2} for n in ("four", "one", "three", "two")]


async def test_the_actors_can_be_told_apart_by_their_titles(platform: dw.Platform) -> None:
    await platform.tenant("title").workflows.create(id="a", params={"steps": 1})
    assert len(processes("ray::LoaderActor")) == 1
    assert len(processes("ray::TimerActor")) == 1
    await eventually(lambda: len(processes("ray::TenantActor: title")) == 1, what="the title")


async def test_creates_of_one_turn_are_one_message_and_steps_are_none(
    platform: dw.Platform,
) -> None:
    workflows = platform.tenant("batched").workflows
    await (await workflows.create(id="warm", params={"steps": 1})).result(timeout=60)
    before = await slot_stats(platform, "batched")
    creates = (workflows.create(id=f"i-{n}", params={"steps": 10}) for n in range(200))
    instances = await asyncio.gather(*creates)
    after = await slot_stats(platform, "batched")
    assert after.calls - before.calls == 200
    assert after.messages - before.messages <= 3
    results = await asyncio.gather(*(i.result(timeout=60) for i in instances))
    assert results == [expected(f"i-{n}", 10) for n in range(200)]
    done = await slot_stats(platform, "batched")
    assert done.messages - after.messages < 200, "2,000 steps and 200 results took few messages"


async def test_a_tenant_sleeps_without_an_actor_and_wakes_by_itself(
    platform: dw.Platform,
) -> None:
    cluster = cluster_of(platform)
    workflows = platform.tenant("sleeper").workflows
    await workflows.create(id="nap", params={"steps": 1, "sleep": "12 seconds"})

    async def is_resident() -> bool:
        return "sleeper" in await remote(cluster.loader, LoaderApi.residents)()

    async def is_away() -> bool:
        return not await is_resident()

    await eventually(is_away, what="the sleep of the tenant")
    await eventually(lambda: not processes("TenantActor: sleeper"), what="the end of the actor")
    await eventually(is_resident, what="its waking", limit_s=60)
    instance = await workflows.get("nap")
    assert await instance.result(timeout=60) == expected("nap", 1)


async def test_errors_are_clear_and_store_nothing(platform: dw.Platform) -> None:
    good = platform.tenant("errors").workflows
    await good.create(id="once")
    with pytest.raises(dw.InstanceError) as error:
        await good.create(id="once")
    assert error.value.code == "instance.already_exists"
    for tenant_id, code in (("absent", "code.load_failed"), ("broken", "code.invalid")):
        with pytest.raises(dw.CodeError) as failed:
            await platform.tenant(tenant_id).workflows.create(id="x")
        assert failed.value.code == code
        with pytest.raises(dw.InstanceError):
            await platform.tenant(tenant_id).workflows.get("x")
    with pytest.raises(dw.CodeError) as missing:
        await platform.tenant("errors").workflow("Other").create(id="x")
    assert missing.value.code == "code.class_missing"


async def test_an_entrypoint_answers_and_a_loaded_worker_too(platform: dw.Platform) -> None:
    assert await platform.tenant("entry").entrypoint().double(21) == 42
    calls: list[str] = []

    async def code() -> dw.WorkerCode:
        calls.append("called")  # in the loader actor: this list stays empty
        return loader_of()("any")

    stub = platform.loader.get("worker-1", code).get_entrypoint()
    assert await stub.double(4) == 8
    assert calls == []


async def test_a_second_platform_of_the_process_shares_ray(
    platform: dw.Platform, tmp_path: Path
) -> None:
    async with dw.connect(tmp_path / "other", load=loader_of(), config=CONFIG) as other:
        assert len(processes("raylet/raylet")) == 1
        instance = await other.tenant("one").workflows.create(id="job", params={"steps": 1})
        assert await instance.result(timeout=60) == expected("job", 1)
    assert (await platform.tenant("errors").workflows.list()).cursor is None


JOIN = """
import asyncio, random, sys
import dynamic_workflows as dw
sys.path.insert(0, {tests!r})
from ray_world import loader_of

async def main():
    ballast = random.Random(1).randbytes(500_000)
    def load(tenant_id, inner=loader_of()):
        assert len(ballast) == 500_000
        return inner(tenant_id)

    async with dw.connect({log!r}, load=load, address={address!r},
                          namespace="joined", config={{"isolation": "unsafe-none"}}) as platform:
        instance = await platform.tenant("acme").workflows.create(id={id!r}, params={{"steps": 2}})
        print(await instance.result(timeout=60))

asyncio.run(main())
"""


async def test_a_driver_joins_a_cluster_by_address_and_its_actors_live_on(
    platform: dw.Platform, tmp_path: Path
) -> None:
    import ray

    address, loaders = ray.get_runtime_context().gcs_address, set(processes("ray::LoaderActor"))
    for number in (1, 2):
        code = JOIN.format(tests=str(SUPPORT), log=str(tmp_path), address=address, id=f"n{number}")
        done = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert str(expected(f"n{number}", 2)) in done.stdout, done.stderr
        assert len(processes("ray::TenantActor: acme")) == 1, "it outlives its driver"
    # So does the loader, and its callbacks, large as they are, outlive it.
    (loader,) = set(processes("ray::LoaderActor")) - loaders
    await kill(loader)
    async with dw.connect(tmp_path, namespace="joined", config=CONFIG) as visitor:
        instance = await visitor.tenant("later").workflows.create(id="n", params={"steps": 1})
        assert await instance.result(timeout=60) == expected("n", 1)


async def test_a_log_that_no_actor_can_write_is_refused_with_the_reason_and_works_once_it_can(
    platform: dw.Platform, tmp_path: Path
) -> None:
    import ray

    address = ray.get_runtime_context().gcs_address
    (tmp_path / "file").write_text("no directory")
    log = tmp_path / "file" / "log"
    here = dw.connect(log, load=loader_of(), address=address, namespace="unwritable", config=CONFIG)
    with pytest.raises(Unavailable, match="cannot be opened on .* Not a directory"):
        await asyncio.wait_for(here, 60)
    (tmp_path / "file").unlink()
    async with dw.connect(
        log, load=loader_of(), address=address, namespace="unwritable", config=CONFIG
    ) as late:
        instance = await late.tenant("acme").workflows.create(id="n", params={"steps": 1})
        assert await instance.result(timeout=60) == expected("n", 1)


async def test_the_platform_that_lost_its_log_to_another_says_so(
    platform: dw.Platform, tmp_path: Path
) -> None:
    async with dw.connect(tmp_path, load=loader_of(), namespace="blue", config=CONFIG) as first:
        await first.tenant("acme").workflows.create(id="n", params={"steps": 1})
        green = partial(dw.connect, tmp_path, load=loader_of(), namespace="green", config=CONFIG)
        with pytest.raises(dw.PlatformBusy, match="in the namespace 'blue'"):
            await green()
        async with green(take_over=True) as second:
            with pytest.raises(Fenced, match="another platform has taken over .*'green'"):
                await first.tenant("zoo").workflows.create(params={"steps": 1})
            instance = await second.tenant("zoo").workflows.create(id="n", params={"steps": 1})
            assert await instance.result(timeout=60) == expected("n", 1)

        async def goes_on() -> bool:
            try:
                return bool(await first.tenant("zoo").workflows.create(params={"steps": 1}))
            except Fenced:
                return False

        # Who took the log has gone: the first platform has it again, and the other's instances.
        await eventually(goes_on, what="the return of the first platform", limit_s=120)
        zoo = await first.tenant("zoo").workflows.get("n")
        assert await zoo.result(timeout=60) == expected("n", 1)


async def test_a_tenants_actor_that_was_stopped_is_named_in_time_and_goes_on_afterwards(
    platform: dw.Platform,
) -> None:
    instance = await platform.tenant("still").workflows.create(id="a", params={"wait": True})
    await eventually(lambda: processes("TenantActor: still"), what="the tenant's title")
    pid = (await slot_stats(platform, "still")).pid
    hasty = TenantClient("still", client_id="c", resolve=cluster_of(platform)._resolve, timeout_s=2)
    status = GetStatus(workflow="TenantWorkflow", id="a")
    assert (await hasty.call(status)).status != "errored"
    os.kill(pid, signal.SIGSTOP)
    try:
        async with asyncio.timeout(20):
            with pytest.raises(TimeoutError, match=r"time of 2 s is up, .*worker-.* not answer"):
                await instance.result(timeout=2)
            with pytest.raises(Unavailable, match=r"worker-.* not answer"):
                await hasty.call(status)
    finally:
        os.kill(pid, signal.SIGCONT)
        hasty.close()
    await instance.send_event("approved", "at last")
    assert (await instance.result(timeout=60))["done"] == [0, 10, 20, "at last"]
