"""Errors that no guest of ours sends are told without their arguments, and break no log."""

from __future__ import annotations

from typing import Any

import pytest

import dynamic_workflows as dw
from dynamic_workflows import testing
from dynamic_workflows.actors.tenant.isolate_events import ERROR_ARGS_BYTES_MAX
from dynamic_workflows.loaders.protocol.messages import AttemptFailed, End, Error

CODE = """
import asyncio
from dynamic_workflows import WorkflowEntrypoint

class TenantWorkflow(WorkflowEntrypoint):
    async def run(self, event, step):
        await step.do("hang", lambda: asyncio.Event().wait(), config={"retries": {"limit": 0}})
"""
ARGS = {
    "no JSON": b'{"',
    "no value": b'{"$":"what"}',
    "nested without end": b"[" * 100_000,
    "far too large": b'["%s"]' % (b"x" * ERROR_ARGS_BYTES_MAX),
}
MESSAGES: dict[str, Any] = {
    "end": lambda error: End(None, error),
    "failed": lambda error: AttemptFailed(1, 1, error),
    "delay": lambda error: AttemptFailed(1, 1, Error("E", "m"), None, error),
}


def load(tenant_id: str) -> dw.WorkerCode:
    return dw.WorkerCode("index.py", {"index.py": CODE})


@pytest.mark.parametrize("what", list(ARGS))
@pytest.mark.parametrize("how", list(MESSAGES))
async def test_arguments_that_are_none_are_left_out_and_the_log_opens_again(
    how: str, what: str
) -> None:
    async with testing.connect(load=load) as platform:
        instance = await platform.tenant("acme").workflows.create()
        await platform._local.settle()
        tenant = await platform._local.tenant("acme")
        (life, host) = next(iter(tenant._state.hosts_by_life.items()))
        error = Error("ValueError", "forged", "builtins", ARGS[what])
        tenant._isolate_events.on_messages(host, [(life, MESSAGES[how](error))])
        await tenant.caught_up()
        await platform._local.crash("acme")
        await platform._local.settle()
        types = [event.type for event in await instance.history()]
        assert {"workflow_errored", "step_errored"} & set(types)
        told = [e.payload["error"] for e in await instance.history() if "errored" in e.type]
        assert any(error["message"] == "forged" for error in told)
        assert all(len(str(error)) < 1_000 for error in told)
