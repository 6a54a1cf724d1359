"""Tenant code that will not end, will not answer, or lies to its supervisor: attacks by messages.

They run inside the real guest, behind real walls, beside an honest instance of the same code. Each
is the body of `async def attack(self, event, step)`; `say(kind, *fields, life=...)` sends any
message past the guest, `life` is the number of the attack's own lifetime.
"""

from __future__ import annotations

import textwrap

HEAD = """
import asyncio, contextvars, os, sys, time
from dynamic_workflows import WorkerEntrypoint, WorkflowEntrypoint

beats = []

def say_of(step):
    life = step._life
    wire = sys.modules["dynamic_workflows.loaders.protocol.messages"]
    send = life.guest.send
    def say(kind, *fields, life=life.number):
        send(getattr(wire, kind)(*fields), life, None)
    return say, life.number

class TenantWorkflow(WorkflowEntrypoint):
    async def run(self, event, step):
        if event.payload == "honest":
            await step.do("first", lambda: os.getpid())
            await step.wait_for_event("go", "go")
            return await step.do("last", lambda: os.getpid())
        if event.payload == "short":
            return await step.do("only", lambda: os.getpid())
        say, life = say_of(step)
        await step.do("begun", lambda: None)
        return await self.attack(event, step, say, life)

    async def attack(self, event, step, say, life):
BODY

class Default(WorkerEntrypoint):
    async def beats(self):
        return len(beats)
"""

SWALLOW = """
async def go_on():
    while True:
        try:
            await asyncio.sleep(0.005)
            beats.append(1)
        except BaseException:
            pass
"""


def code(body: str) -> str:
    """A module whose attack is this."""
    return HEAD.replace("BODY", textwrap.indent(body, " " * 8))


GOES_ON = {
    "swallow every cancellation": "await go_on()",
    "a task that swallows": "asyncio.create_task(go_on())\nawait asyncio.Event().wait()",
    "a shielded task": "await asyncio.shield(asyncio.ensure_future(go_on()))",
    "a finally that never ends": (
        "try:\n    await asyncio.Event().wait()\nfinally:\n    await go_on()"
    ),
    "a generator that never closes": (
        "async def numbers():\n    try:\n        yield 1\n    finally:\n        await go_on()\n"
        "async for number in numbers():\n    await asyncio.Event().wait()"
    ),
    "a task in a blank context": (
        "loop = asyncio.get_running_loop()\n"
        "task = loop.create_task(go_on(), context=contextvars.Context())\n"
        "await asyncio.Event().wait()"
    ),
    "tasks that hand over to each other": (
        "async def relay():\n    try:\n        await asyncio.sleep(0.01)\n    finally:\n"
        "        beats.append(1)\n        asyncio.create_task(relay())\n"
        "asyncio.create_task(relay())\nawait asyncio.Event().wait()"
    ),
    "steps in a loop": (
        "while True:\n    try:\n        await asyncio.sleep(0.001)\n"
        "        await step.sleep('s', 1000)\n    except BaseException:\n        beats.append(1)"
    ),
    "a guest that forgets to confirm": (
        "self.env.__dict__['_guest'].cancellations._on_gone = lambda leaving: None\n"
        "await asyncio.Event().wait()"
    ),
    "a channel that nobody reads": (
        "asyncio.get_running_loop().remove_reader(3)\nawait asyncio.Event().wait()"
    ),
}
"""What keeps running after its instance was terminated, until its isolate is ended."""

FADES = {
    "a callback in every turn": (
        "loop = asyncio.get_running_loop()\n"
        "def tick():\n    beats.append(1)\n    loop.call_soon(tick)\n"
        "tick()\nawait asyncio.Event().wait()"
    ),
    "a timer that sets itself": (
        "loop = asyncio.get_running_loop()\n"
        "def tick():\n    beats.append(1)\n    loop.call_later(0.002, tick)\n"
        "tick()\nawait asyncio.Event().wait()"
    ),
}
"""What is taken back without ending the isolate."""

CALLS_AFTER_THE_END = """
number = 0
while True:
    try:
        await asyncio.sleep(0.005)
    except BaseException:
        number = number or 1000
    if number:
        number += 1
        say("CallRequest", number, "SVC", "ping", b"[]", b"{}")
"""
"""Calls past the guest, on behalf of a lifetime that was told to end."""

LIES = {
    "a result twice": (
        "say('StepRequest', 50, 'x', 1, b'{}')\nsay('Done', 50, 1, b'1')\nsay('Done', 50, 1, b'2')"
    ),
    "a failure twice": (
        'config = b\'{"retries":{"limit":3,"delay_ms":60000},"timeout_ms":600000}\'\n'
        "say('StepRequest', 50, 'x', 1, config)\n"
        "error = sys.modules['dynamic_workflows.loaders.protocol.messages'].Error('E', 'm')\n"
        "say('AttemptFailed', 50, 1, error)\nsay('AttemptFailed', 50, 1, error)"
    ),
    "a failure, then a result": (
        'config = b\'{"retries":{"limit":3,"delay_ms":60000},"timeout_ms":600000}\'\n'
        "say('StepRequest', 50, 'x', 1, config)\n"
        "error = sys.modules['dynamic_workflows.loaders.protocol.messages'].Error('E', 'm')\n"
        "say('AttemptFailed', 50, 1, error)\nsay('Done', 50, 1, b'1')"
    ),
    "a result of a sleep": "say('Sleep', 50, 'x', 1, 60000)\nsay('Done', 50, 1, b'1')",
    "a result of an attempt to come": (
        "say('StepRequest', 50, 'x', 1, b'{}')\nsay('Done', 50, 2, b'1')"
    ),
    "a result of attempt 0": "say('StepRequest', 50, 'x', 1, b'{}')\nsay('Done', 50, 0, b'1')",
    "a result of an unknown step": "say('Done', 77, 1, b'1')",
    "a failure of an unknown step": (
        "error = sys.modules['dynamic_workflows.loaders.protocol.messages'].Error('E', 'm')\n"
        "say('AttemptFailed', 77, 1, error)"
    ),
    "the same step twice": (
        "say('StepRequest', 50, 'x', 1, b'{}')\nsay('StepRequest', 51, 'x', 1, b'{}')"
    ),
    "the same token twice": (
        "say('StepRequest', 50, 'x', 1, b'{}')\nsay('StepRequest', 50, 'y', 1, b'{}')"
    ),
    "token 0": "say('StepRequest', 0, 'x', 1, b'{}')",
    "the token of a rollback": "say('StepRequest', -1, 'x', 1, b'{}')",
    "an end that is too much": (
        "error = sys.modules['dynamic_workflows.loaders.protocol.messages'].Error('E', 'm')\n"
        "say('StepRequest', 50, 'x', 1, b'{}', None, True)\n"
        "say('Done', 50, 1, b'1')\nsay('End', None, error)\nsay('End', None, error)"
    ),
    "an end of a lifetime that never was": "say('End', b'1', life=life + 1000)",
    "a lifetime that is gone, by its own word": "say('Ended')",
    "an attempt that is gone, by its own word": "say('AttemptEnded', 1, 1)",
    "a stubborn one that nobody told to end": "say('CancellationIgnored')",
    "the code is loaded twice": "say('Loaded', life=0)",
    "an answer that nobody asked for": "say('Reply', 1, b'1', life=(1 << 62) + 1)",
    "an answer in the name of another": "say('Reply', 1, b'1')",
    "a call in the name of nobody": "say('Call', 900, 'SVC', 'ping', b'[]', b'{}', life=0)",
    "a call in the name of another": (
        "say('Call', 900, 'SVC', 'ping', b'[]', b'{}', life=life + 1000)"
    ),
}
"""Messages that no guest sends: each ends the isolate, and in the end parks or fails its sender."""
