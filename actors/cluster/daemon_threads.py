"""Daemon threads: calls that may never return, and that no program has to wait for at its end."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextvars import copy_context
from typing import Any, TypeVar

T = TypeVar("T")


async def in_daemon_thread(work: Callable[..., T], *args: Any) -> T:
    """Return what `work` returns, or raise what it raises.

    Unlike `asyncio.to_thread`, neither the end of the event loop nor that of the interpreter waits
    for it: a call to Ray whose control service has died, or to a disk that hangs, stays for ever.
    """
    outcome: Future[T] = Future()
    outcome.set_running_or_notify_cancel()  # so that a caller who gives up cannot cancel it
    context = copy_context()

    def run() -> None:
        try:
            outcome.set_result(context.run(work, *args))
        except BaseException as error:
            outcome.set_exception(error)

    name = getattr(work, "__name__", "call")
    threading.Thread(target=run, name=f"dynamic-workflows-{name}", daemon=True).start()
    return await asyncio.wrap_future(outcome)
