"""Inline isolates: the same guest, in the supervisor's own loop."""

from __future__ import annotations

import asyncio
from typing import Any

from guest_world import flow

from dynamic_workflows.eventlog.codec import values
from dynamic_workflows.loaders.guest.quiescence import CURRENT
from dynamic_workflows.loaders.isolates.inline import InlineIsolates
from dynamic_workflows.loaders.isolates.interface import Exit, Isolate, Limits
from dynamic_workflows.loaders.protocol import messages
from dynamic_workflows.loaders.protocol.messages import Frame, pack


class Supervisor:
    """Answers steps, and notes where it was called from."""

    def __init__(self) -> None:
        self.isolate: Isolate | None = None
        self.outputs: dict[int, Any] = {}
        self.exits: list[Exit] = []
        self.contexts: set[Any] = set()
        self.changed = asyncio.Event()

    async def begin(self, isolates: InlineIsolates, code: str) -> None:
        self.isolate = await isolates.start(
            limits=Limits(), on_frames=self.on_frames, on_exit=self.on_exit
        )
        module = messages.Module("index.py", "py", code.encode())
        self.isolate.send([pack(messages.Load("index.py", [module], []))])

    def on_frames(self, frames: list[Frame]) -> None:
        assert self.isolate is not None
        self.contexts.add(CURRENT.get())
        for kind, life, body in frames:
            message: Any = messages.unpack_from_guest(kind, body)
            if isinstance(message, messages.StepRequest):
                self.isolate.send([pack(messages.Go(message.token, 1), life=life)])
            elif isinstance(message, messages.End):
                assert message.error is None, message.error
                self.outputs[life] = values.decode(message.value or b"null")
        self.changed.set()

    def on_exit(self, exit: Exit) -> None:
        self.exits.append(exit)
        self.changed.set()

    async def until_outputs(self, count: int) -> None:
        async with asyncio.timeout(20):
            while len(self.outputs) < count:
                self.changed.clear()
                await self.changed.wait()


CODE = flow("""
@dataclasses.dataclass
class Here:
    n: "int"
got = []
for i in range(3):
    got.append(await step.do("s", lambda: Here(i).n + event.payload))
return got
""").replace("import asyncio", "import asyncio, dataclasses")


async def test_several_isolates_share_a_loop_and_nothing_else() -> None:
    isolates = InlineIsolates()
    supervisors = [Supervisor() for _ in range(4)]
    for number, supervisor in enumerate(supervisors):
        await supervisor.begin(isolates, f"MARK = {number}\n{CODE}")
        assert supervisor.isolate is not None
        for life in (1, 2):
            run = messages.Run("Flow", "one", b"%d" % (10 * number), 0, [])
            supervisor.isolate.send([pack(run, life=life)])
    for number, supervisor in enumerate(supervisors):
        await supervisor.until_outputs(2)
        base = 10 * number
        assert supervisor.outputs == {life: [base, base + 1, base + 2] for life in (1, 2)}
        assert supervisor.contexts == {None}, "a supervisor never runs inside a lifetime"
    await isolates.close()
    await asyncio.sleep(0)
    assert [[exit.kind for exit in s.exits] for s in supervisors] == [["closed"]] * 4
    assert not any(exit.is_tenants_own for s in supervisors for exit in s.exits)


async def test_a_killed_isolate_leaves_with_the_exit_it_was_given_and_says_nothing_more() -> None:
    isolates = InlineIsolates()
    supervisor = Supervisor()
    await supervisor.begin(isolates, flow('await step.do("s", print)\nawait asyncio.sleep(999)'))
    assert supervisor.isolate is not None
    supervisor.isolate.send([pack(messages.Run("Flow", "one", b"null", 0, []), life=1)])
    await asyncio.sleep(0)
    exit = Exit("cpu limit", is_tenants_own=True, kind="cpu")
    supervisor.isolate.kill(exit)
    supervisor.isolate.send([pack(messages.Drop(), life=1)])
    supervisor.isolate.kill(exit)
    for _ in range(10):
        await asyncio.sleep(0)
    assert supervisor.exits == [exit]
    others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    assert others == []
    await isolates.close()


async def test_a_frame_that_is_none_ends_the_isolate_as_the_platforms_fault() -> None:
    isolates = InlineIsolates()
    supervisor = Supervisor()
    await supervisor.begin(isolates, "")
    assert supervisor.isolate is not None
    supervisor.isolate.send([(99, 0, b"")])
    async with asyncio.timeout(20):
        while not supervisor.exits:
            supervisor.changed.clear()
            await supervisor.changed.wait()
    assert (supervisor.exits[0].kind, supervisor.exits[0].is_tenants_own) == ("protocol", False)
    await isolates.close()
