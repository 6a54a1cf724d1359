"""Isolates for tests: real processes that run the Python source they are sent (probe_guest.py)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import other_host
from paths import IMPORTS

from dynamic_workflows.loaders.isolates.interface import Exit, Isolation, Limits
from dynamic_workflows.loaders.isolates.isolate_pool import ProcessIsolates
from dynamic_workflows.loaders.isolates.isolate_process import ProcessIsolate
from dynamic_workflows.loaders.protocol.messages import Frame
from dynamic_workflows.loaders.sandbox.sandbox import SandboxPlan

RUN, ECHO, RESULT, ECHOED, LOG = 2, 3, 20, 21, 26
DEFAULT = Isolation(warm=0)
if other_host.IS_HERE:
    other_host.spread()
    DEFAULT = Isolation(level="unsafe-none", warm=0)
CLOSED = Exit("closed", is_tenants_own=False, kind="closed")


class Talk:
    """One isolate and all that it said."""

    def __init__(self) -> None:
        self.isolate: ProcessIsolate
        self.frames: list[Frame] = []
        self.news = asyncio.Event()
        self.exit: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()

    def on_frames(self, frames: list[Frame]) -> None:
        self.frames += frames
        self.news.set()

    def on_exit(self, exit: Exit) -> None:
        self.exit.set_result(exit)
        self.news.set()

    def tell(self, source: str, life: int = 1) -> None:
        self.isolate.send([(RUN, life, source.encode())])

    async def run(self, source: str, life: int = 1) -> tuple[str, str]:
        """("ok", repr of the result), or the error's name and text."""
        self.tell(source, life)
        body = await self.hear(RESULT)
        state, text = msgspec.msgpack.decode(body)
        return state, text

    async def hear(self, kind: int) -> bytes:
        """The body of the next message of this kind."""
        async with asyncio.timeout(60):
            while True:
                for index, frame in enumerate(self.frames):
                    if frame[0] == kind:
                        del self.frames[index]
                        return frame[2]
                if self.exit.done():
                    raise AssertionError(f"ended without a word: {self.exit.result()}")
                self.news.clear()
                await self.news.wait()

    async def end(self) -> Exit:
        """How it ends by itself."""
        async with asyncio.timeout(60):
            return await asyncio.shield(self.exit)

    async def close(self) -> None:
        self.isolate.kill(CLOSED)
        await self.end()


async def start(isolates: ProcessIsolates, limits: Limits | None = None) -> Talk:
    talk = Talk()
    talk.isolate = await isolates.start(
        limits=limits or Limits(), on_frames=talk.on_frames, on_exit=talk.on_exit
    )
    return talk


@asynccontextmanager
async def isolates(
    isolation: Isolation | None = None, *, sandbox: SandboxPlan | None = None
) -> AsyncIterator[ProcessIsolates]:
    made = ProcessIsolates(
        isolation or DEFAULT,
        guest="attacks.probe_guest:Guest",
        path=IMPORTS,
        sandbox=sandbox,
    )
    try:
        yield made
    finally:
        await made.close()
