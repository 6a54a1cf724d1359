"""The state machine: each line of the table is walked on a real core, from each of its sources."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from core_world import Fatal, StepApi, World

from dynamic_workflows.actors.instances.state_machine import (
    MOVES,
    NONE,
    SAME,
    TABLE,
    Transition,
    after,
)
from dynamic_workflows.eventlog.errors import InstanceError
from dynamic_workflows.loaders.protocol.contract import STATUSES

KEY = ("Job", "i")


async def program(step: StepApi, params: Any) -> Any:
    """Ends as told; undone by a handler that does nothing."""
    await step.do("first", undo=lambda message: None)
    if params == "fail":
        raise Fatal("no")
    if params == "quick":
        return "output"
    await step.wait("w", "go")
    await step.do("slow")
    return "output"


def arrange(status: str, *, running_max: int = 10) -> World:
    """A world whose instance has this status, by ordinary means."""
    world = World(program, running_max=running_max)
    if status == NONE:
        return world
    params = {"errored": "fail", "complete": "quick"}.get(status)
    world.create("i", params)
    if status == "queued":
        return world
    world.pump()
    if status == "paused":
        world.command("pause", KEY)
    elif status == "terminated":
        world.command("terminate", KEY, rollback=False)
    elif status in ("running", "waitingForPause"):
        world.slow = True
        world.send_event(KEY, "go")
        world.pump()
        if status == "waitingForPause":
            world.command("pause", KEY)
    assert world.status(KEY) == status
    return world


def wake(world: World) -> None:
    world.slow = True
    world.send_event(KEY, "go")
    world.pump()


def resume_started(world: World) -> None:
    """From queued, one that has run before: pause and resume lead there."""
    world.pump()
    world.command("pause", KEY)
    world.command("resume", KEY)
    assert world.status(KEY) == "queued"
    world.rows_before = len(world.rows)  # type: ignore[attr-defined]
    world.start_runnable()


def idle(world: World) -> None:
    """Once more from the top, up to the moment before it waits."""
    world.command("restart", KEY, from_=None)
    world.slow = False
    world.start_runnable()
    world.rows_before = len(world.rows)  # type: ignore[attr-defined]
    world.pump()


def end(world: World, error: bool = False) -> None:
    from dynamic_workflows.loaders.protocol.messages import End, Error

    life = next(iter(world.guests))
    message = End(None, Error("E", "no")) if error else End(b'"output"')
    world.take(world.core.on_message(life, message, now_us=world.now))
    world.slow = False
    world.pump()


def settled(world: World) -> None:
    world.finish()
    world.pump()


def pause_while_busy(world: World) -> None:
    world.command("pause", KEY)


def pause_at_rest(world: World) -> None:
    if world.status(KEY) == "running":
        world.guests.clear()
        world.crash()  # Running, and no lifetime yet.
        world.rows_before = len(world.rows)  # type: ignore[attr-defined]
    world.command("pause", KEY)


def refuse(command: str, code: str, **more: Any) -> Callable[[World], None]:
    def act(world: World) -> None:
        before = world.core.last_seq
        with pytest.raises(InstanceError) as caught:
            world.command(command, KEY, **more)
        assert caught.value.code == code
        assert world.core.last_seq == before

    return act


def retain(world: World) -> None:
    world.advance(31 * 86_400)


def no_ops(world: World) -> None:
    world.command("pause", KEY)
    world.command("resume", KEY)


ACTS: dict[str, Callable[[World], Any]] = {
    "T1": lambda world: world.create("i", None),
    "T2": lambda world: world.start_runnable(),
    "T3": idle,
    "T4": wake,
    "T5": lambda world: None,  # Its own test below: it needs a second instance.
    "T6": pause_while_busy,
    "T6b": lambda world: world.command("pause", KEY),
    "T6c": pause_at_rest,
    "T7": settled,
    "T8": lambda world: world.command("resume", KEY),
    "T9": lambda world: world.crash(),
    "T10": lambda world: world.command("resume", KEY),
    "T10b": resume_started,
    "T11": lambda world: world.send_event(KEY, "go"),
    "T12": end,
    "T13": lambda world: end(world, error=True),
    "T15": lambda world: world.command("terminate", KEY, rollback=False),
    "T15b": lambda world: world.command("terminate", KEY, rollback=True),
    "T16": refuse("terminate", "instance.cannot_terminate", rollback=False),
    "T17": lambda world: world.command("restart", KEY, from_=None),
    "T18": lambda world: world.command("restart", KEY, from_={"name": "first"}),
    "T19": refuse("restart", "instance.cannot_restart", from_={"name": "nobody"}),
    "T20": lambda world: world.command("delete", KEY),
    "T21": lambda world: world.crash(),
    "T22": no_ops,
    "T23": retain,
    "P1": lambda world: world.command("park", KEY, "code", "message"),
}

# Sources that a line names and that nothing leads from: an instance without a recorded step has
# nothing to restart from or to roll back, and a waiting lifetime says something before it ends.
OUT_OF_REACH = {("T18", "queued"), ("T15b", "queued"), ("T12", "waiting"), ("T13", "waiting")}

WALKS = [
    (transition, source)
    for transition in TABLE
    for source in sorted(transition.sources)
    if (transition.name, source) not in OUT_OF_REACH and transition.name != "T5"
]


@pytest.mark.behaviour(55, 57, 188, 192, 204, 206, 199, 20)
@pytest.mark.parametrize(
    ("transition", "source"),
    WALKS,
    ids=[f"{transition.name}-{source}" for transition, source in WALKS],
)
def test_every_line_of_the_table_leads_where_it_says(transition: Transition, source: str) -> None:
    world = arrange(source)
    world.rows_before = len(world.rows)  # type: ignore[attr-defined]
    ACTS[transition.name](world)
    written = [row.type for row in world.rows[world.rows_before :]]  # type: ignore[attr-defined]
    expected = source if transition.target == SAME else transition.target
    if expected == NONE:
        assert not world.core.exists(KEY)
    else:
        assert world.status(KEY) == expected
    for kind in transition.rows:
        assert kind in written, f"{kind} is missing from {written}"
    if not transition.rows:
        assert not any(kind in MOVES for kind in written)


def test_every_line_has_a_walk() -> None:
    assert set(ACTS) == {transition.name for transition in TABLE}


@pytest.mark.behaviour(52, 53)
def test_a_woken_instance_without_a_slot_is_shown_as_queued_and_starts_before_new_ones() -> None:
    world = arrange("waiting", running_max=1)
    world.slow = True
    world.create("busy", "quick")
    world.pump()
    world.create("new", "quick")
    world.send_event(KEY, "go")
    assert world.status(KEY) == "queued"
    world.finish()
    while world.status(("Job", "busy")) != "complete":
        world.deliver()
    world.start_runnable()
    assert world.status(KEY) == "running"
    assert world.status(("Job", "new")) == "queued"


def test_the_table_knows_every_status_and_forgets_no_way_out_of_an_open_one() -> None:
    assert {transition.target for transition in TABLE} - {SAME, NONE} == STATUSES
    for status in STATUSES:
        assert any(status in transition.sources and transition.rows for transition in TABLE)


def test_a_move_that_is_not_in_the_table_is_a_bug() -> None:
    with pytest.raises(AssertionError):
        after("complete", "workflow_running")
    with pytest.raises(AssertionError):
        after("errored", "workflow_completed")
    assert after("running", "step_started") == "running"
