"""What runs hold in memory has a bound: for each run by refusal, for a tenant by making it wait."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from core_world import StepApi, StepFailed, World, gather

import dynamic_workflows as dw
from dynamic_workflows.actors.core.memory_budget import MemoryBudget
from dynamic_workflows.actors.in_process.local_platform import LocalPlatform
from dynamic_workflows.eventlog.store.open_store import open_store
from dynamic_workflows.loaders.sdk.binding import WorkflowBinding

KEY = ("Job", "i")
MIB = 1024 * 1024


def limits_of(world: World) -> list[str]:
    """The steps that failed with the limit."""
    rows = [row for row in world.history(KEY) if row.type in ("step_errored", "wait_timed_out")]
    assert all(b"LimitExceededError" in (row.payload or b"") for row in rows)
    return [row.step or "" for row in rows]


@pytest.mark.behaviour(119)
def test_a_result_that_is_too_much_fails_its_step_and_replays_so() -> None:
    async def program(step: StepApi, params: Any) -> Any:
        got = [await step.do("first", lambda attempt: "x" * 40_000)]
        try:
            got.append(await step.do("second", lambda attempt: "y" * 40_000))
        except StepFailed as failed:
            got.append(failed.error.name)
        got.append(await step.do("small", lambda attempt: "z"))
        return [len(one) if len(one) > 100 else one for one in got]

    world = World(program, state_bytes_max=65_536)
    world.create()
    world.pump()
    world.crash()
    world.pump()
    assert world.output(KEY) == [40_000, "LimitExceededError", "z"]
    assert limits_of(world) == ["second"]


def test_a_run_that_does_not_catch_it_fails_with_the_limit() -> None:
    async def program(step: StepApi, params: Any) -> Any:
        await step.do("much", lambda attempt: "y" * 70_000)

    world = World(program, state_bytes_max=65_536)
    world.create()
    world.pump()
    assert world.status(KEY) == "errored"
    assert "state_bytes_max" in world.error(KEY).message


def test_an_output_that_is_too_much_fails_the_run() -> None:
    async def program(step: StepApi, params: Any) -> Any:
        return "y" * 70_000

    world = World(program, state_bytes_max=65_536)
    world.create()
    world.pump()
    assert (world.status(KEY), world.error(KEY).name) == ("errored", "LimitExceededError")


def test_steps_without_values_count_too() -> None:
    async def program(step: StepApi, params: Any) -> Any:
        done = 0
        try:
            while True:
                await step.sleep("nap", 0)
                done += 1
        except StepFailed as failed:
            return [done, failed.error.name]

    world = World(program, state_bytes_max=65_536)
    world.create()
    world.pump()
    done, name = world.output(KEY)
    assert name == "LimitExceededError"
    assert 50 < done < 65


def test_an_event_that_is_too_much_fails_its_wait_and_is_kept() -> None:
    async def program(step: StepApi, params: Any) -> Any:
        try:
            await step.wait("large", "news")
        except StepFailed as failed:
            await step.wait("end", "end")
            return failed.error.name

    world = World(program, state_bytes_max=65_536)
    world.create()
    world.pump()
    world.send_event(KEY, "news", "x" * 70_000)
    world.pump()
    assert world.core.state.kept.total.number == 1
    assert limits_of(world) == ["large"]
    world.send_event(KEY, "end")
    world.pump()
    assert world.output(KEY) == "LimitExceededError"
    assert world.core.state.kept.total.number == 0


def test_others_in_flight_are_tried_again_without_using_up_a_retry() -> None:
    async def program(step: StepApi, params: Any) -> Any:
        async def much() -> Any:
            try:
                return await step.do("much", lambda attempt: "y" * 70_000)
            except StepFailed as failed:
                return failed.error.name

        async def other() -> Any:
            return await step.do("other", lambda attempt: attempt)

        return await gather(much(), other())

    world = World(program, state_bytes_max=65_536)
    world.slow = True
    world.create()
    world.pump()
    world.finish()
    world.pump()
    while world.status(KEY) != "complete":
        world.finish()
        world.pump()
    assert world.output(KEY) == ["LimitExceededError", 2]


def test_the_youngest_heavy_ones_make_room_and_go_on_later() -> None:
    async def program(step: StepApi, params: Any) -> Any:
        await step.do("much", lambda attempt: "x" * params)
        return await step.do("hold", lambda attempt: attempt)

    world = World(program)
    sizes = {"oldest": 10_000, "small": 10, "heavy": 10_000, "youngest": 10_000}
    world.slow = True
    for name, size in sizes.items():
        world.create(name, size)
    world.pump()
    for life in list(world.guests):
        world.finish(life)
    world.pump()
    assert world.core.live_count() == 4
    world.take(world.core.relieve(30_000, now_us=world.now))
    alive = {world.core.key_of(life)[1] for life in world.guests}  # type: ignore[index]
    assert alive == {"oldest", "small", "heavy"}
    world.take(world.core.relieve(0, now_us=world.now))
    alive = {world.core.key_of(life)[1] for life in world.guests}  # type: ignore[index]
    assert alive == {"oldest", "small"}
    world.pump()
    for _ in range(4):
        world.finish()
        world.pump()
    assert [world.status(("Job", name)) for name in sizes] == ["complete"] * 4
    assert world.output(("Job", "youngest")) == 2


def test_what_is_loaded_is_counted_through_everything() -> None:
    async def program(step: StepApi, params: Any) -> Any:
        await step.do("a", lambda attempt: "x" * 1_000)
        await step.wait("w", "news")
        await step.do("b", lambda attempt: "x" * 1_000)

    world = World(program, running_max=1)  # `World.take` audits after each decision
    for n in range(3):
        world.create(f"i{n}")
    world.advance(10)
    before = world.core.loaded_bytes
    assert before > 3 * 1_000
    for key in list(world.core.evictable()):
        world.core.evict(key)
    for key in list(world.core.queued_last()):
        world.core.put_away(key)
    assert world.core.audit() == []
    assert world.core.loaded_bytes < before
    world.send_event(("Job", "i1"), "news", "x" * 100)
    world.crash()
    world.pump()
    for n in range(3):
        world.take(world.core.delete(("Job", f"i{n}"), now_us=world.now))
    assert world.core.loaded_bytes == 0


# --- with a shell ---------------------------------------------------------------------------------

CODE = """
import asyncio
from dynamic_workflows import WorkflowEntrypoint

class TenantWorkflow(WorkflowEntrypoint):
    async def run(self, event, step):
        made = []
        for n in range(event.payload["times"]):
            made.append(len(await step.do("make", lambda: "y" * event.payload["size"])))
        return [len(event.payload["given"]), made]
"""


def load(tenant_id: str) -> dw.WorkerCode:
    return dw.WorkerCode("index.py", {"index.py": CODE})


async def test_many_large_instances_at_once_take_turns_and_all_end(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    platform = LocalPlatform(load=load, store=store)
    tenant = await platform.tenant("acme")
    tenant._loader.memory_budget = MemoryBudget(bytes_max=2 * MIB)
    highest = 0
    landed = tenant._effects.run

    def watch(batch: Any) -> None:
        nonlocal highest
        landed(batch)
        highest = max(highest, tenant.core.loaded_bytes)

    tenant._commits._committed = watch
    binding = WorkflowBinding(platform.calls("acme"))
    params = {"given": "x" * 300_000, "size": 50_000, "times": 4}
    made = []
    for _ in range(20):
        made += await binding.create_batch([{"params": params}])
    async with asyncio.timeout(60):
        for one in made:
            assert await one.result() == [300_000, [50_000] * 4]
    assert highest < 5 * MIB, "20 of them take 10 MB"
    await platform.close()
    await store.close()
