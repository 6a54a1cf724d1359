"""What was told to end is confirmed when nothing of it is left, and reported when it goes on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from guest_world import World, flow

from dynamic_workflows.eventlog.codec import values
from dynamic_workflows.loaders.guest.isolate_main import CallBackpressure
from dynamic_workflows.loaders.protocol import messages

GRACE: dict[str, Any] = {"drop_grace_s": 0.05}


@pytest.fixture
async def world() -> AsyncIterator[World]:
    made = World()
    yield made
    made.close()


def confirmed(world: World) -> bool:
    return (world.life, messages.Ended()) in world.log


async def begin(world: World, body: str, *, before: str = "", **options: Any) -> None:
    """Run this, and wait until it has printed "begun"."""
    await world.load(flow(body, before), **options)
    world.start()
    await world.until(lambda: "begun" in world.printed)


async def test_a_run_that_has_ended_is_gone_at_once(world: World) -> None:
    await world.load(flow("return 1"))
    world.start()
    await world.until_ended()
    world.drop()
    await world.until(lambda: confirmed(world))


LEFT = {
    "a run": """
        print("begun")
        try:
            await asyncio.Event().wait()
        finally:
            await shared
    """,
    "a task": """
        async def task():
            print("begun")
            try:
                await asyncio.Event().wait()
            finally:
                await shared
        await asyncio.create_task(task())
    """,
    "a task in a blank context": """
        import contextvars
        async def task():
            print("begun")
            try:
                await asyncio.Event().wait()
            finally:
                await shared
        task = asyncio.get_running_loop().create_task(task(), context=contextvars.Context())
        await asyncio.Event().wait()
    """,
    "a task that a cancelled task starts": """
        async def cleaning():
            await shared
        async def task():
            print("begun")
            try:
                await asyncio.Event().wait()
            finally:
                asyncio.create_task(cleaning())
        asyncio.create_task(task())
        await asyncio.Event().wait()
    """,
    "a generator that closes itself": """
        async def numbers():
            try:
                yield 1
                yield 2
            finally:
                await shared
        async for number in numbers():
            print("begun")
            await asyncio.Event().wait()
    """,
    "a step's callback": """
        async def callback():
            print("begun")
            try:
                await asyncio.Event().wait()
            finally:
                await shared
        await step.do("s", callback)
    """,
    "what a step's callback started": """
        async def task():
            try:
                await asyncio.Event().wait()
            finally:
                await shared
        async def callback():
            asyncio.create_task(task())
            await asyncio.sleep(0)
            print("begun")
        await step.do("s", callback)
        await asyncio.Event().wait()
    """,
}


@pytest.mark.parametrize("what", LEFT)
async def test_a_dropped_lifetime_is_gone_when_the_last_of_it_has_ended(
    world: World, what: str
) -> None:
    await begin(world, LEFT[what], before="shared = asyncio.get_running_loop().create_future()")
    world.drop()
    for _ in range(50):
        await asyncio.sleep(0)
    assert not confirmed(world)
    world.tenant_module().shared.set_result(None)
    await world.until(lambda: confirmed(world))


@pytest.mark.parametrize("is_threaded", [False, True])
async def test_a_thread_is_waited_for(world: World, is_threaded: bool) -> None:
    work = "asyncio.to_thread(wait)" if is_threaded else 'step.do("s", wait)'
    body = f"""
    def wait():
        print("begun")
        gate.wait(20)
    await {work}
    """
    await begin(world, body, before="import threading; gate = threading.Event()", threads=True)
    world.drop()
    for _ in range(50):
        await asyncio.sleep(0)
    assert not confirmed(world)
    world.tenant_module().gate.set()
    await world.until(lambda: confirmed(world))


async def test_what_is_cancelled_is_cancelled_again_before_it_is_reported(world: World) -> None:
    body = """
    print("begun")
    for number in range(2):
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            print("cancelled")
    """
    await begin(world, body, **GRACE)
    world.drop()
    await world.until(lambda: confirmed(world))
    assert world.printed.count("cancelled") == 2
    assert not world.of(messages.CancellationIgnored)


async def test_what_goes_on_is_reported_with_its_place(world: World) -> None:
    body = """
    async def stay():
        print("begun")
        while world_goes_on:
            try:
                await asyncio.sleep(0.001)
            except BaseException:
                pass
    await stay()
    """
    await begin(world, body, before="world_goes_on = [1]", **GRACE)
    world.drop()
    await world.until(lambda: bool(world.of(messages.CancellationIgnored)))
    (report,) = world.of(messages.CancellationIgnored)
    assert (report.token, report.attempt) == (None, 0)
    assert report.at is not None
    assert report.at.startswith("index.py:")
    assert not confirmed(world)
    world.tenant_module().world_goes_on.clear()
    await world.until(lambda: confirmed(world))


async def test_an_attempt_that_timed_out_is_gone_when_its_tasks_are(world: World) -> None:
    body = """
    async def task():
        try:
            await asyncio.Event().wait()
        finally:
            await shared
    async def callback():
        asyncio.create_task(task())
        print("begun")
        await asyncio.Event().wait()
    await step.do("s", callback)
    """
    await begin(world, body, before="shared = asyncio.get_running_loop().create_future()")
    await asyncio.sleep(0)
    world.send(messages.Cancel(1, 1), world.life)
    world.send(messages.Cancel(1, 7), world.life)  # no such attempt runs
    await world.until(lambda: messages.AttemptEnded(1, 7) in world.of(messages.AttemptEnded))
    for _ in range(50):
        await asyncio.sleep(0)
    assert messages.AttemptEnded(1, 1) not in world.of(messages.AttemptEnded)
    world.tenant_module().shared.set_result(None)
    await world.until(lambda: messages.AttemptEnded(1, 1) in world.of(messages.AttemptEnded))


async def test_an_attempt_that_goes_on_is_reported_and_calls_nothing(world: World) -> None:
    body = """
    async def callback():
        print("begun")
        while world_goes_on:
            try:
                await asyncio.sleep(0.001)
                await self.env.SVC.ping()
                print("answered")
            except BaseException as error:
                print(type(error).__name__)
    await step.do("s", callback)
    """
    code = flow(body, "world_goes_on = [1]")
    await world.load(code, env={"SVC": messages.EnvEntry("SVC", "service")}, **GRACE)
    world.start()
    await world.until(lambda: bool(world.of(messages.CallRequest)))
    world.send(messages.Cancel(1, 1), world.life)
    await world.until(lambda: bool(world.of(messages.CancellationIgnored)))
    assert [(one.token, one.attempt) for one in world.of(messages.CancellationIgnored)] == [(1, 1)]
    assert len(world.of(messages.CallRequest)) <= 3, (
        "one for each time that it was cancelled, within the grace"
    )
    assert "Suspended" in world.printed
    world.tenant_module().world_goes_on.clear()
    await world.until(lambda: bool(world.of(messages.AttemptEnded)))


@pytest.mark.parametrize("again", ["loop.call_soon(tick)", "loop.call_later(0.001, tick)"])
async def test_callbacks_that_call_themselves_are_taken_back(world: World, again: str) -> None:
    body = f"""
    loop = asyncio.get_running_loop()
    def tick():
        ticks.append(1)
        {again}
    tick()
    print("begun")
    await asyncio.Event().wait()
    """
    await begin(world, body, before="ticks = []", **GRACE)
    ticks = world.tenant_module().ticks
    world.drop()
    await world.until(lambda: confirmed(world))
    quiet = 0
    async with asyncio.timeout(20):
        while quiet < 100:
            before = len(ticks)
            await asyncio.sleep(0.002)
            quiet = quiet + 1 if len(ticks) == before else 0


async def test_a_timer_of_one_lifetime_may_serve_others_within_the_grace(world: World) -> None:
    body = """
    asyncio.get_running_loop().call_later(0.02, shared.set_result, "served")
    print("begun")
    await asyncio.Event().wait()
    """
    await begin(
        world, body, before="shared = asyncio.get_running_loop().create_future()",
        drop_grace_s=5.0,
    )  # fmt: skip
    world.drop()
    assert await asyncio.wait_for(world.tenant_module().shared, 20) == "served"


async def test_nothing_new_begins_for_what_is_gone(world: World) -> None:
    body = """
    async def late():
        print("late")
    loop = asyncio.get_running_loop()
    shared.add_done_callback(lambda _: loop.create_task(late()))
    print("begun")
    await asyncio.Event().wait()
    """
    await begin(world, body, before="shared = asyncio.get_running_loop().create_future()")
    world.drop()
    await world.until(lambda: confirmed(world))
    world.tenant_module().shared.set_result(None)
    for _ in range(50):
        await asyncio.sleep(0)
    assert "late" not in world.printed


def test_calls_that_were_held_back_go_with_their_lifetime() -> None:
    sent: list[messages.Frame] = []
    gate = CallBackpressure(sent.extend, calls_max=1, bytes_max=1 << 20)
    calls = [
        messages.pack(messages.CallRequest(number, "SVC", "ping", b"[]", b"{}"), life=life)
        for number, life in ((1, 7), (2, 7), (3, 8))
    ]
    gate.send(calls)
    assert sent == calls[:1]
    gate.send([messages.pack(messages.Ended(), life=7)])
    gate.answered([messages.pack(messages.Reply(1), life=7)])
    assert [frame[:2] for frame in sent[1:]] == [(27, 7), (25, 8)]


# --- calls from outside ---------------------------------------------------------------------------

CALLED = """
import asyncio
from dynamic_workflows import WorkerEntrypoint

gate = asyncio.get_running_loop().create_future()

async def later():
    await gate
    print("later")

class Default(WorkerEntrypoint):
    async def answer_and_go_on(self):
        asyncio.create_task(later())
        return 1

    async def wait(self):
        print("waits")
        await asyncio.Event().wait()

async def at_module_level():
    await gate
    try:
        await Default.kept.SVC.ping()
    except BaseException as error:
        print(error)

class Keep(WorkerEntrypoint):
    async def keep(self):
        Default.kept = self.env

asyncio.create_task(at_module_level())
"""


def call(world: World, number: int, method: str, entrypoint: str | None = None) -> int:
    world.send(messages.Invoke(number, entrypoint, method, values.encode([]), values.encode({})))
    return messages.CALLS_FROM + number


async def test_a_call_is_gone_when_what_it_started_has_ended(world: World) -> None:
    await world.load(CALLED)
    number = call(world, 5, "answer_and_go_on")
    await world.until(lambda: bool(world.of(messages.Reply, number)))
    for _ in range(50):
        await asyncio.sleep(0)
    assert not world.of(messages.Ended, number)
    world.tenant_module().gate.set_result(None)
    await world.until(lambda: bool(world.of(messages.Ended, number)))
    assert "later" in world.printed


async def test_an_answer_tells_that_nothing_else_is_left_of_a_call(world: World) -> None:
    await world.load(CALLED)
    number = call(world, 5, "keep", "Keep")
    other = call(world, 6, "answer_and_go_on")
    await world.until(lambda: bool(world.of(messages.Reply, other)))
    assert [reply.is_last for reply in world.of(messages.Reply, number)] == [True]
    assert [reply.is_last for reply in world.of(messages.Reply, other)] == [False]
    world.send(messages.Drop(), number)  # which crosses the answer
    world.tenant_module().gate.set_result(None)
    await world.until(lambda: bool(world.of(messages.Ended, other)))
    assert not world.of(messages.Ended, number)


async def test_a_call_that_is_dropped_is_cancelled_and_answers_nothing(world: World) -> None:
    await world.load(CALLED)
    number = call(world, 1, "wait")
    await world.until(lambda: "waits" in world.printed)
    world.send(messages.Drop(), number)
    await world.until(lambda: bool(world.of(messages.Ended, number)))
    assert not world.of(messages.Reply, number)


async def test_what_modules_start_has_nothing_to_call(world: World) -> None:
    await world.load(CALLED, env={"SVC": messages.EnvEntry("SVC", "service")})
    number = call(world, 1, "keep", "Keep")
    await world.until(lambda: bool(world.of(messages.Reply, number)))
    world.tenant_module().gate.set_result(None)
    await world.until(lambda: bool(world.printed))
    (text,) = world.printed
    assert "only run() and calls of an entrypoint can call bindings" in text
    assert not any(type(message) is messages.CallRequest for _, message in world.log)
