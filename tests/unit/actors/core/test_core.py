"""The core alone, over a list: create, step, sleep, wait, complete."""

from __future__ import annotations

from typing import Any

from core_world import StepApi, World


async def whole(step: StepApi, params: Any) -> Any:
    a = await step.do("a", lambda attempt: params["n"] + attempt)
    await step.sleep("nap", 60_000)
    event = await step.wait("approval", "approved")
    return {"a": a, "by": event["payload"]["by"]}


def test_an_instance_goes_from_create_over_step_sleep_and_wait_to_complete() -> None:
    world = World(whole)
    key = world.create("order-1", {"n": 41})
    assert world.status(key) == "queued"
    world.pump()
    assert world.status(key) == "waiting"
    world.advance(60)
    assert world.status(key) == "waiting"
    world.send_event(key, "approved", {"by": "ann"})
    world.pump()
    assert world.status(key) == "complete"
    assert world.output(key) == {"a": 42, "by": "ann"}
    assert world.types(key) == [
        "workflow_queued",
        "workflow_started",
        "step_started",
        "attempt_started",
        "attempt_completed",
        "step_completed",
        "sleep_started",
        "workflow_waiting",
        "sleep_completed",
        "workflow_running",
        "wait_started",
        "workflow_waiting",
        "event_received",
        "workflow_running",
        "wait_completed",
        "workflow_completed",
    ]
