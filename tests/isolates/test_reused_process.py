"""A process that has put a tenant to sleep is blank again, and holds nothing of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from one_process import Held, OneProcess

import dynamic_workflows as dw

CODE = """
from dynamic_workflows import WorkflowEntrypoint

class TenantWorkflow(WorkflowEntrypoint):
    async def run(self, event, step):
        async def add():
            print("adds for", event.payload)
            return [event.payload, await self.env.NAMES.name()]
        return await step.do("add", add)
"""


class Names(dw.Service):
    """A service of the platform: it knows whose it is."""

    async def name(self) -> str:
        return str(self.props["name"])


def load(tenant_id: str) -> dw.WorkerCode:
    code = CODE + "\n" * len(tenant_id) + f"# of {tenant_id}\n"
    env = {"NAMES": Names(props={"name": tenant_id})}
    return dw.WorkerCode("i.py", {"i.py": code}, env=env)


async def serve(one: OneProcess, tenant_id: str) -> None:
    """A tenant comes, does its work, and leaves."""
    made = await one.workflows(tenant_id).create(params=1)
    assert await made.result() == [1, tenant_id]
    await one.all_sleep()


async def test_a_hundred_tenancies_in_one_process_leave_nothing_there(tmp_path: Path) -> None:
    one = OneProcess(tmp_path, load, pool_size=0, warm_isolates=1)
    async with one.run():
        # The driver and the loader are in this process too, and know as many tenants all along.
        for number in range(20):
            await serve(one, f"tenant-{number % 10}")
        first = one.held()
        for number in range(80):
            await serve(one, f"tenant-{number % 10}")
        last = one.held()
        check_flat(first, last, one)
        assert last.objects <= first.objects + 500, (first, last)


@pytest.mark.slow
@pytest.mark.timeout(1_200)
async def test_a_thousand_tenants_in_one_process_leave_nothing_there(tmp_path: Path) -> None:
    one = OneProcess(tmp_path, load, pool_size=0, warm_isolates=1, tenants_per_process=2_000)
    async with one.run():
        for number in range(100):
            await serve(one, f"tenant-{number}")
        first = one.held()
        for number in range(1_000):
            await serve(one, f"tenant-{100 + number}")
        last = one.held()
        check_flat(first, last, one)
        # What the driver, the loader and the timer know of each tenant is in it.
        assert last.bytes - first.bytes < 1_000 * 30_000, (first, last)


def check_flat(first: Held, last: Held, one: OneProcess) -> None:
    """The process is the same, and holds no more."""
    assert len(one.started) == 1, "one process served them all"
    assert one.told[-1] is None
    assert last.files <= first.files + 2, (first, last)
    assert last.threads <= first.threads + 4, (first, last)
    assert last.children <= first.children + 1, (first, last)
    assert last.tasks <= first.tasks + 2, (first, last)
