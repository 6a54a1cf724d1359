"""Rehearsal: what every isolate does at its start, done once in the zygote with code of our own.

What Python makes ready on first use (specialised code, caches, modules imported late) then lies in
pages that all isolates share, instead of being made again in each. No byte of a tenant is involved,
and nothing of the rehearsal stays: its guest, its bundle, its sockets and its loop are closed.
"""

from __future__ import annotations

import asyncio
import selectors
import socket
from collections.abc import Callable

from .channel import Channel
from .guest import Guest
from .inside import CallGate
from .wire import (
    End,
    Frame,
    Go,
    Load,
    Module,
    ProtocolViolation,
    Run,
    Step,
    pack,
    unpack_from_guest,
)

_CODE = b"""
from dynamic_workflows import WorkflowEntrypoint

class TenantWorkflow(WorkflowEntrypoint):
    async def run(self, event, step):
        @step.do("one")
        async def one(ctx):
            return {"ok": True, "n": 1, "payload": event.payload}
        return await one()
"""
_LIFE = 1
_TURNS_MAX = 1000


def rehearse() -> None:
    """Run one workflow of one step from a guest to its supervisor and back; raises if it fails."""
    loop = asyncio.SelectorEventLoop(selectors.DefaultSelector())
    heard: list[Frame] = []
    ours, theirs = socket.socketpair()
    supervisor = _channel(ours, loop, heard.extend)
    inside = _channel(theirs, loop, lambda frames: guest.receive(frames))
    gate = CallGate(inside.send, calls_max=1, bytes_max=1)
    guest = Guest(gate.send, loop=loop, is_alone=False, prefix="rehearsal")
    try:
        supervisor.send([pack(Load("index.py", [Module("index.py", "py", _CODE)], []))])
        supervisor.send([pack(Run("TenantWorkflow", "one", b"null", 0, []), life=_LIFE)])
        loop.run_until_complete(_answer(supervisor, heard))
    finally:
        guest.close()
        for channel in (supervisor, inside):
            channel.close()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()


def _channel(
    sock: socket.socket, loop: asyncio.AbstractEventLoop, on_frames: Callable[[list[Frame]], None]
) -> Channel:
    return Channel(sock, loop=loop, on_frames=on_frames, on_end=_ignore, message_bytes_max=1 << 20)


def _ignore(violation: ProtocolViolation | None) -> None:
    return None


async def _answer(supervisor: Channel, heard: list[Frame]) -> None:
    """Let every step go on, until the workflow ends."""
    for _ in range(_TURNS_MAX):
        await asyncio.sleep(0.0005)
        while heard:
            kind, _, body = heard.pop(0)
            message = unpack_from_guest(kind, body)
            if isinstance(message, Step):
                supervisor.send([pack(Go(message.token, 1), life=_LIFE)])
            elif isinstance(message, End):
                if message.error is not None:
                    raise RuntimeError(f"the rehearsal failed: {message.error.message}")
                return
    raise RuntimeError("the rehearsal did not end")
