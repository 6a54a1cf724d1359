"""The shell of a tenant: nothing is shown before it is safe, and nothing stops without a trace."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from kit_tenants import stored_objects

import dynamic_workflows as dw
from dynamic_workflows import testing
from dynamic_workflows.actors.tenant.commit_pipeline import INLINE_MAX
from dynamic_workflows.actors.tenant.tenant import TenantSupervisor
from dynamic_workflows.eventlog.errors import Fenced, Unavailable
from dynamic_workflows.eventlog.events import Row
from dynamic_workflows.eventlog.store.base import NotFound
from dynamic_workflows.loaders.isolates.interface import Exit
from dynamic_workflows.loaders.protocol.calls import (
    AwaitResult,
    GetInstance,
    pack_call,
    unpack_tenant_call,
)
from dynamic_workflows.loaders.protocol.messages import CallRequest, End, pack

CODE = """
from dynamic_workflows import WorkflowEntrypoint

class TenantWorkflow(WorkflowEntrypoint):
    async def run(self, event, step):
        plan = event.payload
        if "big" in plan:
            big = await step.do("big", lambda: "x" * plan["big"])
            await step.sleep("nap", "1 hour")
            return {"n": len(big), "tail": big}
        if "secret" in plan:
            config = {"sensitive": "output"}
            secret = await step.do("secret", lambda: "s3cr3t" * plan["secret"], config=config)
            await step.sleep("nap", "1 hour")
            return len(secret)
        if "wait" in plan:
            got = await step.wait_for_event("wait", type="go", timeout="365 days")
            return got.payload
        async def slow(ctx):
            await __import__("asyncio").get_running_loop().create_future()
        if "hang" in plan:
            return await step.do("hang", slow, config={"timeout": "1 hour"})
        return await step.do("one", lambda: 1)
"""


def load(tenant_id: str) -> dw.WorkerCode:
    return dw.WorkerCode(main_module="index.py", modules={"index.py": CODE})


async def shell(platform: testing.TestPlatform) -> TenantSupervisor:
    return await platform._local.tenant("acme")


async def test_no_answer_comes_before_its_rows_are_safe() -> None:
    async with testing.connect(load=load) as platform:
        workflows = platform.tenant("acme").workflows
        await (await workflows.create()).result()
        tenant = await shell(platform)
        gate = asyncio.get_running_loop().create_future()
        append = tenant._log.append

        def held_back(rows: Sequence[Row], *, durable: bool = True) -> asyncio.Future[None]:
            async def later() -> None:
                await gate
                await append(rows, durable=durable)

            return asyncio.ensure_future(later())

        tenant._log.append = held_back  # type: ignore[method-assign]
        create = asyncio.ensure_future(workflows.create(id="late"))
        get = asyncio.ensure_future(workflows.get("late"))
        page = asyncio.ensure_future(workflows.list())
        await platform.clock.settle()
        assert not create.done()
        assert not get.done()
        assert not page.done()
        gate.set_result(None)
        assert (await create).id == (await get).id == "late"
        assert len(await page) == 2


async def test_a_log_that_fails_stops_the_tenant_and_the_next_call_opens_it_again() -> None:
    async with testing.connect(load=load) as platform:
        workflows = platform.tenant("acme").workflows
        waiting = await workflows.create(id="w", params={"wait": True})
        result = asyncio.ensure_future(waiting.result())
        await platform.clock.settle()
        tenant = await shell(platform)

        def refuse(rows: Sequence[Row], *, durable: bool = True) -> asyncio.Future[None]:
            future = asyncio.get_running_loop().create_future()
            future.set_exception(Unavailable("the disk is gone"))
            return future

        tenant._log.append = refuse  # type: ignore[method-assign]
        with pytest.raises(Unavailable):
            await workflows.create(id="lost")
        assert isinstance(tenant.failed, Unavailable)
        with pytest.raises(dw.InstanceError):
            await workflows.get("lost")
        assert await shell(platform) is not tenant
        await waiting.send_event("go", 7)
        assert await result == 7


async def test_a_fenced_tenant_acknowledges_nothing_more() -> None:
    async with testing.connect(load=load) as platform:
        workflows = platform.tenant("acme").workflows
        await workflows.create(id="w", params={"wait": True})
        old = await shell(platform)
        await platform.crash("acme")
        with pytest.raises((Fenced, dw.PlatformClosed, Unavailable)):
            await old.call(GetInstance(workflow="TenantWorkflow", id="w"))
        assert (await (await workflows.get("w")).status()).status == "waiting"


async def test_large_values_lie_beside_the_log_and_come_back_whole() -> None:
    size = 3 * INLINE_MAX
    async with testing.connect(load=load) as platform:
        workflows = platform.tenant("acme").workflows
        instance = await workflows.create(id="b", params={"big": size, "pad": "p" * size})
        await platform.clock.advance("10 minutes")
        await platform.crash("acme")
        await platform.clock.advance("2 hours")
        output = await instance.result()
        assert output == {"n": size, "tail": "x" * size}
        await platform.crash("acme")
        assert (await instance.status()).output == output
        history = await instance.history()
        assert history[0].payload["params"]["pad"] == "p" * size
        (done,) = [event for event in history if event.type == "step_completed"]
        assert done.payload["output"] == "x" * size
        rows = platform.query("select max(length(payload::varchar)) as n from events").to_pylist()
        assert rows[0]["n"] < INLINE_MAX


async def test_rows_behind_a_large_value_keep_their_order() -> None:
    async with testing.connect(load=load) as platform:
        workflows = platform.tenant("acme").workflows
        await (await workflows.create()).result()
        created = await asyncio.gather(
            workflows.create(id="large", params={"pad": "p" * 2 * INLINE_MAX}),
            workflows.create(id="small"),
        )
        assert [await one.result() for one in created] == [1, 1]
        seqs = platform.query("select seq from events order by seq").column("seq").to_pylist()
        assert seqs == list(range(1, len(seqs) + 1))
        await platform.crash("acme")
        assert [await one.result() for one in created] == [1, 1]


@pytest.mark.parametrize("times", [1, INLINE_MAX])
async def test_sensitive_outputs_are_in_no_row_and_still_replay(times: int) -> None:
    async with testing.connect(load=load) as platform:
        instance = await platform.tenant("acme").workflows.create(params={"secret": times})
        await platform.clock.advance("10 minutes")
        await platform.crash("acme")
        shown = repr(await instance.history())
        shown += repr(platform.query("select payload from events").to_pylist())
        assert "s3cr3t" not in shown
        assert "[REDACTED]" in shown
        await platform.clock.advance("2 hours")
        assert await instance.result() == 6 * times


async def test_an_isolate_that_dies_takes_no_recorded_work_with_it() -> None:
    async with testing.connect(load=load) as platform:
        workflows = platform.tenant("acme").workflows
        hanging = await workflows.create(id="h", params={"hang": True})
        waiting = await workflows.create(id="w", params={"wait": True})
        await platform.clock.advance("1 second")
        tenant = await shell(platform)
        for host in tenant._hosts:
            host.kill("killed by a test", kind="platform", is_tenants_own=False)
        await platform.clock.advance("1 second")
        attempts = [e for e in await hanging.history() if e.type.startswith("attempt")]
        assert [(e.type, e.attempt) for e in attempts] == [
            ("attempt_started", 1),
            ("attempt_errored", 1),
            ("attempt_started", 2),
        ]
        assert "killed by a test" in attempts[1].payload["error"]["message"]
        await waiting.send_event("go", "still here")
        assert await waiting.result() == "still here"
        assert not tenant.core.audit()


@pytest.mark.parametrize("body", [b"\xc1 not msgpack", b"\x94\x01\xa1\x80\x01\xc4\x01{"])
async def test_a_broken_frame_ends_the_isolate_and_not_the_tenant(body: bytes) -> None:
    async with testing.connect(load=load) as platform:
        workflows = platform.tenant("acme").workflows
        instance = await workflows.create(id="w", params={"wait": True})
        await platform.clock.advance("1 second")
        tenant = await shell(platform)
        (host,) = tenant._hosts
        exits: list[Exit] = []
        on_lost = tenant._isolate_events.on_lost

        def note(host: Any, lives: list[int], exit: Exit) -> None:
            exits.append(exit)
            on_lost(host, lives, exit)

        tenant._isolate_events.on_lost = note  # type: ignore[method-assign]
        (life,) = host.lives
        host.on_frames([(17, life, body)])
        await platform.clock.settle()
        assert [(exit.kind, exit.is_tenants_own) for exit in exits] == [("protocol", True)]
        await platform.clock.advance("1 minute")
        await instance.send_event("go", 1)
        await platform.clock.advance("1 minute")
        assert await instance.result() == 1


async def test_messages_about_lifetimes_of_another_isolate_end_the_one_that_sent_them() -> None:
    async with testing.connect(load=load) as platform:
        workflows = platform.tenant("acme").workflows
        instance = await workflows.create(id="w", params={"wait": True})
        await platform.clock.advance("1 second")
        tenant = await shell(platform)
        (host,) = tenant._hosts
        (life,) = host.lives
        stranger = tenant._hosts.get((host.code_hash, "worker", ()))
        await stranger.loaded()
        stranger.on_frames([pack(End(value=b'"forged"'), life=life)])
        await platform.clock.settle()
        assert (await instance.status()).status == "waiting"
        assert list(tenant._hosts) == [host]


async def test_isolates_that_nobody_needs_are_closed() -> None:
    async with testing.connect(load=load) as platform:
        await (await platform.tenant("acme").workflows.create()).result()
        tenant = await shell(platform)
        assert len(list(tenant._hosts)) == 1
        await platform.clock.advance("5 minutes")
        assert list(tenant._hosts) == []
        assert await (await platform.tenant("acme").workflows.create()).result() == 1


async def test_a_tenant_with_nothing_to_do_says_when_it_has_to_wake() -> None:
    async with testing.connect(load=load) as platform:
        workflows = platform.tenant("acme").workflows
        instance = await workflows.create(id="b", params={"big": 10})
        tenant = await shell(platform)
        assert not tenant.is_idle()
        await platform.clock.advance("1 minute")
        assert tenant.is_idle()
        wake_us = tenant.next_wake_us()
        assert wake_us is not None
        assert 0 < wake_us - platform.clock.now_us() <= 3_600_000_000
        await tenant.close()
        assert tenant.next_wake_us() == wake_us
        with pytest.raises(dw.PlatformClosed):
            await tenant.call(GetInstance(workflow="TenantWorkflow", id="b"))
        with pytest.raises(dw.PlatformClosed):
            await instance.status()


async def test_instances_at_rest_leave_memory_and_come_back_when_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("dynamic_workflows.actors.tenant.instance_loader._RESTING_MAX", 16)
    monkeypatch.setattr("dynamic_workflows.actors.tenant.commit_effects._EVICT_EVERY", 1)
    async with testing.connect(load=load) as platform:
        workflows = platform.tenant("acme").workflows
        made = await workflows.create_batch([{"params": {"wait": True}} for _ in range(64)])
        await platform.clock.advance("1 minute")
        tenant = await shell(platform)
        loaded = [one for one in made if tenant.core.is_loaded(("TenantWorkflow", one.id))]
        assert len(loaded) <= 16
        await asyncio.gather(*(one.send_event("go", n) for n, one in enumerate(made)))
        assert await asyncio.gather(*(one.result() for one in made)) == list(range(64))


async def test_a_slot_count_of_one_runs_one_after_the_other() -> None:
    async with testing.connect(load=load, config={"running_max": 1}) as platform:
        workflows = platform.tenant("acme").workflows
        hanging = await workflows.create(id="h", params={"hang": True})
        quick = await workflows.create(id="q")
        await platform.clock.advance("1 minute")
        assert (await quick.status()).status == "queued"
        assert "slot" in (await quick.why()).text
        await hanging.terminate()
        assert await quick.result() == 1


async def test_deleting_leaves_no_blob_behind_in_any_answer() -> None:
    async with testing.connect(load=load) as platform:
        workflows = platform.tenant("acme").workflows
        instance = await workflows.create(id="b", params={"big": 2 * INLINE_MAX})
        await platform.clock.advance("2 hours")
        await instance.delete()
        for call in (instance.status, instance.history, instance.result):
            with pytest.raises(dw.InstanceError):
                await call()
        again = await workflows.create(id="b")
        assert await again.result() == 1
        types = [event.type for event in await again.history(all_runs=True)]
        assert types.count("workflow_queued") == 1


async def test_a_missing_blob_is_a_clear_failure_of_the_tenant_not_a_wrong_value() -> None:
    async with testing.connect(load=load) as platform:
        instance = await platform.tenant("acme").workflows.create(params={"big": 2 * INLINE_MAX})
        await platform.clock.advance("10 minutes")
        objects = stored_objects(platform)
        blobs = [key for key in objects if "/blobs/" in key]
        assert blobs
        await platform.crash("acme")
        for key in blobs:
            del objects[key]
        with pytest.raises((dw.Corrupt, Unavailable, NotFound)):
            await instance.history()


@pytest.mark.parametrize(
    ("op", "args"),
    [
        ("nonsense", {}),
        ("get", {"workflow": 7, "id": "x"}),
        ("get", {"workflow": "TenantWorkflow", "id": ["x"]}),
        ("create_batch", {"workflow": "TenantWorkflow", "items": "abc"}),
        ("create_batch", {"workflow": "TenantWorkflow", "items": [{"params": b"{"}]}),
        ("create_batch", {"workflow": "TenantWorkflow", "items": [{"params": "{}"}]}),
        ("create_batch", {"workflow": "TenantWorkflow", "items": [{"evil": 1}]}),
        ("create_batch", {"workflow": "TenantWorkflow", "items": [{"params": b"1", "pin": 3}]}),
        ("list", {"workflow": "TenantWorkflow", "limit": "all"}),
        ("list", {"workflow": "TenantWorkflow", "limit": 10**9}),
        ("list", {"workflow": "TenantWorkflow", "status": {"a": 1}}),
        ("list", {"workflow": "TenantWorkflow", "cursor": 1}),
        ("send_event", {"workflow": "TenantWorkflow", "id": "w", "type": "go", "payload": b"x"}),
        ("send_event", {"workflow": "TenantWorkflow", "id": "w", "type": "a.b", "payload": b"1"}),
        ("restart", {"workflow": "TenantWorkflow", "id": "w", "from": {"name": 1, "type": "do"}}),
        ("events", {"workflow": "TenantWorkflow", "id": "w", "cursor": "0"}),
        ("result", {"workflow": "TenantWorkflow", "id": "w", "timeout_s": float("nan")}),
        ("delete_batch", {"workflow": "TenantWorkflow", "ids": ["w", 3]}),
        ("terminate", {"workflow": "TenantWorkflow", "id": "w", "rollback": "yes"}),
    ],
)
async def test_hostile_arguments_are_refused_and_change_nothing(
    op: str, args: dict[str, Any]
) -> None:
    async with testing.connect(load=load) as platform:
        await platform.tenant("acme").workflows.create(id="w", params={"wait": True})
        await platform.clock.settle()
        tenant = await shell(platform)
        before = tenant.core.last_seq
        with pytest.raises((dw.InvalidError, dw.UnserialisableValueError)):
            await tenant.call(unpack_tenant_call(op, msgspec.msgpack.encode(args)))
        assert tenant.core.last_seq == before


async def test_many_instances_without_code_do_not_hold_up_one_with_code() -> None:
    answers: dict[str, Any] = {"code": load("acme")}

    async with testing.connect(load=lambda tenant_id: answers["code"]) as platform:
        workflows = platform.tenant("acme").workflows
        stuck = await workflows.create_batch([{"params": {"big": 1}} for _ in range(600)])
        await platform.clock.advance("10 minutes")
        objects = stored_objects(platform)
        (key,) = [key for key in objects if key.startswith("code/")]
        stored = objects.pop(key)
        platform._local.codes._bundles._held.clear()
        await platform.clock.advance("2 hours")
        assert (await stuck[0].status()).reason is not None
        answers["code"] = dw.WorkerCode("main.py", {"main.py": CODE})
        await platform.tenant("acme").reload()
        assert await (await workflows.create()).result() == 1
        objects[key] = stored
        await platform.clock.advance("2 minutes")
        outputs = await asyncio.gather(*(one.result() for one in stuck))
        assert outputs == [{"n": 1, "tail": "x"}] * 600


async def test_a_mistake_of_ours_makes_the_tenant_start_again_from_its_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with testing.connect(load=load) as platform:
        instance = await platform.tenant("acme").workflows.create(params={"wait": True})
        await platform.clock.advance("1 second")
        tenant = await shell(platform)

        def broken(*args: Any, **named: Any) -> Any:
            raise AssertionError("a fold that does not fit")

        tenant.core.on_message = broken
        await instance.send_event("go", 1)
        await platform.clock.settle()
        assert isinstance(tenant.failed, AssertionError)
        assert await instance.result() == 1
        assert await shell(platform) is not tenant


async def test_a_guest_that_floods_the_platform_with_calls_loses_its_isolate() -> None:
    async with testing.connect(load=load, config={"calls_in_flight_max": 50}) as platform:
        instance = await platform.tenant("acme").workflows.create(params={"wait": True})
        await platform.clock.advance("1 second")
        tenant = await shell(platform)
        (host,) = tenant._hosts
        (life,) = host.lives
        asked = pack_call(AwaitResult(workflow="TenantWorkflow", id=instance.id))
        call = pack(CallRequest(1, "WORKFLOWS", "result", asked, b""), life=life)
        for _ in range(300):
            host.on_frames([call])
            await asyncio.sleep(0)
        await platform.clock.advance("1 minute")
        assert host not in list(tenant._hosts)
        assert not tenant._tasks
        await instance.send_event("go", 1)
        await platform.clock.advance("1 minute")
        assert await instance.result() == 1


async def test_a_result_that_may_take_no_time_is_there_or_not() -> None:
    async with testing.connect(load=load) as platform:
        workflows = platform.tenant("acme").workflows
        waiting = await workflows.create(params={"wait": True})
        for timeout in (0, -1, 0.0):
            with pytest.raises(TimeoutError):
                await waiting.result(timeout=timeout)
        await waiting.send_event("go", 1)
        assert await waiting.result() == 1
        assert await waiting.result(timeout=0) == 1


async def test_an_instance_that_stopped_silently_is_reported_and_goes_on_at_the_next_sweep(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with testing.connect(load=load) as platform:
        workflows = platform.tenant("acme").workflows
        sleeping = await workflows.create(id="s", params={"big": 3})
        await platform.clock.advance("1 second")
        tenant = await shell(platform)
        tenant._maintenance._sweep_now()
        assert caplog.messages == []
        (summary,) = tenant.core.state.index
        tenant.core.state.cancel_timer(summary)  # As a bug would.
        await platform.clock.advance("2 hours")
        assert (await sleeping.status()).status == "waiting"
        tenant._maintenance._sweep_now()
        assert "nothing will wake it" in caplog.text
        assert await sleeping.result() == {"n": 3, "tail": "xxx"}
        caplog.clear()
        tenant._maintenance._sweep_now()
        assert caplog.messages == []
