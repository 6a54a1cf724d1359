"""The public contract, tried as an outside program would, on the in-process platform."""

import datetime
from collections.abc import Awaitable, Callable

import pytest
from contract_tenants import load

import dynamic_workflows as dw
from dynamic_workflows import testing


async def test_the_first_example_sleeps_waits_and_completes() -> None:
    async with testing.connect(load=load) as platform:
        acme = platform.tenant("acme")
        instance = await acme.workflows.create(id="order-1", params={"sku": "tea"})
        assert instance.id == "order-1"
        await platform.clock.advance("1 minute")
        status = await instance.status()
        assert status.status == status["status"] == "waiting"
        await platform.clock.advance("3 days")
        assert (await instance.status()).status == "waiting"
        await instance.send_event("approved", {"by": "kim"})
        assert await instance.result() == {"total": 42, "by": "kim", "sku": "tea", "attempt": 1}
        done = await instance.status()
        assert done.status == "complete"
        assert done.output["by"] == "kim"
        assert done.error is None


async def test_events_sent_before_the_wait_are_buffered() -> None:
    async with testing.connect(load=load, auto_advance=True) as platform:
        instance = await platform.tenant("acme").workflows.create(params={"sku": "x"})
        await instance.send_event("approved", {"by": "early"})
        assert (await instance.result())["by"] == "early"


@pytest.mark.parametrize("crash", [False, True])
async def test_values_come_back_with_type_and_value(crash: bool) -> None:
    async with testing.connect(load=load, auto_advance=True, crash_at_every_step=crash) as platform:
        instance = await platform.tenant("values").workflows.create(params={"back": (1, 2)})
        output = await instance.result()
        assert output[14] == datetime.date(2026, 1, 2)
        assert output[5] == 2**200


async def test_limit_counts_retries_and_delays_grow() -> None:
    async with testing.connect(load=load, auto_advance=True) as platform:
        flaky = platform.tenant("flaky").workflows
        began = platform.clock.now()
        assert await (await flaky.create(params={"fail": 3})).result() == 4
        took = platform.clock.now() - began
        assert took >= datetime.timedelta(seconds=70)
        failed = await flaky.create(params={"fail": 9, "limit": 1})
        with pytest.raises(dw.WorkflowFailedError) as caught:
            await failed.result()
        assert caught.value.name == "KeyError"
        assert "attempt 2" in caught.value.message
        history = await failed.history()
        assert [e.attempt for e in history if e.type == "attempt_started"] == [1, 2]
        assert history[-1].type == "workflow_errored"


async def test_a_non_retryable_error_stops_at_once() -> None:
    async with testing.connect(load=load, auto_advance=True) as platform:
        instance = await platform.tenant("flaky").workflows.create(params={"stop": True})
        with pytest.raises(dw.WorkflowFailedError) as caught:
            await instance.result()
        assert (caught.value.name, caught.value.message) == ("NonRetryableError", "enough")


async def test_errors_have_stable_codes_and_store_nothing() -> None:
    async with testing.connect(load=load) as platform:
        acme = platform.tenant("acme").workflows
        await acme.create(id="a", params={"sku": 1})
        refused: list[tuple[str, Callable[[], Awaitable[object]]]] = [
            ("instance.already_exists", lambda: acme.create(id="a")),
            ("instance.invalid_id", lambda: acme.create(id="no spaces allowed!")),
            ("instance.not_found", lambda: acme.get("nobody")),
            ("value.unserialisable", lambda: acme.create(id="b", params=object())),
            ("batch.invalid", lambda: acme.create_batch([])),
            ("batch.invalid", lambda: acme.create_batch([{"name": "x"}])),
            ("status.invalid", lambda: acme.list(status="asleep")),
            ("code.class_missing", lambda: platform.tenant("acme").workflow("Nope").create(id="c")),
            ("code.load_failed", lambda: platform.tenant("stranger").workflows.create(id="d")),
        ]
        for code, call in refused:
            with pytest.raises(dw.WorkflowsError) as caught:
                await call()
            assert caught.value.code == code
        rows = platform.query("select instance_id from instances order by 1").to_pydict()
        assert rows == {"instance_id": ["a"]}


async def test_batches_skip_existing_ids() -> None:
    async with testing.connect(load=load) as platform:
        acme = platform.tenant("acme").workflows
        await acme.create(id="a", params={"sku": 1})
        made = await acme.create_batch([{"id": i, "params": {"sku": i}} for i in "abcb"])
        assert [instance.id for instance in made] == ["b", "c"]
        page = await acme.list(limit=2)
        assert [summary.id for summary in page] == ["c", "b"]
        rest = await acme.list(limit=2, cursor=page.cursor)
        assert [summary.id for summary in rest] == ["a"]
        assert rest.cursor is None


async def test_tenants_cannot_see_each_other() -> None:
    async with testing.connect(load=load) as platform:
        await platform.tenant("acme").workflows.create(id="same", params={"sku": 1})
        with pytest.raises(dw.WorkflowsError, match="same"):
            await platform.tenant("globex").workflows.get("same")
        await platform.tenant("globex").workflows.create(id="same", params={"sku": 2})
        seen = platform.tenant("globex").query("select tenant_id, instance_id from instances")
        assert seen.to_pylist() == [{"tenant_id": "globex", "instance_id": "same"}]


async def test_pause_keeps_the_rest_of_the_sleep() -> None:
    async with testing.connect(load=load) as platform:
        instance = await platform.tenant("acme").workflows.create(params={"sku": "x"})
        await platform.clock.advance("1 day")
        await instance.pause()
        assert (await instance.status()).status == "paused"
        await platform.clock.advance("10 days")
        assert (await instance.status()).status == "paused"
        await instance.resume()
        await instance.send_event("approved", {"by": "kim"})
        await platform.clock.advance("1 day")
        assert (await instance.status()).status == "waiting"
        await platform.clock.advance("1 day")
        assert (await instance.result())["by"] == "kim"


async def test_terminate_restart_and_delete() -> None:
    async with testing.connect(load=load) as platform:
        acme = platform.tenant("acme").workflows
        instance = await acme.create(id="t", params={"sku": "x"})
        await platform.clock.advance("1 hour")
        await instance.terminate()
        assert (await instance.status()).status == "terminated"
        with pytest.raises(dw.WorkflowTerminatedError):
            await instance.result()
        with pytest.raises(dw.WorkflowsError) as caught:
            await instance.terminate()
        assert caught.value.code == "instance.cannot_terminate"
        with pytest.raises(dw.WorkflowsError) as caught:
            await instance.send_event("approved")
        assert caught.value.code == "instance.finished"
        await instance.restart()
        await instance.send_event("approved", {"by": "kim"})
        await platform.clock.advance("4 days")
        assert (await instance.result())["by"] == "kim"
        await instance.restart(from_={"name": "cool off", "type": "sleep"})
        await instance.send_event("approved", {"by": "lee"})
        await platform.clock.advance("4 days")
        assert (await instance.result())["by"] == "lee"
        assert len([e for e in await instance.history() if e.type == "workflow_completed"]) == 1
        every = await instance.history(all_runs=True)
        assert [e.type for e in every].count("workflow_restarted") == 2
        assert [e.seq for e in every] == sorted({e.seq for e in every})
        await instance.delete()
        with pytest.raises(dw.WorkflowsError) as caught:
            await acme.get("t")
        assert caught.value.code == "instance.not_found"
        assert platform.query("select count(*) as n from instances").to_pylist() == [{"n": 0}]


async def test_fetch_reaches_the_default_entrypoint_which_creates_an_instance() -> None:
    async with testing.connect(load=load) as platform:
        stub = platform.tenant("acme").entrypoint()
        response = await stub.fetch(dw.Request("POST", "/", body=b'{"sku": "tea"}'))
        made = await response.json()
        instance = await platform.tenant("acme").workflows.get(made["id"])
        assert (await instance.status()).status in ("queued", "running", "waiting")


async def test_subscribe_gives_history_then_live_and_ends() -> None:
    async with testing.connect(load=load, auto_advance=True) as platform:
        instance = await platform.tenant("acme").workflows.create(params={"sku": "x"})
        await instance.send_event("approved", {"by": "kim"})
        waiting = instance.result()
        await waiting
        seen = [event async for event in instance.subscribe()]
        assert seen[0].type == "workflow_queued"
        assert seen[-1].type == "workflow_completed"
        assert seen[-1].payload["output"]["by"] == "kim"
        cursor = seen[3].seq
        again = [event.seq async for event in instance.subscribe(cursor=cursor)]
        assert again == [event.seq for event in seen[4:]]
        steps = [e.step async for e in instance.subscribe(filter=["step_completed"])]
        assert steps == ["reserve stock", "price", "charge"]


async def test_views_answer_sql() -> None:
    async with testing.connect(load=load, auto_advance=True) as platform:
        flaky = platform.tenant("flaky").workflows
        await (await flaky.create(id="f", params={"fail": 2})).result()
        table = platform.query(
            "select step, count, status, attempts from steps where instance_id = ?", ["f"]
        )
        assert table.to_pylist() == [
            {"step": "flaky", "count": 1, "status": "complete", "attempts": 3}
        ]
        attempts = platform.query(
            "select attempt, status, error_name, retry_delay_ms from attempts order by 1"
        ).to_pylist()
        assert [a["attempt"] for a in attempts] == [1, 2, 3]
        assert [a["retry_delay_ms"] for a in attempts] == [10_000, 20_000, None]
        with pytest.raises(dw.WorkflowsError) as caught:
            platform.query("selec nothing")
        assert caught.value.code == "query.invalid"
