"""A forger: an isolate of a tenant that says what it likes to its supervisor, in this process.

Everything from the supervisor's decoding of frames on is the real one; only what the guest says is
made up here. `Forger` holds the host of an instance of tenant "acme" that waits for an event.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec

import dynamic_workflows as dw
from dynamic_workflows import testing
from dynamic_workflows.actors.hosting.code_host import Host
from dynamic_workflows.actors.tenant.tenant import TenantSupervisor
from dynamic_workflows.loaders.protocol import messages

CODE = """
from dynamic_workflows import WorkerEntrypoint, WorkflowEntrypoint

class TenantWorkflow(WorkflowEntrypoint):
    async def run(self, event, step):
        await step.do("first", lambda: 1)
        return (await step.wait_for_event("go", "go", timeout="1 day")).payload

class Other(TenantWorkflow):
    pass
"""


class Vault(dw.Service):
    """Has something of every kind that must not be called."""

    opened: list[Any] = []
    asynchronous = None

    async def ping(self) -> str:
        return "pong"

    async def _private(self) -> None:
        self.opened.append("_private")

    async def __call__(self) -> None:
        self.opened.append("__call__")

    async def __aenter__(self) -> None:
        self.opened.append("__aenter__")

    def sync(self) -> None:
        self.opened.append("sync")

    @property
    def lazy(self) -> Any:
        self.opened.append("lazy")
        return self.ping

    class Inner:
        async def ping(self) -> None: ...


class Tail(dw.Service):
    async def tail(self, records: list[Any]) -> None: ...


def code(tenant_id: str) -> dw.WorkerCode:
    return dw.WorkerCode(
        "index.py",
        {"index.py": CODE},
        {
            "VAULT": Vault(props={"key": "k"}),
            "VALUE": 1,
            "WORKFLOWS": dw.wrap_workflow_binding({"tenant_id": tenant_id}),
        },
        tails=[Tail()],
    )


class Forger:
    """What an isolate of acme can say."""

    def __init__(self, platform: Any, shell: TenantSupervisor, host: Host, life: int) -> None:
        self.platform = platform
        self.shell = shell
        self.host = host
        self.life = life
        self.kills: list[Any] = []
        self._replies: dict[int, asyncio.Future[messages.Reply]] = {}
        self._calls = 1 << 40
        self._send = host.send
        self._kill = host.kill
        host.send = self._take  # type: ignore[method-assign]
        host.kill = self._killed  # type: ignore[method-assign]

    def _take(self, frames: list[messages.Frame]) -> None:
        for kind, _, body in frames:
            message = messages.unpack_to_guest(kind, body)
            if isinstance(message, messages.Reply) and message.call in self._replies:
                self._replies.pop(message.call).set_result(message)
            else:
                self._send(frames)

    def _killed(self, reason: str, **more: Any) -> None:
        self.kills.append((reason, more))
        self._kill(reason, **more)

    def say(self, message: msgspec.Struct, life: int | None = None) -> None:
        self.host.on_frames([messages.pack(message, life=self.life if life is None else life)])

    async def call(
        self, target: str, method: str, args: bytes = b"[]", kwargs: bytes = b"{}"
    ) -> messages.Reply:
        self._calls += 1
        reply = self._replies[self._calls] = asyncio.get_running_loop().create_future()
        self.say(messages.CallRequest(self._calls, target, method, args, kwargs))
        async with asyncio.timeout(60):
            answer: messages.Reply = await reply
        return answer

    async def ask(
        self, op: str, args: dict[str, Any], binding: str = "WORKFLOWS"
    ) -> messages.Reply:
        return await self.call(binding, op, msgspec.msgpack.encode(args), b"")


@asynccontextmanager
async def forger(load: Callable[[str], dw.WorkerCode] = code) -> AsyncIterator[Forger]:
    """An isolate of acme, with an honest instance of globex beside it."""
    async with testing.connect(load=load) as platform:
        for name in ("acme", "globex"):
            await platform.tenant(name).workflows.create(id="honest")
        await platform._local.settle()
        shell = await platform._local.tenant("acme")
        life, host = next(iter(shell._state.hosts_by_life.items()))
        yield Forger(platform, shell, host, life)
        assert shell.failed is None, "no forged message is a mistake of ours"
        globex = await platform.tenant("globex").workflows.get("honest")
        assert (await globex.status()).status == "waiting"
