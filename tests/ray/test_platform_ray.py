"""The face of the platform on real Ray: what travels between processes arrives as what it was."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import dispatcher_app as seeds
import pytest
from service_tenants import hello, load_with_gateway

import dynamic_workflows as dw

pytestmark = pytest.mark.ray


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch) -> dw.App:
    monkeypatch.setattr(seeds, "fetch_tenant_code", seeds.fetch_for_two_tenants)
    return seeds.app


async def status_of(platform: dw.Platform, tenant_id: str, instance_id: str) -> Any:
    asked = {"op": "status", "id": instance_id}
    return await (await platform.fetch(seeds.ask(tenant_id, asked))).json()


async def test_dispatchers_and_services_work_alike_on_ray(tmp_path: Path, app: dw.App) -> None:
    async with (
        dw.connect(tmp_path / "app", app=app) as dispatcher,
        dw.connect(tmp_path / "load", load=load_with_gateway) as platform,
    ):
        await the_ported_dispatcher(dispatcher)
        await services_and_the_gateway(platform)
        await deployed_code(platform)


async def the_ported_dispatcher(platform: dw.Platform) -> None:
    for tenant_id in ("acme", "globex"):
        request = seeds.ask(tenant_id, {"id": "same", "params": {"of": tenant_id}})
        assert await (await platform.fetch(request)).json() == {"id": "same"}
    assert "status" in await status_of(platform, "acme", "same")
    for tenant_id in ("acme", "globex"):
        instance = await platform.tenant(tenant_id).workflows.get("same")
        output = await instance.result(timeout=60)
        assert (output["payload"], output["keys"]) == ({"of": tenant_id}, [])
    with pytest.raises(dw.InstanceError) as caught:
        await status_of(platform, "acme", "nobody")
    assert caught.value.code == "instance.not_found"
    with pytest.raises(dw.MissingDispatcherMetadataError):
        await platform.tenant("acme").workflows.create()
    with pytest.raises(dw.CodeError) as refused:
        await platform.fetch(seeds.ask("stranger", {"id": "x"}))
    assert refused.value.code == "code.load_failed"


async def test_a_dispatchers_own_class_runs_once_for_each_create_on_ray(
    tmp_path: Path, app: dw.App
) -> None:
    journal = tmp_path / "journal"
    own = seeds.journal_app(str(journal))
    async with dw.connect(tmp_path / "log", app=own) as platform:
        for name in ("a", "b"):
            request = seeds.ask("acme", {"id": name, "params": name})
            assert await (await platform.fetch(request)).json() == {"id": name}
        async with asyncio.timeout(60):
            while len(journal.read_text().splitlines()) < 4:  # noqa: ASYNC110 - another process writes
                await asyncio.sleep(0.1)
        instance = await platform.tenant("acme").workflows.get("b")
        assert (await instance.result(timeout=60))["payload"] == "b"
    lines = sorted(journal.read_text().splitlines())
    assert lines == ["after acme a a", "after acme b b", "before acme a a", "before acme b b"]


async def services_and_the_gateway(platform: dw.Platform) -> None:
    acme = platform.tenant("acme")
    sums = [
        await (await acme.workflows.create(params={"n": n})).result(timeout=60) for n in (1, 10)
    ]
    assert sums == [2, 22]
    stub = acme.entrypoint()
    assert await stub.call("plain") == (1, 2)
    assert await stub.get("https://allowed/x") == [200, "GET with sec…"]
    with pytest.raises(dw.EgressDeniedError, match="elsewhere"):
        await stub.get("https://elsewhere/")
    with pytest.raises(PermissionError, match="not yours"):
        await stub.call("fail")


async def deployed_code(platform: dw.Platform) -> None:
    acme = platform.tenant("acme")
    with pytest.raises(dw.CodeError) as caught:
        await acme.deploy(dw.WorkerCode("index.py", {"index.py": "def broken(:"}))
    assert caught.value.code == "code.invalid"
    await acme.deploy(hello("deployed"))
    instance = await acme.workflows.create(id="d")
    following = asyncio.ensure_future(_types(instance))
    assert await instance.result(timeout=60) == "deployed"
    history = await instance.history()
    assert await following == [event.type for event in history]
    table = platform.query("select status from instances where instance_id = $id", {"id": "d"})
    assert table.to_pylist() == [{"status": "complete"}]
    worker = platform.loader.get("w-1", lambda: hello("worker"))
    assert await worker.get_entrypoint(props=1).props() == 1


async def _types(instance: dw.WorkflowInstance) -> list[str]:
    return [event.type async for event in instance.subscribe()]
