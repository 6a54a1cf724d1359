"""The dispatcher of the seed documents, ported line for line, and the tenants it loads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dynamic_workflows as dw

INDEX = """
from dynamic_workflows import WorkflowEntrypoint, WorkerEntrypoint

class TenantWorkflow(WorkflowEntrypoint):
    async def run(self, event, step):
        async def look(ctx):
            return {
                "payload": event.payload,
                "keys": sorted(k for k in dir(event) if "etadata" in k),
                "env": sorted(self.env),
                "name": event.workflow_name,
                "version": VERSION,
            }
        seen = await step.do("look", look)
        await step.sleep("nap", "1 hour")
        return seen

class Default(WorkerEntrypoint):
    async def fetch(self, request):
        asked = await request.json()
        if asked.get("op") == "status":
            instance = await self.env.WORKFLOWS.get(asked["id"])
            return {"status": (await instance.status()).status}
        if asked.get("op") == "batch":
            made = await self.env.WORKFLOWS.create_batch(asked["items"])
            return {"ids": [one.id for one in made]}
        if asked.get("op") == "stop":
            instance = await self.env.WORKFLOWS.get(asked["id"])
            await instance.terminate(rollback=True)
            return {"status": (await instance.status()).status}
        instance = await self.env.WORKFLOWS.create(id=asked.get("id"), params=asked.get("params"),
                                                   pin=asked.get("pin"))
        return {"id": instance.id}
"""

SOURCES: dict[str, str] = {}
LOADED: list[str] = []


async def fetch_tenant_code(tenant_id: str) -> str:
    LOADED.append(tenant_id)
    return SOURCES[tenant_id]


async def fetch_for_two_tenants(tenant_id: str) -> str:
    """As `fetch_tenant_code`, where nothing of a test's memory can be had: in the loader actor."""
    if tenant_id not in ("acme", "globex"):
        raise KeyError(tenant_id)
    return "VERSION = 1\n" + INDEX.replace('"1 hour"', '"1 second"')


# fmt: off
# As printed in the contract from here on.

def load_tenant(env, tenant_id):  # type: ignore[no-untyped-def]
    async def code():  # type: ignore[no-untyped-def]
        return dw.WorkerCode(compatibility_date="2026-01-01", main_module="index.py",
            modules={"index.py": await fetch_tenant_code(tenant_id)},
            env={"WORKFLOWS": dw.wrap_workflow_binding({"tenant_id": tenant_id})})
    return env.LOADER.get(tenant_id, code)

async def load_runner(*, metadata, env):  # type: ignore[no-untyped-def]
    return load_tenant(env, metadata["tenant_id"]).get_entrypoint("TenantWorkflow")  # type: ignore[no-untyped-call]

DynamicWorkflow = dw.create_dynamic_workflow_entrypoint(load_runner)

class Dispatcher(dw.WorkerEntrypoint):
    async def fetch(self, request):  # type: ignore[no-untyped-def]
        return await load_tenant(self.env, request.headers["x-tenant-id"]).get_entrypoint().fetch(request)  # type: ignore[no-untyped-call]  # noqa: E501

app = dw.App(Dispatcher, workflows={"WORKFLOWS": DynamicWorkflow})   # dw.connect("./data", app=app)

# fmt: on


def journal_app(path: str) -> dw.App:
    """A dispatcher whose own class writes what it is told to a file, around the hand-over."""

    class Journal(dw.WorkflowEntrypoint):
        async def run(self, event: Any, step: Any) -> Any:
            line = f"{event.metadata['tenant_id']} {event.instance_id} {event.payload}"
            _write(path, f"before {line}")
            context = {"env": self.env, "ctx": self.ctx}
            await dw.dispatch_workflow(context, event, step, load_runner)
            _write(path, f"after {line}")

    return dw.App(Dispatcher, workflows={"WORKFLOWS": Journal})


def _write(path: str, line: str) -> None:
    with Path(path).open("a") as file:
        print(line, file=file)


def ask(tenant_id: str, body: Any) -> dw.Request:
    """A request to the dispatcher on behalf of a tenant."""
    return dw.Request("POST", "http://app/", headers={"X-Tenant-Id": tenant_id}, body=body)
