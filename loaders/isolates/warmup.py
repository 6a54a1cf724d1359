"""Warm-up: runs once in the zygote, with the platform's own code, what every isolate does at its
start.

What Python makes ready on first use (specialised code, caches, modules imported late) then lies in
pages that all isolates share, instead of being made again in each. No byte of a tenant is involved,
and nothing of it stays: its guest, its bundle, its sockets and its loop are closed. An isolate that
waits for its owner rehearses once more.

Gain: from the start of a waiting isolate to its first step, 1.6 ms with it and 3.8 ms without
(`bench/isolate_start.py`, warm). Page packing needs it.
"""

from __future__ import annotations

import asyncio
import selectors
import socket

import msgspec

from ..guest import module_importer
from ..guest.guest import Guest
from ..guest.isolate_main import CallBackpressure
from ..protocol.channel import Channel, encode
from ..protocol.messages import (
    End,
    Frame,
    Go,
    Load,
    Module,
    ProtocolViolation,
    Run,
    StepRequest,
    pack,
    unpack_from_guest,
)

IS_ON = True
"""The switch: nothing else depends on it but the gain of page packing."""

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
    """Run one workflow of one step, as an isolate would; raises if it fails."""
    loop = asyncio.SelectorEventLoop(selectors.DefaultSelector())
    received: list[Frame] = []
    supervisor, theirs = socket.socketpair()
    # What is sent is heard here, not read from the socket: isolates have no use for a warm reader
    # of their own messages, and would pay for its pages.
    channel = Channel(
        theirs,
        loop=loop,
        on_frames=lambda frames: guest.receive(frames),
        on_end=_ignore,
        message_bytes_max=1 << 20,
    )
    gate = CallBackpressure(channel.send, calls_max=1, bytes_max=1)

    def send(frames: list[Frame]) -> None:
        received.extend(frames)
        gate.send(frames)

    guest = Guest(
        send, loop=loop, is_alone=False, prefix="rehearsal", builtins=module_importer.OF_PROCESS
    )
    try:
        _send(supervisor, Load("index.py", [Module("index.py", "py", _CODE)], []), life=0)
        _send(supervisor, Run("TenantWorkflow", "one", b"null", 0, []), life=_LIFE)
        loop.run_until_complete(_answer(supervisor, received))
    finally:
        guest.close()
        channel.close()
        supervisor.close()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()


def _send(supervisor: socket.socket, message: msgspec.Struct, *, life: int) -> None:
    for batch in encode([pack(message, life=life)]):
        supervisor.sendall(batch)


def _ignore(violation: ProtocolViolation | None) -> None:
    return None


async def _answer(supervisor: socket.socket, received: list[Frame]) -> None:
    """Answer every step, until the workflow ends."""
    for _ in range(_TURNS_MAX):
        await asyncio.sleep(0.0005)
        while received:
            kind, _, body = received.pop(0)
            message = unpack_from_guest(kind, body)
            if isinstance(message, StepRequest):
                _send(supervisor, Go(message.token, 1), life=_LIFE)
            elif isinstance(message, End):
                if message.error is not None:
                    raise RuntimeError(f"the rehearsal failed: {message.error.message}")
                return
    raise RuntimeError("the rehearsal did not end")
