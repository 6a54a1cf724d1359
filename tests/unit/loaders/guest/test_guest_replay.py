"""Replay gives `run` what it got live, and nothing new starts before it has settled."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from guest_world import World, flow
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_values import VALUES, facts

from dynamic_workflows.eventlog.codec import values as codec
from dynamic_workflows.loaders.protocol import messages
from dynamic_workflows.loaders.protocol.messages import RecordedStep


@pytest.fixture
async def world() -> AsyncIterator[World]:
    made = World()
    yield made
    made.close()


@given(values=st.lists(VALUES, max_size=5))
@settings(max_examples=60)
@pytest.mark.behaviour(79)
def test_live_values_equal_replayed_values(values: list[Any]) -> None:
    async def check() -> None:
        world = World()
        try:
            code = flow("""
            values = event.payload
            got = []
            async def give(i): return values[i]
            for i in range(len(values)):
                got.append(await step.do("s", lambda i=i: values[i]))
            return got
            """)
            live = await world.run(code, params=values)
            replayed = await world.again(params=values)
            assert facts(live) == facts(replayed) == facts(codec.decode(codec.encode(values)))
            assert world.of(messages.StepRequest) == []
        finally:
            world.close()

    asyncio.run(check())


@pytest.mark.behaviour(78)
async def test_what_a_caller_does_to_a_value_is_not_there_on_replay(world: World) -> None:
    code = flow("""
    first = await step.do("s", lambda: [1])
    first.append(2)
    @step.do("dep")
    def dep(): return [1]
    @step.do("user")
    def user(dep):
        dep.append("changed")
        return dep
    await user()
    return [first, await user(), event.payload]
    """)
    live = await world.run(code, params={})
    assert live == [[1, 2], [1, "changed"], {}]
    assert await world.again(params={}) == live


@pytest.mark.behaviour(22)
async def test_what_run_does_to_its_payload_is_not_there_in_the_next_lifetime(
    world: World,
) -> None:
    code = flow("""
    event.payload["n"] += 1
    await step.do("s", lambda: 1)
    return event.payload["n"]
    """)
    assert await world.run(code, params={"n": 1}) == 2
    assert await world.again(params={"n": 1}) == 2


@pytest.mark.behaviour(72, 73, 364)
async def test_falsy_and_missing_results_are_not_run_again(world: World) -> None:
    code = flow("""
    return [await step.do("s", lambda v=v: v) for v in (None, 0, "", False, [])]
    """)
    assert await world.run(code) == [None, 0, "", False, []]
    assert await world.again() == [None, 0, "", False, []]
    assert world.of(messages.StepRequest) == []


async def test_stored_errors_are_raised_again_without_the_callback(world: World) -> None:
    code = flow("""
    def work():
        print("ran")
        raise NonRetryableError("stop", 1)
    try:
        await step.do("s", work)
    except NonRetryableError as error:
        return list(error.args)
    """)
    assert await world.run(code) == ["stop", 1]
    assert await world.again() == ["stop", 1]
    assert world.printed.count("ran") == 1


async def test_an_unfinished_step_runs_again_as_the_next_attempt(world: World) -> None:
    code = flow("""
    async def work(ctx): return ctx.attempt
    return [await step.do("a", work), await step.do("b", work)]
    """)
    await world.load(code)
    world.before_go = lambda key, attempt: key[1] != "b" or attempt > 1
    world.start()
    await world.until(lambda: ("do", "b", 1) in world.attempts)
    world.drop()
    assert await world.again() == [1, 2]


async def test_new_steps_wait_until_every_recorded_one_was_asked_for(world: World) -> None:
    """The new branch is ahead of the recorded one, yet nothing of it starts first."""
    await world.load(
        flow("""
    async def old():
        for i in range(3):
            await asyncio.sleep(0)
            await asyncio.sleep(0.001)
            await step.do("old", lambda: i)
    async def new():
        return await step.do("new", lambda: "n")
    return (await asyncio.gather(new(), old()))[0]
    """)
    )
    for count in (1, 2, 3):
        world.history["timer", "", count] = RecordedStep("timer", "", count, 1, ended=2 * count)
        world.history["do", "old", count] = RecordedStep(
            "do", "old", count, 1, b"0", None, "index.py:1", ended=2 * count + 1
        )
    asked_at: list[int] = []

    def note(key: Any, attempt: int) -> bool:
        asked_at.append(len(world.guest_life.replay.known))
        return True

    world.before_go = note
    world.start()
    assert await world.until_ended() == "n"
    assert asked_at == [0]
    assert [m.name for m in world.of(messages.StepRequest)] == ["new"]


@pytest.mark.parametrize(
    ("code", "asked"),
    [
        ('await step.do("renamed", lambda: 1)', ("do", "renamed", 1)),
        ('await step.sleep("s", 1)', ("sleep", "s", 1)),
        ('await step.wait_for_event("s", "t")', ("wait_for_event", "s", 1)),
        ("await asyncio.Event().wait()", (None, None, 0)),
    ],
)
@pytest.mark.behaviour(76, 77)
async def test_a_replay_that_does_not_ask_for_a_recorded_step_tells_both_places(
    world: World, code: str, asked: tuple[str | None, str | None, int]
) -> None:
    await world.load(flow(code))
    world.history["do", "s", 1] = RecordedStep("do", "s", 1, 1, b"1", None, "index.py:77")
    life = world.start()
    await world.until(lambda: bool(world.of(messages.Mismatch)))
    (mismatch,) = world.of(messages.Mismatch)
    assert (mismatch.recorded_kind, mismatch.recorded_name, mismatch.recorded_count) == (
        "do", "s", 1,
    )  # fmt: skip
    assert mismatch.recorded_at == "index.py:77"
    assert (mismatch.asked_kind, mismatch.asked_name, mismatch.asked_count) == asked
    assert mismatch.asked_at == ("index.py:11" if asked[0] else None)
    said = len(world.log)
    world.send(messages.Drop(), life)
    await settle()
    assert world.log[said:] == [(life, messages.Ended())]


async def test_a_run_that_ends_without_asking_tells_the_mismatch(world: World) -> None:
    await world.load(flow('return "different"'))
    world.history["do", "s", 1] = RecordedStep("do", "s", 1, 1, b"1", None, "index.py:77")
    world.start()
    await world.until(lambda: bool(world.of(messages.Mismatch)))
    assert world.of(messages.End) == []


async def test_unfinished_recorded_steps_need_not_be_asked_for(world: World) -> None:
    await world.load(flow('return await step.do("new", lambda: 1)'))
    world.history["do", "gone", 1] = RecordedStep("do", "gone", 1, 0)
    world.history["sleep", "gone", 1] = RecordedStep("sleep", "gone", 1, 0)
    world.start()
    assert await world.until_ended() == 1


async def test_a_step_nested_in_an_unfinished_one_is_found_when_that_runs_again(
    world: World,
) -> None:
    code = flow("""
    async def outer(ctx):
        inner = await step.do("inner", lambda: "kept")
        return [inner, ctx.attempt]
    return await step.do("outer", outer)
    """)
    await world.load(code)
    world.start()
    await world.until(lambda: ("do", "inner", 1) in world.attempts)
    await world.until(lambda: world.history["do", "inner", 1].outcome == 1)
    # Cut off before the outer step was recorded as finished.
    world.history["do", "outer", 1] = RecordedStep("do", "outer", 1, 0)
    world.ended = None
    assert await world.again() == ["kept", 2]
    assert [m.name for m in world.of(messages.StepRequest)] == ["outer"]


async def test_a_step_recorded_without_its_place_inside_an_unfinished_one_is_no_mismatch(
    world: World,
) -> None:
    await world.load(
        flow("""
    async def outer():
        return await step.do("inner", lambda: "kept")
    return await step.do("outer", outer)
    """)
    )
    world.history["do", "outer", 1] = RecordedStep("do", "outer", 1, 0)
    world.history["do", "inner", 1] = RecordedStep("do", "inner", 1, 1, b'"kept"')
    world.start()
    assert await world.until_ended() == "kept"


# --- races ----------------------------------------------------------------------------------------

LATE = """
approval = asyncio.create_task(step.wait_for_event("approval", "t"))
limit = asyncio.create_task(step.sleep("limit", "1 day"))
done, rest = await asyncio.wait({approval, limit}, return_when=asyncio.FIRST_COMPLETED)
path = "approved" if approval in done else "escalated"
await step.do(path, lambda: 1)
await step.sleep("later", "1 day")
return [path, await step.do("last", lambda: 2)]
"""


@pytest.mark.behaviour(252)
async def test_an_event_that_came_too_late_stays_too_late_in_a_replay(world: World) -> None:
    await world.load(flow(LATE))
    world.start()
    await world.until_idle()
    world.finish("limit")
    await world.until(lambda: any(key[1] == "later" for key in world.open))
    world.deliver("approval", "yes")
    await world.until_idle()
    world.drop()
    world.start()
    await world.until_idle()
    assert [message.name for message in world.of(messages.Sleep)] == ["later"]
    world.finish("later")
    assert await world.until_ended() == ["escalated", 2]
    assert await world.again() == ["escalated", 2]


@pytest.mark.behaviour(251)
async def test_outcomes_that_arrive_together_are_told_one_after_the_other(world: World) -> None:
    code = flow("""
    tasks = [asyncio.create_task(step.sleep(f"s{i}", 1)) for i in range(5)]
    won, rest = [], set(tasks)
    while rest:
        done, rest = await asyncio.wait(rest, return_when=asyncio.FIRST_COMPLETED)
        won.append([tasks.index(task) for task in done])
    return won
    """)
    await world.load(code)
    world.start()
    await world.until_idle()
    for i in (3, 1, 4, 0, 2):
        world.finish(f"s{i}")
    assert await world.until_ended() == [[3], [1], [4], [0], [2]]
    assert await world.again() == [[3], [1], [4], [0], [2]]


async def test_what_is_told_before_the_answer_to_a_failure_is_so_in_a_replay(world: World) -> None:
    code = flow("""
    async def fails(): raise NonRetryableError("no")
    async def works(): return "yes"
    order = []
    async def watch(name, work):
        try:
            await step.do(name, work)
        except NonRetryableError:
            pass
        order.append(name)
    await asyncio.gather(watch("fails", fails), watch("works", works))
    return order
    """)
    live = await world.run(code)
    assert sorted(live) == ["fails", "works"]
    assert await world.again() == live


async def test_a_failure_that_is_tried_again_after_all_holds_nobody_up(world: World) -> None:
    """The supervisor knows of lost attempts, which use up no retry; the guest does not."""
    world._failed = lambda message: None  # type: ignore[method-assign]
    code = flow("""
    async def fails(ctx):
        if ctx.attempt == 1: raise ValueError("no")
        return "at last"
    async def works(): return "yes"
    order = []
    async def watch(name, work):
        order.append(await step.do(name, work, config={"retries": {"limit": 0, "delay": 0}}))
        print(order)
    await asyncio.gather(watch("fails", fails), watch("works", works))
    return order
    """)
    await world.load(code)
    world.start()
    await world.until(lambda: "['yes']" in world.printed)
    world.go(("do", "fails", 1))
    assert await world.until_ended() == ["yes", "at last"]


# --- the decorator form --------------------------------------------------------------------------

DIAMOND = """
@step.do("a")
async def a():
    print("a")
    return 1
@step.do("b")
async def b(a): return a + 10
@step.do("c")
async def c(a): return a + 100
@step.do("d", concurrent={concurrent})
async def d(b, c, ctx): return [b, c, ctx.step.name]
return await d()
"""


@pytest.mark.parametrize("concurrent", [True, False])
@pytest.mark.behaviour(359)
async def test_a_diamond_runs_its_foot_once_live_and_replayed(
    world: World, concurrent: bool
) -> None:
    code = flow(DIAMOND.format(concurrent=concurrent))
    assert await world.run(code) == [11, 101, "d"]
    assert world.printed == ["a"]
    assert sorted(m.name for m in world.of(messages.StepRequest)) == ["a", "b", "c", "d"]
    assert await world.again() == [11, 101, "d"]
    assert world.of(messages.StepRequest) == []


async def test_a_replay_asks_for_dependencies_of_answered_steps(world: World) -> None:
    await world.run(flow(DIAMOND.format(concurrent=True)))
    del world.history["do", "d", 1]
    assert await world.again() == [11, 101, "d"]
    assert [m.name for m in world.of(messages.StepRequest)] == ["d"]


async def test_concurrent_dependencies_are_in_flight_together(world: World) -> None:
    code = flow("""
    meet = asyncio.Barrier(2)
    @step.do()
    async def left():
        await meet.wait()
        return 1
    @step.do()
    async def right():
        await meet.wait()
        return 2
    @step.do(concurrent=True)
    async def both(left, right): return left + right
    return await both()
    """)
    assert await world.run(code) == 3


@pytest.mark.behaviour(358, 360)
async def test_calling_twice_makes_two_occurrences_and_depending_makes_none(world: World) -> None:
    code = flow("""
    @step.do()
    async def left(ctx): return ctx.step.count
    @step.do()
    async def user(left): return left
    first, second = await left(), await left()
    both = await asyncio.gather(left(), left())
    return [first, second, both, await user(), await user()]
    """)
    assert await world.run(code) == [1, 2, [3, 4], 1, 1]
    assert await world.again() == [1, 2, [3, 4], 1, 1]


async def test_a_failed_dependency_is_run_anew_by_the_next_dependent(world: World) -> None:
    code = flow("""
    @step.do(config={"retries": {"limit": 0, "delay": 0}})
    async def left(ctx):
        if ctx.step.count == 1:
            raise ValueError("first")
        return ctx.step.count
    @step.do()
    async def user(left): return left
    try:
        await user()
    except ValueError as error:
        return [str(error), await user()]
    """)
    assert await world.run(code) == ["first", 2]
    assert await world.again() == ["first", 2]


async def test_dependents_share_a_failure_in_flight(world: World) -> None:
    code = flow("""
    @step.do(config={"retries": {"limit": 0, "delay": 0}})
    async def left(): raise ValueError("no")
    @step.do()
    async def one(left): return left
    @step.do()
    async def two(left): return left
    results = await asyncio.gather(one(), two(), return_exceptions=True)
    return [str(error) for error in results]
    """)
    assert await world.run(code) == ["no", "no"]
    assert len(world.of(messages.StepRequest)) == 1
    assert await world.again() == ["no", "no"]
    assert world.of(messages.StepRequest) == []


@pytest.mark.behaviour(357)
async def test_a_parameter_that_names_no_step_is_a_type_error_when_called(world: World) -> None:
    code = flow("""
    @step.do()
    async def user(missing): return missing
    try:
        await user()
    except TypeError as error:
        return str(error)
    """)
    assert "'missing'" in await world.run(code)


async def test_a_parameter_with_a_default_that_names_no_step_takes_it(world: World) -> None:
    code = flow("""
    @step.do()
    async def left(): return 1
    @step.do()
    async def user(left=5, other=7, *, ctx=None): return [left, other, ctx.attempt]
    return await user()
    """)
    assert await world.run(code) == [1, 7, 1]


async def test_a_name_declared_again_counts_for_what_is_declared_after_it(world: World) -> None:
    code = flow("""
    results = []
    for i in range(3):
        @step.do("item")
        async def item(): return i
        @step.do("user")
        async def user(item): return item
        results.append(user)
    return [await user() for user in results]
    """)
    assert await world.run(code) == [2, 2, 2]
    code = code.replace("results.append(user)", "results.append(await user())")
    code = code.replace("[await user() for user in results]", "results")
    second = World()
    assert await second.run(code) == [0, 1, 2]
    assert await second.again() == [0, 1, 2]
    second.close()


# --- random programs -----------------------------------------------------------------------------

PROGRAM = """
import asyncio
from dynamic_workflows import WorkflowEntrypoint, NonRetryableError

class Flow(WorkflowEntrypoint):
    async def run(self, event, step):
        return await play(event.payload, step)

async def play(node, step):
    kind, name, *rest = node
    if kind == "value":
        async def give(ctx):
            if ctx.attempt <= rest[1]:
                raise KeyError(name, ctx.attempt)
            return [name, rest[0]]
        return await step.do(name, give)
    if kind == "error":
        def fail(): raise NonRetryableError(name)
        try:
            return await step.do(name, fail)
        except NonRetryableError as error:
            return ["caught", str(error)]
    if kind == "sleep":
        return await step.sleep(name, 5)
    if kind == "wait":
        got = await step.wait_for_event(name, "t")
        return [got.payload, got.type]
    if kind == "nested":
        async def outer(): return await play(rest[0], step)
        return await step.do(name, outer)
    if kind == "race":
        tasks = [asyncio.create_task(play(inner, step)) for inner in rest[0]]
        order, rest = [], set(tasks)
        while rest:
            done, rest = await asyncio.wait(rest, return_when=asyncio.FIRST_COMPLETED)
            order.append(sorted(tasks.index(task) for task in done))
            print(f"race {name} {len(order)}: {order[-1]}")
            await step.do(f"{name} {order[-1]}", lambda: 1)
        return None
    if kind == "together":
        return await asyncio.gather(*(play(inner, step) for inner in rest[0]))
    return [await play(inner, step) for inner in rest[0]]
"""

NAMES = st.sampled_from(["a", "b", "c"])
LEAVES = st.one_of(
    st.tuples(st.just("value"), NAMES, st.integers(0, 9), st.integers(0, 2)),
    st.tuples(st.just("error"), NAMES),
    st.tuples(st.just("sleep"), NAMES),
    st.tuples(st.just("wait"), NAMES),
)
PROGRAMS = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.tuples(st.sampled_from(["row", "together"]), NAMES, st.lists(inner, max_size=4)),
        st.tuples(st.just("race"), NAMES, st.lists(inner, min_size=1, max_size=4)),
        st.tuples(st.just("nested"), NAMES, inner),
    ),
    max_leaves=8,
)


def apart(node: Any, prefix: str = "", races: Iterator[int] | None = None) -> Any:
    """The program with names of its own in each parallel branch, and one for each race.

    Occurrences follow the order of calls, which in parallel branches is a matter of time.
    """
    kind, name, *rest = node
    races = itertools.count() if races is None else races
    name = f"{prefix}{name}{next(races)}" if kind == "race" else prefix + name
    if kind in ("row", "together", "race"):
        inner = [
            apart(child, prefix if kind == "row" else f"{name}{i}.", races)
            for i, child in enumerate(rest[0])
        ]
        return (kind, name, inner)
    if kind == "nested":
        return (kind, name, apart(rest[0], prefix, races))
    return (kind, name, *rest)


async def settle() -> None:
    for _ in range(30):
        await asyncio.sleep(0)


def check_races(printed: list[str]) -> None:
    """No race has another winner in another lifetime."""
    won: dict[str, str] = {}
    for line in printed:
        if line.startswith("race "):
            race, _, winners = line.partition(": ")
            assert won.setdefault(race, winners) == winners, f"{race}: {won[race]}, then {winners}"


async def play(program: Any, crashes: list[int] | None, seed: int) -> Any:
    """Run a program, cutting lifetimes off after so many messages, and give its output."""
    world = World()
    chance = random.Random(seed)
    try:
        await world.load(PROGRAM)
        world.start(params=program)
        crash_at = iter(crashes or [])
        until = next(crash_at, None)
        said = 0
        for _ in range(2_000):
            await settle()
            if world.ended is not None:
                check_races(world.printed)
                return await world.until_ended()
            assert not world.of(messages.Mismatch)
            if until is not None and len(world.log) - said >= until:
                world.drop()
                await settle()
                said, until = len(world.log), next(crash_at, None)
                world.start(params=program)
            elif world.open:
                key = chance.choice(sorted(world.open))
                if key[0] == "sleep":
                    world.finish(key)
                else:
                    world.deliver(key, [key[1], key[2]])
        raise AssertionError(f"stuck: {world.log[-5:]}")
    finally:
        world.close()


@given(program=PROGRAMS, crashes=st.lists(st.integers(0, 6), max_size=4), seed=st.integers(0, 99))
@settings(max_examples=60)
def test_a_program_cut_off_anywhere_ends_like_the_undisturbed_one(
    program: Any, crashes: list[int], seed: int
) -> None:
    async def check() -> None:
        apart_program = apart(program)
        assert await play(apart_program, crashes, seed) == await play(apart_program, None, seed)

    asyncio.run(check())
