"""Rows whose payload lies in a blob leave in the log what a replay needs."""

from __future__ import annotations

from typing import Any

import pytest

import dynamic_workflows as dw
from dynamic_workflows import testing

CODE = """
import asyncio
from dynamic_workflows import NonRetryableError, WorkflowEntrypoint

class TenantWorkflow(WorkflowEntrypoint):
    async def run(self, event, step):
        plan = event.payload
        if "kept" in plan:
            await asyncio.gather(
                step.sleep("open", "1 hour"),
                *(step.do(f"{n:04d}" + "x" * 200, lambda: n) for n in range(plan["kept"])),
            )
            await step.do("last", lambda: 1)
            return await step.sleep("end", "1 hour")

        def bad(ctx):
            if ctx.attempt < 2:
                raise ValueError(plan["text"])
            raise NonRetryableError(plan["text"])

        def undo(rollback):
            raise NonRetryableError(plan["text"])

        config = {"retries": {"limit": 3, "delay": 0}}
        if plan.get("undo"):
            await step.do("good", lambda: 1, rollback=undo)
        await step.do("bad", bad, config=config)
"""


def load(tenant_id: str) -> dw.WorkerCode:
    return dw.WorkerCode("index.py", {"index.py": CODE})


TEXTS = ["x" * 70_000, "\x01" * 60_000, "é" * 40_000, "x" * 65_400]


@pytest.mark.parametrize("undo", [False, True])
@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
async def test_a_long_message_of_an_error_does_not_keep_a_log_from_opening(
    text: str, undo: bool
) -> None:
    async with testing.connect(load=load) as platform:
        plan: dict[str, Any] = {"text": text, "undo": undo}
        instance = await platform.tenant("acme").workflows.create(params=plan)
        await platform._local.settle()
        before = await instance.status()
        history = await instance.history()
        assert before.status == "errored"
        for _ in range(2):
            await platform._local.crash("acme")
            assert await instance.status() == before
            assert [e.payload for e in await instance.history()] == [e.payload for e in history]
        await instance.restart()
        await platform._local.settle()
        assert (await instance.status()).error == before.error


async def test_a_restart_that_keeps_thousands_of_steps_survives_a_crash() -> None:
    async with testing.connect(load=load) as platform:
        instance = await platform.tenant("acme").workflows.create(params={"kept": 1_000})
        await platform.clock.advance("10 seconds")
        await instance.restart(from_={"name": "0999" + "x" * 200})
        await platform._local.settle()
        await platform._local.crash("acme")
        await platform.clock.advance("2 hours")
        await platform._local.crash("acme")
        assert (await instance.status()).status == "complete"
