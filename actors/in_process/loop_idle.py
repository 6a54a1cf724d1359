"""Loop idle: tells several waiters when an event loop has nothing ready.

A task that polls whether the loop has work is work itself: two such tasks would see each other for
ever. So one task polls for all platforms of a loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import Context
from weakref import WeakKeyDictionary

from dynamic_workflows.eventlog.asyncio_internals import ready_handles

_BLINK_S = 0.0002
_loops: WeakKeyDictionary[asyncio.AbstractEventLoop, LoopIdle] = WeakKeyDictionary()


class LoopIdle:
    """The waiters for idle moments of one loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._waiting: list[tuple[asyncio.Future[None], Callable[[], bool]]] = []
        self._task: asyncio.Task[None] | None = None

    @classmethod
    def here(cls) -> LoopIdle:
        """Return the instance of the running loop."""
        loop = asyncio.get_running_loop()
        loop_idle = _loops.get(loop)
        if loop_idle is None:
            loop_idle = _loops[loop] = cls(loop)
        return loop_idle

    async def until(self, is_quiescent: Callable[[], bool]) -> None:
        """Return in a moment when the loop has nothing ready and `is_quiescent()` is true.

        It is asked again and again, in such moments only. What it raises is raised here.
        """
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((future, is_quiescent))
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._poll(), context=Context())
        await future

    async def _poll(self) -> None:
        ready = ready_handles(asyncio.get_running_loop())
        while True:
            self._waiting = [one for one in self._waiting if not one[0].done()]
            if not self._waiting:
                return
            await asyncio.sleep(0)
            if not ready and not self._answer_one():
                await asyncio.sleep(_BLINK_S)

    def _answer_one(self) -> bool:
        """Wake the first waiter that is quiescent: what it does next may change the others."""
        for future, is_quiescent in self._waiting:
            if future.done():
                continue
            try:
                answer = is_quiescent()
            except BaseException as error:
                future.set_exception(error)
                return True
            if answer:
                future.set_result(None)
                return True
        return False
