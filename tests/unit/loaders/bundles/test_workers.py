"""Workers: stubs carry every public method and every value both ways, and `load` shares nothing."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import dynamic_workflows as dw
from dynamic_workflows import testing

CODE = """
from dynamic_workflows import Request, Response, WorkerEntrypoint, WorkflowEntrypoint

CALLS = []


class TenantWorkflow(WorkflowEntrypoint):
    async def run(self, event, step):
        return 1


class Default(WorkerEntrypoint):
    async def run(self, job, retries=0):
        return ["ran", job, retries]

    async def target(self):
        return "a method like any other"

    async def count(self):
        CALLS.append(1)
        return len(CALLS)

    async def echo(self, *args, **named):
        kinds = {name: type(value).__name__ for name, value in named.items()}
        return [[type(one).__name__ for one in args], kinds]

    async def like(self, kind):
        return {"http": kind, "status": 2, "headers": 3, "body": 4}

    async def post(self):
        request = Request("POST", "https://a.example/", {"x": "1"}, "text")
        return [await self.env.MAIL.send(request), await self.env.MAIL.send(request=request)]
"""


class Mail(dw.Service):
    """Takes requests."""

    async def send(self, request: dw.Request) -> str:
        return f"{request.method} {request.headers['x']} {await request.text()}"


def code() -> dw.WorkerCode:
    return dw.WorkerCode("index.py", {"index.py": CODE}, env={"MAIL": Mail()})


@pytest.mark.behaviour(345)
async def test_a_stub_has_every_method_of_the_entrypoint_whatever_its_name() -> None:
    async with testing.connect(load=lambda tenant_id: code()) as platform:
        stub = platform.tenant("acme").entrypoint()
        assert await stub.run("sweep", retries=2) == ["ran", "sweep", 2]
        assert await stub.target() == "a method like any other"


async def test_a_workflow_class_is_no_entrypoint_and_says_what_it_is() -> None:
    async with testing.connect() as platform:
        stub = platform.loader.load(code()).get_entrypoint("TenantWorkflow")
        with pytest.raises(dw.InvalidError, match="is a workflow class"):
            await stub.run(1, 2)


async def test_requests_travel_as_any_argument_in_both_directions() -> None:
    request = dw.Request("GET", "https://a.example/")
    async with testing.connect(load=lambda tenant_id: code()) as platform:
        stub = platform.tenant("acme").entrypoint()
        answer = await stub.echo(request, dw.Response("x"), 1, given=request)
        assert answer == [["Request", "Response", "int"], {"given": "Request"}]
        assert await stub.post() == ["POST 1 text", "POST 1 text"]


@pytest.mark.parametrize("kind", [1, "mine", None])
async def test_a_dict_that_looks_like_a_message_stays_a_dict(kind: Any) -> None:
    async with testing.connect(load=lambda tenant_id: code()) as platform:
        answer = await platform.tenant("acme").entrypoint().like(kind)
    assert answer == {"http": kind, "status": 2, "headers": 3, "body": 4}


@pytest.mark.behaviour(330)
async def test_what_is_loaded_by_hand_shares_no_state_with_equal_code() -> None:
    async with testing.connect() as platform:
        first, second = platform.loader.load(code()), platform.loader.load(code())
        counts = await asyncio.gather(*(first.get_entrypoint().count() for _ in range(3)))
        assert sorted(counts) == [1, 2, 3]
        assert await second.get_entrypoint().count() == 1
        by_callback = platform.loader.load(code).get_entrypoint()
        assert [await by_callback.count(), await by_callback.count()] == [1, 2]
        with pytest.raises(TypeError, match="WorkerCode"):
            platform.loader.load({"index.py": CODE})


async def test_what_a_load_callback_raises_is_the_platforms_alone() -> None:
    source = """
from dynamic_workflows import WorkerEntrypoint, WorkflowEntrypoint

class TenantWorkflow(WorkflowEntrypoint):
    async def run(self, event, step):
        await step.sleep("long", "1 day")

class Default(WorkerEntrypoint):
    async def spy(self):
        found = []
        for ask in (self.env.WORKFLOWS.create, (await self.env.WORKFLOWS.get("i")).status):
            try:
                found.append(str(await ask()))
            except Exception as error:
                found.append(f"{error.code} {error} {error.args}")
        return found + [str(await (await self.env.WORKFLOWS.get("i")).why())]
"""
    is_down = False

    def load(tenant_id: str) -> dw.WorkerCode:
        if is_down:
            raise ConnectionError("postgres://platform:s3cr3t@10.0.0.1 is down")
        return dw.WorkerCode("index.py", {"index.py": source})

    async with testing.connect(load=load) as platform:
        acme = platform.tenant("acme")
        waiting = await acme.workflows.create(id="i", pin="latest")
        worker = platform.loader.get("spy", lambda: spying(source))
        assert "s3cr3t" not in str(await worker.get_entrypoint().spy())
        is_down = True
        await acme.reload()
        await waiting.restart()
        while (reason := (await waiting.status()).reason) is None:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        assert "s3cr3t" in reason.message, "the driver is told"
        found = await worker.get_entrypoint().spy()
        assert found[0].startswith("code.load_failed the platform cannot load the code")
        assert "s3cr3t" not in str(found)
        assert all("cannot load the code" in text for text in found)
        with pytest.raises(dw.CodeError, match="s3cr3t"):
            await acme.workflows.create()


def spying(source: str) -> dw.WorkerCode:
    env = {"WORKFLOWS": dw.wrap_workflow_binding({"tenant_id": "acme"})}
    return dw.WorkerCode("index.py", {"index.py": source}, env=env)


@pytest.mark.parametrize("odd", ["\x85", "x" * 257, "\x1b[2J", "\ud800"])
async def test_no_dispatcher_and_no_worker_brings_in_a_tenant_that_cannot_be(odd: str) -> None:
    source = {"index.py": CODE}

    def wrapped() -> dw.WorkerCode:
        env = {"WORKFLOWS": dw.wrap_workflow_binding({"tenant_id": odd})}
        return dw.WorkerCode("index.py", source, env=env)

    async with testing.connect(load=lambda tenant_id: code()) as platform:
        with pytest.raises(dw.WorkflowsError) as caught:
            await platform.loader.get("w", wrapped).get_entrypoint().count()
        assert caught.value.code in (
            "tenant.invalid_id",
            "value.unserialisable",
            "code.load_failed",
        )
        if odd.isprintable():
            assert await platform.loader.get(odd, code).get_entrypoint().count() == 1


async def test_a_binding_leads_to_no_tenant_that_cannot_be() -> None:
    source = """
from dynamic_workflows import WorkerEntrypoint

class Default(WorkerEntrypoint):
    async def go(self):
        await self.env.OTHER.create()
"""
    env = {"OTHER": dw.wrap_workflow_binding({"tenant_id": "\x85"})}
    given = dw.WorkerCode("index.py", {"index.py": source}, env=env)
    async with testing.connect(load=lambda tenant_id: given) as platform:
        with pytest.raises(dw.InvalidError) as caught:
            await platform.tenant("acme").entrypoint().go()
    assert caught.value.code == "tenant.invalid_id"
