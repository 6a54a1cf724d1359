"""Attempts, retries, timeouts, final errors, sensitive outputs, and attempts that were cut off."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from core_world import Fatal, S, StepApi, StepFailed, World, config, gather, payload

from dynamic_workflows.loaders.protocol.messages import (
    AttemptFailed,
    Done,
    Error,
    Go,
    Idle,
    Mismatch,
    ProtocolViolation,
    Sleep,
    StepRequest,
    Wait,
)

RETRY = config(limit=2, delay_ms=1_000, backoff="exponential")


def failing(times: int) -> Any:
    def callback(attempt: int) -> Any:
        if attempt <= times:
            raise ValueError(f"attempt {attempt}")
        return attempt

    return callback


def world_of(callback: Any, text: bytes = RETRY, **settings: Any) -> World:
    async def program(step: StepApi, params: Any) -> Any:
        try:
            return await step.do("work", callback, text)
        except StepFailed as failed:
            return [failed.error.name, failed.error.message]

    world = World(program, **settings)
    world.create()
    return world


KEY = ("Job", "i")


def of_type(world: World, kind: str) -> list[Any]:
    return [row for row in world.history(KEY) if row.type == kind]


@pytest.mark.behaviour(84, 85, 88, 90)
def test_a_failed_attempt_is_retried_after_its_delay_and_its_rows_tell_the_story() -> None:
    world = world_of(failing(1))
    world.pump()
    assert world.status(KEY) == "waiting"
    assert world.types(KEY)[2:] == [
        "step_started",
        "attempt_started",
        "attempt_errored",
        "workflow_waiting",
    ]
    error = payload(of_type(world, "attempt_errored")[0])
    assert error["error"] == {"name": "ValueError", "message": "attempt 1"}
    assert error["retry_delay_ms"] == 1_000
    world.advance(0.9)
    assert world.status(KEY) == "waiting"
    world.advance(0.1)
    assert world.output(KEY) == 2
    assert world.types(KEY)[6:] == [
        "workflow_running",
        "attempt_started",
        "attempt_completed",
        "step_completed",
        "workflow_completed",
    ]


@pytest.mark.behaviour(81, 82, 86, 87)
@pytest.mark.parametrize(
    ("backoff", "delays"),
    [("constant", [100, 100, 100]), ("linear", [100, 200, 300]), ("exponential", [100, 200, 400])],
)
def test_a_limit_of_n_makes_n_plus_one_attempts_with_n_delays(
    backoff: str, delays: list[int]
) -> None:
    world = world_of(failing(99), config(limit=3, delay_ms=100, backoff=backoff))
    world.advance(10)
    errors = [payload(row) for row in of_type(world, "attempt_errored")]
    assert [error.get("retry_delay_ms") for error in errors] == [*delays, None]
    assert world.output(KEY) == ["ValueError", "attempt 4"]
    assert len(of_type(world, "step_errored")) == 1


@pytest.mark.behaviour(63)
def test_a_limit_of_zero_makes_exactly_one_attempt() -> None:
    world = world_of(failing(99), config(limit=0))
    world.pump()
    assert len(of_type(world, "attempt_started")) == 1
    assert world.output(KEY) == ["ValueError", "attempt 1"]


def test_delays_grow_no_further_than_a_year() -> None:
    world = world_of(failing(99), config(limit=3, delay_ms=3e10, backoff="exponential"))
    world.pump()
    assert payload(of_type(world, "attempt_errored")[0])["retry_delay_ms"] == 30_000_000_000
    world.advance(400 * 86_400)
    delays = [payload(row).get("retry_delay_ms") for row in of_type(world, "attempt_errored")]
    assert delays[1] == 365 * 86_400_000


@pytest.mark.behaviour(88, 89)
def test_a_retry_delay_outlasts_a_crash_and_the_numbers_go_on() -> None:
    world = world_of(failing(2))
    world.pump()
    world.crash()
    world.advance(0.5)
    assert len(of_type(world, "attempt_started")) == 1
    world.advance(0.5)
    assert len(of_type(world, "attempt_started")) == 2
    world.crash()
    world.now += 10 * S  # The delay passes while nobody is there.
    world.pump()
    assert world.output(KEY) == 3


@pytest.mark.behaviour(106, 110)
def test_a_fatal_error_is_not_retried() -> None:
    def callback(attempt: int) -> Any:
        raise Fatal("never again")

    world = world_of(callback)
    world.pump()
    assert world.output(KEY) == ["Fatal", "never again"]
    assert world.types(KEY)[2:6] == [
        "step_started",
        "attempt_started",
        "attempt_errored",
        "step_errored",
    ]


@pytest.mark.behaviour(74, 111)
def test_a_final_error_is_stored_and_thrown_again_in_a_replay() -> None:
    calls = []

    async def program(step: StepApi, params: Any) -> Any:
        def callback(attempt: int) -> Any:
            calls.append(attempt)
            raise Fatal("no")

        try:
            await step.do("work", callback)
        except StepFailed as failed:
            caught = failed.error.message
        await step.sleep("nap", 60_000)
        return caught

    world = World(program)
    key = world.create()
    world.pump()
    world.crash()
    world.advance(60)
    assert world.output(key) == "no"
    assert calls == [1]


@pytest.mark.behaviour(101, 102, 104)
def test_an_attempt_that_takes_too_long_fails_with_a_timeout_and_is_retried() -> None:
    world = world_of(lambda attempt: attempt, config(limit=1, delay_ms=500, timeout_ms=2_000))
    world.slow = True
    world.pump()
    world.advance(1.9)
    assert len(of_type(world, "attempt_errored")) == 0
    world.advance(0.1)
    error = payload(of_type(world, "attempt_errored")[0])["error"]
    assert error["name"] == "WorkflowTimeoutError"
    assert "2000 ms" in error["message"]
    assert not world.guests[1].running
    world.advance(0.5)
    world.finish()
    world.pump()
    assert world.output(KEY) == 2
    world.advance(10)
    assert world.types(KEY)[-1] == "workflow_completed"


@pytest.mark.behaviour(103)
def test_a_result_that_comes_after_its_attempt_was_over_ends_the_lifetime_and_is_dropped() -> None:
    world = world_of(lambda attempt: attempt, config(limit=1, delay_ms=500, timeout_ms=2_000))
    world.slow = True
    world.pump()
    life, guest = next(iter(world.guests.items()))
    token = guest.running[0][0]
    world.now += 2 * S
    world.take(world.core.due(world.now))
    world.take(world.core.on_message(life, Done(token, 1, b'"late"'), now_us=world.now))
    assert life not in world.guests
    world.slow = False
    world.advance(1)
    assert world.output(KEY) == 2


def test_a_late_result_while_a_pause_is_pending_pauses() -> None:
    world = world_of(lambda attempt: attempt, config(limit=1, delay_ms=0, timeout_ms=2_000))
    world.slow = True
    world.pump()
    life, guest = next(iter(world.guests.items()))
    token = guest.running[0][0]
    world.advance(2)
    world.command("pause", KEY)
    assert world.status(KEY) == "waitingForPause"
    world.take(world.core.on_message(life, Done(token, 1, b'"late"'), now_us=world.now))
    assert world.status(KEY) == "paused"
    assert world.types(KEY)[-2:] == ["attempt_errored", "workflow_paused"]


def test_a_failure_that_comes_after_its_attempt_was_over_changes_nothing() -> None:
    world = world_of(lambda attempt: attempt, config(limit=1, delay_ms=500, timeout_ms=2_000))
    world.slow = True
    world.pump()
    life, guest = next(iter(world.guests.items()))
    token = guest.running[0][0]
    world.now += 2 * S
    world.take(world.core.due(world.now))
    before = world.core.last_seq
    late = AttemptFailed(token, 1, Error("ValueError", "late"))
    world.take(world.core.on_message(life, late, now_us=world.now))
    assert world.core.last_seq == before
    assert life in world.guests


FORGED: dict[str, Callable[[int], list[Any]]] = {
    "a result twice": lambda token: [Done(token, 1, b"1"), Done(token, 1, b"2")],
    "a failure twice": lambda token: [_failed(token), _failed(token)],
    "a failure, then a result": lambda token: [_failed(token), Done(token, 1, b"1")],
    "a result, then a failure": lambda token: [Done(token, 1, b"1"), _failed(token)],
    "an attempt to come": lambda token: [Done(token, 2, b"1")],
    "attempt 0": lambda token: [Done(token, 0, b"1")],
}


def _failed(token: int) -> AttemptFailed:
    return AttemptFailed(token, 1, Error("ValueError", "no"))


@pytest.mark.parametrize("what", FORGED)
def test_the_end_of_an_attempt_is_told_once_and_not_before_it_began(what: str) -> None:
    world = world_of(lambda attempt: attempt, config(limit=3, delay_ms=60_000))
    world.slow = True
    world.pump()
    life, guest = next(iter(world.guests.items()))
    *honest, forged = FORGED[what](guest.running[0][0])
    for message in honest:
        world.take(world.core.on_message(life, message, now_us=world.now))
    with pytest.raises(ProtocolViolation, match="told twice, or before its time"):
        world.core.on_message(life, forged, now_us=world.now)


def test_attempts_of_earlier_lifetimes_have_no_end_to_tell() -> None:
    world = world_of(lambda attempt: attempt, config(limit=3, delay_ms=0, timeout_ms=2_000))
    world.slow = True
    world.pump()
    world.crash()
    world.pump()
    life, guest = next(iter(world.guests.items()))
    token, attempt, _ = guest.running[0]
    assert attempt == 2
    with pytest.raises(ProtocolViolation, match="told twice"):
        world.core.on_message(life, Done(token, 1, b"1"), now_us=world.now)


def test_an_end_of_a_sleep_is_not_the_guests_to_tell() -> None:
    async def program(step: StepApi, params: Any) -> Any:
        await step.sleep("nap", 3_000)

    world = World(program)
    world.create()
    world.pump()
    life = next(iter(world.guests))
    token = next(iter(world.core.lifetimes.by_number[life].tokens))
    with pytest.raises(ProtocolViolation, match="told twice, or before its time"):
        world.core.on_message(life, Done(token, 1, b"1"), now_us=world.now)


@pytest.mark.behaviour(95, 98, 99)
def test_a_delay_that_a_function_answers_is_taken_and_backed_off() -> None:
    world = world_of(lambda attempt: attempt, config(limit=3, delay_ms=None, backoff="linear"))
    world.slow = True
    world.pump()
    guest = world.guests[1]
    failed = Error("ValueError", "no")
    for attempt, answered, delay in ((1, 70, 70), (2, 100, 200), (3, None, 3_000)):
        token = guest.running.pop()[0]
        message = AttemptFailed(token, attempt, failed, answered)
        world.take(world.core.on_message(1, message, now_us=world.now))
        body = payload(of_type(world, "attempt_errored")[-1])
        assert body["retry_delay_ms"] == delay
        world.advance(delay / 1_000)
    assert guest.running[0][1] == 4


@pytest.mark.behaviour(97)
def test_a_broken_delay_function_fails_the_step_with_its_own_error() -> None:
    world = world_of(lambda attempt: attempt, config(limit=3, delay_ms=None))
    world.slow = True
    world.pump()
    broken = Error("NonRetryableDelayError", "took too long", "dynamic_workflows", fatal=True)
    token = world.guests[1].running.pop()[0]
    message = AttemptFailed(token, 1, Error("ValueError", "no"), None, broken)
    world.take(world.core.on_message(1, message, now_us=world.now))
    world.pump()
    assert world.output(KEY) == ["NonRetryableDelayError", "took too long"]
    assert payload(of_type(world, "attempt_errored")[0])["error"]["name"] == "ValueError"


@pytest.mark.behaviour(71, 72, 73)
@pytest.mark.parametrize("value", [None, 0, "", False, {"a": [1]}])
def test_a_recorded_result_is_never_asked_for_again(value: Any) -> None:
    calls = []

    async def program(step: StepApi, params: Any) -> Any:
        def callback(attempt: int) -> Any:
            calls.append(attempt)
            return value

        result = await step.do("work", callback)
        await step.sleep("nap", 60_000)
        return result

    world = World(program)
    key = world.create()
    world.pump()
    world.crash()
    world.advance(60)
    assert world.output(key) == value
    assert calls == [1]
    assert world.types(key).count("attempt_started") == 1


@pytest.mark.behaviour(69, 70)
def test_equal_names_are_told_apart_by_occurrence_and_kind() -> None:
    async def program(step: StepApi, params: Any) -> Any:
        one = await step.do("x", lambda attempt: 1)
        await step.sleep("x", 1_000)
        two = await step.do("x", lambda attempt: 2)
        await step.sleep("x", 1_000)
        return [one, two]

    world = World(program)
    key = world.create()
    world.core.crash_at_every_step = world.crash_at_every_step = True
    world.advance(5)
    assert world.output(key) == [1, 2]
    started = [(row.type, row.count) for row in world.history(key) if row.type.endswith("_started")]
    assert [one for one in started if one[0] != "workflow_started"] == [
        ("step_started", 1),
        ("attempt_started", 1),
        ("sleep_started", 1),
        ("step_started", 2),
        ("attempt_started", 2),
        ("sleep_started", 2),
    ]


@pytest.mark.behaviour(75)
def test_the_config_of_the_first_sight_wins() -> None:
    limits = iter([5, 0, 0, 0])

    async def program(step: StepApi, params: Any) -> Any:
        return await step.do("work", failing(2), config(limit=next(limits), delay_ms=1_000))

    world = World(program)
    key = world.create()
    world.pump()
    for _ in range(2):
        world.crash()
        world.advance(1)
    assert world.output(key) == 3
    goes = world.sent(Go)
    assert goes[0].config is None
    assert b'"limit": 5' in goes[1].config


@pytest.mark.behaviour(239, 240)
def test_an_attempt_cut_off_by_a_crash_is_recorded_and_uses_up_no_retry() -> None:
    world = world_of(failing(2), config(limit=0))
    world.slow = True
    for attempt in (1, 2):
        world.pump()
        assert len(of_type(world, "attempt_started")) == attempt
        world.crash()
        body = payload(of_type(world, "attempt_errored")[-1])
        assert body["lost"] is True
        assert body["error"]["name"] == "WorkflowInternalError"
    world.slow = False
    world.pump()
    assert world.output(KEY) == 3
    assert [row.attempt for row in of_type(world, "attempt_started")] == [1, 2, 3]


def test_after_ten_attempts_cut_off_in_a_row_the_step_fails() -> None:
    world = world_of(failing(0))
    world.slow = True
    for _ in range(11):
        assert len(of_type(world, "step_errored")) == 0
        world.pump()
        world.crash()
    assert len(of_type(world, "step_errored")) == 1
    world.slow = False
    world.pump()
    assert world.output(KEY)[0] == "WorkflowInternalError"
    assert [row.attempt for row in of_type(world, "attempt_started")] == list(range(1, 12))


def test_a_failure_of_its_own_between_starts_the_count_of_lost_attempts_anew() -> None:
    world = world_of(failing(8), config(limit=1, delay_ms=0))
    for _ in range(2):
        world.slow = True
        for _ in range(7):
            world.pump()
            world.crash()
        assert len(of_type(world, "step_errored")) == 0
        world.slow = False
        world.pump()
        if len(of_type(world, "attempt_started")) > 9:
            break
        world.slow = True
    assert world.output(KEY) == 9


def test_a_step_that_must_run_at_most_once_fails_when_it_is_cut_off() -> None:
    calls: list[int] = []
    world = world_of(calls.append, config(limit=5, lost="fail"))
    world.slow = True
    world.pump()
    world.crash()
    world.slow = False
    world.pump()
    assert world.output(KEY)[0] == "WorkflowInternalError"
    assert calls == []
    assert payload(of_type(world, "attempt_errored")[0])["lost"] is True


def lose(world: World, *, own: bool, culprit: int = 0, elsewhere: bool = False) -> None:
    lives = list(world.guests)
    world.guests.clear()
    world.take(
        world.core.lives_lost(
            lives,
            reason="memory limit",
            own=own,
            culprit=culprit,
            elsewhere=elsewhere,
            now_us=world.now,
        )
    )


def test_an_attempt_whose_isolate_the_tenants_code_killed_uses_up_a_retry() -> None:
    world = world_of(failing(0), config(limit=1, delay_ms=1_000))
    world.slow = True
    world.pump()
    lose(world, own=True, culprit=1)
    body = payload(of_type(world, "attempt_errored")[0])
    assert body["retry_delay_ms"] == 1_000
    assert "lost" not in body
    assert "memory limit" in body["error"]["message"]
    world.advance(1)
    lose(world, own=True)  # The only one that ran is the culprit.
    assert len(of_type(world, "step_errored")) == 1
    world.pump()
    assert world.output(KEY)[0] == "WorkflowInternalError"


def test_only_the_culprit_of_a_dead_isolate_pays_for_it() -> None:
    async def program(step: StepApi, params: Any) -> Any:
        return await step.do("work", lambda attempt: attempt, config(limit=0))

    world = World(program)
    guilty, innocent = world.create("guilty"), world.create("innocent")
    world.slow = True
    world.pump()
    assert world.life(guilty) == 1
    lose(world, own=True, culprit=1)
    world.slow = False
    world.pump()
    assert world.status(guilty) == "errored"
    assert world.output(innocent) == 2


@pytest.mark.parametrize("elsewhere", [False, True])
def test_however_often_others_kill_its_isolate_an_innocent_step_is_only_cut_off(
    elsewhere: bool,
) -> None:
    async def program(step: StepApi, params: Any) -> Any:
        return await step.do("work", lambda attempt: attempt, config(limit=50, delay_ms=0))

    world = World(program)
    guilty, innocent = world.create("guilty"), world.create("innocent")
    world.slow = True
    for _ in range(30):
        world.pump()
        lose(world, own=True, culprit=world.life(guilty) or 0, elsewhere=elsewhere)
    world.slow = False
    world.pump()
    assert world.output(innocent) == 31


def test_one_that_kills_its_isolate_between_steps_is_backed_off_and_then_parked() -> None:
    world = world_of(failing(0))
    deaths = []
    for _ in range(20):
        if world.status(KEY) == "paused":
            break
        if world.start_runnable():
            deaths.append(world.now)
            lose(world, own=True, culprit=world.life(KEY) or 0)
        else:
            assert world.advance_to_next()
    assert len(deaths) == 5
    gaps = [then - now for now, then in zip(deaths, deaths[1:], strict=False)]
    assert gaps == sorted(gaps)
    assert gaps[0] > 0
    status = world.core.status(KEY)
    assert status is not None
    assert status.reason_code == "isolate.died"
    world.command("resume", KEY)
    world.pump()
    assert world.output(KEY) == 1


def test_one_whose_code_goes_on_after_every_rest_is_parked_with_the_reason() -> None:
    async def program(step: StepApi, params: Any) -> Any:
        await step.sleep("nap", 3_600_000)
        return 1

    world = World(program, instance_idle_us=0)
    key = world.create()
    world.pump()
    assert world.core.live_count() == 0
    for _ in range(5):
        assert world.status(key) == "waiting"
        world.take(world.core.went_on(key, reason="its code goes on", now_us=world.now))
    status = world.core.status(key)
    assert status is not None
    assert (status.status, status.reason_code) == ("paused", "isolate.died")
    assert "its code goes on; 5 times in a row" in (status.reason_message or "")
    world.take(world.core.went_on(key, reason="again", now_us=world.now))
    world.command("resume", key)
    world.pump()
    world.advance(3_600)
    assert world.output(key) == 1
    world.take(world.core.went_on(key, reason="too late", now_us=world.now))
    assert world.status(key) == "complete"


def test_the_platforms_own_failures_are_never_counted_against_an_instance() -> None:
    world = world_of(failing(0))
    for _ in range(12):
        world.start_runnable()
        lose(world, own=False)
    assert world.status(KEY) == "running"
    world.pump()
    assert world.output(KEY) == 1


@pytest.mark.behaviour(120, 121, 272)
def test_a_sensitive_output_is_in_no_row_and_yet_comes_back_whole() -> None:
    async def program(step: StepApi, params: Any) -> Any:
        secret = await step.do("work", lambda attempt: "s3cret", config(sensitive="output"))
        await step.sleep("nap", 60_000)
        return len(secret)

    world = World(program, instance_idle_us=0)
    key = world.create()
    world.pump()
    assert not any(b"s3cret" in (row.payload or b"") for row in world.rows)
    shown = [payload(row) for row in world.rows if row.type == "step_completed"]
    assert shown == [{"output": "[REDACTED]", "sensitive": True}]
    assert list(world.secrets.values()) == [b'{"output":"s3cret","sensitive":true}']
    world.crash()
    assert not world.core.is_loaded(key)
    world.advance(60)
    assert world.output(key) == 6


@pytest.mark.behaviour(122)
def test_the_error_of_a_sensitive_step_is_not_redacted() -> None:
    world = world_of(failing(9), config(limit=0, sensitive="output"))
    world.pump()
    assert payload(of_type(world, "step_errored")[0])["error"]["message"] == "attempt 1"


@pytest.mark.behaviour(248, 249, 254)
def test_parallel_steps_are_in_flight_together_and_count_as_running() -> None:
    async def branch(step: StepApi) -> Any:
        return await step.do("same", lambda attempt: attempt)

    async def nap(step: StepApi) -> None:
        await step.sleep("nap", 60_000)

    async def program(step: StepApi, params: Any) -> Any:
        return await gather(branch(step), branch(step), nap(step))

    world = World(program)
    world.slow = True
    key = world.create()
    world.pump()
    assert len(world.guests[1].running) == 2
    assert world.status(key) == "running"
    world.finish()
    world.finish()
    world.pump()
    assert world.status(key) == "waiting"
    world.advance(60)
    assert world.output(key) == [1, 1, None]


@pytest.mark.behaviour(253)
def test_what_runs_when_the_run_has_ended_is_lost() -> None:
    world = World()
    world.programs["Job"] = lambda step, params: _ends(step)
    key = world.create()
    world.pump()
    assert world.status(key) == "complete"
    assert world.core.live_count() == 0


async def _ends(step: StepApi) -> Any:
    step.do("never awaited")
    return 1


@pytest.mark.behaviour(256)
def test_more_steps_than_the_limit_end_the_isolate_if_the_guest_does_not_see_to_it() -> None:
    async def program(step: StepApi, params: Any) -> Any:
        for _ in range(3):
            await step.sleep("nap", 0)
            await step.do("work")

    world = World(program, steps_max=2)
    world.create()
    with pytest.raises(ProtocolViolation):
        world.pump()


@pytest.mark.behaviour(100)
@pytest.mark.parametrize(
    "message",
    [
        Done(99, 1, b"1"),
        AttemptFailed(99, 1, Error("E", "")),
        StepRequest(1, "again", 1, config()),
        StepRequest(7, "work", 1, config()),
        StepRequest(7, "x" * 257, 1, config()),
        StepRequest(7, "a\x00", 1, config()),
        StepRequest(7, "a", 0, config()),
        StepRequest(7, "a", 2**31, config()),
        Sleep(7, "a", 2**63, 1_000),
        Wait(7, "a", 2**64 - 1, "t", 1_000),
        AttemptFailed(1, 1, Error("E", ""), -(2**63)),
        Mismatch("\x1b[2J", "a", 1, None, None, None, 0, None),
        Mismatch("do", "a", 1, None, "\x9b2J", "a", 1, None),
        StepRequest(7, "a", 1, b"{"),
        StepRequest(7, "a", 1, config(backoff="random")),
        StepRequest(7, "a", 1, config(limit=10_001)),
        StepRequest(-7, "a", 1, config()),
        StepRequest(7, "a", 1, config(), "x" * 2_000),
        Go(1, 1),
    ],
)
def test_what_no_correct_guest_sends_is_a_violation_and_changes_nothing(message: Any) -> None:
    world = world_of(failing(0))
    world.slow = True
    world.pump()
    before = world.core.last_seq, world.core.facts()
    with pytest.raises(ProtocolViolation):
        world.core.on_message(1, message, now_us=world.now)
    assert (world.core.last_seq, world.core.facts()) == before
    assert world.core.audit() == []


def test_messages_of_a_lifetime_that_is_over_are_ignored() -> None:
    world = world_of(failing(0))
    world.pump()
    before = world.core.last_seq
    for message in (Done(1, 1, b"1"), StepRequest(9, "a", 1, b"{"), Idle(3)):
        assert world.core.on_message(1, message, now_us=world.now).rows == []
        assert world.core.on_message(77, message, now_us=world.now).rows == []
    assert world.core.last_seq == before


def test_an_idle_that_is_older_than_what_was_sent_is_ignored() -> None:
    async def program(step: StepApi, params: Any) -> Any:
        await step.sleep("nap", 60_000)
        await step.do("work", lambda attempt: 1)

    world = World(program, instance_idle_us=100 * S)
    key = world.create()
    world.pump()
    world.core.note_reply(1)
    world.take(world.core.on_message(1, Idle(1), now_us=world.now))
    assert world.status(key) == "waiting"
    assert world.core.live_count() == 1


def test_a_run_that_waits_for_nothing_that_can_come_is_parked_with_the_reason() -> None:
    world = world_of(failing(0))
    world.slow = True
    world.start_runnable()
    world.guests[1].outbox.clear()
    world.take(world.core.on_message(1, Idle(1), now_us=world.now))
    assert world.status(KEY) == "paused"
    assert world.core.why(KEY)[0] == "run.stuck"
