"""Daemon threads: calls that may never return, and that no program has to wait for at its end."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextvars import copy_context
from typing import Any, TypeVar

T = TypeVar("T")


async def in_daemon_thread(work: Callable[..., T], *args: Any) -> T:
    """Return what `work` returns, or raise what it raises.

    Unlike `asyncio.to_thread`, neither the end of the event loop nor that of the interpreter waits
    for it: a call to Ray whose control service has died, or to a disk that hangs, stays for ever.
    """
    loop = asyncio.get_running_loop()
    outcome: asyncio.Future[T] = loop.create_future()
    context = copy_context()

    def settle(settle_as: Callable[[Any], None], value: object) -> None:
        if not outcome.done():
            settle_as(value)

    def run() -> None:
        try:
            settle_as, value = outcome.set_result, context.run(work, *args)
        except BaseException as error:
            told: tuple[Callable[[Any], None], Any] = (outcome.set_exception, error)
        else:
            told = (settle_as, value)
        try:
            loop.call_soon_threadsafe(settle, *told)
        except RuntimeError:
            pass  # the loop has ended, and nobody waits

    name = getattr(work, "__name__", "call")
    threading.Thread(target=run, name=f"dynamic-workflows-{name}", daemon=True).start()
    return await outcome
