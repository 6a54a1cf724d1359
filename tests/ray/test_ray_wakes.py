"""Wake-ups on real Ray: tenants that are put to sleep just before they are due, and again."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

import dynamic_workflows as dw

CODE = """
from dynamic_workflows import WorkflowEntrypoint


class TenantWorkflow(WorkflowEntrypoint):
    async def run(self, event, step):
        for number, ms in enumerate(event.payload):
            await step.sleep(f"nap {number}", ms)
        return "rested"
"""
TENANTS = 3


@pytest.mark.ray
async def test_tenants_that_have_to_leave_just_before_they_are_due_are_all_woken(
    tmp_path: Path,
) -> None:
    # There is room for one: whoever naps makes room for the next, however short its nap is.
    config = dw.PlatformConfig(
        tenants_resident_max=1, pool_size=1, tenant_idle_seconds=0.5, instance_idle_seconds=0.2
    )
    async with dw.connect(
        tmp_path / "log",
        load=lambda tenant_id: dw.WorkerCode("i.py", {"i.py": CODE}),
        config=config,
    ) as platform:
        for number in range(TENANTS):
            flows = platform.tenant(f"t{number}").workflows
            await flows.create(id="one", params=[1500, 300 * number + 100])
        ended: list[int] = []
        async with asyncio.timeout(240):
            while len(ended) < TENANTS:
                await asyncio.sleep(0.5)
                found = platform.query(
                    "select tenant_id, max(epoch) owners from events where tenant_id in (select"
                    " tenant_id from instances where status = 'complete') group by all"
                )
                ended = found.column("owners").to_pylist()
        assert max(ended) > 1, "somebody slept and was woken"
        found = await platform.why("t0", "one")
        assert found.code == "complete"
        assert "before this call" not in found.text, "the timer was asked, and nobody is late"
