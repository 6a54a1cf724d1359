"""RunAsyncio: what asyncio makes for `run`, so that a replay meets the same in the same order.

Python's sets go through their members by hash, and the hash of a task is its address: chance. The
tasks and futures that `run` makes are numbered, and the number is their hash. Where asyncio itself
depends on chance or on the clock, `replacements` does the same without. Outside of `run`, in the
callbacks of steps as anywhere, each of them does what the original does.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterable, Iterator
from types import ModuleType
from typing import Any

from .attempt import ATTEMPT
from .quiescence import CURRENT


class RunTask(asyncio.Task[Any]):
    """A task that `run` started; `number` counts them within the lifetime."""

    def __init__(self, work: Any, *, number: int, **options: Any) -> None:
        self.number = number
        if options.get("name") is None:
            options["name"] = f"Task-{number}"
        super().__init__(work, **options)

    def __hash__(self) -> int:
        return self.number


class RunFuture(asyncio.Future[Any]):
    """A future that `run`, or asyncio for it, made."""

    def __init__(self, *, number: int, loop: asyncio.AbstractEventLoop) -> None:
        self.number = number
        super().__init__(loop=loop)

    def __hash__(self) -> int:
        return self.number


class RunGathering(asyncio.tasks._GatheringFuture):  # type: ignore[name-defined,misc]
    """What `gather` returns in `run`."""

    number: int

    def __hash__(self) -> int:
        return self.number


class RunTimeout(asyncio.Timeout):  # type: ignore[misc]
    """A time-out whose decision that its time is past is a timer's as well, and so recorded."""

    def reschedule(self, when: float | None) -> None:
        """Set it anew."""
        _reschedule(self, when)


def of_run() -> Any:
    """The lifetime whose `run` is at work, outside of callbacks; None elsewhere."""
    scope = CURRENT.get()
    is_run = scope is not None and scope.timers is not None and ATTEMPT.get() is None
    return scope if is_run else None


_plain_reschedule = asyncio.Timeout.reschedule
_plain_as_completed = asyncio.as_completed
_plain_all_tasks = asyncio.all_tasks
_plain_gather = asyncio.gather


def _reschedule(timeout: Any, when: float | None) -> None:
    if when is None or of_run() is None:
        _plain_reschedule(timeout, when)
        return
    _plain_reschedule(timeout, None)
    timeout._when = when
    loop = asyncio.get_running_loop()
    timeout._timeout_handler = loop.call_at(when, timeout._on_timeout)


def timeout(delay: float | None) -> asyncio.Timeout:
    """As asyncio's."""
    loop = asyncio.get_running_loop()
    return RunTimeout(loop.time() + delay if delay is not None else None)


def timeout_at(when: float | None) -> asyncio.Timeout:
    """As asyncio's."""
    return RunTimeout(when)


def as_completed(fs: Iterable[Any], *, timeout: float | None = None) -> Iterator[Any]:
    """As asyncio's; coroutines are started in the order in which they are given."""
    is_one = asyncio.isfuture(fs) or asyncio.iscoroutine(fs)
    if not is_one and of_run() is not None:
        fs = [asyncio.ensure_future(one) for one in dict.fromkeys(fs)]
    return _plain_as_completed(fs, timeout=timeout)


def all_tasks(loop: asyncio.AbstractEventLoop | None = None) -> set[asyncio.Task[Any]]:
    """As asyncio's; in `run` those of this lifetime, not those of its neighbours."""
    found = _plain_all_tasks(loop)
    life = of_run()
    return found if life is None else {task for task in life.tasks() if task in found}


def gather(*works: Any, return_exceptions: bool = False) -> Any:
    """As asyncio's."""
    outer: Any = _plain_gather(*works, return_exceptions=return_exceptions)
    life = of_run()
    if life is not None and type(outer) is asyncio.tasks._GatheringFuture:  # type: ignore[attr-defined]
        outer.__class__ = RunGathering
        outer.number = life.next_number()
    return outer


_REPLACED: dict[str, Callable[..., Any]] = {
    "all_tasks": all_tasks,
    "as_completed": as_completed,
    "gather": gather,
}


def install() -> None:
    """Put the replacements in the place of the originals, in a process that is the tenant's."""
    for name, function in _REPLACED.items():
        setattr(asyncio, name, function)
        setattr(asyncio.tasks, name, function)
    asyncio.Timeout.reschedule = _reschedule  # type: ignore[method-assign,assignment]


def module() -> ModuleType:
    """A module `asyncio` with the replacements, for code that shares its process with others."""
    shared = ModuleType("asyncio", asyncio.__doc__)
    shared.__dict__.update(vars(asyncio))
    shared.__dict__.update(_REPLACED)
    shared.__dict__.update(timeout=timeout, timeout_at=timeout_at, Timeout=RunTimeout)
    return shared


assert sys.version_info >= (3, 11), "asyncio.Timeout is there"
