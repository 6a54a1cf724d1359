"""What stands in the rows, what a status says, and what a change of code leaves alone."""

from __future__ import annotations

import re
from typing import Any

import pytest
from core_world import START, S, StepApi, StepFailed, World, config, payload
from paths import DOCS

from dynamic_workflows.eventlog.errors import InstanceError
from dynamic_workflows.eventlog.events import INSTANCE_TYPES
from dynamic_workflows.loaders.protocol.messages import AttemptFailed, Done, End, Error

KEY = ("Job", "i")


async def one_step(step: StepApi, params: Any) -> Any:
    return await step.do("work", lambda attempt: attempt)


@pytest.mark.behaviour(33, 34, 54)
def test_a_status_has_an_output_when_the_run_is_complete_and_not_before() -> None:
    world = World(one_step)
    key = world.create()
    for expected in ("queued", "running"):
        data = world.core.status(key)
        assert data is not None
        assert (data.status, data.output, data.error) == (expected, None, None)
        world.start_runnable()
    world.pump()
    data = world.core.status(key)
    assert data is not None
    assert (data.status, data.output, data.error) == ("complete", b"1", None)


@pytest.mark.behaviour(35, 94)
def test_the_status_of_an_errored_run_has_the_name_and_the_message_of_its_error() -> None:
    async def program(step: StepApi, params: Any) -> Any:
        raise LookupError("no such thing")

    world = World(program)
    key = world.create()
    world.pump()
    assert world.status(key) == "errored"
    assert (world.error(key).name, world.error(key).message) == ("LookupError", "no such thing")


@pytest.mark.behaviour(38)
def test_while_it_rolls_back_the_status_is_running_and_afterwards_it_says_how_it_went() -> None:
    async def program(step: StepApi, params: Any) -> Any:
        await step.do("work", undo=lambda message: None)
        raise ValueError("no")

    world = World(program)
    key = world.create()
    world.start_runnable()
    while "rollback_started" not in world.types(key):
        world.deliver()
    data = world.core.status(key)
    assert data is not None
    assert (data.status, data.rollback_outcome) == ("running", None)
    world.pump()
    data = world.core.status(key)
    assert data is not None
    assert (data.status, data.rollback_outcome) == ("errored", "complete")


@pytest.mark.behaviour(31)
@pytest.mark.parametrize("command", ["pause", "terminate", "restart"])
def test_a_status_is_answered_whatever_became_of_the_lifetime(command: str) -> None:
    async def program(step: StepApi, params: Any) -> Any:
        await step.wait("w", "go")

    world = World(program)
    key = world.create()
    world.pump()
    more: Any = {"terminate": {"rollback": False}, "restart": {"from_": None}}.get(command, {})
    world.command(command, key, **more)
    wanted = {"pause": "paused", "terminate": "terminated", "restart": "queued"}
    assert world.status(key) == wanted[command]


@pytest.mark.behaviour(167, 203)
@pytest.mark.parametrize("command", ["restart", "send_event", "terminate", "pause", "resume"])
def test_a_deleted_instance_is_unknown_to_every_command(command: str) -> None:
    world = World(one_step)
    key = world.create()
    world.command("delete", key)
    more: Any = {"terminate": {"rollback": False}, "restart": {"from_": None}}.get(command, {})
    args = ("go", b"1") if command == "send_event" else ()
    with pytest.raises(InstanceError) as caught:
        world.command(command, key, *args, **more)
    assert caught.value.code == "instance.not_found"


@pytest.mark.behaviour(246)
def test_a_second_start_of_a_running_instance_starts_nothing() -> None:
    world = World(one_step)
    key = world.create()
    assert world.take(world.core.start(key, now_us=world.now)) == 1
    again = world.core.start(key, now_us=world.now)
    assert (again.answer, again.rows, again.effects) == (None, [], [])


@pytest.mark.behaviour(247)
def test_an_outcome_and_what_it_means_are_one_row_and_durable() -> None:
    world = World(one_step)
    world.slow = True
    key = world.create()
    world.pump()
    d = world.core.on_message(1, Done(1, 1, b"7"), now_us=world.now)
    assert [row.type for row in d.rows] == ["step_completed"]
    assert d.durable
    world.take(d)
    assert world.types(key)[-2:] == ["attempt_completed", "step_completed"]
    end = world.core.on_message(1, End(b"8"), now_us=world.now)
    assert end.durable
    world.take(end)


@pytest.mark.behaviour(262, 263, 264, 265)
def test_rows_are_numbered_in_order_and_say_what_happened_and_when() -> None:
    async def program(step: StepApi, params: Any) -> Any:
        await step.do("work", undo=lambda message: None)

    world = World(program)
    key = world.create("i", {"n": 1}, metadata=b'{"tenant":"acme"}', token="t")
    world.now += 5 * S
    world.pump()
    rows = world.history(key)
    assert [row.seq for row in rows] == list(range(1, len(rows) + 1))
    assert {row.type for row in rows} <= INSTANCE_TYPES
    queued, started, step = rows[0], rows[1], rows[2]
    assert payload(queued) == {"params": {"n": 1}, "trigger": "create", "token": "t"}
    assert (queued.code_hash, queued.metadata, queued.ts) == ("h1", b'{"tenant":"acme"}', START)
    assert (started.type, started.ts) == ("workflow_started", START + 5 * S)
    assert payload(step)["rollback"] is True
    assert payload(step)["at"] == "job.py:1"
    assert payload(step)["config"]["retries"]["limit"] == 0


def test_the_newest_code_that_an_instance_follows_stands_in_its_start() -> None:
    world = World(one_step)
    key = world.create(pin="latest")
    assert world.core.pin(key) == "latest"
    world.core.repin(key, "h2")
    world.pump()
    assert [row.code_hash for row in world.history(key)[:2]] == ["h1", "h2"]
    world.crash()
    assert world.core.code_hash(key) == "h2"


@pytest.mark.behaviour(145, 227, 260)
def test_only_do_steps_count_toward_the_limit() -> None:
    async def program(step: StepApi, params: Any) -> Any:
        for _ in range(5):
            await step.sleep("nap", 0)
            try:
                await step.wait("w", "go", 1_000)
            except StepFailed:
                pass
        for _ in range(2):
            await step.do("work", undo=lambda message: None)
        raise ValueError("now undo")

    world = World(program, steps_max=2)
    key = world.create()
    world.advance(5)
    data = world.core.status(key)
    assert data is not None
    assert (data.status, data.rollback_outcome) == ("errored", "complete")


@pytest.mark.behaviour(107, 108)
def test_a_non_retryable_error_is_known_by_its_class_even_with_an_empty_message() -> None:
    async def program(step: StepApi, params: Any) -> Any:
        await step.do("work", config=config(limit=5))

    world = World(program)
    world.slow = True
    key = world.create()
    world.pump()
    error = Error("NonRetryableError", "", "dynamic_workflows")
    world.take(world.core.on_message(1, AttemptFailed(1, 1, error), now_us=world.now))
    world.pump()
    assert world.status(key) == "errored"
    assert world.error(key) == error
    assert world.types(key).count("attempt_started") == 1


@pytest.mark.behaviour(241)
def test_a_crash_in_the_last_attempt_leaves_one_more() -> None:
    async def program(step: StepApi, params: Any) -> Any:
        return await step.do("work", lambda attempt: attempt, config(limit=0))

    world = World(program)
    world.slow = True
    key = world.create()
    world.pump()
    world.crash()
    world.slow = False
    world.pump()
    assert world.output(key) == 2


@pytest.mark.behaviour(143)
def test_a_sleep_whose_length_changes_in_the_code_keeps_the_end_that_it_began_with() -> None:
    lengths = iter([60_000, 5_000])

    async def program(step: StepApi, params: Any) -> Any:
        await step.sleep("nap", next(lengths))

    world = World(program)
    key = world.create()
    world.pump()
    world.crash()
    world.command("pause", key)
    world.command("resume", key)
    world.pump()
    world.advance(59)
    assert world.status(key) == "waiting"
    world.now += S
    world.take(world.core.due(world.now))
    assert list(world.core.runnable()) == [key]


@pytest.mark.behaviour(168)
def test_a_wait_is_known_by_its_name_and_not_by_the_type_it_waits_for() -> None:
    types = iter(["old", "new"])

    async def program(step: StepApi, params: Any) -> Any:
        event = await step.wait("w", next(types))
        await step.sleep("nap", 60_000)
        return event["type"]

    world = World(program)
    key = world.create()
    world.pump()
    world.send_event(key, "old")
    world.pump()
    world.crash()
    world.advance(60)
    assert world.output(key) == "old"


@pytest.mark.behaviour(238, 242)
def test_what_stands_outside_steps_runs_again_and_steps_do_not() -> None:
    ran: list[str] = []

    async def program(step: StepApi, params: Any) -> Any:
        ran.append("outside")
        await step.do("work", lambda attempt: ran.append("step"))
        await step.sleep("nap", 60_000)

    world = World(program)
    world.create()
    world.pump()
    world.crash()
    world.advance(60)
    assert ran == ["outside", "step", "outside"]


def test_the_audit_finds_an_instance_that_nothing_will_wake_and_the_repair_wakes_it() -> None:
    async def program(step: StepApi, params: Any) -> Any:
        await step.sleep("nap", 60_000)
        return "woke"

    world = World(program)
    key = world.create()
    world.pump()
    summary = world.core.state.find(key)
    world.core.state.cancel_timer(summary)  # As a bug would.
    assert "nothing will wake it" in world.core.audit()[0]
    world.core.repair(world.now)
    assert world.core.audit() == []
    world.advance(60)
    assert world.output(key) == "woke"


def test_a_replay_of_many_sleepers_keeps_only_when_they_wake() -> None:
    from dynamic_workflows.actors.core import log_replay as module

    async def program(step: StepApi, params: Any) -> Any:
        await step.sleep("nap", 60_000 * (params + 1))
        return params

    world = World(program)
    keys = [world.create(f"i{n}", n) for n in range(6)]
    world.pump()
    limit = module._SLEEPERS_LOADED_MAX
    module._SLEEPERS_LOADED_MAX = 2
    try:
        world.crash()
    finally:
        module._SLEEPERS_LOADED_MAX = limit
    assert [world.core.is_loaded(key) for key in keys] == [True] * 2 + [False] * 4
    assert world.core.audit() == []
    assert world.core.next_due_us() == START + 60 * S
    world.advance(600)
    assert [world.output(key) for key in keys] == list(range(6))


def test_the_table_of_types_in_the_docs_names_each_of_ours_once() -> None:
    page = DOCS / "events.md"
    lines = page.read_text().partition("## The types beside")[2].splitlines()
    cells = [line.split("|")[3] for line in lines if line.startswith("| ")][1:]
    named = [name for cell in cells for name in re.findall(r"`(\w+)`", cell)]
    assert sorted(named) == sorted(INSTANCE_TYPES)
