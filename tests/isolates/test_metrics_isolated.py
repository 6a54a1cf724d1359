"""What the metrics of a tenant with real isolates say."""

from __future__ import annotations

from typing import Any

import pytest
from metric_samples import by_name
from real_tenants import RealTenant, real_tenant

import dynamic_workflows as dw
from dynamic_workflows.actors.placement import metrics

CODE = """
import os
from dynamic_workflows import WorkflowEntrypoint

class TenantWorkflow(WorkflowEntrypoint):
    async def run(self, event, step):
        print("a line")
        await step.do("work", lambda: event.payload and os._exit(1),
                      config={"retries": {"limit": 0, "delay": 0}})
"""


def seen(tenant: RealTenant) -> dict[str, float]:
    isolates: Any = tenant.shell._hosts._isolates
    found = [*metrics.of_isolates(isolates, "acme"), *metrics.of_tenant(tenant.shell)]
    assert {sample.tags["tenant"] for sample in found} == {"acme"}
    return by_name(found)


async def test_a_tenants_samples_follow_what_it_does() -> None:
    async with real_tenant({"index.py": CODE}) as tenant:
        good = await tenant.workflows.create(params=0)
        await good.result(timeout=60)
        bad = await tenant.workflows.create(params=1)
        with pytest.raises(dw.WorkflowFailedError):
            await bad.result(timeout=60)
        samples = seen(tenant)
        [sandbox] = [name for name in samples if name.startswith("isolates/")]
        assert "seccomp" in sandbox
        assert samples["isolates_started_total/no"] == 2
        assert samples["isolates_ended_total/exit"] == 1
        assert samples["instances/complete"] == 1
        assert samples["instances/errored"] == 1
        assert samples["commits_total"] > 3
        assert samples["rows_total"] == tenant.shell.core.last_seq
        assert samples["log_lines_total"] >= 3  # two lives of the bad one, and its error
        assert samples["log_lines_dropped_total"] == 0
