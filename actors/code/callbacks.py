"""Callbacks: calls of code that the platform's owner wrote; no failure of it ends the caller."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

_THREADS = 32


class CallbackEndedError(RuntimeError):
    """A callback tried to end the process or the task that called it."""


async def answer_of(callback: Callable[[], object]) -> object:
    """Return what a callback returns, awaited if it is a coroutine; raises what it raises.

    SystemExit and KeyboardInterrupt would stop the whole event loop, and a cancellation that nobody
    asked for would leave those who wait for the answer without one: these become
    CallbackEndedError.
    """
    try:
        answer = callback()
        return await answer if inspect.isawaitable(answer) else answer
    except (Exception, GeneratorExit):
        raise
    except BaseException as ending:
        task = asyncio.current_task()
        if isinstance(ending, asyncio.CancelledError) and task is not None and task.cancelling():
            raise
        raise CallbackEndedError(f"it raised {type(ending).__name__}: {ending}") from ending


class Callbacks:
    """Calls the callbacks of a platform, with a time limit and outside the event loop."""

    def __init__(self, *, timeout_s: float | None = None, in_threads: bool = False) -> None:
        """None: no limit. `in_threads`: sync callbacks run in a thread of their own."""
        self._timeout_s = timeout_s
        # A pool of its own: callbacks that hang take no thread from anybody else.
        self._threads = ThreadPoolExecutor(_THREADS, "callback") if in_threads else None

    async def answer_of(self, callback: Callable[..., Any], *args: object) -> Any:
        """Return what the callback returns; raises what it raises, TimeoutError above the limit."""
        call = partial(callback, *args)
        threads = self._threads
        if threads is not None and not _is_async(callback):
            in_thread = partial(asyncio.get_running_loop().run_in_executor, threads, _called, call)
            call = partial(_awaited, in_thread)
        limit = asyncio.timeout(self._timeout_s)
        try:
            async with limit:
                return await answer_of(call)
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise TimeoutError(f"it took more than {self._timeout_s:g} s") from error


def _is_async(callback: Callable[..., Any]) -> bool:
    is_object = not inspect.isroutine(callback) and not isinstance(callback, partial)
    called: Any = callback
    return inspect.iscoroutinefunction(called.__call__ if is_object else called)


async def _awaited(in_thread: Callable[[], Any]) -> Any:
    answer = await in_thread()
    return await answer if inspect.isawaitable(answer) else answer


def _called(callback: Callable[[], object]) -> object:
    try:
        return callback()
    except StopIteration as error:  # a future cannot carry it
        raise RuntimeError("it raised StopIteration") from error
