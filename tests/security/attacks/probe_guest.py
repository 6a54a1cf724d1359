"""A guest for tests: it runs the Python source that it is sent, and answers with what came out."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Callable
from typing import Any

import msgspec

Frame = tuple[int, int, bytes]
RUN, ECHO, RESULT, ECHOED = 2, 3, 20, 21


class Guest:
    """RUN: source of a script or of `async def main()`; RESULT: [state, text]. ECHO: ECHOED."""

    def __init__(
        self,
        send: Callable[[list[Frame]], None],
        *,
        loop: asyncio.AbstractEventLoop,
        on_resume: Callable[[int], None],
    ) -> None:
        self._send = send
        self._loop = loop
        self._on_resume = on_resume
        self._tasks: set[asyncio.Task[None]] = set()

    def receive(self, frames: list[Frame]) -> None:
        """Serve."""
        echoes = [(ECHOED, life, body) for kind, life, body in frames if kind == ECHO]
        if echoes:
            self._send(echoes)
        for kind, life, body in frames:
            if kind == RUN:
                self._on_resume(life)
                task = self._loop.create_task(self._run(life, body.decode()))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    async def _run(self, life: int, source: str) -> None:
        names: dict[str, Any] = {"__name__": "tenant", "send": self._send, "loop": self._loop}
        try:
            exec(compile(source, "tenant.py", "exec"), names)
            if "main" in names:
                names["result"] = await names["main"]()
            answer = ["ok", repr(names.get("result"))]
        except Exception as error:
            answer = [type(error).__name__, f"{error}\n{traceback.format_exc()}"]
        self._send([(RESULT, life, msgspec.msgpack.encode(answer))])
