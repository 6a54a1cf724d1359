"""Bindings and handles: the same in the driver and in a tenant's env, and strict."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

import dynamic_workflows as dw
from dynamic_workflows import testing
from dynamic_workflows.loaders.protocol.calls import (
    TENANT_CALLS,
    AnswerT,
    CreateBatch,
    DeleteInstance,
    DeployCode,
    EventPage,
    GetEvents,
    GetStatus,
    InstanceItem,
    InstancePage,
    ListInstances,
    NewInstance,
    RestartInstance,
    RestartTarget,
    StatusData,
    TenantCall,
    pack_answer,
    pack_call,
    unpack_answer,
    unpack_call,
    unpack_tenant_call,
)
from dynamic_workflows.loaders.sdk.binding import WorkflowBinding
from dynamic_workflows.loaders.sdk.records import Status

CODE = """
from dynamic_workflows import WorkflowEntrypoint, WorkerEntrypoint, WorkflowsError

class TenantWorkflow(WorkflowEntrypoint):
    async def run(self, event, step):
        plan = event.payload or {}
        if plan.get("fail"):
            raise ValueError("as planned")
        if plan.get("wait"):
            return (await step.wait_for_event("wait", type="go", timeout="30 days")).payload
        if plan.get("child"):
            async def start():
                child = await self.env.WORKFLOWS.create(id=plan["child"], params={"wait": True})
                return child.id
            return await step.do("start child", start)
        if plan.get("delete"):
            instance = await self.env.WORKFLOWS.get(plan["delete"])
            await instance.delete()
            await step.do("never", lambda: 1)
        for n in range(plan.get("steps", 1)):
            await step.do(f"step {n}", lambda: n)
        return plan.get("steps", 1)

class Default(WorkerEntrypoint):
    async def tour(self):
        flows = self.env.WORKFLOWS
        made = await flows.create(id="inner", params={"wait": True})
        status = (await made.status()).status
        await made.pause()
        paused = (await made.status())["status"]
        await made.resume()
        await made.send_event("go", {"x": (1, 2)})
        output = await made.result()
        types = [event.type for event in await made.history()]
        seen = [event.type async for event in made.subscribe(filter=["workflow_completed"])]
        page = await flows.list(status="complete")
        gone = await flows.delete_batch(["inner", "nobody"])
        try:
            await flows.get("inner")
        except WorkflowsError as error:
            code = error.code
        return [status in ("queued", "running", "waiting"), paused, output, types[0], seen,
                [one.id for one in page], gone.deleted, [e.code for e in gone.errors], code]

    async def forge(self, op, body):
        calls = self.env.WORKFLOWS._calls
        return await calls._guest.call(calls._name, op, body, b"")
"""


def load(tenant_id: str) -> dw.WorkerCode:
    return dw.WorkerCode(main_module="index.py", modules={"index.py": CODE})


async def test_the_binding_in_env_does_what_the_drivers_does() -> None:
    async with testing.connect(load=load) as platform:
        answer = await platform.tenant("acme").entrypoint().tour()
        assert answer == [
            True,
            "paused",
            {"x": (1, 2)},
            "workflow_queued",
            ["workflow_completed"],
            ["inner"],
            ["inner"],
            ["instance.not_found"],
            "instance.not_found",
        ]


@pytest.mark.parametrize("op", ["invoke", "deploy", "reload", "schedule", "nonsense", "close"])
async def test_tenant_code_cannot_call_what_is_the_platforms(op: str) -> None:
    async with testing.connect(load=load) as platform:
        with pytest.raises(dw.InvalidError, match="no operation"):
            await platform.tenant("acme").entrypoint().forge(op, b"\x80")


async def test_tenant_code_cannot_send_metadata_of_its_own() -> None:
    async with testing.connect(load=load) as platform:
        item = {"id": "x", "params": b"{}"}
        args = {
            "workflow": "TenantWorkflow",
            "items": [item],
            "strict": True,
            "metadata": b'{"tenant_id":"other"}',
            "binding": "WORKFLOWS",
        }
        body = msgspec.msgpack.encode(args)
        answer = await platform.tenant("acme").entrypoint().forge("create_batch", body)
        assert answer == pack_answer(["x"])
        rows = platform.query("select tenant_id from instances").to_pylist()
        assert rows == [{"tenant_id": "acme"}]


@pytest.mark.behaviour(21)
async def test_a_step_may_create_a_child_and_does_not_wait_for_it() -> None:
    async with testing.connect(load=load) as platform:
        workflows = platform.tenant("acme").workflows
        parent = await workflows.create(params={"child": "kid"})
        assert await parent.result() == "kid"
        kid = await workflows.get("kid")
        assert (await kid.status()).status in ("running", "waiting")


@pytest.mark.behaviour(42)
async def test_a_run_that_deletes_itself_ends_inside_that_call() -> None:
    async with testing.connect(load=load) as platform:
        workflows = platform.tenant("acme").workflows
        await workflows.create(id="me", params={"delete": "me"})
        await platform.clock.advance("1 minute")
        with pytest.raises(dw.InstanceError):
            await workflows.get("me")
        assert platform.query("select count(*) as n from steps").to_pylist() == [{"n": 0}]


@pytest.mark.behaviour(35)
async def test_a_failed_run_raises_the_original_errors_name_and_message() -> None:
    async with testing.connect(load=load) as platform:
        instance = await platform.tenant("acme").workflows.create(params={"fail": True})
        with pytest.raises(dw.WorkflowFailedError) as caught:
            await instance.result()
        assert (caught.value.name, caught.value.message) == ("ValueError", "as planned")
        assert caught.value.code == "instance.failed"
        status = await instance.status()
        assert status.error is not None
        assert (status.error.name, status.error["message"]) == ("ValueError", "as planned")
        assert status.output is None


async def test_lists_are_filtered_by_status_and_go_from_page_to_page() -> None:
    async with testing.connect(load=load) as platform:
        workflows = platform.tenant("acme").workflows
        for n in range(7):
            await workflows.create(id=f"i{n}", params={"wait": n % 2 == 0})
        await platform.clock.advance("1 minute")
        waiting = await workflows.list(status="waiting")
        assert [one.id for one in waiting] == ["i6", "i4", "i2", "i0"]
        found, cursor = [], None
        while True:
            page = await workflows.list(status=["waiting", "complete"], limit=3, cursor=cursor)
            found += [one.id for one in page]
            cursor = page.cursor
            if cursor is None:
                break
        assert found == [f"i{n}" for n in reversed(range(7))]
        done = (await workflows.list(status="complete"))[0]
        assert done.created_at.tzinfo is UTC
        assert done.ended_at is not None
        assert await workflows.list(status="errored") is not None


@pytest.mark.behaviour(45, 46, 48, 49, 50)
async def test_deleting_a_batch_answers_for_each_position() -> None:
    async with testing.connect(load=load) as platform:
        workflows = platform.tenant("acme").workflows
        await workflows.create_batch([{"id": "a"}, {"id": "b"}])
        answer = await workflows.delete_batch(["a", "x", "a", "b"])
        assert answer.deleted == ["a", "a", "b"]
        assert [(error.id, error.code) for error in answer.errors] == [("x", "instance.not_found")]
        for bad in ([], "ab", 3, ["i"] * 10_001):
            with pytest.raises(dw.InvalidError) as caught:
                await workflows.delete_batch(bad)  # type: ignore[arg-type]
            assert caught.value.code == "batch.invalid"
        with pytest.raises(dw.InvalidError) as caught:
            await workflows.delete_batch(["ok", "not\nok"])
        assert caught.value.code == "instance.invalid_id"


@pytest.mark.behaviour(267, 271)
async def test_a_subscription_shows_history_then_live_and_survives_crashes() -> None:
    async with testing.connect(load=load) as platform:
        instance = await platform.tenant("acme").workflows.create(params={"wait": True})
        await platform.clock.advance("1 minute")
        seen: list[Any] = []

        async def follow() -> None:
            async for event in instance.subscribe():
                seen.append(event)

        following = asyncio.ensure_future(follow())
        await platform.clock.settle()
        before = [event.type for event in seen]
        assert before[0] == "workflow_queued"
        assert "wait_started" in before
        for _ in range(3):
            await platform.crash("acme")
            await instance.pause()
            await instance.resume()
            await platform.clock.settle()
        await instance.send_event("go", 1)
        await following
        history = await instance.history()
        assert [event.seq for event in seen] == [event.seq for event in history]
        assert seen == history


async def test_a_subscription_ends_when_the_instance_is_deleted() -> None:
    async with testing.connect(load=load) as platform:
        instance = await platform.tenant("acme").workflows.create(params={"wait": True})

        async def follow() -> list[str]:
            return [event.type async for event in instance.subscribe()]

        following = asyncio.ensure_future(follow())
        await platform.clock.settle()
        await instance.delete()
        assert (await following)[-1] == "workflow_deleted"
        with pytest.raises(dw.InstanceError):
            await follow()


@pytest.mark.behaviour(268, 269)
async def test_a_subscription_of_a_restarted_instance_begins_with_its_present_run() -> None:
    async with testing.connect(load=load) as platform:
        instance = await platform.tenant("acme").workflows.create(params={"steps": 2})
        await instance.result()
        first = await instance.history()
        await instance.restart()
        await instance.result()
        runs = [event.run async for event in instance.subscribe()]
        assert set(runs) == {2}
        resumed = [event.run async for event in instance.subscribe(cursor=first[2].seq)]
        assert set(resumed) == {1}
        every = await instance.history(all_runs=True)
        assert {event.run for event in every} == {1, 2}
        assert every[0].ts <= every[-1].ts


@pytest.mark.behaviour(268)
async def test_a_subscription_from_the_start_shows_what_history_shows_kept_steps_included() -> None:
    async with testing.connect(load=load) as platform:
        instance = await platform.tenant("acme").workflows.create(params={"steps": 3})
        await instance.result()
        steps = [e.step for e in await instance.history() if e.type == "step_started"]
        for target in (steps[2], steps[1]):
            await instance.restart(from_={"name": target})
            await instance.result()
            history = await instance.history()
            seen = [event async for event in instance.subscribe()]
            assert [(e.seq, e.run, e.type) for e in seen] == [
                (e.seq, e.run, e.type) for e in history
            ]
            assert [e.step for e in seen if e.type == "step_completed"] == steps
            assert seen[0].run == 1, "a kept step has its first row"
            assert seen[-1].type == "workflow_completed"


@pytest.mark.behaviour(267, 269)
async def test_a_subscription_that_goes_on_behind_the_last_event_ends_at_once() -> None:
    async with testing.connect(load=load) as platform:
        instance = await platform.tenant("acme").workflows.create(params={"steps": 1})
        await instance.result()
        last = (await instance.history())[-1].seq
        for cursor in (last, last + 1_000):
            assert [event async for event in instance.subscribe(cursor=cursor)] == []
        await instance.restart()
        seen = [event.type async for event in instance.subscribe(cursor=last)]
        assert (seen[0], seen[-1]) == ("workflow_restarted", "workflow_completed")


@pytest.mark.behaviour(270)
async def test_events_are_read_by_attribute_and_by_key() -> None:
    async with testing.connect(load=load, start=datetime(2026, 1, 1, tzinfo=UTC)) as platform:
        instance = await platform.tenant("acme").workflows.create(params={"steps": 1})
        await instance.result()
        event = (await instance.history())[0]
        assert event.type == event["type"] == "workflow_queued"
        assert event.ts == datetime(2026, 1, 1, tzinfo=UTC)
        assert set(event) == {
            "seq", "ts", "type", "step", "count", "attempt", "payload", "run", "epoch",
        }  # fmt: skip
        assert event.payload["params"] == {"steps": 1}
        status = await instance.status()
        assert isinstance(status, Status)
        assert dict(status)["status"] == "complete"
        assert "complete" in repr(status)


class NeverCalled:
    async def call(self, call: TenantCall[AnswerT]) -> AnswerT:
        raise AssertionError(f"{call} was called with wrong arguments")


WRONG: list[tuple[type[Exception], Any]] = [
    (TypeError, lambda w, i: w.create(id=7)),
    (dw.UnserialisableValueError, lambda w, i: w.create(params={"x": object()})),
    (ValueError, lambda w, i: w.create(retention={"success": "soon"})),
    (dw.InvalidError, lambda w, i: w.create(retention={"forever": 1})),
    (dw.InvalidError, lambda w, i: w.create(pin="newest")),
    (dw.InvalidError, lambda w, i: w.create_batch([])),
    (dw.InvalidError, lambda w, i: w.create_batch([{}] * 10_001)),
    (dw.InvalidError, lambda w, i: w.create_batch([{"ident": "x"}])),
    (dw.InvalidError, lambda w, i: w.create_batch("abc")),
    (TypeError, lambda w, i: w.create_batch(["abc"])),
    (TypeError, lambda w, i: w.get(None)),
    (TypeError, lambda w, i: w.delete(3)),
    (dw.InvalidError, lambda w, i: w.list(status="asleep")),
    (dw.InvalidError, lambda w, i: w.list(status=["complete", "asleep"])),
    (TypeError, lambda w, i: w.list(limit="3")),
    (dw.InvalidError, lambda w, i: w.list(limit=0)),
    (TypeError, lambda w, i: i.result("soon")),
    (TypeError, lambda w, i: i.terminate(rollback="yes")),
    (TypeError, lambda w, i: i.restart(from_={"step": "x"})),
    (TypeError, lambda w, i: i.restart(from_={"name": 3})),
    (dw.InvalidError, lambda w, i: i.restart(from_={"name": "x", "type": "jump"})),
    (TypeError, lambda w, i: i.send_event(3)),
    (dw.UnserialisableValueError, lambda w, i: i.send_event("go", {1, object()})),
    (TypeError, lambda w, i: i.subscribe(cursor="3").__anext__()),
    (dw.InvalidError, lambda w, i: i.subscribe(filter=["step_begun"]).__anext__()),
]


@pytest.mark.behaviour(24, 25)
@pytest.mark.parametrize(("error", "call"), WRONG)
async def test_wrong_arguments_are_refused_before_anything_is_called(
    error: type[Exception], call: Any
) -> None:
    workflows = WorkflowBinding(NeverCalled())
    instance = dw.WorkflowInstance(NeverCalled(), "TenantWorkflow", "i")
    with pytest.raises(error):
        await call(workflows, instance)


@pytest.mark.behaviour(20)
async def test_options_of_a_create_reach_the_log() -> None:
    async with testing.connect(load=load) as platform:
        workflows = platform.tenant("acme").workflows
        kept = {"success": timedelta(hours=2), "error": "3 days"}
        instance = await workflows.create(retention=kept, pin="latest")
        payload = (await instance.history())[0].payload
        assert payload["retention"] == {
            "success": timedelta(hours=2),
            "error": timedelta(days=3),
        }
        stored = platform.query("select payload ->> '$.pin' as pin from events where pin <> ''")
        assert stored.to_pylist() == [{"pin": "latest"}]
        await instance.result()
        await platform.clock.advance("1 hour")
        await instance.status()
        await platform.clock.advance("1 hour")
        with pytest.raises(dw.InstanceError):
            await instance.status()


plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.sampled_from(sorted(TENANT_CALLS)), st.dictionaries(st.text(), plain, max_size=4))
def test_arguments_of_another_form_are_refused(op: str, args: dict[str, Any]) -> None:
    try:
        assert type(unpack_tenant_call(op, msgspec.msgpack.encode(args))) is TENANT_CALLS[op]
    except dw.InvalidError:
        pass


@given(st.sampled_from(sorted(TENANT_CALLS)), st.binary(max_size=64))
def test_arguments_that_do_not_decode_are_refused(op: str, data: bytes) -> None:
    for unpack in (unpack_call, lambda data: unpack_tenant_call(op, data)):
        try:
            assert isinstance(unpack(data), TenantCall)
        except dw.InvalidError:
            pass


def test_a_call_crosses_the_wall_unchanged_but_for_what_no_tenant_may_say() -> None:
    item = NewInstance(id="x", params=b"1", retention={"error_us": 2**62 - 1}, pin="latest")
    forged = CreateBatch(items=[item], strict=True, token="t", binding="B", metadata=b"1")
    assert unpack_call(pack_call(forged)) == forged
    honest = CreateBatch(items=[item], strict=True)
    assert unpack_tenant_call("create_batch", pack_call(forged)) == honest
    restart = RestartInstance(id="i", from_=RestartTarget(name="s", type="do", count=2))
    assert unpack_tenant_call("restart", pack_call(restart)) == restart


def test_a_call_is_not_taken_for_another() -> None:
    with pytest.raises(dw.InvalidError):
        unpack_tenant_call("status", pack_call(DeleteInstance(id="i")))
    with pytest.raises(dw.InvalidError, match="no operation 'deploy'"):
        unpack_tenant_call("deploy", pack_call(DeployCode(bundle=b"")))


def test_answers_cross_the_wall_as_what_they_are() -> None:
    status = StatusData(status="complete", output=b"1")
    assert unpack_answer(GetStatus(id="i"), pack_answer(status)) == status
    page = EventPage(rows=[], cursor=7, ended=True)
    assert unpack_answer(GetEvents(id="i"), pack_answer(page)) == page
    instances = InstancePage([InstanceItem("i", "W", "queued", 1)], "7")
    assert unpack_answer(ListInstances(), pack_answer(instances)) == instances
