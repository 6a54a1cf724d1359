"""The status that a query reads out of the log is the status that the core holds."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
from collections.abc import Iterator
from typing import Any

import pytest

import dynamic_workflows as dw
from dynamic_workflows import testing

SOURCE = """
from dynamic_workflows import WorkflowEntrypoint


class TenantWorkflow(WorkflowEntrypoint):
    async def run(self, event, step):
        first = await step.do("first", lambda: 1, rollback=lambda undo: None)
        if event.payload == "fail":
            raise ValueError("no")
        if event.payload == "sleep":
            await step.sleep("nap", "1 day")
        if event.payload == "wait":
            await step.wait_for_event("w", type="go", timeout="7 days")
        if event.payload == "retry":
            retries = {"limit": 3, "delay": "1 day", "backoff": "constant"}
            await step.do("flaky", lambda: 1 / 0, config={"retries": retries})
        return {"first": first}
"""


async def load(tenant_id: str) -> dw.WorkerCode:
    return dw.WorkerCode(main_module="index.py", modules={"index.py": SOURCE})


def moves(chance: random.Random) -> Iterator[tuple[str, dict[str, Any]]]:
    commands: list[tuple[str, dict[str, Any]]] = [
        ("pause", {}),
        ("resume", {}),
        ("terminate", {"rollback": False}),
        ("terminate", {"rollback": True}),
        ("restart", {}),
        ("restart", {"from_": {"name": "first"}}),
        ("send_event", {"type": "go", "payload": 1}),
        ("delete", {}),
    ]
    while True:
        yield chance.choice(commands)


@pytest.mark.parametrize("seed", range(int(os.environ.get("VIEW_SEEDS", "10"))))
async def test_the_view_of_instances_agrees_with_the_core(seed: int) -> None:
    chance = random.Random(seed)
    async with testing.connect(load=load) as platform:
        acme = platform.tenant("acme")
        plots = ["fail", "sleep", "wait", "retry", "quick"]
        handles = [
            await acme.workflows.create(id=f"{plot}-{n}", params=plot)
            for n in range(3)
            for plot in plots
        ]
        for (command, more), _ in zip(moves(chance), range(40), strict=False):
            with contextlib.suppress(dw.InstanceError):
                await getattr(chance.choice(handles), command)(**more)
            if chance.random() < 0.2:
                await platform.clock.advance(chance.choice(["1 second", "1 day"]))
        await platform.clock.advance("1 second")
        shown = platform.query(
            "select instance_id, status, run, output, error_name from instances"
        ).to_pylist()
        held = {}
        for handle in handles:
            with contextlib.suppress(dw.InstanceError):
                status = await handle.status()
                error = None if status.error is None else status.error.name
                held[handle.id] = (status.status, status.output is not None, error)
        told = {
            row["instance_id"]: (row["status"], row["output"] is not None, row["error_name"])
            for row in shown
        }
        assert told == held
        assert len({status for status, *_ in held.values()}) >= 3


@pytest.mark.parametrize("seed", range(int(os.environ.get("VIEW_SEEDS", "4"))))
async def test_commands_given_together_are_all_answered_and_leave_one_truth(seed: int) -> None:
    chance = random.Random(seed)
    async with testing.connect(load=load, crash_at_every_step=seed % 3 == 2) as platform:
        workflows = platform.tenant("acme").workflows
        plots = ["fail", "sleep", "wait", "retry", "quick"]
        handles = [
            await workflows.create(id=f"{plot}-{n}", params=plot)
            for n in range(3)
            for plot in plots
        ]
        choices = moves(chance)

        async def give() -> None:
            command, more = next(choices)
            with contextlib.suppress(dw.InstanceError):
                await getattr(chance.choice(handles), command)(**more)

        for _ in range(6):
            together = [give() for _ in range(10)]
            clock = platform.clock.advance(chance.choice(["1 second", "1 day"]))
            await asyncio.wait_for(asyncio.gather(clock, *together), 30)
        await platform.clock.advance("1 second")
        held = {item.id: item.status for item in await workflows.list(limit=100)}
        shown = platform.query("select instance_id, status from instances").to_pylist()
        assert {row["instance_id"]: row["status"] for row in shown} == held
