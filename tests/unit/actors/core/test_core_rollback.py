"""Rollback: what was started is compensated, newest start first, durably."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
from core_world import Fatal, S, StepApi, StepFailed, World, config, gather, payload

from dynamic_workflows.loaders.protocol.messages import Error, Run, StepOutcome, StepRequest, Undo

KEY = ("Job", "i")


class Trip:
    """A program of three bookings that fails at the end, and what was undone of it."""

    def __init__(self, **settings: Any) -> None:
        self.undone: list[str] = []
        self.seen: list[Undo] = []
        self.failures: dict[str, int] = {}
        self.undo_config: bytes | None = None
        self.then: Any = ValueError("sold out")
        self.world = World(self.run, **settings)
        self.world.create()

    async def run(self, step: StepApi, params: Any) -> Any:
        for name in ("flight", "hotel", "car"):
            book = partial(self.book, name)
            await step.do(name, book, undo=self.undo, undo_config=self.undo_config)
        await step.do("plain")
        if self.then == "wait":
            await step.wait("w", "go")
        elif self.then is not None:
            raise self.then
        return "done"

    def book(self, name: str, attempt: int) -> str:
        return f"{name}!"

    def undo(self, message: Undo) -> None:
        self.seen.append(message)
        if self.failures.get(message.name, 0) > 0:
            self.failures[message.name] -= 1
            raise OSError(f"cannot undo {message.name}")
        self.undone.append(message.name)

    def rollback_types(self) -> list[str]:
        return [kind for kind in self.world.types(KEY) if kind.startswith("rollback")]


@pytest.mark.behaviour(212, 215, 218, 225, 266)
def test_a_failed_run_undoes_its_steps_in_the_reverse_order_of_their_start() -> None:
    trip = Trip()
    trip.world.pump()
    assert trip.undone == ["car", "hotel", "flight"]
    data = trip.world.core.status(KEY)
    assert data is not None
    assert (data.status, data.rollback_outcome, data.rollback_error) == (
        "errored",
        "complete",
        None,
    )
    assert data.error is not None
    assert data.error.message == "sold out"
    assert trip.rollback_types() == [
        "rollback_started",
        *[
            "rollback_step_started",
            "rollback_attempt_started",
            "rollback_attempt_completed",
            "rollback_step_completed",
        ]
        * 3,
        "rollback_completed",
    ]
    rows = trip.world.history(KEY)
    assert rows[-1].type == "workflow_errored"
    assert payload(rows[-1])["rollback"] == {"outcome": "complete"}
    assert payload(rows[-2]) == {"total": 3, "completed": 3}


@pytest.mark.behaviour(219)
def test_a_handler_gets_the_cause_the_output_and_the_last_attempt() -> None:
    trip = Trip()
    trip.world.pump()
    message = trip.seen[0]
    assert (message.name, message.count, message.attempt, message.step_attempt) == ("car", 1, 1, 1)
    assert message.output == b'"car!"'
    assert message.error.message == "sold out"


@pytest.mark.behaviour(213, 214)
def test_a_run_that_completes_undoes_nothing() -> None:
    trip = Trip()
    trip.then = None
    trip.world.pump()
    assert trip.undone == []
    assert trip.world.output(KEY) == "done"
    assert trip.rollback_types() == []


@pytest.mark.behaviour(226)
def test_with_nothing_to_undo_there_are_no_rollback_rows() -> None:
    async def program(step: StepApi, params: Any) -> Any:
        await step.do("plain")
        raise ValueError("no")

    world = World(program)
    key = world.create()
    world.pump()
    data = world.core.status(key)
    assert data is not None
    assert data.rollback_outcome is None
    assert not [kind for kind in world.types(key) if kind.startswith("rollback")]


@pytest.mark.behaviour(216, 217)
def test_failed_and_unfinished_steps_are_undone_too() -> None:
    undone: list[tuple[str, bytes | None]] = []

    def undo(message: Undo) -> None:
        undone.append((message.name, message.output))

    def fails(attempt: int) -> Any:
        raise Fatal("no")

    async def slow(step: StepApi) -> None:
        await step.do("unfinished", undo=undo)

    async def failing(step: StepApi) -> None:
        await step.do("failed", fails, undo=undo)

    async def program(step: StepApi, params: Any) -> Any:
        await gather(slow(step), failing(step))

    world = World(program)
    key = world.create()
    world.slow = True
    world.pump()
    guest = next(iter(world.guests.values()))
    guest.running.reverse()
    world.finish()
    # The other branch still runs: the run ends by itself, as it does in a real event loop.
    from dynamic_workflows.loaders.protocol.messages import End

    guest.outbox.append(End(None, Error("Fatal", "no")))
    world.pump()
    assert undone == [("failed", None), ("unfinished", None)]
    assert world.status(key) == "errored"


@pytest.mark.behaviour(221, 222, 223)
def test_a_handler_is_retried_by_its_own_config() -> None:
    trip = Trip()
    trip.undo_config = config(limit=2, delay_ms=1_000)
    trip.failures = {"hotel": 2}
    trip.world.pump()
    assert trip.undone == ["car"]
    assert trip.world.status(KEY) == "running"
    trip.world.advance(1)
    trip.world.crash()
    trip.world.advance(1)
    assert trip.undone == ["car", "hotel", "flight"]
    rows = [row for row in trip.world.history(KEY) if row.type == "rollback_attempt_errored"]
    assert [(row.step, row.attempt) for row in rows] == [("hotel", 1), ("hotel", 2)]


@pytest.mark.behaviour(221)
def test_without_a_config_a_handler_is_retried_as_steps_are() -> None:
    trip = Trip()
    trip.failures = {"car": 5}
    trip.world.pump()
    trip.world.advance(10 + 20 + 40 + 80 + 159.9)
    assert trip.undone == []
    trip.world.advance(0.1)
    assert trip.undone == ["car", "hotel", "flight"]


@pytest.mark.behaviour(224)
def test_a_handler_that_fails_for_good_stops_the_chain() -> None:
    trip = Trip()
    trip.undo_config = config(limit=0)
    trip.failures = {"hotel": 1}
    trip.world.pump()
    assert trip.undone == ["car"]
    data = trip.world.core.status(KEY)
    assert data is not None
    assert (data.status, data.rollback_outcome) == ("errored", "failed")
    assert data.rollback_error is not None
    assert data.rollback_error.message == "cannot undo hotel"
    rows = trip.world.history(KEY)
    assert payload(rows[-2])["completed"] == 1
    assert payload(rows[-2])["total"] == 3


@pytest.mark.behaviour(207, 208, 220, 230, 231, 232)
@pytest.mark.parametrize("moment", ["waiting", "paused", "evicted", "crashed"])
def test_terminate_with_rollback_registers_the_handlers_again_and_undoes(moment: str) -> None:
    trip = Trip(instance_idle_us=0 if moment == "evicted" else 5 * S)
    trip.then = "wait"
    world = trip.world
    world.pump()
    if moment == "paused":
        world.command("pause", KEY)
    elif moment == "evicted":
        world.core.evict(KEY)
    elif moment == "crashed":
        world.crash()
    world.command("terminate", KEY, rollback=True)
    assert world.status(KEY) == "running"
    world.pump()
    assert trip.undone == ["car", "hotel", "flight"]
    assert trip.seen[0].error.name == "Terminated"
    data = world.core.status(KEY)
    assert data is not None
    assert (data.status, data.rollback_outcome) == ("terminated", "complete")
    assert world.sent(Run)[-1].mode == "rollback"


@pytest.mark.behaviour(209)
def test_a_terminate_whose_rollback_fails_is_terminated_all_the_same() -> None:
    trip = Trip()
    trip.then = "wait"
    trip.undo_config = config(limit=0)
    trip.failures = {"car": 1}
    trip.world.pump()
    trip.world.command("terminate", KEY, rollback=True)
    trip.world.pump()
    data = trip.world.core.status(KEY)
    assert data is not None
    assert (data.status, data.rollback_outcome) == ("terminated", "failed")


@pytest.mark.behaviour(229)
def test_a_crash_at_each_point_of_a_rollback_undoes_everything_once_recorded_only_once() -> None:
    point = 0
    while True:
        trip = Trip()
        trip.then = "wait" if point % 2 else ValueError("no")
        world = trip.world
        moves = 0
        crashed = False
        while world.status(KEY) not in ("errored", "terminated"):
            if moves == point:
                world.crash()
                crashed = True
            moves += 1
            if not (world.start_runnable() or world.deliver()):
                if world.status(KEY) == "waiting":
                    world.command("terminate", KEY, rollback=True)
                else:
                    assert world.advance_to_next()
        rows = world.history(KEY)
        done = [row.step for row in rows if row.type == "rollback_step_completed"]
        assert done == ["car", "hotel", "flight"]
        started = [row.step for row in rows if row.type == "rollback_step_started"]
        assert started == done
        if not crashed:
            break
        point += 1
    assert point > 15


@pytest.mark.behaviour(234)
def test_a_handler_that_the_code_has_no_more_fails_the_rollback() -> None:
    trip = Trip()
    trip.then = "wait"
    trip.world.pump()

    async def without(step: StepApi, params: Any) -> Any:
        await step.do("flight")

    trip.world.programs["Job"] = without
    trip.world.command("terminate", KEY, rollback=True)
    trip.world.pump()
    data = trip.world.core.status(KEY)
    assert data is not None
    assert data.status == "terminated"
    assert data.rollback_error is not None
    assert data.rollback_error.name == "RollbackMissing"


@pytest.mark.behaviour(236)
def test_a_step_that_is_asked_for_in_a_rollback_is_refused() -> None:
    trip = Trip()
    trip.then = "wait"
    trip.world.pump()
    trip.world.command("terminate", KEY, rollback=True)
    trip.world.start_runnable()
    life = next(iter(trip.world.guests))
    d = trip.world.core.on_message(life, StepRequest(70, "new", 1, config()), now_us=trip.world.now)
    answer = d.effects[0].message  # type: ignore[union-attr]
    assert isinstance(answer, StepOutcome)
    assert answer.error is not None
    assert answer.error.name == "WorkflowFatalError"
    assert d.rows == []


@pytest.mark.behaviour(228)
@pytest.mark.parametrize("command", ["delete", "terminate", "restart"])
def test_no_handler_runs_without_being_asked_for(command: str) -> None:
    trip = Trip()
    trip.then = "wait"
    trip.world.pump()
    more: Any = {"terminate": {"rollback": False}, "restart": {"from_": None}}.get(command, {})
    trip.world.command(command, KEY, **more)
    trip.world.pump()
    assert trip.undone == []


def test_a_rollback_that_has_begun_is_not_begun_again_paused_or_undone_by_an_event() -> None:
    trip = Trip()
    trip.undo_config = config(limit=1, delay_ms=60_000)
    trip.failures = {"car": 1}
    world = trip.world
    world.pump()
    before = world.core.last_seq
    world.command("pause", KEY)
    world.command("terminate", KEY, rollback=True)
    assert world.core.last_seq == before
    world.send_event(KEY, "go")
    world.advance(60)
    assert trip.undone == ["car", "hotel", "flight"]
    assert world.status(KEY) == "errored"


def test_a_plain_terminate_cuts_a_rollback_short_and_says_so() -> None:
    trip = Trip()
    trip.undo_config = config(limit=1, delay_ms=60_000)
    trip.failures = {"hotel": 1}
    trip.world.pump()
    trip.world.command("terminate", KEY, rollback=False)
    data = trip.world.core.status(KEY)
    assert data is not None
    assert (data.status, data.rollback_outcome) == ("terminated", "failed")
    assert trip.undone == ["car"]


def test_a_handler_that_takes_too_long_is_cancelled_and_tried_again() -> None:
    trip = Trip()
    trip.undo_config = config(limit=1, delay_ms=0, timeout_ms=5_000)
    world = trip.world
    hang = [True]
    plain = trip.undo

    def undo(message: Undo) -> None:
        if hang[0]:
            hang[0] = False
            raise TimeoutError
        plain(message)

    trip.undo = undo  # type: ignore[method-assign]
    world.pump()
    assert trip.undone == ["car", "hotel", "flight"]


@pytest.mark.behaviour(201)
def test_after_a_restart_from_a_step_a_rollback_can_run_again() -> None:
    trip = Trip()
    world = trip.world
    world.pump()
    assert trip.undone == ["car", "hotel", "flight"]
    world.command("restart", KEY, from_={"name": "car"})
    world.crash()
    world.pump()
    assert trip.undone == ["car", "hotel", "flight"] * 2
    data = world.core.status(KEY)
    assert data is None or data.status == "errored"


@pytest.mark.behaviour(250)
def test_a_caught_failure_of_a_branch_undoes_nothing() -> None:
    def fails(attempt: int) -> Any:
        raise Fatal("no")

    undone: list[str] = []

    async def program(step: StepApi, params: Any) -> Any:
        await step.do("a", undo=lambda message: undone.append("a"))
        try:
            await step.do("b", fails, undo=lambda message: undone.append("b"))
        except StepFailed:
            return "caught"

    world = World(program)
    key = world.create()
    world.pump()
    assert world.output(key) == "caught"
    assert undone == []
