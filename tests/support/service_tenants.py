"""Tenants that greet, and tenants with services, for tests of platforms."""

from __future__ import annotations

from typing import Any

import dynamic_workflows as dw

HELLO = """
from dynamic_workflows import WorkflowEntrypoint, WorkerEntrypoint
import words

class TenantWorkflow(WorkflowEntrypoint):
    async def run(self, event, step):
        said = await step.do("say", lambda: words.HELLO)
        if event.payload.get("nap"):
            await step.sleep("nap", event.payload["nap"])
        return said

class Default(WorkerEntrypoint):
    async def hello(self, name, *, loud=False):
        text = f"{words.HELLO} {name}"
        return text.upper() if loud else text

    def props(self):
        return self.ctx.props

    async def fail(self):
        raise KeyError("no such thing")

    async def fetch(self, request):
        return {"method": request.method, "agent": request.headers["User-Agent"]}

class Admin(WorkerEntrypoint):
    async def hello(self):
        return "admin"

    def _secret(self):
        return "never"
"""


def hello(word: str = "hello", **more: Any) -> dw.WorkerCode:
    modules = {"index.py": HELLO, "words.py": f"HELLO = {word!r}\n"}
    return dw.WorkerCode(main_module="index.py", modules=modules, **more)


USES_SERVICE = """
from dynamic_workflows import WorkflowEntrypoint, WorkerEntrypoint, fetch

class TenantWorkflow(WorkflowEntrypoint):
    async def run(self, event, step):
        return await step.do("call", lambda: self.env.DB.add(event.payload["n"], by=2))

class Default(WorkerEntrypoint):
    async def names(self):
        return sorted(self.env)

    async def call(self, method, *args):
        return await getattr(self.env.DB, method)(*args)

    async def get(self, url):
        response = await fetch(url)
        return [response.status, await response.text()]

    async def talk(self):
        print("to the tail")
"""


class Ledger(dw.Service):
    """Keeps sums by the props that the tenant cannot see."""

    sums: dict[str, int]
    public_errors = (PermissionError,)

    def __init__(self, *, props: Any = None) -> None:
        super().__init__(props=props)
        self.sums = {}

    async def add(self, n: int, *, by: int = 1) -> int:
        name = self.props["account"]
        self.sums[name] = self.sums.get(name, 0) + n * by
        return self.sums[name]

    async def plain(self) -> tuple[int, ...]:
        return (1, 2)

    async def fail(self) -> None:
        raise PermissionError("not yours")

    async def odd(self) -> object:
        return object()

    def _hidden(self) -> str:
        return "hidden"


class Gateway(dw.Service):
    """Lets one host through, and adds what the tenant never sees."""

    async def fetch(self, request: dw.Request) -> dw.Response:
        if not request.url.startswith("https://allowed/"):
            raise dw.EgressDeniedError(f"{request.url} is not allowed")
        return dw.Response(f"{request.method} with {self.props['key'][:3]}…")


def with_service(**more: Any) -> dw.WorkerCode:
    env = {"DB": Ledger(props={"account": "a-1"}), "LIMIT": {"n": (1, 2)}}
    return dw.WorkerCode(
        main_module="index.py", modules={"index.py": USES_SERVICE}, env=env, **more
    )


async def load_with_gateway(tenant_id: str) -> dw.WorkerCode:
    return with_service(global_outbound=Gateway(props={"key": "sec-ret"}))
