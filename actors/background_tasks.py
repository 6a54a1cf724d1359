"""BackgroundTasks: tasks that run by themselves, and that no caller awaits."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any


class BackgroundTasks:
    """The tasks of one object, which stops them when it closes."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._tasks)

    def begin(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Start a task; it is forgotten when it is done."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def stop(self) -> None:
        """Cancel them, and wait until they have ended."""
        await stop_all(self._tasks)


async def stop_all(tasks: Iterable[asyncio.Future[Any]]) -> None:
    """Cancel the tasks, and wait until all have ended, however they end."""
    ending = list(tasks)
    for task in ending:
        task.cancel()
    await asyncio.gather(*ending, return_exceptions=True)


def seen(future: asyncio.Future[Any]) -> None:
    """For a future that nobody may be waiting for: its error is told otherwise."""
    if not future.cancelled():
        future.exception()
