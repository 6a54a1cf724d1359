"""Small programs that tenants write, tried on the in-process platform, with and without crashes."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

import dynamic_workflows as dw
from dynamic_workflows import testing

HEAD = "import asyncio\nfrom dynamic_workflows import *\n"

Make = Callable[..., Awaitable[dw.WorkflowInstance]]


def code(body: str) -> dw.WorkerCode:
    lines = "".join(f"        {line}\n" for line in body.strip("\n").splitlines())
    text = (
        f"{HEAD}class TenantWorkflow(WorkflowEntrypoint):\n"
        f"    async def run(self, event, step):\n{lines}"
    )
    return dw.WorkerCode(main_module="index.py", modules={"index.py": text})


@pytest.fixture(params=[False, True], ids=["undisturbed", "crashing"])
async def platform(request: pytest.FixtureRequest) -> AsyncIterator[dw.Platform]:
    async with testing.connect(auto_advance=True, crash_at_every_step=request.param) as platform:
        yield platform


async def started(platform: dw.Platform, body: str, **options: object) -> dw.WorkflowInstance:
    tenant = platform.tenant("acme")
    await tenant.deploy(code(body))
    return await tenant.workflows.create(**options)  # type: ignore[arg-type]


@pytest.mark.behaviour(8)
async def test_an_instance_without_id_and_params_gets_a_uuid_and_an_empty_dict(
    platform: dw.Platform,
) -> None:
    instance = await started(platform, "return event.payload")
    assert len(instance.id) == 36
    assert await instance.result() == {}


@pytest.mark.behaviour(16)
async def test_an_id_can_be_used_again_as_soon_as_its_delete_returns(
    platform: dw.Platform,
) -> None:
    first = await started(platform, "return event.payload", id="again", params=1)
    await asyncio.gather(first.delete(), first.delete(), return_exceptions=True)
    second = await started(platform, "return event.payload", id="again", params=2)
    assert await second.result() == 2


@pytest.mark.behaviour(17, 169)
async def test_params_and_event_payloads_have_a_limit() -> None:
    config = dw.PlatformConfig(value_bytes_max=1_000)
    async with testing.connect(config=config) as platform:
        instance = await started(platform, "await step.wait_for_event('w', type='t')")
        for call in (
            lambda: platform.tenant("acme").workflows.create(id="big", params="x" * 1_000),
            lambda: instance.send_event("t", "x" * 1_000),
        ):
            with pytest.raises(dw.ValueTooLargeError) as caught:
                await call()
            assert caught.value.code == "value.too_large"
        with pytest.raises(dw.WorkflowsError):
            await platform.tenant("acme").workflows.get("big")


@pytest.mark.behaviour(22)
async def test_what_a_run_does_to_its_event_is_gone_in_the_next_lifetime(
    platform: dw.Platform,
) -> None:
    body = """
event.payload["seen"].append(1)
await step.sleep("rest", "1 day")
return event.payload["seen"]
"""
    instance = await started(platform, body, params={"seen": []})
    assert await instance.result() == [1]


@pytest.mark.behaviour(80)
async def test_a_step_that_keeps_failing_is_tried_six_times_by_default(
    platform: dw.Platform,
) -> None:
    body = """
async def fail(ctx):
    raise OSError(str(ctx.attempt))
await step.do("fail", fail)
"""
    instance = await started(platform, body)
    with pytest.raises(dw.WorkflowFailedError, match="6"):
        await instance.result()
    starts = [e.attempt for e in await instance.history() if e.type == "attempt_started"]
    assert starts == [1, 2, 3, 4, 5, 6]


@pytest.mark.behaviour(124)
async def test_what_run_returns_is_shown_even_if_a_sensitive_step_gave_it(
    platform: dw.Platform,
) -> None:
    body = 'return await step.do("pin", lambda: "1234", config={"sensitive": "output"})'
    instance = await started(platform, body)
    assert await instance.result() == "1234"
    shown = [e.payload for e in await instance.history() if e.type == "step_completed"]
    assert "1234" not in repr(shown)


@pytest.mark.behaviour(153, 154)
async def test_a_wait_without_timeout_ends_after_a_day(platform: dw.Platform) -> None:
    body = 'await step.wait_for_event("w", type="t")'
    instance = await started(platform, body)
    with pytest.raises(dw.WorkflowFailedError) as caught:
        await instance.result()
    assert caught.value.name == "WorkflowTimeoutError"
    began, ended = [e.ts for e in await instance.history() if e.type.startswith("wait_")]
    assert (ended - began).total_seconds() == 86_400


@pytest.mark.behaviour(173, 252)
async def test_racing_waits_take_the_first_of_several_events(platform: dw.Platform) -> None:
    body = """
waits = [
    asyncio.ensure_future(step.wait_for_event(kind, type=kind)) for kind in ("yes", "no")
]
done, rest = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
return [wait.result().type for wait in waits if wait in done]
"""
    instance = await started(platform, body)
    await instance.send_event("no")
    assert await instance.result() == ["no"]


@pytest.mark.behaviour(366, 367)
async def test_an_event_brings_its_nested_payload_type_and_time(platform: dw.Platform) -> None:
    body = """
got = await step.wait_for_event("w", type="t")
return [got["payload"], got["type"], got["timestamp"] == got.timestamp, got.timestamp.tzname()]
"""
    instance = await started(platform, body)
    payload = {"a": [{"b": (1, b"x")}]}
    await instance.send_event("t", payload)
    assert await instance.result() == [payload, "t", True, "UTC"]


async def test_what_run_is_handed_can_be_returned_and_comes_back_as_a_dict(
    platform: dw.Platform,
) -> None:
    body = """
ctx = await step.do("ctx", lambda ctx: ctx)
got = await step.wait_for_event("w", type="t")
return [type(ctx).__name__, ctx["step"], event, got]
"""
    instance = await started(platform, body, id="x", params=[1])
    await instance.send_event("t", (2,))
    kind, step, event, got = await instance.result()
    assert (kind, step) == ("dict", {"name": "ctx", "count": 1})
    assert (type(event), event["payload"], event["instance_id"]) == (dict, [1], "x")
    assert (type(got), got["payload"], got["type"]) == (dict, (2,), "t")


@pytest.mark.behaviour(94)
async def test_errors_of_files_keep_their_message_and_local_classes_their_name(
    platform: dw.Platform,
) -> None:
    body = """
class Local(Exception):
    pass
async def missing():
    raise FileNotFoundError(2, "none here", "a.txt")
async def moved():
    raise OSError(18, "not there", "a.txt", None, "b.txt")
async def local():
    raise Local("x")
seen = []
for name, fail in {"missing": missing, "moved": moved, "local": local}.items():
    try:
        await step.do(name, fail, config={"retries": {"limit": 0, "delay": 0}})
    except OSError as error:
        seen.append([str(error), error.filename, error.filename2, len(error.args)])
    except StepError as error:
        seen.append([error.name, error.message])
await step.sleep("rest", "1 day")
if event.payload:
    raise Local("y")
return seen
"""
    instance = await started(platform, body)
    assert await instance.result() == [
        ["[Errno 2] none here: 'a.txt'", "a.txt", None, 2],
        ["[Errno 18] not there: 'a.txt' -> 'b.txt'", "a.txt", "b.txt", 2],
        ["Local", "x"],
    ]
    with pytest.raises(dw.WorkflowFailedError) as caught:
        await (await started(platform, body, params=1)).result()
    assert (caught.value.name, caught.value.message) == ("Local", "y")


@pytest.mark.behaviour(148, 149)
async def test_a_past_sleep_until_is_an_error_but_not_on_replay(platform: dw.Platform) -> None:
    body = """
import datetime
at = event.timestamp + datetime.timedelta(hours=1)
await step.sleep_until("an hour", at)
await step.sleep("a day", "1 day")
try:
    await step.sleep_until("an hour", at)
except ValueError:
    await step.do("note", lambda: "past")
await step.sleep("another day", "1 day")
return "past"
"""
    instance = await started(platform, body)
    assert await instance.result() == "past"


@pytest.mark.behaviour(251)
async def test_a_race_between_steps_ends_alike_in_every_lifetime(platform: dw.Platform) -> None:
    body = """
async def slow():
    for _ in range(50):
        await asyncio.sleep(0)
    return "slow"
racers = [
    asyncio.ensure_future(step.do("slow", slow)),
    asyncio.ensure_future(step.do("fast", lambda: "fast")),
]
done, rest = await asyncio.wait(racers, return_when=asyncio.FIRST_COMPLETED)
first = [racer.result() for racer in racers if racer in done]
await step.sleep("rest", "1 day")
return [first, sorted([await racer for racer in racers])]
"""
    instance = await started(platform, body)
    first, both = await instance.result()
    assert both == ["fast", "slow"]
    assert "fast" in first


@pytest.mark.behaviour(258)
async def test_ten_thousand_steps_are_the_limit_unless_configured() -> None:
    assert dw.PlatformConfig().steps_max == 10_000
    config = dw.PlatformConfig(steps_max=3)
    async with testing.connect(config=config) as platform:
        body = "for n in range(event.payload): await step.do(f'n{n}', lambda: 1)"
        assert await (await started(platform, body, params=3)).result() is None
        with pytest.raises(dw.WorkflowFailedError, match="limit of 3 steps") as caught:
            await (await started(platform, body, params=4)).result()
        assert caught.value.name == "WorkflowFatalError"


@pytest.mark.behaviour(235)
async def test_handlers_of_steps_that_never_began_are_not_called() -> None:
    body = """
async def undo(it):
    return None
await step.do("began", lambda: 1, rollback=undo)
await step.sleep("rest", "10 days")
await step.do("never", lambda: 1, rollback=undo)
"""
    async with testing.connect() as platform:
        instance = await started(platform, body)
        await platform.clock.advance("1 day")
        await instance.terminate(rollback=True)
        with pytest.raises(dw.WorkflowTerminatedError):
            await instance.result()
        types = [(e.type, e.step) for e in await instance.history()]
        assert ("rollback_step_completed", "began") in types
        assert not [step for kind, step in types if kind.startswith("rollback") and step == "never"]


@pytest.mark.behaviour(101, 102)
async def test_a_callback_that_sleeps_in_real_time_meets_its_timeout_in_virtual_time(
    platform: dw.Platform,
) -> None:
    body = """
async def work(ctx):
    await asyncio.sleep(3_600 if ctx.attempt < 3 else 0.01)
    return ctx.attempt
return await step.do("work", work, config={"timeout": "1 minute"})
"""
    instance = await started(platform, body)
    assert await instance.result() == 3
    lost = [e.payload["error"]["name"] for e in await instance.history() if "errored" in e.type]
    assert lost == ["WorkflowTimeoutError"] * 2


async def test_moving_time_does_not_wait_for_code_that_sleeps_longer() -> None:
    body = """
await step.do("work", lambda: asyncio.sleep(3_600), config={"retries": {"limit": 0, "delay": 0}})
"""
    async with testing.connect() as platform:
        instance = await started(platform, body)
        await platform.clock.advance("1 minute")
        assert (await instance.status()).status == "running"
        await platform.clock.advance("10 minutes")
        assert (await instance.status()).status == "errored"


@pytest.mark.behaviour(196)
async def test_steps_that_a_restart_kept_belong_to_the_present_run_with_their_first_times(
    platform: dw.Platform,
) -> None:
    body = """
await step.do("first", lambda: 1)
await step.sleep("rest", "1 day")
await step.do("second", lambda: 2)
await step.do("third", lambda: 3)
"""
    instance = await started(platform, body)
    await instance.result()
    before = {e.step: e.ts for e in await instance.history() if e.type == "step_completed"}
    for target in ("third", "second"):
        await instance.restart(from_={"name": target})
        await instance.result()
        rows = await instance.history()
        done = [e.step for e in rows if e.type == "step_completed"]
        assert done == ["first", "second", "third"]
        assert [e.step for e in rows if e.type == "sleep_completed"] == ["rest"]
        assert [e.type for e in rows].count("workflow_queued") == 1
        after = {e.step: e.ts for e in rows if e.type == "step_completed"}
        assert after["first"] == before["first"]
    assert [e.seq for e in rows] == sorted(e.seq for e in rows)
