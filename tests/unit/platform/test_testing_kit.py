"""The testing kit gives users the platform in one process: time by hand, outcomes by choice."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta

import pytest
from kit_tenants import load

import dynamic_workflows as dw
from dynamic_workflows import testing
from dynamic_workflows.loaders.protocol.calls import AnswerT, TenantCall
from dynamic_workflows.testing import introspect_instance, introspect_workflow

NEW_YEAR = datetime(2026, 1, 1, tzinfo=UTC)


async def test_time_stands_still_until_it_is_moved() -> None:
    async with testing.connect(load=load) as platform:
        began = platform.clock.now()
        assert began.tzinfo is UTC
        await platform.tenant("order").workflows.create(id="o")
        assert platform.clock.now() == began
        await platform.clock.advance("90 seconds")
        await platform.clock.advance(500)
        await platform.clock.advance(timedelta(days=1))
        assert platform.clock.now() - began == timedelta(days=1, seconds=90, milliseconds=500)
        await platform.clock.advance_to(datetime(2030, 1, 1, tzinfo=UTC))
        assert platform.clock.now() == datetime(2030, 1, 1, tzinfo=UTC)


async def test_advancing_goes_through_every_timer_in_order() -> None:
    async with testing.connect(load=load) as platform:
        workflows = platform.tenant("month").workflows
        first = await workflows.create(id="first")
        await platform.clock.advance("12 hours")
        second = await workflows.create(id="second")
        await platform.clock.advance("40 days")
        rows = platform.query(
            "select instance_id, ts from events where type = 'sleep_completed' order by seq"
        ).to_pylist()
        assert [row["ts"] for row in rows] == sorted(row["ts"] for row in rows)
        assert [row["instance_id"] for row in rows[:4]] == ["first", "second", "first", "second"]
        assert await first.result() == await second.result() == sum(range(30))


@pytest.mark.behaviour(320)
async def test_a_month_with_a_crash_at_every_step_takes_no_time() -> None:
    began = time.perf_counter()
    async with testing.connect(load=load, auto_advance=True, crash_at_every_step=True) as platform:
        started = platform.clock.now()
        instance = await platform.tenant("month").workflows.create()
        assert await instance.result() == sum(range(30))
        assert platform.clock.now() - started >= timedelta(days=30)
        events = await instance.history()
        bills = [event for event in events if event.type == "step_completed"]
        assert len(bills) == 30
    # The promise to users is a second; a loaded machine gets more before it is called a failure.
    assert time.perf_counter() - began < 5


async def test_two_runs_of_the_same_test_give_the_same_log() -> None:
    logs = []
    for _ in range(2):
        async with testing.connect(load=load, auto_advance=True, start=NEW_YEAR) as platform:
            workflows = platform.tenant("month").workflows
            for instance in [await workflows.create() for _ in range(3)]:
                await instance.result()
            table = platform.query("select * exclude (code_hash) from events order by seq")
            logs.append(table.to_pylist())
    assert logs[0] == logs[1]
    assert len(logs[0]) > 300


async def test_time_jumps_only_while_the_driver_waits() -> None:
    async with testing.connect(load=load, auto_advance=True) as platform:
        began = platform.clock.now()
        instance = await platform.tenant("order").workflows.create()
        await platform.clock.settle()
        assert platform.clock.now() == began
        await instance.send_event("approved", {"by": "kim"})
        await instance.result()
        assert platform.clock.now() - began == timedelta(days=3)


async def test_result_gives_up_on_the_platforms_clock() -> None:
    async with testing.connect(load=load, auto_advance=True) as platform:
        began = platform.clock.now()
        instance = await platform.tenant("order").workflows.create()
        with pytest.raises(TimeoutError):
            await instance.result(timeout=timedelta(hours=2))
        with pytest.raises(TimeoutError):
            await instance.result(timeout=1.5)
        assert platform.clock.now() - began == timedelta(hours=2, seconds=1.5)


@pytest.mark.behaviour(12)
async def test_a_crash_of_the_tenant_loses_nothing() -> None:
    async with testing.connect(load=load) as platform:
        instance = await platform.tenant("order").workflows.create(id="o")
        await platform.clock.advance("1 day")
        await platform.crash("order")
        await instance.send_event("approved", {"by": "kim"})
        await platform.crash("order")
        await platform.clock.advance("2 days")
        assert await instance.result() == {"reserved": "real", "by": "kim"}
        started = [e for e in await instance.history() if e.type == "attempt_started"]
        assert len(started) == 1


@pytest.mark.behaviour(278, 281, 283, 290, 295)
async def test_mocks_set_before_the_create_apply_to_the_instance() -> None:
    async with testing.connect(load=load) as platform:
        workflows = platform.tenant("order").workflows
        async with introspect_instance(workflows, "o") as seen:
            await seen.disable_sleeps()
            await seen.mock_step_result("reserve", "mocked")
            await seen.mock_event("approved", {"by": "nobody"})
            instance = await workflows.create(id="o")
            await seen.wait_for_status("complete")
            assert await seen.get_output() == {"reserved": "mocked", "by": "nobody"}
            assert await seen.wait_for_step_result("reserve") == "mocked"
            types = [event.type for event in await instance.history()]
            assert {"sleep_started", "sleep_completed", "attempt_completed"} <= set(types)
        await instance.restart()
        await platform.clock.advance("1 day")
        assert (await instance.status()).status == "waiting"


@pytest.mark.behaviour(291, 296, 297)
async def test_mocks_outlast_a_restart() -> None:
    async with testing.connect(load=load) as platform:
        workflows = platform.tenant("order").workflows
        async with introspect_instance(workflows, "o") as seen:
            await seen.disable_sleeps([{"name": "cool off"}])
            await seen.mock_step_result("reserve", None)
            await seen.force_event_timeout("approval")
            instance = await workflows.create(id="o")
            await seen.wait_for_status("errored")
            await instance.restart()
            await seen.wait_for_status("errored")
            assert (await seen.get_error()).name == "WorkflowTimeoutError"
            assert await seen.wait_for_step_result("reserve") is None
            with pytest.raises(dw.WorkflowsError, match="errored, not complete"):
                await seen.get_output()


@pytest.mark.behaviour(272, 282, 286, 287)
async def test_errors_and_timeouts_are_mocked_by_occurrence_and_number() -> None:
    async with testing.connect(load=load) as platform:
        workflows = platform.tenant("twice").workflows
        async with introspect_instance(workflows, "t") as seen:
            await seen.disable_retry_delays()
            await seen.mock_step_error({"name": "work", "index": 2}, ValueError("no"), times=1)
            await seen.force_step_timeout("work", times=1)
            await seen.mock_event("go", "mocked")
            instance = await workflows.create(id="t")
            await seen.wait_for_status("complete")
            assert await seen.get_output() == [1, 2, 4, "mocked"]
            failed = [e for e in await instance.history() if e.type == "attempt_errored"]
            assert [(e.count, e.payload["error"]["name"]) for e in failed] == [
                (1, "WorkflowTimeoutError"),
                (2, "ValueError"),
            ]
            assert failed[0].payload["retry_delay_ms"] == 3_600_000
            assert await seen.wait_for_step_result({"name": "work", "index": 2}) == 2
            assert await seen.wait_for_step_result("secret") == "[REDACTED]"


@pytest.mark.behaviour(292, 293, 294)
async def test_a_step_that_always_fails_rejects_who_waits_for_its_result() -> None:
    async with testing.connect(load=load, auto_advance=True) as platform:
        workflows = platform.tenant("twice").workflows
        async with introspect_instance(workflows, "t") as seen:
            await seen.mock_step_error("work", KeyError("gone"))
            await workflows.create(id="t")
            with pytest.raises(KeyError, match="gone"):
                await seen.wait_for_step_result("work")
            with pytest.raises(dw.InstanceError, match="will not be complete"):
                await seen.wait_for_status("complete")
            assert (await seen.get_error()).name == "KeyError"


@pytest.mark.behaviour(284, 288)
async def test_mocks_that_contradict_each_other_are_refused() -> None:
    async with testing.connect(load=load) as platform:
        workflows = platform.tenant("twice").workflows
        async with introspect_instance(workflows, "t") as seen:
            await seen.mock_step_result("work", 1)
            for again in (
                seen.mock_step_result("work", 2),
                seen.mock_step_error("work", ValueError("x")),
                seen.force_step_timeout("work"),
            ):
                with pytest.raises(dw.InvalidError):
                    await again


@pytest.mark.behaviour(279, 280)
async def test_a_workflow_session_covers_every_instance_created_in_it() -> None:
    async with testing.connect(load=load) as platform:
        workflows = platform.tenant("twice").workflows
        before = await workflows.create(id="before")
        async with introspect_workflow(workflows) as seen:
            await seen.mock_step_result("work", 10)
            await seen.force_event_timeout("go")
            made = [await workflows.create(id=name) for name in ("a", "b")]
            with pytest.raises(dw.InvalidError, match="already"):
                await introspect_workflow(workflows).__aenter__()
            for one in await seen.get():
                await one.wait_for_status("complete")
            assert [one.id for one in await seen.get()] == ["a", "b"]
            assert [await one.result() for one in made] == [[10, 2, 4, "timed out"]] * 2
        later = await workflows.create(id="later")
        for instance in (before, later):
            await instance.send_event("go", "real")
            assert await instance.result() == [1, 2, 4, "real"]


async def test_a_workflow_session_speaks_for_its_instance_while_there_is_one() -> None:
    async with testing.connect(load=load) as platform:
        workflows = platform.tenant("order").workflows
        async with introspect_workflow(workflows) as session:
            await session.disable_sleeps()
            await session.mock_event("approved", {"by": "kim"})
            with pytest.raises(dw.InvalidError, match="0 instances"):
                await session.get_output()
            await workflows.create()
            assert await session.wait_for_step_result("reserve") == "real"
            await session.wait_for_status("complete")
            assert await session.get_output() == {"reserved": "real", "by": "kim"}
            with pytest.raises(dw.InstanceError):
                await session.get_error()
            await workflows.create()
            with pytest.raises(dw.InvalidError, match="2 instances"):
                await session.get_output()


async def test_introspection_needs_the_testing_platform() -> None:
    class Elsewhere:
        async def call(self, call: TenantCall[AnswerT]) -> AnswerT:
            raise AssertionError("not called")

    with pytest.raises(TypeError, match="testing"):
        introspect_instance(dw.WorkflowBinding(Elsewhere()), "x")


@pytest.mark.behaviour(274)
async def test_schedules_fire_on_the_virtual_clock() -> None:
    async with testing.connect(start=NEW_YEAR, load=load) as platform:
        tenant = platform.tenant("order")
        await tenant.schedule("0 6 * * *")
        await platform.clock.advance("3 days")
        page = await tenant.workflows.list()
        assert len(page) == 3
        assert page[0].id.startswith("0 6 * * *-")
        await tenant.schedule("0 6 * * *", remove=True)
        await platform.clock.advance("3 days")
        assert len(await tenant.workflows.list()) == 3
        with pytest.raises(dw.InvalidError):
            await tenant.schedule("every now and then")


SCHEDULED = """
from dynamic_workflows import WorkflowEntrypoint

class TenantWorkflow(WorkflowEntrypoint):
    async def run(self, event, step):
        due = event.schedule
        return [due.cron, due["cron"], due.scheduledTime, due["scheduled_time"], due.missed]
"""


def scheduled(*crons: str) -> dw.WorkerCode:
    schedules = {"TenantWorkflow": crons} if crons else {}
    return dw.WorkerCode("index.py", {"index.py": SCHEDULED}, schedules=schedules)


@pytest.mark.behaviour(11, 274)
async def test_run_sees_its_schedule_by_attribute_and_by_key() -> None:
    async with testing.connect(start=NEW_YEAR) as platform:
        tenant = platform.tenant("cron")
        await tenant.deploy(scheduled("0 * * * *"))
        await platform.clock.advance("1 hour")
        [made] = await tenant.workflows.list()
        at = datetime(2026, 1, 1, 1, tzinfo=UTC)
        output = await (await tenant.workflows.get(made.id)).result()
        assert output == ["0 * * * *", "0 * * * *", at, at, 0]


async def test_schedules_that_new_code_no_longer_declares_stop_and_those_of_calls_go_on() -> None:
    async with testing.connect(start=NEW_YEAR) as platform:
        tenant = platform.tenant("cron")

        async def fired() -> set[str]:
            before = {made.id for made in await tenant.workflows.list()}
            await platform.clock.advance("1 hour")
            await platform.crash("cron")
            made = {made.id for made in await tenant.workflows.list()} - before
            return {name.rpartition("-")[0] for name in made}

        await tenant.deploy(scheduled("0 * * * *", "5 * * * *"))
        await tenant.schedule("10 * * * *")
        await tenant.schedule("5 * * * *")
        assert await fired() == {"0 * * * *", "5 * * * *", "10 * * * *"}
        await tenant.deploy(scheduled("15 * * * *"))
        assert await fired() == {"5 * * * *", "10 * * * *", "15 * * * *"}
        await tenant.deploy(scheduled())
        assert await fired() == {"5 * * * *", "10 * * * *"}
        for cron in ("5 * * * *", "10 * * * *"):
            await tenant.schedule(cron, remove=True)
        assert await fired() == set()


async def test_a_declared_schedule_that_was_removed_by_hand_does_not_come_back_with_its_code() -> (
    None
):
    async with testing.connect(start=NEW_YEAR) as platform:
        tenant = platform.tenant("cron")

        async def firings() -> int:
            await platform.crash("cron")
            await tenant.deploy(scheduled("0 * * * *"))
            before = len(list(await tenant.workflows.list()))
            await platform.clock.advance("1 hour")
            return len(list(await tenant.workflows.list())) - before

        assert await firings() == 1
        await tenant.schedule("0 * * * *", remove=True)
        assert [await firings() for _ in range(2)] == [0, 0]
        await tenant.schedule("0 * * * *")
        assert await firings() == 1


async def test_time_waits_for_platform_code_that_takes_real_time() -> None:
    async def slow_load(tenant_id: str) -> dw.WorkerCode:
        await asyncio.sleep(0.05)
        source = """
from dynamic_workflows import WorkflowEntrypoint
class TenantWorkflow(WorkflowEntrypoint):
    async def run(self, event, step):
        return await step.do("call", lambda: self.env.SLOW.answer(), config={"timeout": 5})
"""
        return dw.WorkerCode("index.py", {"index.py": source}, env={"SLOW": Slow()})

    async with testing.connect(load=slow_load, auto_advance=True) as platform:
        instance = await platform.tenant("a").workflows.create()
        assert await instance.result() == 42
        assert len([e for e in await instance.history() if e.type == "attempt_started"]) == 1


class Slow(dw.Service):
    """Takes its real time."""

    async def answer(self) -> int:
        await asyncio.sleep(0.05)
        return 42
