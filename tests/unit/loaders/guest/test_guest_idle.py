"""Idle: told when everything waits for the supervisor, and never before."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from guest_world import World, flow

from dynamic_workflows.loaders.guest.guest import Guest
from dynamic_workflows.loaders.guest.quiescence import CURRENT
from dynamic_workflows.loaders.protocol import messages
from dynamic_workflows.loaders.protocol.messages import Frame, pack


@pytest.fixture
async def world() -> AsyncIterator[World]:
    made = World()
    yield made
    made.close()


WAITS = {
    "a sleep": 'await step.sleep("w", 1000)',
    "a wait": 'await step.wait_for_event("w", "t")',
    "gather": 'await asyncio.gather(step.sleep("w", 1), step.sleep("x", 1))',
    "task group": """
        async with asyncio.TaskGroup() as group:
            group.create_task(step.sleep("w", 1))
            group.create_task(step.wait_for_event("x", "t"))
    """,
    "asyncio.wait": """
        tasks = [asyncio.create_task(step.sleep("w", 1)), asyncio.create_task(step.sleep("x", 1))]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    """,
    "a queue between tasks": """
        queue = asyncio.Queue()
        async def feed():
            await asyncio.sleep(0)
            await step.sleep("w", 1)
            await queue.put(1)
        task = asyncio.create_task(feed())
        await queue.get()
    """,
    "a chain of tasks": """
        async def deep(n):
            if n:
                return await asyncio.create_task(deep(n - 1))
            await step.sleep("w", 1)
        await deep(30)
    """,
    "shield and wait_for without a limit": """
        await asyncio.wait_for(asyncio.shield(step.sleep("w", 1)), None)
    """,
    "an event that another branch sets": """
        event = asyncio.Event()
        async def other():
            await step.sleep("w", 1)
            event.set()
        asyncio.create_task(other())
        await event.wait()
    """,
}


@pytest.mark.parametrize("body", WAITS.values(), ids=WAITS.keys())
async def test_idle_is_told_once_for_each_burst(world: World, body: str) -> None:
    await world.load(flow(body))
    world.start()
    await world.until_idle()
    for _ in range(20):
        await asyncio.sleep(0)
    assert [m.seen for m in world.of(messages.Idle)] == [1]
    last = world.frames[-1]
    assert last[-1][0] == 23, "Idle ends the burst"
    assert any(frame[0] in (18, 19) for frame in last), "in the frame of what is waited for"
    for name in ("w", "x"):
        if any(key[1] == name for key in world.open):
            world.finish(name, {"payload": 1, "timestamp_us": 0, "type": "t"})
    await world.until_ended()


async def test_nothing_is_idle_while_a_callback_runs(world: World) -> None:
    await world.load(
        flow("""
    gate = asyncio.Event()
    async def work():
        print("begun")
        await gate.wait()
    async def open():
        await step.sleep("opener", 1)
        gate.set()
    await asyncio.gather(step.do("work", work), open())
    """)
    )
    world.start()
    await world.until(lambda: "begun" in world.printed)
    for _ in range(50):
        await asyncio.sleep(0)
    assert [m.seen for m in world.of(messages.Idle)] == [1], "only from before the Go"
    world.finish("opener")
    await world.until_ended()


async def test_nothing_is_idle_while_a_call_is_out(world: World) -> None:
    service = messages.EnvEntry("SVC", "service")
    code = flow("""
    async def ask(): return await self.env.SVC.ask()
    return (await asyncio.gather(ask(), step.sleep("s", 1)))[0]
    """)
    await world.load(code, env={"SVC": service})
    life = world.start()
    await world.until(lambda: bool(world.of(messages.CallRequest)))
    for _ in range(50):
        await asyncio.sleep(0)
    assert world.of(messages.Idle) == []
    world.send(messages.Reply(world.of(messages.CallRequest)[0].call, b"5"), life)
    await world.until_idle()
    world.finish("s")
    assert await world.until_ended() == 5


async def test_nothing_is_idle_while_a_timer_of_the_run_is_pending(world: World) -> None:
    code = flow("""
    async def ticking():
        for _ in range(3):
            await asyncio.sleep(0.002)
        print("ticked")
    await asyncio.gather(ticking(), step.sleep("s", 1))
    """)
    await world.load(code)
    world.start()
    await world.until_idle()
    assert "ticked" in world.printed
    kinds = [type(message) for life, message in world.log if life == world.life]
    assert kinds.index(messages.Log) < kinds.index(messages.Idle)


async def test_nothing_is_idle_while_a_thread_works_for_the_run(world: World) -> None:
    code = flow("""
    import threading
    gate = threading.Event()
    async def outside(): return await asyncio.to_thread(gate.wait, 20)
    async def inside(): return await asyncio.sleep(0)
    async def opener():
        await asyncio.sleep(0.005)
        print("open")
        gate.set()
    return (await asyncio.gather(outside(), opener(), step.sleep("s", 1)))[0]
    """)
    await world.load(code)
    world.start()
    await world.until_idle()
    assert "open" in world.printed
    world.finish("s")
    assert await world.until_ended() is True


async def test_a_run_that_waits_for_nothing_of_ours_is_not_idle(world: World) -> None:
    await world.load(flow("await asyncio.Event().wait()"))
    world.start()
    for _ in range(50):
        await asyncio.sleep(0)
    assert world.of(messages.Idle) == []


async def test_timers_of_others_keep_nobody_awake(world: World) -> None:
    handle = world.loop.call_later(1_000, print)
    await world.load(flow('await step.sleep("s", 1)'))
    world.start()
    await world.until_idle()
    handle.cancel()


async def test_a_busy_loop_delays_neither_messages_nor_idle(world: World) -> None:
    running = True

    def spin() -> None:
        if running:
            world.loop.call_soon(spin)

    spin()
    await world.load(flow('await step.sleep("s", 1)'))
    world.start()
    await world.until_idle()
    running = False


async def test_a_busy_lifetime_does_not_keep_another_from_speaking(world: World) -> None:
    code = flow("""
    if event.payload == "spin":
        print("spinning")
        while True:
            await asyncio.sleep(0)
    await step.sleep("s", 1)
    """)
    await world.load(code)
    spinning = world.start(params="spin")
    await world.until(lambda: "spinning" in world.printed)
    world.start(params="sleep")
    await world.until_idle()
    assert world.of(messages.Idle, spinning) == []
    world.send(messages.Drop(), spinning)
    for _ in range(10):
        await asyncio.sleep(0)


async def test_a_retry_delay_is_idle(world: World) -> None:
    world.retries = False
    await world.load(flow('await step.do("s", lambda: 1 / 0)'))
    world.before_go = lambda key, attempt: attempt == 1
    world._failed = lambda message: None  # type: ignore[method-assign]
    world.start()
    await world.until(lambda: bool(world.of(messages.AttemptFailed)))
    await world.until_idle()


async def test_a_new_step_without_an_answer_is_told_as_idle_after_a_grace() -> None:
    said: list[tuple[int, int]] = []
    seen = asyncio.Event()

    def take(frames: list[Frame]) -> None:
        said.extend((kind, life) for kind, life, _ in frames)
        if said[-1][0] == 23:
            seen.set()

    loop = asyncio.get_running_loop()
    guest = Guest(take, loop=loop, is_alone=False, prefix="tenant_grace", idle_grace_s=0.01)
    module = messages.Module("index.py", "py", flow('await step.do("s", print)').encode())
    guest.receive([pack(messages.Load("index.py", [module], []))])
    guest.receive([pack(messages.Run("Flow", "one", b"null", 0, []), life=4)])
    for _ in range(10):
        await asyncio.sleep(0)
    assert [kind for kind, _ in said] == [16, 17], "the answer to a step comes at once as a rule"
    await asyncio.wait_for(seen.wait(), 20)
    assert said[2:] == [(23, 4)]
    guest.close()


async def test_messages_of_one_burst_share_a_frame(world: World) -> None:
    code = flow("""
    async def work(): return 1
    async def branch():
        await step.do("a", work)
        await step.do("b", work)
    await asyncio.gather(*(branch() for _ in range(20)))
    """)
    await world.run(code)
    longest = max(len(frames) for frames in world.frames)
    assert longest >= 30, "twenty times Done, and the Steps that follow"


# --- drop -----------------------------------------------------------------------------------------


@pytest.mark.behaviour(190)
async def test_a_dropped_lifetime_says_nothing_more_whatever_it_swallows(world: World) -> None:
    code = flow("""
    async def stubborn(name):
        while True:
            try:
                await step.sleep(name, 1)
            except BaseException as error:
                print("swallowed", type(error).__name__)
                if name == "last":
                    return
                name = "last"
    asyncio.create_task(stubborn("other"))
    try:
        await step.do("s", lambda: 1)
        await step.sleep("s", 1)
    finally:
        print("finally")
        await step.do("never", lambda: print("ran"))
    """)
    await world.load(code)
    world.start()
    await world.until(lambda: len(world.of(messages.Sleep)) == 2)
    await world.until_idle()
    said = len(world.log)
    world.drop()
    for _ in range(50):
        await asyncio.sleep(0)
    heard = [message for _, message in world.log[said:]]
    assert type(heard.pop()) is messages.Ended, "it confirms that nothing is left"
    assert all(type(message) is messages.Log for message in heard)
    assert {m.text for m in heard} <= {"finally", "swallowed Suspended", "swallowed CancelledError"}


async def test_dropping_cancels_callbacks_and_every_task(world: World) -> None:
    code = flow("""
    async def watch(name):
        print("begun", name)
        try:
            await asyncio.Event().wait()
        finally:
            print("ended", name)
    asyncio.create_task(watch("task"))
    await step.do("s", lambda: watch("callback"))
    """)
    await world.load(code)
    world.start()
    await world.until(lambda: {"begun task", "begun callback"} <= set(world.printed))
    world.drop()
    await world.until(lambda: {"ended task", "ended callback"} <= set(world.printed))
    await asyncio.sleep(0)
    mine = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    assert mine == []


async def test_each_lifetime_resumes_under_its_own_number() -> None:
    world = World()
    code = flow("""
    await step.do("s", lambda: 1)
    await step.sleep("z", 1)
    """)
    await world.load(code)
    world.start()
    await world.until_idle()
    world.finish("z")
    await world.until_ended()
    assert set(world.resumed) == {world.life}
    assert CURRENT.get() is None
    world.close()


async def test_two_guests_in_one_loop_do_not_disturb_each_other() -> None:
    worlds = [World() for _ in range(5)]
    for world in worlds:
        await world.load(flow('await step.sleep("s", 1)'))
        world.start()
    for world in worlds:
        await world.until_idle()
        world.finish("s")
        await world.until_ended()
        world.close()
