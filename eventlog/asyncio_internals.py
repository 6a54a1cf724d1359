"""asyncio's internals: the one place that reads what asyncio does not hand out.

What is read has had these names since Python 3.7, of asyncio's own loop and the standard library's
thread pool; tests fail when a new Python changes them. Other event loops have none of it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from contextvars import Context, ContextVar
from typing import Any, NamedTuple


def ready_handles(loop: asyncio.AbstractEventLoop) -> deque[asyncio.Handle]:
    """Return the handles that the loop runs next, in order: the loop's own, one for its life."""
    ready: deque[asyncio.Handle] = loop._ready  # type: ignore[attr-defined]
    return ready


def timer_handles(loop: asyncio.AbstractEventLoop) -> list[asyncio.TimerHandle]:
    """Return the timers that are set, in no order. The loop may replace the list: ask each time."""
    scheduled: list[asyncio.TimerHandle] = loop._scheduled  # type: ignore[attr-defined]
    return scheduled


def context_of(handle: asyncio.Handle) -> Context:
    """Return the context in which the loop runs a handle."""
    context: Context = handle._context  # type: ignore[attr-defined]
    return context


def is_set(timer: asyncio.TimerHandle) -> bool:
    """Whether a timer has neither fired nor been cancelled."""
    return not timer.cancelled() and bool(timer._scheduled)  # type: ignore[attr-defined]


class HandleCall(NamedTuple):
    """What a handle calls."""

    callback: Callable[..., Any]
    args: tuple[Any, ...]
    context: Context


def call_of(handle: asyncio.Handle) -> HandleCall:
    """Return what a handle that is not cancelled calls."""
    return HandleCall(handle._callback, tuple(handle._args), context_of(handle))  # type: ignore[attr-defined]


def are_threads_busy(loop: asyncio.AbstractEventLoop) -> bool:
    """Whether a thread of the loop's own executor works, or work waits for one.

    A thread counts as busy until the outcome of its last work has been posted to the loop.
    """
    executor = loop._default_executor  # type: ignore[attr-defined]
    if executor is None:
        return False
    is_waiting = executor._work_queue.qsize() > 0
    return bool(is_waiting or executor._idle_semaphore._value < len(executor._threads))


# These loops run several times for each step, over all that is ready: so they call nothing else.


def carried(handles: Iterable[asyncio.Handle], variable: ContextVar[Any]) -> set[Any]:
    """Return what the variable is, other than None, in the contexts of handles not cancelled."""
    found = {
        handle._context.get(variable)  # type: ignore[attr-defined]
        for handle in handles
        if not handle._cancelled
    }
    found.discard(None)
    return found


def carries_any(handles: Iterable[asyncio.Handle], variable: ContextVar[Any]) -> bool:
    """Whether the variable is other than None in the context of a handle not cancelled."""
    for handle in handles:
        if handle._context.get(variable) is not None and not handle._cancelled:  # type: ignore[attr-defined]
            return True
    return False


def carries(handles: Iterable[asyncio.Handle], variable: ContextVar[Any], value: object) -> bool:
    """Whether the variable is this value in the context of a handle, cancelled or not."""
    for handle in handles:
        if handle._context.get(variable) is value:  # type: ignore[attr-defined]
            return True
    return False
