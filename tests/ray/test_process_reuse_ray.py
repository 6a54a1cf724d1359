"""On real Ray a tenant falls asleep and wakes without a process being started or ended."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from ray_world import eventually, expected, loader_of, processes

import dynamic_workflows as dw

TENANTS = 12


@pytest.mark.ray
async def test_tenants_that_take_turns_start_and_end_no_process(tmp_path: Path) -> None:
    # There is room for two at a time, and one is ready beside them.
    config = dw.PlatformConfig(tenants_resident_max=2, pool_size=1, instance_idle_seconds=0.2)
    async with dw.connect(tmp_path / "log", load=loader_of(), config=config) as platform:

        async def serve(tenant_id: str, instance_id: str) -> None:
            flows = platform.tenant(tenant_id).workflows
            made = await flows.create(id=instance_id, params={"steps": 2, "sleep": 300})
            assert await made.result() == expected(instance_id, 2)

        await asyncio.gather(*(serve(f"warm-{number}", "one") for number in range(4)))
        await eventually(lambda: len(processes("ray::TenantActor")) >= 3, what="the pool")
        before = set(processes("ray::TenantActor"))
        for round_ in ("one", "two"):
            await asyncio.gather(*(serve(f"t{number}", round_) for number in range(TENANTS)))
        assert set(processes("ray::TenantActor")) == before
