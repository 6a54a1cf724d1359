"""Sleeps, waits for events, and resting while they last."""

from __future__ import annotations

from typing import Any

import pytest
from core_world import START, S, StepApi, StepFailed, World, gather, payload

from dynamic_workflows.eventlog.errors import InstanceError, InvalidError
from dynamic_workflows.loaders.protocol.messages import (
    Idle,
    ProtocolViolation,
    Sleep,
    StepOutcome,
    Wait,
)

KEY = ("Job", "i")


def world_of(*ops: tuple[Any, ...], **settings: Any) -> World:
    """A world whose program does these things in a row and returns what they gave."""

    async def program(step: StepApi, params: Any) -> Any:
        results: list[Any] = []
        for kind, *args in ops:
            try:
                results.append(await getattr(step, kind)(*args))
            except StepFailed as failed:
                results.append([failed.error.name, failed.error.message])
        return results

    world = World(program, **settings)
    world.create()
    world.pump()
    return world


@pytest.mark.behaviour(138, 140, 142)
def test_a_sleep_lasts_as_long_as_it_says_over_crashes() -> None:
    world = world_of(("sleep", "nap", 60_000), ("sleep", "nap", 1_000))
    world.advance(30)
    world.crash()
    world.advance(29)
    assert world.status(KEY) == "waiting"
    world.advance(1)
    world.crash()
    world.advance(1)
    assert world.output(KEY) == [None, None]
    assert world.now == START + 61 * S
    kinds = [kind for kind in world.types(KEY) if kind.startswith("sleep")]
    assert kinds == ["sleep_started", "sleep_completed"] * 2
    assert payload(world.history(KEY)[2]) == {
        "until_us": START + 60 * S,
        "duration_ms": 60_000,
    }


@pytest.mark.behaviour(141)
def test_a_sleep_that_ended_while_nobody_was_there_returns_at_once() -> None:
    world = world_of(("sleep", "nap", 60_000))
    world.now += 3_600 * S
    world.crash()
    world.pump()
    assert world.output(KEY) == [None]
    assert world.types(KEY).count("sleep_completed") == 1


@pytest.mark.behaviour(144)
def test_a_sleep_of_zero_is_recorded_and_over() -> None:
    world = world_of(("sleep", "nap", 0))
    assert world.status(KEY) == "complete"
    assert world.types(KEY)[2:4] == ["sleep_started", "sleep_completed"]


@pytest.mark.behaviour(150)
def test_a_very_short_sleep_does_not_show_as_waiting() -> None:
    world = world_of(("sleep", "nap", 50))
    assert world.status(KEY) == "running"
    world.advance(0.05)
    assert world.status(KEY) == "complete"


@pytest.mark.behaviour(147, 148, 149)
def test_a_sleep_until_a_moment_keeps_it_and_refuses_the_past() -> None:
    async def program(step: StepApi, params: Any) -> Any:
        await step.do("hold", lambda attempt: 1)

    world = World(program)
    world.slow = True
    world.create()
    world.pump()
    life = next(iter(world.guests))
    for token, name, until_us, error in (
        (50, "past", world.now - 1, "ValueError"),
        (51, "far", world.now + 366 * 86_400 * S, "WorkflowFatalError"),
    ):
        d = world.core.on_message(life, Sleep(token, name, 1, None, until_us), now_us=world.now)
        assert d.rows == []
        answer = d.effects[0].message  # type: ignore[union-attr]
        assert isinstance(answer, StepOutcome)
        assert answer.error is not None
        assert answer.error.name == error
    sleep = Sleep(52, "good", 1, None, world.now + 60 * S)
    world.take(world.core.on_message(life, sleep, now_us=world.now))
    assert payload(world.rows[-1]) == {"until_us": world.now + 60 * S, "duration_ms": 60_000}
    world.crash()
    world.now += 120 * S  # It is past now, and yet it began: a replay accepts it.
    world.start_runnable()
    assert world.types(KEY).count("sleep_completed") == 1


@pytest.mark.behaviour(51, 52, 151)
def test_sleepers_show_as_waiting_and_take_no_slot() -> None:
    async def program(step: StepApi, params: Any) -> Any:
        await step.sleep("nap", 60_000)

    world = World(program, running_max=3)
    for n in range(30):
        world.create(f"i{n}")
    world.pump()
    assert world.core.counts()["waiting"] == 30
    assert world.core.live_count() == 0
    assert world.core.next_wake_us() == START + 60 * S
    world.advance(60)
    assert world.core.counts()["complete"] == 30


@pytest.mark.behaviour(152, 175, 174)
def test_an_event_ends_the_wait_for_its_type() -> None:
    world = world_of(("wait", "approval", "approved"))
    assert world.status(KEY) == "waiting"
    world.now += 5 * S
    world.send_event(KEY, "approved", {"by": "ann"})
    world.pump()
    assert world.output(KEY) == [
        {"payload": {"by": "ann"}, "timestamp_us": START + 5 * S, "type": "approved"}
    ]
    started = next(row for row in world.history(KEY) if row.type == "wait_started")
    assert payload(started)["event_type"] == "approved"
    received = next(row for row in world.history(KEY) if row.type == "event_received")
    completed = next(row for row in world.history(KEY) if row.type == "wait_completed")
    assert payload(completed)["event_seq"] == received.seq


@pytest.mark.behaviour(154, 155)
def test_a_wait_that_times_out_throws_and_does_so_again_in_a_replay() -> None:
    world = world_of(("wait", "approval", "approved", 2_000), ("sleep", "nap", 60_000))
    world.advance(2)
    world.crash()
    world.advance(60)
    [name, message], _ = world.output(KEY)
    assert name == "WorkflowTimeoutError"
    assert "2000 ms" in message
    assert world.types(KEY).count("wait_timed_out") == 1


@pytest.mark.behaviour(156, 157, 158)
def test_a_wait_goes_on_over_crashes_with_what_is_left_of_its_time() -> None:
    world = world_of(("wait", "approval", "approved", 10_000))
    world.now += 6 * S
    world.crash()
    world.advance(3.9)
    assert world.status(KEY) == "waiting"
    world.now += S
    world.crash()
    world.pump()
    assert world.output(KEY)[0][0] == "WorkflowTimeoutError"
    assert world.types(KEY).count("wait_started") == 1


@pytest.mark.behaviour(159, 160, 172)
def test_events_are_kept_for_later_waits_in_the_order_of_arrival_over_crashes() -> None:
    world = world_of(("sleep", "nap", 60_000), *[("wait", "w", "go")] * 12)
    for n in range(12):
        world.send_event(KEY, "go", n)
        if n % 4 == 0:
            world.crash()
    world.advance(60)
    assert [event["payload"] for event in world.output(KEY)[1:]] == list(range(12))


@pytest.mark.behaviour(161)
def test_one_event_ends_only_the_wait_that_began_first() -> None:
    async def branch(step: StepApi) -> Any:
        return (await step.wait("w", "go"))["payload"]

    async def program(step: StepApi, params: Any) -> Any:
        return await gather(branch(step), branch(step))

    world = World(program)
    key = world.create()
    world.pump()
    world.send_event(key, "go", "first")
    world.pump()
    assert world.status(key) == "waiting"
    world.send_event(key, "go", "second")
    world.pump()
    assert world.output(key) == ["first", "second"]


@pytest.mark.behaviour(162)
def test_an_event_of_another_type_is_kept() -> None:
    world = world_of(("wait", "a", "A"), ("wait", "b", "B"))
    world.send_event(KEY, "B", 2)
    world.pump()
    assert world.status(KEY) == "waiting"
    world.send_event(KEY, "A", 1)
    world.pump()
    assert [event["payload"] for event in world.output(KEY)] == [1, 2]


@pytest.mark.behaviour(163, 173)
def test_a_wait_that_timed_out_swallows_no_later_event() -> None:
    for crash in (False, True):
        world = world_of(("wait", "w", "go", 1_000), ("sleep", "nap", 60_000), ("wait", "w", "go"))
        world.now += 2 * S
        if crash:
            world.crash()
        else:
            world.take(world.core.due(world.now))
        # The deadline has passed, though nothing has looked since.
        world.send_event(KEY, "go", "late")
        world.advance(61)
        assert world.output(KEY)[2]["payload"] == "late"


@pytest.mark.behaviour(164)
def test_an_event_wakes_an_instance_that_is_not_in_memory() -> None:
    world = world_of(("wait", "w", "go"), instance_idle_us=0)
    assert world.core.live_count() == 0
    world.core.evict(KEY)
    world.send_event(KEY, "go", 1)
    world.pump()
    assert world.output(KEY)[0]["payload"] == 1


@pytest.mark.behaviour(165)
def test_a_paused_instance_gets_its_event_after_it_is_resumed() -> None:
    world = world_of(("wait", "w", "go"))
    world.command("pause", KEY)
    world.send_event(KEY, "go", 1)
    world.pump()
    assert world.status(KEY) == "paused"
    assert "wait_completed" not in world.types(KEY)
    world.command("resume", KEY)
    world.pump()
    assert world.output(KEY)[0]["payload"] == 1


@pytest.mark.behaviour(166)
def test_a_finished_instance_takes_no_events() -> None:
    world = world_of(("sleep", "nap", 0))
    with pytest.raises(InstanceError) as caught:
        world.send_event(KEY, "go", 1)
    assert caught.value.code == "instance.finished"
    with pytest.raises(InvalidError):
        world.send_event(KEY, "bad.type", 1)


@pytest.mark.behaviour(171)
def test_an_event_is_consumed_once_over_crashes_and_resumes() -> None:
    world = world_of(("wait", "w", "go"), ("wait", "w", "go", 30_000))
    world.send_event(KEY, "go", 1)
    world.pump()
    world.crash()
    world.pump()
    world.command("pause", KEY)
    world.command("resume", KEY)
    world.advance(60)
    first, second = world.output(KEY)
    assert first["payload"] == 1
    assert second[0] == "WorkflowTimeoutError"


def test_an_event_that_comes_before_the_replay_has_asked_for_its_wait_is_answered() -> None:
    world = world_of(("wait", "w", "go"), instance_idle_us=0)
    world.crash()
    world.now += 86_399 * S
    world.send_event(KEY, "go", 1)
    world.start_runnable()
    world.pump()
    assert world.output(KEY)[0]["payload"] == 1

    world = world_of(("wait", "w", "go"))
    world.crash()
    world.command("pause", KEY)
    world.command("resume", KEY)
    world.start_runnable()  # A lifetime that knows the wait as open, and has not said so yet.
    world.send_event(KEY, "go", 2)
    world.pump()
    assert world.output(KEY)[0]["payload"] == 2
    assert world.core.live_count() == 0


@pytest.mark.behaviour(243, 244)
def test_a_waiting_lifetime_is_let_go_of_after_a_while_and_at_once_when_it_only_sleeps() -> None:
    world = world_of(("wait", "w", "go"), instance_idle_us=5 * S)
    assert world.core.live_count() == 1
    world.advance(4.9)
    assert world.core.live_count() == 1
    world.advance(0.1)
    assert world.core.live_count() == 0
    assert world.status(KEY) == "waiting"
    assert world_of(("sleep", "nap", 5_001), instance_idle_us=5 * S).core.live_count() == 0
    assert world_of(("sleep", "nap", 4_999), instance_idle_us=5 * S).core.live_count() == 1


@pytest.mark.parametrize(
    "message",
    [
        Sleep(7, "nap", 1),
        Sleep(7, "nap", 1, -1),
        Sleep(7, "nap", 1, 366 * 86_400_000),
        Wait(7, "w", 1, "bad.type", 1_000),
        Wait(7, "w", 1, "go", 0),
        Wait(7, "w", 1, "go", 366 * 86_400_000),
    ],
)
def test_impossible_sleeps_and_waits_are_violations(message: Any) -> None:
    world = World(lambda step, params: _hold(step))
    world.slow = True
    world.create()
    world.pump()
    before = world.core.last_seq
    with pytest.raises(ProtocolViolation):
        world.core.on_message(1, message, now_us=world.now)
    assert world.core.last_seq == before


async def _hold(step: StepApi) -> None:
    await step.do("hold")


def test_many_timers_due_at_once_are_fired_in_several_turns() -> None:
    async def program(step: StepApi, params: Any) -> Any:
        await step.wait("w", "go")

    world = World(program, instance_idle_us=S)
    world.checks = False
    for n in range(2_500):
        world.create(f"i{n}")
    world.pump()
    assert world.core.live_count() == 2_500
    world.now += S
    world.take(world.core.due(world.now))
    assert world.core.live_count() == 500
    assert world.core.next_due_us() == world.now
    world.take(world.core.due(world.now))
    assert world.core.live_count() == 0
    assert world.core.audit() == []


def test_a_guest_that_asks_for_more_waits_than_there_may_be_is_no_guest_of_ours() -> None:
    world = world_of(("wait", "door", "opened"), waits_max=3)
    life = world.life(KEY)
    assert life is not None
    for token in (100, 101):
        world.take(
            world.core.on_message(life, Sleep(token, f"nap {token}", 1, 60_000), now_us=world.now)
        )
    with pytest.raises(ProtocolViolation, match="more than 3 sleeps and waits"):
        world.core.on_message(life, Wait(102, "late", 1, "go", 5_000), now_us=world.now)


def test_being_idle_again_with_nothing_new_is_looked_into_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = world_of(("wait", "door", "opened"), instance_idle_us=60 * S)
    life = world.life(KEY)
    assert life is not None
    looks = 0
    settle_down = world.core.message_handler._settle_down

    def count(*args: Any) -> None:
        nonlocal looks
        looks += 1
        settle_down(*args)

    monkeypatch.setattr(world.core.message_handler, "_settle_down", count)
    for _ in range(1_000):
        world.take(world.core.on_message(life, Idle(1_000), now_us=world.now))
    assert looks == 0
    world.take(world.core.on_message(life, Sleep(100, "nap", 1, 60_000), now_us=world.now))
    for _ in range(1_000):
        world.take(world.core.on_message(life, Idle(1_000), now_us=world.now))
    assert looks == 1
