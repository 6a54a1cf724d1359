"""What the code cancels is over for the core, and ends are numbered as the code saw them."""

from __future__ import annotations

from typing import Any

import pytest
from core_world import Guest, StepApi, World

from dynamic_workflows.loaders.protocol.messages import (
    Cancel,
    Cancelled,
    Done,
    ProtocolViolation,
    Run,
    RunTimerFired,
    Sleep,
    StepOutcome,
    StepRequest,
    Wait,
)

KEY = ("Job", "i")
CONFIG = b'{"retries":{"limit":5,"delay_ms":10000,"backoff":"exponential"},"timeout_ms":600000}'


def told(world: World, *messages: Any) -> None:
    """The guest of the present lifetime says this."""
    life = world.life(KEY)
    assert life is not None
    for message in messages:
        world.take(world.core.on_message(life, message, now_us=world.now))


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    """An instance whose guest says only what the test says."""
    monkeypatch.setattr(Guest, "receive", lambda guest, message: None)

    async def program(step: StepApi, params: Any) -> Any:
        return None

    world = World(program)
    world.create()
    for key in list(world.core.runnable()):
        world.take(world.core.start(key, now_us=world.now))
    return world


def order(world: World) -> list[tuple[str, str, int]]:
    """The ends of history, as a replay is told of them."""
    world.crash()
    for key in list(world.core.runnable()):
        world.take(world.core.start(key, now_us=world.now))
    history = world.sent(Run)[-1].history
    ended = sorted((known.ended, known) for known in history if known.outcome)
    return [(known.kind, known.name, known.outcome) for _, known in ended]


def test_a_cancelled_wait_takes_no_event_and_the_next_one_does(world: World) -> None:
    told(world, Wait(1, "w", 1, "note", 60_000), Cancelled(1, "wait_for_event", "w", 1))
    world.send_event(KEY, "note", "A")
    assert not world.sent(StepOutcome)
    told(world, Wait(2, "w", 2, "note", 60_000))
    assert [answer.token for answer in world.sent(StepOutcome)] == [2]
    assert world.types(KEY)[2:] == [
        "wait_started", "wait_cancelled", "event_received", "wait_started", "wait_completed",
    ]  # fmt: skip


def test_an_event_that_crossed_its_cancellation_is_kept_for_another_wait(world: World) -> None:
    told(world, Wait(1, "w", 1, "note", 60_000))
    world.send_event(KEY, "note", "A")
    world.send_event(KEY, "note", "B")
    told(world, Cancelled(1, "wait_for_event", "w", 1))
    world.replayed()
    told(world, Wait(2, "w", 2, "note", 60_000), Wait(3, "w", 3, "note", 60_000))
    answers = [answer.value for answer in world.sent(StepOutcome)]
    assert [b'"A"' in value for value in answers] == [True, True, False]
    assert order(world)[0] == ("wait_for_event", "w", 3)


def test_a_cancelled_sleep_has_no_timer(world: World) -> None:
    told(world, Sleep(1, "s", 1, 60_000), Cancelled(1, "sleep", "s", 1))
    assert world.core.next_due_us() is None
    assert world.types(KEY)[-1] == "sleep_cancelled"


def test_the_attempt_of_a_cancelled_step_is_cancelled(world: World) -> None:
    told(world, StepRequest(1, "d", 1, CONFIG), Cancelled(1, "do", "d", 1))
    assert [(c.token, c.attempt) for c in world.sent(Cancel)] == [(1, 1)]
    assert world.types(KEY)[-2:] == ["attempt_cancelled", "step_cancelled"]
    told(world, Cancelled(1, "do", "d", 1), Cancelled(9, "do", "unknown", 1))
    assert len(world.sent(Cancel)) == 1
    assert order(world) == [("do", "d", 3)]


def test_an_end_that_is_sent_before_an_answer_is_heard_comes_before_it(world: World) -> None:
    told(world, StepRequest(1, "d", 1, CONFIG), Wait(2, "w", 1, "note", 60_000))
    told(world, StepRequest(3, "e", 1, CONFIG))
    world.send_event(KEY, "note", "A")
    told(world, Done(1, 1, b"1", 0), RunTimerFired(1, None, 0), Done(3, 1, b"2", 1))
    assert order(world) == [
        ("do", "d", 1), ("timer", "", 1), ("wait_for_event", "w", 1), ("do", "e", 1),
    ]  # fmt: skip


def test_a_guest_that_lies_about_timers_or_answers_is_found_out(world: World) -> None:
    told(world, StepRequest(1, "d", 1, CONFIG), RunTimerFired(1))
    for lie in (RunTimerFired(1), RunTimerFired(0), RunTimerFired(2, None, 5), Done(1, 1, b"1", 7)):
        with pytest.raises(ProtocolViolation):
            told(world, lie)
