"""Quiet: tells when an event loop has nothing ready, to several who ask at the same time.

Whoever looks whether the loop has work makes work by looking: two who look would see each other
for ever. So one task looks for all platforms of a loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import Context
from typing import Any
from weakref import WeakKeyDictionary

_BLINK_S = 0.0002
_loops: WeakKeyDictionary[asyncio.AbstractEventLoop, Quiet] = WeakKeyDictionary()


class Quiet:
    """Who waits for quiet moments of one loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._asking: list[tuple[asyncio.Future[None], Callable[[], bool]]] = []
        self._task: asyncio.Task[None] | None = None

    @classmethod
    def here(cls) -> Quiet:
        """That of the running loop."""
        loop = asyncio.get_running_loop()
        quiet = _loops.get(loop)
        if quiet is None:
            quiet = _loops[loop] = cls(loop)
        return quiet

    async def until(self, is_settled: Callable[[], bool]) -> None:
        """Return in a moment when nothing is ready in the loop and `is_settled()` says yes.

        It is asked again and again, in such moments only. What it raises is raised here.
        """
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._asking.append((future, is_settled))
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._look(), context=Context())
        await future

    async def _look(self) -> None:
        loop: Any = asyncio.get_running_loop()
        while True:
            self._asking = [one for one in self._asking if not one[0].done()]
            if not self._asking:
                return
            await asyncio.sleep(0)
            if not loop._ready and not self._answer_one():
                await asyncio.sleep(_BLINK_S)

    def _answer_one(self) -> bool:
        """Answer the first whose world is settled: what it does next may unsettle the others."""
        for future, is_settled in self._asking:
            if future.done():
                continue
            try:
                answer = is_settled()
            except BaseException as error:
                future.set_exception(error)
                return True
            if answer:
                future.set_result(None)
                return True
        return False
