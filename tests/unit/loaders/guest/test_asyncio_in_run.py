"""asyncio around steps, on the whole platform: what is cancelled is over, live and in replay."""

from __future__ import annotations

import asyncio
import textwrap
from typing import Any

import pytest

import dynamic_workflows as dw
from dynamic_workflows import testing

HEAD = "import asyncio, datetime\nfrom dynamic_workflows import *\n"
CRASHING = pytest.mark.parametrize("crash", [False, True])


def code(body: str, **more: Any) -> Any:
    lines = textwrap.indent(textwrap.dedent(body).strip("\n"), " " * 8)
    source = (
        f"{HEAD}class TenantWorkflow(WorkflowEntrypoint):\n    async def run(self, event, step):\n"
    )

    async def load(tenant_id: str) -> dw.WorkerCode:
        return dw.WorkerCode("index.py", {"index.py": source + lines + "\n"}, **more)

    return load


async def outcome(body: str, *, crash: bool, config: Any = None, **more: Any) -> Any:
    async with testing.connect(
        load=code(body, **more), auto_advance=True, crash_at_every_step=crash, config=config
    ) as platform:
        one = await platform.tenant("acme").workflows.create(id="i")
        return await asyncio.wait_for(one.result(), 30)


@CRASHING
async def test_a_cancelled_sleep_that_would_end_later_is_forgotten(crash: bool) -> None:
    body = """
    loser = asyncio.create_task(step.sleep("long", "10 days"))
    await step.sleep("short", "1 day")
    loser.cancel()
    await step.sleep("month", "20 days")
    return await step.do("end", lambda: "fast")
    """
    assert await outcome(body, crash=crash) == "fast"


@CRASHING
async def test_a_cancelled_wait_takes_no_event(crash: bool) -> None:
    body = """
    first = asyncio.create_task(step.wait_for_event("note", type="note"))
    await step.do("look", lambda: 1)
    first.cancel()
    return (await step.wait_for_event("note", type="note")).payload
    """
    async with testing.connect(load=code(body), crash_at_every_step=crash) as platform:
        one = await platform.tenant("acme").workflows.create(id="i")
        async with testing.introspect_instance(platform.tenant("acme").workflows, "i") as seen:
            await seen.wait_for_status("waiting")
        await one.send_event("note", "A")
        assert await asyncio.wait_for(one.result(), 30) == "A"
        shown = platform.query('select "count", status from waits order by 1').to_pylist()
        assert [row["status"] for row in shown] == ["cancelled", "complete"]
        steps = platform.query(
            'select step, status from steps order by started_at, "count"'
        ).to_pylist()
        assert [row["status"] for row in steps if row["step"] == "note"] == [
            "cancelled", "complete",
        ]  # fmt: skip


@CRASHING
async def test_a_cancelled_step_is_not_tried_again(crash: bool) -> None:
    body = """
    async def fails(ctx):
        raise ValueError(ctx.attempt)
    config = {"retries": {"limit": 5, "delay": "1 hour"}}
    task = asyncio.create_task(step.do("fails", fails, config=config))
    await step.sleep("a while", "90 minutes")
    task.cancel()
    await step.sleep("long", "9 days")
    return "done"
    """
    async with testing.connect(
        load=code(body), auto_advance=True, crash_at_every_step=crash
    ) as platform:
        one = await platform.tenant("acme").workflows.create(id="i")
        assert await asyncio.wait_for(one.result(), 30) == "done"
        types = [event.type for event in await one.history()]
        assert types.count("attempt_started") == 2
        assert types.count("step_cancelled") == 1
        waits = platform.query("select kind, status from waits where kind = 'retry' order by since")
        assert [row["status"] for row in waits.to_pylist()] == ["complete", "cancelled"]


class Lock(dw.Service):
    """Takes its time to be released."""

    log: list[str] = []

    async def acquire(self) -> None:
        Lock.log.append("acquired")

    async def release(self) -> None:
        await asyncio.sleep(0.05)
        Lock.log.append("released")


TIDY = """
async def work():
    await self.env.LOCK.acquire()
    try:
        await asyncio.sleep(30)
    finally:
        await self.env.LOCK.release()
        try:
            await step.do("no step", lambda: 1)
        except BaseException as error:
            print("refused", type(error).__name__)
            raise
"""


@pytest.mark.parametrize(
    "how",
    [
        """
        try:
            await asyncio.wait_for(step.do("locked", work), 0.2)
        except TimeoutError:
            return "gave up"
        """,
        """
        config = {"timeout": 200, "retries": {"limit": 0, "delay": 0}}
        try:
            await step.do("locked", work, config=config)
        except WorkflowTimeoutError:
            return "gave up"
        """,
    ],
)  # fmt: skip
async def test_an_attempt_that_was_told_to_end_may_call_services_while_it_tidies_up(
    how: str,
) -> None:
    Lock.log.clear()
    body = textwrap.dedent(TIDY) + textwrap.dedent(how)
    async with testing.connect(load=code(body, env={"LOCK": Lock()})) as platform:
        one = await platform.tenant("acme").workflows.create(id="i")
        while not Lock.log:  # noqa: ASYNC110 - it is told in a service
            await asyncio.sleep(0.01)
        await platform.clock.advance("1 second")
        assert await asyncio.wait_for(one.result(), 30) == "gave up"
    assert Lock.log == ["acquired", "released"]


async def test_a_time_out_that_had_not_fired_when_the_tenant_died_starts_anew() -> None:
    body = """
    try:
        async with asyncio.timeout(0.5):
            try:
                async with asyncio.timeout(0.05):
                    await step.sleep("inner", "1 day")
            except TimeoutError:
                pass
            await step.sleep("outer", "9 days")
    except TimeoutError:
        return "fired"
    """
    async with testing.connect(load=code(body)) as platform:
        one = await platform.tenant("acme").workflows.create(id="i")
        while not any(e.type == "sleep_cancelled" for e in await one.history()):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        await platform.crash("acme")
        assert await asyncio.wait_for(one.result(), 30) == "fired"


async def test_a_time_out_of_asyncio_stays_fired() -> None:
    body = """
    async def slow():
        await asyncio.sleep(0.3)
        return "slow"
    try:
        first = await asyncio.wait_for(step.do("slow", slow), 0.05)
    except TimeoutError:
        first = "gave up"
    written = await step.do("write down", lambda: first)
    await step.do("wait a bit", lambda: asyncio.sleep(0.4))
    await step.sleep("rest", "1 day")
    return [written, first]
    """
    assert await outcome(body, crash=False) == ["gave up", "gave up"]


@CRASHING
async def test_coroutines_of_equal_names_are_started_in_the_order_they_are_given(
    crash: bool,
) -> None:
    body = """
    works = [step.do("page", lambda n=n: n) for n in range(8)]
    first = [await one for one in asyncio.as_completed(works)]
    kept = await step.do("keep", lambda: first)
    pending = {asyncio.create_task(step.do("page", lambda n=n: n)) for n in range(8)}
    done, _ = await asyncio.wait(pending)
    return [first == kept, sorted(first), [task.result() for task in done] == list(range(8))]
    """
    assert await outcome(body, crash=crash) == [True, list(range(8)), True]


async def test_a_run_that_differs_by_chance_is_parked_and_the_code_not_blamed() -> None:
    body = """
    import random
    await step.do(f"step {random.random()}", lambda: 1)
    await step.sleep("rest", "1 day")
    """
    async with testing.connect(load=code(body), crash_at_every_step=True) as platform:
        workflows = platform.tenant("acme").workflows
        one = await workflows.create(id="i")
        async with testing.introspect_instance(workflows, "i") as seen:
            await seen.wait_for_status("paused")
        reason = (await one.status()).reason
        assert reason is not None
        assert reason.code == "replay.mismatch"
        assert "the same code went another way" in reason.message
        assert "the code has changed" not in reason.message


async def test_why_names_the_line_of_a_run_that_awaits_no_step() -> None:
    body = """
    await step.do("a", lambda: 1)
    lock = asyncio.Lock()
    await lock.acquire()
    await lock.acquire()
    """
    async with testing.connect(load=code(body)) as platform:
        tenant = platform.tenant("acme")
        await tenant.workflows.create(id="i")
        while (why := await tenant.why("i")).code != "run.awaits":  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        assert "index.py:8" in why.text


@pytest.mark.parametrize(
    ("body", "line"),
    [
        ("await asyncio.sleep(3600)", 6),
        ("await asyncio.wait_for(asyncio.Event().wait(), 3600)", 6),
        ("async with asyncio.timeout(3600):\n    await asyncio.Event().wait()", 7),
    ],
)
async def test_why_names_the_line_of_a_run_that_awaits_a_timer_of_asyncio(
    body: str, line: int
) -> None:
    before = 'await step.do("a", lambda: 1)\n'
    async with testing.connect(load=code(before + body)) as platform:
        tenant = platform.tenant("acme")
        await tenant.workflows.create(id="i")
        while (why := await tenant.why("i")).code != "run.awaits":  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        assert f"timer of asyncio (a sleep or a time-out) at index.py:{line}" in why.text


async def test_why_names_the_line_again_when_run_comes_back_to_it() -> None:
    body = """
    queue = asyncio.Queue()
    async def feed():
        await asyncio.sleep(0.3)
        await step.do("a", lambda: 1)
    task = asyncio.create_task(feed())
    await queue.get()
    """
    async with testing.connect(load=code(body)) as platform:
        tenant = platform.tenant("acme")
        await tenant.workflows.create(id="i")
        seen: list[str] = []
        while not seen or "knows of nothing" not in seen[-1]:
            await asyncio.sleep(0.01)
            why = await tenant.why("i")
            if why.code == "run.awaits" and why.text not in seen:
                seen.append(why.text)
        assert all("index.py:10" in text for text in seen)


class Tail(dw.Service):
    """Keeps what it gets."""

    seen: list[dict[str, Any]] = []

    async def tail(self, records: list[dict[str, Any]]) -> None:
        Tail.seen += records


@pytest.mark.parametrize("wanted", [False, True])
async def test_what_run_prints_in_a_replay_is_left_out_or_marked(wanted: bool) -> None:
    Tail.seen.clear()
    body = """
    print("begin")
    for n in range(3):
        await step.do("s", lambda: n)
        print("after", n)
    await step.sleep("rest", "1 day")
    print("woke")
    """
    config = {"tail_replays": wanted}
    await outcome(body, crash=True, config=config, tails=[Tail()])
    lines = ["begin", "after 0", "after 1", "after 2", "woke"]
    assert [r["text"] for r in Tail.seen if not r["replayed"]] == lines
    assert any(r["replayed"] for r in Tail.seen) is wanted


@CRASHING
async def test_a_moment_that_the_work_has_overtaken_is_no_error(crash: bool) -> None:
    body = """
    deadline = event.timestamp + datetime.timedelta(hours=1)
    await step.sleep("longer than thought", "2 hours")
    await step.sleep_until("not before", deadline)
    try:
        await step.sleep_until("past", event.timestamp - datetime.timedelta(seconds=1))
    except ValueError:
        return "went on"
    """
    assert await outcome(body, crash=crash) == "went on"


async def test_the_asyncio_of_the_driver_is_its_own() -> None:
    names = ("as_completed", "gather", "all_tasks", "timeout", "wait", "Task", "Timeout")
    before = [getattr(asyncio, name) for name in names] + [asyncio.Timeout.reschedule]
    assert await outcome("return await step.do('s', lambda: 1)", crash=False) == 1
    assert before == [getattr(asyncio, name) for name in names] + [asyncio.Timeout.reschedule]
    task = asyncio.create_task(asyncio.sleep(0))
    assert type(task) is asyncio.Task
    assert type(asyncio.get_running_loop().create_future()) is asyncio.Future
    await task
