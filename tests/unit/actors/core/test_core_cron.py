"""Cron: schedules fire by the core's own timers, and a missed firing is caught up once."""

from __future__ import annotations

from typing import Any

import pytest
from core_world import START, S, StepApi, World, payload

from dynamic_workflows.actors.instances.cron import check_cron, missed, next_us
from dynamic_workflows.eventlog.codec import values
from dynamic_workflows.eventlog.errors import InvalidError, LimitExceededError
from dynamic_workflows.loaders.protocol.messages import Run

HOUR = 3_600 * S
HOURLY = "0 * * * *"


async def program(step: StepApi, params: Any) -> Any:
    return params


def scheduled(*crons: str) -> World:
    world = World(program)
    world.now += 60 * S
    world.take(world.core.set_schedules("Job", list(crons), code_hash="h1", now_us=world.now))
    return world


def ids(world: World) -> list[str]:
    return [item["id"] for item in reversed(world.core.list(None, None, 1_000, None)["items"])]


@pytest.mark.behaviour(274)
def test_a_schedule_creates_an_instance_at_each_firing_and_run_sees_when() -> None:
    world = scheduled(HOURLY)
    assert world.core.next_wake_us() == START + HOUR
    world.advance(2 * 3_600)
    assert ids(world) == [
        f"{HOURLY}-{(START + HOUR) // 1000}",
        f"{HOURLY}-{(START + 2 * HOUR) // 1000}",
    ]
    schedule = values.decode(world.sent(Run)[0].schedule)
    assert schedule["cron"] == HOURLY
    assert schedule["scheduled_us"] == START + HOUR
    assert schedule["scheduled_time"].isoformat() == "2026-01-01T01:00:00+00:00"
    assert schedule["missed"] == 0
    queued = next(row for row in world.rows if row.type == "workflow_queued")
    assert payload(queued)["trigger"] == "cron"
    assert world.status(("Job", ids(world)[0])) == "complete"
    assert world.core.pin(("Job", ids(world)[0])) == "latest"


def test_missed_firings_are_caught_up_once_and_it_says_how_many_were_left_out() -> None:
    world = scheduled(HOURLY)
    world.advance(3_600)
    world.now += 5 * HOUR + 7 * S
    world.crash()
    world.pump()
    assert len(ids(world)) == 2
    queued = [row for row in world.rows if row.type == "workflow_queued"][1]
    schedule = values.decode(values.encode(payload(queued)["schedule"]))
    assert schedule["missed"] == 4
    assert ids(world)[1] == f"{HOURLY}-{(START + 6 * HOUR) // 1000}"
    world.crash()
    world.pump()
    assert len(ids(world)) == 2
    world.advance(3_600)
    assert len(ids(world)) == 3


def test_a_schedule_that_is_deleted_and_fired_is_not_fired_again_after_a_crash() -> None:
    world = scheduled(HOURLY)
    world.advance(3_600)
    world.command("delete", ("Job", ids(world)[0]))
    world.crash()
    world.pump()
    assert ids(world) == []


def test_setting_schedules_again_removes_and_keeps() -> None:
    world = scheduled(HOURLY, "30 * * * *")
    world.now += 10 * S
    d = world.core.set_schedules("Job", [HOURLY, "*/5 * * * *"], code_hash="h1", now_us=world.now)
    assert [row.type for row in d.rows] == ["schedule_removed", "schedule_set"]
    world.take(d)
    world.crash()
    assert sorted(cron for _, cron, _ in world.core.schedules()) == ["*/5 * * * *", HOURLY]
    world.take(world.core.set_schedules("Job", [], code_hash="h1", now_us=world.now))
    assert world.core.next_due_us() is None
    new = world.core.set_schedules("Job", [HOURLY], code_hash="h2", now_us=world.now)
    assert [row.code_hash for row in new.rows] == ["h2"]


def declared(world: World, *crons: str, code_hash: str) -> list[str]:
    """Code that declares these is loaded; the types of the rows that this costs."""
    decision = world.core.set_schedules(
        "Job", list(crons), code_hash=code_hash, is_declared=True, now_us=world.now
    )
    world.take(decision)
    return [row.type for row in decision.rows]


def held(world: World) -> list[str]:
    return sorted(cron for _, cron, _ in world.core.schedules())


def test_a_declared_schedule_that_was_removed_by_a_call_stays_removed_while_it_is_declared() -> (
    None
):
    world = World(program)
    declared(world, HOURLY, "30 * * * *", code_hash="h1")
    world.take(world.core.remove_schedule("Job", HOURLY, now_us=world.now))
    assert declared(world, HOURLY, "30 * * * *", code_hash="h1") == []
    world.crash()
    assert declared(world, HOURLY, "30 * * * *", code_hash="h2") == ["schedule_set"]
    assert held(world) == ["30 * * * *"]
    # Without the declaration the removal has done its work, and a new declaration counts.
    declared(world, code_hash="h3")
    assert held(world) == []
    world.crash()
    assert declared(world, code_hash="h3") == []
    declared(world, HOURLY, code_hash="h4")
    assert held(world) == [HOURLY]


def test_a_call_brings_back_what_a_call_removed_and_removing_nothing_costs_nothing() -> None:
    world = World(program)
    assert world.core.remove_schedule("Job", HOURLY, now_us=world.now).rows == []
    declared(world, HOURLY, code_hash="h1")
    world.take(world.core.remove_schedule("Job", HOURLY, now_us=world.now))
    world.take(world.core.set_schedules("Job", [HOURLY], code_hash="h1", now_us=world.now))
    world.crash()
    assert held(world) == [HOURLY]
    assert declared(world, HOURLY, code_hash="h1") == []
    # What is both is removed once and for all.
    world.take(world.core.remove_schedule("Job", HOURLY, now_us=world.now))
    assert declared(world, HOURLY, code_hash="h2") == []
    assert held(world) == []


@pytest.mark.parametrize("cron", ["", "x", "* * *", "0 0 31 2 *", "a" * 300, None, 5, "61 * * * *"])
def test_what_is_no_schedule_is_refused_and_nothing_is_stored(cron: Any) -> None:
    world = World(program)
    with pytest.raises(InvalidError) as caught:
        world.core.set_schedules("Job", [HOURLY, cron], code_hash="h", now_us=START)
    assert caught.value.code == "schedule.invalid"
    assert world.core.last_seq == 0


def test_firings_are_computed_in_utc() -> None:
    assert next_us("0 0 29 2 *", START) == 1_835_395_200 * S  # 2028 is the next leap year.
    assert check_cron("*/10 * * * * *")
    assert next_us("*/10 * * * * *", START) == START + 10 * S
    due = START + HOUR
    assert missed(HOURLY, due, due) == (due, 0)
    assert missed(HOURLY, due, due + 3 * HOUR + 1) == (due + 3 * HOUR, 3)
    assert missed("* * * * * *", START, START + 100_000 * S) == (START + 100_000 * S, 10_000)


def test_schedules_have_a_number_and_one_that_is_set_again_is_no_second_one() -> None:
    world = World(None, schedules_max=2)

    def set_them(*crons: str, workflow: str = "Job", **more: Any) -> None:
        core, now_us = world.core, world.now
        world.take(core.set_schedules(workflow, [*crons], code_hash="h1", now_us=now_us, **more))

    set_them("1 * * * *", "2 * * * *")
    set_them("1 * * * *", "2 * * * *")
    for crons, workflow in (
        (["3 * * * *"], "Other"),
        (["1 * * * *", "2 * * * *", "3 * * * *"], "Job"),
    ):
        with pytest.raises(LimitExceededError, match="schedules_max"):
            set_them(*crons, workflow=workflow)
    set_them("1 * * * *", "3 * * * *")
    set_them("4 * * * *", workflow="Other", is_declared=True)
    assert len(world.core.schedules()) == 2
    set_them("1 * * * *")
    set_them("4 * * * *", "5 * * * *", workflow="Other", is_declared=True)
    assert [cron for _, cron, _ in world.core.schedules()] == ["1 * * * *", "4 * * * *"]


def test_a_firing_makes_no_instance_more_than_there_may_be() -> None:
    world = World(None, instances_max=1)
    world.take(world.core.set_schedules("Job", ["* * * * *"], code_hash="h1", now_us=world.now))
    for _ in range(3):
        world.now += 60 * S
        world.take(world.core.due(world.now))
    assert sum(world.core.counts().values()) == 1
    assert [row.type for row in world.rows].count("timer_fired") == 3
