"""Bytes count as bytes towards the limit, wherever a value goes."""

from __future__ import annotations

import pytest

import dynamic_workflows as dw
from dynamic_workflows import testing

CODE = """
from dynamic_workflows import WorkflowEntrypoint

class TenantWorkflow(WorkflowEntrypoint):
    async def run(self, event, step):
        made = await step.do("make", lambda: b"\\xff" * len(event.payload))
        received = await step.wait_for_event("more", type="more")
        return made + received.payload[len(made):]
"""
# As base64 it takes 1,203 bytes.
CONFIG = dw.PlatformConfig(value_bytes_max=1_000, events_kept_bytes_max=1_000)


async def test_params_steps_events_and_outputs_may_be_bytes_up_to_the_limit() -> None:
    code = dw.WorkerCode("index.py", {"index.py": CODE})
    async with testing.connect(load=lambda _: code, config=CONFIG) as platform:
        flows = platform.tenant("acme").workflows
        one = await flows.create(params=b"p" * 900)
        await one.send_event("more", b"e" * 900)
        assert await one.result() == b"\xff" * 900
        with pytest.raises(dw.ValueTooLargeError, match=" 1013 bytes"):
            await flows.create(params=b"p" * 1_000)
        with pytest.raises(dw.ValueTooLargeError, match=" 1013 bytes"):
            await (await flows.create(params=b"")).send_event("more", b"e" * 1_000)
