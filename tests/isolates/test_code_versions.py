"""Versions of code run side by side, each in isolates of its own, and instances keep theirs."""

from __future__ import annotations

from typing import Any

import pytest
from real_tenants import RealTenant, real_tenant

import dynamic_workflows as dw
from dynamic_workflows.loaders.bundles.bundle import bundle_of
from dynamic_workflows.loaders.protocol.calls import DeployCode

CODE = """
import os
from dynamic_workflows import WorkerEntrypoint, WorkflowEntrypoint

class TenantWorkflow(WorkflowEntrypoint):
    async def run(self, event, step):
        first = await step.do("before", lambda: (VERSION, os.getpid()))
        await step.wait_for_event("go", type="go")
        return [first, await step.do("after", lambda: (VERSION, os.getpid()))]

class Default(WorkerEntrypoint):
    async def version(self):
        return VERSION, os.getpid()
"""


def version(number: int, **more: Any) -> dw.WorkerCode:
    return dw.WorkerCode("index.py", {"index.py": f"VERSION = {number}\n{CODE}"}, **more)


async def deploy(tenant: RealTenant, code: dw.WorkerCode) -> str:
    bundle, _ = bundle_of(code, own_binding=True)
    code_hash = await tenant.shell.call(DeployCode(bundle=bundle.stored()))
    return code_hash


async def begin(tenant: RealTenant, **more: Any) -> dw.WorkflowInstance:
    instance = await tenant.workflows.create(**more)
    async for event in instance.subscribe():
        if event.type == "wait_started":
            break
    return instance


async def test_instances_keep_their_code_over_a_redeploy_and_versions_share_no_isolate() -> None:
    async with real_tenant(version(1)) as tenant:
        old = await begin(tenant)
        follower = await begin(tenant, pin="latest")
        code_hash = await deploy(tenant, version(2))
        new = await begin(tenant)
        assert (await tenant.entrypoint().version())[0] == 2
        assert len(tenant.shell.isolate_pids()) == 2
        for instance in (old, new):
            await instance.send_event("go")
        before, after = await old.result(timeout=60)
        assert (before[0], after[0]) == (1, 1)
        before_new, after_new = await new.result(timeout=60)
        assert (before_new[0], after_new[0]) == (2, 2)
        assert {before[1], after[1]}.isdisjoint({before_new[1], after_new[1]})
        assert tenant.shell._codes.deployed == code_hash
        # One that follows takes the newest code when it is next brought into memory.
        await follower.pause()
        await follower.resume()
        await follower.send_event("go")
        first, second = await follower.result(timeout=60)
        assert (first[0], second[0]) == (1, 2)


async def test_a_bad_version_is_refused_and_the_old_one_goes_on() -> None:
    async with real_tenant(version(1)) as tenant:
        bad = dw.WorkerCode("index.py", {"index.py": "import os\nos._exit(3)\n"})
        with pytest.raises(dw.CodeError, match="status 3") as caught:
            await deploy(tenant, bad)
        assert caught.value.code == "code.import_failed"
        assert (await tenant.entrypoint().version())[0] == 1


async def test_code_that_kills_while_it_is_imported_stores_nothing() -> None:
    code = dw.WorkerCode("index.py", {"index.py": "import os\nos._exit(3)\n"})
    async with real_tenant(code) as tenant:
        for _ in range(3):
            with pytest.raises(dw.CodeError, match="status 3"):
                await tenant.workflows.create()
        assert not any(tenant.shell.core.counts().values())
