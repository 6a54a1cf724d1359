"""Pause, resume, terminate, restart, and being parked."""

from __future__ import annotations

from typing import Any

import pytest
from core_world import START, S, StepApi, StepFailed, World, config, gather, payload

from dynamic_workflows.eventlog.errors import InstanceError, LimitExceededError
from dynamic_workflows.loaders.protocol.messages import Mismatch

KEY = ("Job", "i")


def world_of(program: Any, **settings: Any) -> World:
    world = World(program, **settings)
    world.create()
    return world


async def two_steps(step: StepApi, params: Any) -> Any:
    one = await step.do("one", lambda attempt: attempt)
    two = await step.do("two", lambda attempt: attempt)
    return [one, two]


async def nap(step: StepApi, params: Any) -> Any:
    await step.sleep("nap", 60_000)
    return "woke"


@pytest.mark.behaviour(176, 178)
def test_a_pause_lets_the_callback_finish_and_holds_back_the_next_step() -> None:
    world = world_of(two_steps)
    world.slow = True
    world.pump()
    world.command("pause", KEY)
    assert world.status(KEY) == "waitingForPause"
    world.finish()
    world.pump()
    assert world.status(KEY) == "paused"
    assert world.types(KEY)[-3:] == ["attempt_completed", "step_completed", "workflow_paused"]
    assert not world.guests
    world.command("resume", KEY)
    assert world.status(KEY) == "queued"
    world.slow = False
    world.pump()
    assert world.output(KEY) == [1, 1]


@pytest.mark.behaviour(177)
def test_a_pause_waits_for_every_callback() -> None:
    async def branch(step: StepApi) -> Any:
        return await step.do("same")

    async def program(step: StepApi, params: Any) -> Any:
        await gather(branch(step), branch(step))

    world = world_of(program)
    world.slow = True
    world.pump()
    world.command("pause", KEY)
    world.finish()
    world.pump()
    assert world.status(KEY) == "waitingForPause"
    world.finish()
    world.pump()
    assert world.status(KEY) == "paused"


@pytest.mark.behaviour(179, 182, 183)
def test_a_pause_in_a_sleep_is_immediate_and_keeps_what_is_left_of_it() -> None:
    world = world_of(nap)
    world.pump()
    world.now += 20 * S
    world.command("pause", KEY)
    assert world.status(KEY) == "paused"
    world.crash()
    world.now += 1_000 * S
    assert world.core.next_due_us() is None
    world.command("resume", KEY)
    world.pump()
    world.advance(39.9)
    assert world.status(KEY) == "waiting"
    world.advance(0.1)
    assert world.output(KEY) == "woke"
    resumed = next(row for row in world.history(KEY) if row.type == "workflow_resumed")
    assert payload(resumed) == {"shift_us": 1_000 * S}


@pytest.mark.behaviour(180)
def test_a_pause_in_a_wait_keeps_its_deadline_away() -> None:
    async def program(step: StepApi, params: Any) -> Any:
        try:
            await step.wait("w", "go", 10_000)
        except StepFailed as failed:
            return failed.error.name

    world = world_of(program)
    world.pump()
    world.advance(4)
    world.command("pause", KEY)
    world.now += 100 * S
    world.command("resume", KEY)
    world.advance(5.9)
    assert world.status(KEY) == "waiting"
    world.advance(0.1)
    assert world.output(KEY) == "WorkflowTimeoutError"


@pytest.mark.behaviour(181, 189)
def test_a_pause_in_a_retry_delay_loses_no_attempt() -> None:
    def callback(attempt: int) -> Any:
        if attempt == 1:
            raise ValueError("no")
        return attempt

    async def program(step: StepApi, params: Any) -> Any:
        return await step.do("work", callback, config(limit=1, delay_ms=10_000))

    for before_the_failure in (False, True):
        world = world_of(program)
        if before_the_failure:
            world.slow = True
            world.pump()
            world.command("pause", KEY)
            world.finish()
        world.pump()
        world.command("pause", KEY)
        assert world.status(KEY) == "paused"
        world.slow = False
        world.now += 100 * S
        world.command("resume", KEY)
        world.advance(9.9)
        assert world.types(KEY).count("attempt_started") == 1
        world.advance(0.1)
        assert world.output(KEY) == 2


@pytest.mark.behaviour(184)
def test_a_resume_cancels_a_pending_pause_without_a_replay() -> None:
    async def branch(step: StepApi, name: str) -> Any:
        await step.do(name)
        await step.do(f"{name}-next")
        return name

    async def late(step: StepApi) -> Any:
        await step.sleep("late", 5_000)
        return (await step.wait("w", "go"))["payload"]

    async def program(step: StepApi, params: Any) -> Any:
        return await gather(branch(step, "a"), branch(step, "b"), late(step))

    world = world_of(program)
    world.slow = True
    world.pump()
    world.command("pause", KEY)
    world.finish()
    world.pump()
    world.send_event(KEY, "go", 7)
    world.advance(10)
    assert world.status(KEY) == "waitingForPause"
    assert [r.step for r in world.history(KEY) if r.type == "step_started"] == ["a", "b"]
    assert "sleep_completed" not in world.types(KEY)
    world.command("resume", KEY)
    assert world.status(KEY) == "running"
    world.slow = False
    while world.guests[1].running:
        world.finish()
    world.pump()
    assert world.output(KEY) == ["a", "b", 7]
    assert world.types(KEY).count("workflow_started") == 1
    assert "workflow_running" not in world.types(KEY)


def test_a_retry_that_comes_due_while_a_pause_is_pending_starts_after_the_resume() -> None:
    def callback(attempt: int) -> Any:
        if attempt == 1:
            raise ValueError("no")

    async def retried(step: StepApi) -> None:
        await step.do("retried", callback, config(limit=1, delay_ms=1_000))

    async def long(step: StepApi) -> None:
        await step.do("long")

    async def program(step: StepApi, params: Any) -> Any:
        await gather(retried(step), long(step))

    world = world_of(program)
    world.slow = True
    world.pump()
    world.finish()
    world.pump()
    world.command("pause", KEY)
    world.advance(5)
    assert world.types(KEY).count("attempt_started") == 2
    world.command("resume", KEY)
    assert world.types(KEY).count("attempt_started") == 3


def test_a_pause_between_steps_takes_effect_at_the_next_one() -> None:
    world = world_of(two_steps)
    world.start_runnable()
    world.command("pause", KEY)
    assert world.status(KEY) == "waitingForPause"
    world.pump()
    assert world.status(KEY) == "paused"
    assert "step_started" not in world.types(KEY)
    world.command("resume", KEY)
    world.pump()
    assert world.output(KEY) == [1, 1]


def test_a_run_that_ends_while_a_pause_is_pending_is_complete() -> None:
    async def program(step: StepApi, params: Any) -> Any:
        return 1

    world = world_of(program)
    world.start_runnable()
    world.command("pause", KEY)
    world.pump()
    assert world.output(KEY) == 1


@pytest.mark.behaviour(185, 186, 188)
def test_what_cannot_be_paused_or_resumed_stays_as_it_is() -> None:
    world = world_of(nap)
    world.command("resume", KEY)
    world.pump()
    world.command("resume", KEY)
    world.command("pause", KEY)
    before = world.core.last_seq
    world.command("pause", KEY)
    world.command("resume", KEY)
    world.advance(60)
    world.command("pause", KEY)
    world.command("resume", KEY)
    assert world.status(KEY) == "complete"
    assert world.types(KEY).count("workflow_paused") == 1
    assert world.core.last_seq > before


@pytest.mark.behaviour(187)
def test_a_queued_instance_can_be_paused_and_then_runs_from_its_start() -> None:
    world = world_of(nap)
    world.command("pause", KEY)
    assert world.status(KEY) == "paused"
    assert list(world.core.runnable()) == []
    world.now += 10 * S
    world.command("resume", KEY)
    assert world.status(KEY) == "queued"
    world.pump()
    assert world.types(KEY).count("workflow_started") == 1


@pytest.mark.behaviour(191)
def test_a_resume_without_a_free_slot_waits_in_the_queue() -> None:
    world = World(two_steps, running_max=1)
    first, second = world.create("first"), world.create("second")
    world.slow = True
    world.pump()
    world.command("pause", second)
    world.command("resume", second)
    world.pump()
    assert world.status(second) == "queued"
    assert world.status(first) == "running"


@pytest.mark.behaviour(55, 56)
def test_a_crash_while_a_pause_is_pending_pauses() -> None:
    world = world_of(two_steps)
    world.slow = True
    world.pump()
    world.command("pause", KEY)
    world.crash()
    assert world.status(KEY) == "paused"
    world.pump()
    assert not world.guests
    assert world.types(KEY)[-2:] == ["attempt_errored", "workflow_paused"]


# --- terminate -----------------------------------------------------------------------------------


@pytest.mark.behaviour(204, 205, 37)
@pytest.mark.parametrize("moment", ["queued", "running", "waiting", "paused", "waitingForPause"])
def test_what_has_not_ended_can_be_terminated(moment: str) -> None:
    world = world_of(two_steps if moment in ("running", "waitingForPause") else nap)
    if moment != "queued":
        world.slow = True
        world.pump()
    if moment in ("paused", "waitingForPause"):
        world.command("pause", KEY)
    assert world.status(KEY) == moment
    guests = list(world.guests.values())
    world.command("terminate", KEY, rollback=False)
    data = world.core.status(KEY)
    assert data is not None
    assert (data.status, data.output, data.error) == ("terminated", None, None)
    for guest in guests:
        while guest.running:
            guest.finish_callback()
        for message in guest.outbox:
            assert world.core.on_message(guest.life, message, now_us=world.now).rows == []
    world.advance(3_600)
    assert world.types(KEY)[-1] == "workflow_terminated"
    assert world.core.live_count() == 0


@pytest.mark.behaviour(206)
def test_what_has_ended_cannot_be_terminated() -> None:
    world = world_of(nap)
    world.advance(60)
    before = world.core.last_seq
    with pytest.raises(InstanceError) as caught:
        world.command("terminate", KEY, rollback=True)
    assert caught.value.code == "instance.cannot_terminate"
    assert world.core.last_seq == before


# --- restart -------------------------------------------------------------------------------------


async def counted(step: StepApi, params: Any) -> Any:
    one = await step.do("one", lambda attempt: params.append(1) or len(params))
    await step.sleep("nap", 60_000)
    two = await step.do("two", lambda attempt: 2)
    event = await step.wait("w", "go")
    return [one, two, event["payload"]]


@pytest.mark.behaviour(192, 193, 195)
@pytest.mark.parametrize("moment", ["queued", "running", "waiting", "paused", "complete"])
def test_a_restart_runs_from_the_top_with_the_same_params_and_time(moment: str) -> None:
    ran: list[str] = []

    async def program(step: StepApi, params: Any) -> Any:
        await step.do("one", lambda attempt: ran.append("one"))
        if moment != "complete":
            await step.sleep("nap", 3_600_000)
        return params

    world = World(program)
    world.create("i", "p")
    world.slow = moment == "running"
    if moment != "queued":
        world.pump()
    if moment == "paused":
        world.command("pause", KEY)
    world.send_event(KEY, "go", 1) if moment != "complete" else None
    assert world.status(KEY) == moment
    before = len(ran)
    world.now += 5 * S
    world.command("restart", KEY, from_=None)
    assert world.status(KEY) == "queued"
    world.crash()
    world.slow = False
    world.pump()
    if moment != "complete":
        world.advance(3_600)
    assert world.output(KEY) == "p"
    assert len(ran) == before + 1
    assert world.types(KEY, run=2)[:3] == ["workflow_queued", "workflow_started", "step_started"]
    assert world.types(KEY, run=1)[-1] == "workflow_restarted"
    assert "wait_completed" not in world.types(KEY)
    items = world.core.list(None, None, 1, None)["items"]
    assert items[0]["created_us"] == START


@pytest.mark.behaviour(196, 198, 201)
def test_a_restart_from_a_step_keeps_what_started_before_it() -> None:
    world = World(counted)
    world.create("i", [])
    world.advance(60)
    world.send_event(KEY, "go", "a")
    world.pump()
    assert world.output(KEY) == [1, 2, "a"]
    world.core.evict(KEY)
    world.command("restart", KEY, from_={"name": "two"})
    world.crash(unfolded=True)
    world.pump()
    assert world.types(KEY, run=2) == [
        "workflow_queued",
        "workflow_started",
        "step_started",
        "attempt_started",
        "attempt_completed",
        "step_completed",
        "wait_started",
        "workflow_waiting",
    ]
    restarted = next(row for row in world.history(KEY) if row.type == "workflow_restarted")
    assert payload(restarted) == {
        "from": {"name": "two", "count": 1, "type": "do"},
        "kept": [["do", "one", 1], ["sleep", "nap", 1]],
    }
    world.send_event(KEY, "go", "b")
    world.pump()
    assert world.output(KEY) == [1, 2, "b"]


@pytest.mark.behaviour(197, 198)
def test_a_restart_finds_sleeps_waits_and_later_occurrences() -> None:
    async def program(step: StepApi, params: Any) -> Any:
        for _ in range(3):
            await step.do("x")
            await step.sleep("x", 0)
            await step.wait("x", "go")

    world = World(program)
    for target, kept in (
        ({"name": "x", "count": 2}, 3),
        ({"name": "x", "count": 2, "type": "sleep"}, 4),
        ({"name": "x", "count": 2, "type": "waitForEvent"}, 5),
        ({"name": "x", "count": 2, "type": "wait_for_event"}, 5),
        ({"name": "x", "count": 1}, 0),
    ):
        key = world.create(f"i{len(world.rows)}")
        for _ in range(3):
            world.send_event(key, "go")
        world.pump()
        world.command("restart", key, from_=target)
        rows = [row for row in world.history(key) if row.type == "workflow_restarted"]
        assert len(payload(rows[-1])["kept"]) == kept


@pytest.mark.behaviour(199)
@pytest.mark.parametrize(
    "target",
    [
        {"name": "nobody"},
        {"name": "one", "count": 2},
        {"name": "one", "type": "sleep"},
        {"name": "one", "type": "nothing"},
        {"name": 1},
        {},
        {"name": "one", "step": 1},
    ],
)
def test_a_restart_from_an_unknown_step_is_refused_and_changes_nothing(target: Any) -> None:
    world = World(counted)
    world.create("i", [])
    world.pump()
    before = world.core.last_seq
    with pytest.raises(InstanceError) as caught:
        world.command("restart", KEY, from_=target)
    assert caught.value.code == "instance.cannot_restart"
    assert world.core.last_seq == before


@pytest.mark.behaviour(200)
def test_a_restart_keeps_parallel_steps_that_started_before_whatever_became_of_them() -> None:
    def fails(attempt: int) -> Any:
        raise ValueError(f"attempt {attempt}")

    async def caught(step: StepApi, name: str, callback: Any, limit: int) -> Any:
        try:
            return await step.do(name, callback, config(limit=limit, delay_ms=1_000))
        except StepFailed as failed:
            return failed.error.message

    async def program(step: StepApi, params: Any) -> Any:
        return await gather(
            caught(step, "failed", fails, 0),
            caught(step, "retried", fails, 2),
            caught(step, "target", lambda attempt: attempt, 0),
            caught(step, "after", lambda attempt: attempt, 0),
        )

    world = world_of(program)
    world.pump()
    world.command("restart", KEY, from_={"name": "target"})
    world.advance(10)
    assert world.output(KEY) == ["attempt 1", "attempt 3", 1, 1]
    rows = [row for row in world.history(KEY) if row.type == "attempt_started"]
    told = [(row.run, row.step, row.attempt) for row in rows]
    assert told == [
        (1, "failed", 1),
        (1, "retried", 1),
        (1, "target", 1),
        (1, "after", 1),
        (2, "target", 1),
        (2, "after", 1),
        (2, "retried", 2),
        (2, "retried", 3),
    ]


def test_a_restart_closes_the_attempts_of_steps_that_it_keeps() -> None:
    async def branch(step: StepApi, name: str) -> Any:
        return await step.do(name, lambda attempt: attempt)

    async def program(step: StepApi, params: Any) -> Any:
        return await gather(branch(step, "a"), branch(step, "b"))

    world = world_of(program)
    world.slow = True
    world.pump()
    world.command("restart", KEY, from_={"name": "b"})
    world.crash()
    world.slow = False
    world.pump()
    assert world.output(KEY) == [2, 1]


@pytest.mark.behaviour(18, 202)
def test_a_restart_counts_as_a_create() -> None:
    world = World(nap, creates_per_second_max=1.0)
    world.create()
    with pytest.raises(LimitExceededError):
        world.command("restart", KEY, from_=None)
    assert world.types(KEY) == ["workflow_queued"]


# --- parked --------------------------------------------------------------------------------------


@pytest.mark.behaviour(76)
def test_a_replay_that_does_not_match_parks_with_both_places_and_a_resume_tries_again() -> None:
    world = World(counted)
    world.create("i", [])
    world.pump()
    world.programs["Job"] = nap
    world.advance(60)
    data = world.core.status(KEY)
    assert data is not None
    assert (data.status, data.reason_code) == ("paused", "replay.mismatch")
    assert "'one'" in (data.reason_message or "")
    world.crash()
    assert world.core.why(KEY)[0] == "replay.mismatch"
    world.programs["Job"] = counted
    world.command("resume", KEY)
    world.pump()
    world.send_event(KEY, "go", 1)
    world.pump()
    assert world.output(KEY) == [1, 2, 1]
    assert world.core.why(KEY)[0] == "complete"


def test_a_mismatch_names_what_is_recorded_and_what_is_asked() -> None:
    world = world_of(two_steps)
    world.start_runnable()
    message = Mismatch("do", "old", 2, "job.py:7", "sleep", "new", 1, "job.py:9")
    world.take(world.core.on_message(1, message, now_us=world.now))
    text = world.core.why(KEY)[1]
    for part in ("do 'old' (2) at job.py:7", "sleep 'new' (1) at job.py:9"):
        assert part in text


def test_an_instance_that_is_parked_loses_what_it_had_in_flight_and_goes_on_when_released() -> None:
    world = world_of(two_steps)
    world.slow = True
    world.pump()
    world.command("park", KEY, "tenant.suspended", "unpaid")
    assert world.status(KEY) == "paused"
    assert world.types(KEY)[-2:] == ["attempt_errored", "workflow_parked"]
    world.slow = False
    world.command("resume", KEY)
    world.pump()
    assert world.output(KEY) == [2, 1]
    world.command("park", KEY, "x", "y")
    assert world.status(KEY) == "complete"


def test_a_parked_instance_that_is_terminated_shows_no_reason_any_more() -> None:
    world = world_of(nap)
    world.pump()
    world.command("park", KEY, "tenant.suspended", "unpaid")
    world.command("terminate", KEY, rollback=False)
    data = world.core.status(KEY)
    assert data is not None
    assert (data.status, data.reason_code) == ("terminated", None)
