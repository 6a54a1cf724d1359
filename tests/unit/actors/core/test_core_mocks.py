"""Mocks in the core: they stand for callbacks, sleeps and events, and write normal rows."""

from __future__ import annotations

import json
from typing import Any

import pytest
from core_world import StepApi, StepFailed, World, config, payload

from dynamic_workflows.eventlog.errors import InvalidError
from dynamic_workflows.loaders.protocol.messages import Error

KEY = ("Job", "i")


async def program(step: StepApi, params: Any) -> Any:
    results: list[Any] = []
    retried = config(limit=2, delay_ms=1_000)
    for kind, args in (
        ("do", ("work", lambda attempt: f"real {attempt}", retried)),
        ("sleep", ("nap", 60_000)),
        ("wait", ("w", "go", 60_000)),
    ):
        try:
            results.append(await getattr(step, kind)(*args))
        except StepFailed as failed:
            results.append(failed.error.name)
    return results


def world_of() -> World:
    world = World(program)
    return world


@pytest.mark.behaviour(278, 283, 297)
@pytest.mark.parametrize("value", ["mock", None, 0, False])
def test_a_mock_result_stands_for_the_callback_and_writes_normal_rows(value: Any) -> None:
    world = world_of()
    world.core.mocks.of_instance(KEY).mock_step_result(("work", 1), json.dumps(value).encode())
    world.create()
    world.advance(200)
    assert world.output(KEY)[0] == value
    assert world.types(KEY)[2:6] == [
        "step_started",
        "attempt_started",
        "attempt_completed",
        "step_completed",
    ]


@pytest.mark.behaviour(281)
def test_disabled_sleeps_take_no_time_and_are_recorded_with_their_length() -> None:
    world = world_of()
    world.core.mocks.of_instance(KEY).disable_sleeps()
    world.create()
    world.pump()
    assert world.types(KEY).count("sleep_completed") == 1
    row = next(row for row in world.history(KEY) if row.type == "sleep_started")
    assert payload(row)["duration_ms"] == 60_000

    world = world_of()
    world.core.mocks.of_instance(KEY).disable_sleeps([("other", 1)])
    world.create()
    world.pump()
    assert world.types(KEY).count("sleep_completed") == 0


@pytest.mark.behaviour(282, 286)
def test_mocked_errors_fail_as_many_attempts_as_they_say_and_delays_can_be_left_out() -> None:
    world = world_of()
    mocks = world.core.mocks.of_instance(KEY)
    mocks.mock_step_error(("work", 1), Error("ValueError", "mock"), times=1)
    mocks.mock_step_error(("work", 1), Error("KeyError", "mock"), times=1)
    mocks.disable_retry_delays([("work", 1)])
    world.create()
    world.pump()
    errors = [payload(row) for row in world.history(KEY) if row.type == "attempt_errored"]
    assert [error["error"]["name"] for error in errors] == ["ValueError", "KeyError"]
    assert [error["retry_delay_ms"] for error in errors] == [1_000, 1_000]
    world.advance(200)
    assert world.output(KEY)[0] == "real 3"


@pytest.mark.behaviour(286, 287, 289)
def test_without_times_every_attempt_fails_errors_before_timeouts() -> None:
    world = world_of()
    mocks = world.core.mocks.of_instance(KEY)
    mocks.force_step_timeout(("work", 1))
    mocks.mock_step_error(("work", 1), Error("ValueError", "mock"), times=1)
    world.create()
    world.advance(200)
    errors = [payload(row) for row in world.history(KEY) if row.type == "attempt_errored"]
    assert [error["error"]["name"] for error in errors] == [
        "ValueError",
        "WorkflowTimeoutError",
        "WorkflowTimeoutError",
    ]
    assert world.output(KEY)[0] == "WorkflowTimeoutError"


@pytest.mark.behaviour(284, 288)
def test_mocks_that_contradict_each_other_are_refused() -> None:
    mocks = world_of().core.mocks.of_instance(KEY)
    mocks.mock_step_result(("work", 1), b"1")
    with pytest.raises(InvalidError):
        mocks.mock_step_result(("work", 1), b"2")
    with pytest.raises(InvalidError):
        mocks.mock_step_error(("work", 1), Error("E", ""))
    with pytest.raises(InvalidError):
        mocks.force_step_timeout(("work", 1))
    with pytest.raises(InvalidError):
        mocks.mock_step_error(("other", 1), Error("E", ""), times=0)


@pytest.mark.behaviour(290, 291)
def test_mocked_events_and_forced_timeouts_end_waits() -> None:
    world = world_of()
    world.take(world.core.mock_event(KEY, "go", b'"early"', now_us=world.now))
    world.create()
    world.advance(60)
    assert world.output(KEY)[2]["payload"] == "early"
    assert "event_received" not in world.types(KEY)

    world = world_of()
    world.create()
    world.advance(60)
    world.take(world.core.mock_event(KEY, "go", b'"live"', now_us=world.now))
    world.pump()
    assert world.output(KEY)[2]["payload"] == "live"

    world = world_of()
    world.core.mocks.of_instance(KEY).force_event_timeout(("w", 1))
    world.create()
    world.advance(60)
    assert world.output(KEY)[2] == "WorkflowTimeoutError"


@pytest.mark.behaviour(279)
def test_the_mocks_of_a_workflow_apply_to_every_instance_created_afterwards() -> None:
    world = world_of()
    before = world.create("before")
    world.core.mocks.of_workflow("Job").mock_step_error(("work", 1), Error("E", ""), times=3)
    one, two = world.create("one"), world.create("two")
    world.core.mocks.forget_workflow("Job")
    after = world.create("after")
    world.advance(500)
    assert [world.output(key)[0] for key in (before, one, two, after)] == [
        "real 1",
        "E",
        "E",
        "real 1",
    ]


@pytest.mark.behaviour(194, 296)
def test_mocks_outlast_a_restart_and_go_with_a_deletion() -> None:
    world = world_of()
    world.core.mocks.of_instance(KEY).mock_step_result(("work", 1), b'"mock"')
    world.create()
    world.advance(200)
    world.command("restart", KEY, from_=None)
    world.advance(200)
    assert world.output(KEY)[0] == "mock"
    world.command("delete", KEY)
    world.create()
    world.advance(200)
    assert world.output(KEY)[0] == "real 1"


def test_a_crash_at_every_step_replays_after_each_outcome_and_changes_no_result() -> None:
    world = world_of()
    world.core.crash_at_every_step = True
    world.create()
    world.send_event(KEY, "go", 1)
    world.advance(60)
    assert [world.output(KEY)[0], world.output(KEY)[2]["payload"]] == ["real 1", 1]
    lives = {effect.life for effect in world.effects if hasattr(effect, "life")}
    assert len(lives) == 4
