"""The platform's own face: code comes and goes, services serve, tenants stay apart."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from kit_tenants import stored_objects
from service_tenants import HELLO, Gateway, Ledger, hello, with_service

import dynamic_workflows as dw
from dynamic_workflows import testing
from dynamic_workflows.loaders.protocol.calls import InvokeMethod


class Source:
    """A `load` callback whose answer a test changes."""

    def __init__(self, code: Any) -> None:
        self.code = code
        self.asked: list[str] = []

    async def __call__(self, tenant_id: str) -> Any:
        self.asked.append(tenant_id)
        if isinstance(self.code, Exception):
            raise self.code
        return self.code


async def output(platform: dw.Platform, tenant_id: str = "acme", **create: Any) -> Any:
    instance = await platform.tenant(tenant_id).workflows.create(**create)
    return await instance.result()


# --- code ----------------------------------------------------------------------------------------


@pytest.mark.behaviour(326, 327)
async def test_code_is_held_for_its_time_and_then_asked_for_again() -> None:
    source = Source(hello("one"))
    async with testing.connect(load=source, config={"code_ttl_seconds": 10}) as platform:
        assert await output(platform) == "one"
        source.code = hello("two")
        await platform.clock.advance("9 seconds")
        assert await output(platform) == "one"
        await platform.clock.advance("2 seconds")
        assert await output(platform) == "two"
        assert source.asked == ["acme", "acme"]


async def test_reload_asks_at_once() -> None:
    source = Source(hello("one"))
    async with testing.connect(load=source) as platform:
        assert await output(platform) == "one"
        source.code = hello("two")
        await platform.tenant("acme").reload()
        assert await output(platform) == "two"


async def test_deployed_code_rules_until_reload_and_survives_a_crash() -> None:
    source = Source(hello("loaded"))
    async with testing.connect(load=source) as platform:
        acme = platform.tenant("acme")
        code_hash = await acme.deploy(hello("deployed"))
        await platform.crash("acme")
        assert await output(platform) == "deployed"
        assert source.asked == []
        await platform.clock.advance("1 hour")
        assert await output(platform) == "deployed"
        hashes = acme.query("select distinct code_hash from instances").to_pylist()
        assert hashes == [{"code_hash": code_hash}]
        await acme.reload()
        await platform.crash("acme")
        assert await output(platform) == "loaded"


@pytest.mark.behaviour(331, 336)
@pytest.mark.parametrize(
    ("modules", "code"),
    [
        ({"index.py": "def broken(:\n"}, "code.invalid"),
        ({"index.py": "import nowhere_to_be_found\n"}, "code.import_failed"),
        ({"index.py": "raise SystemExit(3)\n"}, "code.import_failed"),
        ({"index.py": "nothing = 1\n"}, "code.class_missing"),
        ({"other.py": HELLO}, "code.invalid"),
    ],
)
async def test_bad_code_is_refused_by_deploy_and_create_alike(
    modules: dict[str, str], code: str
) -> None:
    bad = dw.WorkerCode(main_module="index.py", modules=modules)
    source = Source(hello())
    async with testing.connect(load=source) as platform:
        acme = platform.tenant("acme")
        with pytest.raises(dw.CodeError) as caught:
            await acme.deploy(bad)
        assert caught.value.code == code
        assert await output(platform) == "hello"
        source.code = bad
        await acme.reload()
        with pytest.raises(dw.CodeError) as caught:
            await acme.workflows.create(id="bad")
        assert caught.value.code == code
        count = platform.query("select count(*) as n from instances").to_pylist()
        assert count == [{"n": 1}]


@pytest.mark.behaviour(331)
@pytest.mark.parametrize("answer", [OSError("the disk is gone"), "print('no code')", None])
async def test_a_load_that_fails_refuses_the_create_and_is_tried_again(answer: Any) -> None:
    source = Source(answer)
    async with testing.connect(load=source) as platform:
        with pytest.raises(dw.CodeError) as caught:
            await output(platform, id="x")
        is_raised = isinstance(answer, Exception)
        assert caught.value.code == ("code.load_failed" if is_raised else "code.invalid")
        source.code = hello()
        assert await output(platform, id="x") == "hello"


async def test_without_load_and_app_code_has_to_be_deployed() -> None:
    async with testing.connect() as platform:
        with pytest.raises(dw.CodeError) as caught:
            await output(platform)
        assert caught.value.code == "code.load_failed"
        await platform.tenant("acme").deploy(hello())
        assert await output(platform) == "hello"


async def test_an_instance_waits_for_code_that_cannot_be_loaded_and_says_so() -> None:
    source = Source(hello("one"))
    async with testing.connect(load=source) as platform:
        acme = platform.tenant("acme")
        instance = await acme.workflows.create(params={"nap": "1 hour"}, pin="latest")
        await platform.clock.advance("1 minute")
        source.code = OSError("gone")
        await platform.clock.advance("2 hours")
        status = await instance.status()
        assert status.status in ("waiting", "queued")
        assert status.reason is not None
        assert status.reason.code == "code.load_failed"
        assert "gone" in (await instance.why()).text
        source.code = hello("two")
        await platform.clock.advance("10 minutes")
        assert await instance.result() == "one"
        assert (await instance.status()).reason is None


async def test_stored_code_that_is_missing_is_a_reason_not_a_failure() -> None:
    source = Source(hello("one"))
    async with testing.connect(load=source) as platform:
        acme = platform.tenant("acme")
        instance = await acme.workflows.create(params={"nap": "1 hour"})
        await platform.clock.advance("10 minutes")
        stored = {k: v for k, v in stored_objects(platform).items() if k.startswith("code/")}
        for key in stored:
            del stored_objects(platform)[key]
        platform._local.codes._bundles._held.clear()
        await platform.clock.advance("2 hours")
        status = await instance.status()
        assert status.reason is not None
        assert status.reason.code == "code.load_failed"
        stored_objects(platform).update(stored)
        await platform.clock.advance("10 minutes")
        assert await instance.result() == "one"


# --- entrypoints and workers ---------------------------------------------------------------------


@pytest.mark.behaviour(339, 345)
async def test_entrypoints_are_called_through_stubs() -> None:
    async with testing.connect(load=Source(hello())) as platform:
        acme = platform.tenant("acme")
        stub = acme.entrypoint(props={"user": 7})
        assert await stub.hello("kim", loud=True) == "HELLO KIM"
        assert await stub.props() == {"user": 7}
        assert await acme.entrypoint("Admin").hello() == "admin"
        request = dw.Request("GET", "http://x/", headers={"user-agent": "test"})
        response = await stub.fetch(request)
        assert response.status == 200
        assert await response.json() == {"method": "GET", "agent": "test"}


@pytest.mark.behaviour(345)
async def test_what_an_entrypoint_does_not_offer_cannot_be_called() -> None:
    async with testing.connect(load=Source(hello())) as platform:
        acme = platform.tenant("acme")
        with pytest.raises(KeyError, match="no such thing"):
            await acme.entrypoint().fail()
        with pytest.raises(dw.InvalidError, match="nothing_here"):
            await acme.entrypoint().nothing_here()
        with pytest.raises(AttributeError):
            acme.entrypoint("Admin")._secret  # noqa: B018
        with pytest.raises(dw.InvalidError):
            await acme._calls.call(
                InvokeMethod(entrypoint="Admin", method="_secret", args=b"[]", kwargs=b"{}")
            )
        with pytest.raises(dw.CodeError) as caught:
            await acme.entrypoint("Nobody").hello()
        assert caught.value.code == "code.class_missing"


@pytest.mark.behaviour(325, 326, 330)
async def test_workers_are_loaded_by_id_once_or_by_hand_each_time() -> None:
    asked = []

    def code() -> dw.WorkerCode:
        asked.append(1)
        return hello("worker")

    async with testing.connect() as platform:
        stub = platform.loader.get("w-1", code)
        assert asked == []
        answers = await asyncio.gather(
            *(stub.get_entrypoint().hello(str(i)) for i in range(3)),
            platform.loader.get("w-1", code).get_entrypoint("Admin").hello(),
        )
        assert answers == ["worker 0", "worker 1", "worker 2", "admin"]
        assert asked == [1]
        loaded = platform.loader.load(hello("once"))
        assert await loaded.get_entrypoint(props=3).props() == 3
        with pytest.raises(TypeError):
            platform.loader.get("", code)


@pytest.mark.behaviour(331)
async def test_a_worker_that_cannot_be_loaded_fails_when_it_is_called() -> None:
    def code() -> Any:
        raise OSError("no code today")

    async with testing.connect() as platform:
        stub = platform.loader.get("w-1", code).get_entrypoint()
        with pytest.raises(dw.CodeError, match="no code today"):
            await stub.hello("x")


# --- services ------------------------------------------------------------------------------------


class Tail(dw.Service):
    """Collects what tenants print."""

    async def tail(self, records: list[dict[str, Any]]) -> None:
        self.props.extend(records)


@pytest.mark.behaviour(338, 349)
async def test_services_run_on_the_platforms_side_one_object_for_all_calls() -> None:
    async with testing.connect(load=Source(with_service())) as platform:
        assert await output(platform, params={"n": 1}) == 2
        assert await output(platform, params={"n": 10}) == 22
        stub = platform.tenant("acme").entrypoint()
        assert await stub.names() == ["DB", "LIMIT", "WORKFLOWS"]
        assert await stub.call("plain") == (1, 2)


@pytest.mark.behaviour(339)
async def test_a_service_shows_its_public_methods_alone() -> None:
    async with testing.connect(load=Source(with_service())) as platform:
        stub = platform.tenant("acme").entrypoint()
        with pytest.raises(PermissionError, match="not yours"):
            await stub.call("fail")
        with pytest.raises(dw.UnserialisableValueError):
            await stub.call("odd")
        with pytest.raises(dw.InvalidError):
            await stub.call("props")
        with pytest.raises(AttributeError):
            await stub.call("_hidden")


@pytest.mark.behaviour(340, 341, 342)
async def test_the_network_is_reached_through_the_gateway_alone() -> None:
    closed = Source(with_service())
    async with testing.connect(load=closed) as platform:
        with pytest.raises(dw.EgressDeniedError):
            await platform.tenant("acme").entrypoint().get("https://allowed/")
    gateway = Gateway(props={"key": "sec-ret"})
    async with testing.connect(load=Source(with_service(global_outbound=gateway))) as platform:
        stub = platform.tenant("acme").entrypoint()
        assert await stub.get("https://allowed/x") == [200, "GET with sec…"]
        with pytest.raises(dw.EgressDeniedError, match="elsewhere"):
            await stub.get("https://elsewhere/")


@pytest.mark.behaviour(343)
async def test_tails_get_what_tenants_print() -> None:
    records: list[dict[str, Any]] = []
    tail = Tail(props=records)
    async with testing.connect(load=Source(with_service(tails=(tail,)))) as platform:
        await platform.tenant("acme").entrypoint().talk()
        await platform.clock.settle()
        assert [record["text"].strip() for record in records] == ["to the tail"]
        assert records[0]["tenant_id"] == "acme"


@pytest.mark.behaviour(344)
async def test_the_lower_limit_on_subrequests_holds() -> None:
    limited = with_service(limits={"subrequests": 2})
    async with testing.connect(load=Source(limited)) as platform:
        stub = platform.tenant("acme").entrypoint()
        for _ in range(5):
            assert await stub.call("plain") == (1, 2)
    source = """
from dynamic_workflows import WorkerEntrypoint
class Default(WorkerEntrypoint):
    async def many(self, n):
        return [await self.env.DB.plain() for _ in range(n)]
"""
    code = dw.WorkerCode(
        main_module="index.py",
        modules={"index.py": source},
        env={"DB": Ledger(props={"account": "x"})},
        limits={"subrequests": 3},
    )
    async with testing.connect() as platform:
        worker = platform.loader.load(code)
        assert len(await worker.get_entrypoint().many(3)) == 3
        with pytest.raises(dw.LimitExceededError):
            await worker.get_entrypoint().many(4)
        with pytest.raises(dw.LimitExceededError):
            await worker.get_entrypoint(limits={"subrequests": 1}).many(2)


# --- arguments and the end -----------------------------------------------------------------------


@pytest.mark.parametrize("bad", ["", "a\nb", "\x85", "x" * 257])
async def test_tenant_ids_are_checked_before_anything_happens(bad: str) -> None:
    async with testing.connect(load=Source(hello())) as platform:
        with pytest.raises(dw.InvalidError) as caught:
            platform.tenant(bad)
        assert caught.value.code == "tenant.invalid_id"


@pytest.mark.parametrize("odd", ["a/b/../c", "..", "tenant=x", "Ümläut 🙂", "%2e", "x" * 256])
async def test_any_tenant_id_has_a_log_of_its_own(odd: str) -> None:
    async with testing.connect(load=Source(hello())) as platform:
        assert await output(platform, odd, id="one") == "hello"
        await platform.crash(odd)
        assert await (await platform.tenant(odd).workflows.get("one")).result() == "hello"
        seen = platform.tenant(odd).query("select distinct tenant_id from events").to_pylist()
        assert seen == [{"tenant_id": odd}]


async def test_a_closed_platform_says_so() -> None:
    async with testing.connect(load=Source(hello())) as platform:
        acme = platform.tenant("acme")
        workflows = acme.workflows
        instance = await workflows.create()
    for call in (
        lambda: platform.tenant("acme"),
        lambda: platform.query("select 1"),
        lambda: platform.loader,
        lambda: acme.workflows,
    ):
        with pytest.raises(dw.PlatformClosed):
            call()
    with pytest.raises(dw.PlatformClosed) as caught:
        await instance.status()
    assert caught.value.code == "platform.closed"
    await platform.close()


def test_connect_checks_its_arguments_before_it_starts_anything() -> None:
    app = dw.App(None)
    with pytest.raises(TypeError):
        dw.connect("x", load=lambda t: None, app=app)
    with pytest.raises(TypeError):
        dw.connect("x", load="load")  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        dw.connect(7)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        dw.connect("x", app="app")  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        dw.connect("x", config=3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="stepsmax"):
        dw.connect("x", config={"stepsmax": 3})


async def test_a_platform_without_dispatcher_answers_no_requests() -> None:
    async with testing.connect(load=Source(hello())) as platform:
        with pytest.raises(dw.InvalidError, match="dispatcher"):
            await platform.fetch(dw.Request("GET", "/"))
