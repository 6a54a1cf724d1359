"""Fsync thread: the one thread in which a log waits for its disk.

Work is a generator that yields between two calls to the disk. The thread runs it straight through;
the schedule explorer in the tests replaces the thread and stops at each yield.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable, Generator
from typing import Protocol, TypeVar

T = TypeVar("T")
Steps = Generator[None, None, T]
Done = Callable[[T | None, BaseException | None], None]


class Runner(Protocol):
    """Runs generators of disk calls one after the other, in the order of submission."""

    def submit(self, steps: Steps[T], done: Done[T]) -> None:
        """Run the steps elsewhere; call `done(result, error)` in the event loop."""
        ...

    def close(self) -> None:
        """Run what was submitted, then end."""
        ...


def run_steps(steps: Steps[T]) -> T:
    """Run the steps to their end in the calling thread."""
    while True:
        try:
            next(steps)
        except StopIteration as stop:
            result: T = stop.value
            return result


class SyncThread:
    """A thread of its own, started with the first work."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._loop = asyncio.get_running_loop()
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def submit(self, steps: Steps[T], done: Done[T]) -> None:
        """Run the steps in the thread; call `done` in the loop."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            self._thread.start()

        def work() -> None:
            result: T | None = None
            error: BaseException | None = None
            try:
                result = run_steps(steps)
            except BaseException as raised:
                error = raised
            try:
                self._loop.call_soon_threadsafe(done, result, error)
            except RuntimeError:
                pass  # the loop was closed: no task waits any more

        self._work.put(work)

    def close(self) -> None:
        """End the thread after the submitted work."""
        self._work.put(None)

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            work()
            del work
