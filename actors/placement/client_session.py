"""Client session: the calls that one client has made of a worker process, and their outcomes."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from functools import partial
from typing import Any, Protocol

from dynamic_workflows.eventlog.errors import (
    Fenced,
    InvalidError,
    PlatformClosed,
    needs_operator,
)
from dynamic_workflows.loaders.protocol.calls import (
    LONG_CALLS,
    AnswerT,
    TenantCall,
    unpack_call,
)

from ..rpc.actor_ref import portable
from ..rpc.services import CallOutcome


class ServedTenant(Protocol):
    """An open tenant: the shell around its core and its log."""

    def call(self, call: TenantCall[AnswerT]) -> Coroutine[Any, Any, AnswerT]:
        """Carry out one operation; raises WorkflowsError."""
        ...

    def is_idle(self) -> bool:
        """Return whether nothing runs and nothing is about to."""
        ...

    def next_wake_us(self) -> int | None:
        """Return when the tenant must be awake, 0 for at once, or None."""
        ...

    @property
    def epoch(self) -> int:
        """The epoch under which this process owns the log."""
        ...

    async def close(self) -> None:
        """Seal and close the log; every later call is refused."""
        ...

    @property
    def failed(self) -> BaseException | None:
        """Why the tenant stopped by itself (fenced, a log that cannot be reopened), or None."""
        ...


class ClientSession:
    """The calls of one client over one unbroken connection, and the outcomes not yet returned."""

    def __init__(self) -> None:
        self.outcomes: list[CallOutcome] = []
        self.is_broken = False
        """A call ended because the tenant closed or stopped: it has to be made again elsewhere."""
        self.waiting = 0
        self.used_us = 0
        self._tasks: dict[int, asyncio.Task[Any]] = {}
        self._long: set[int] = set()
        self._quick = 0
        self._changed: list[tuple[asyncio.Future[None], bool]] = []

    @property
    def tasks(self) -> list[asyncio.Task[Any]]:
        """The calls that have not ended."""
        return list(self._tasks.values())

    def is_quick(self) -> bool:
        """Return whether a call that cannot take long is pending."""
        return self._quick > 0

    def is_awaited(self) -> bool:
        """Return whether the client is likely to poll for an outcome."""
        return bool(self._tasks or self.waiting or self.outcomes)

    def start(self, tenant: ServedTenant, calls: list[tuple[int, bytes]]) -> bool:
        """Run each call in a task of its own, started in this order; return whether all of them
        may take long. One that does not decode has an error for its outcome."""
        loop = asyncio.get_running_loop()
        is_poll = True
        for number, body in calls:
            try:
                call = unpack_call(body)
            except InvalidError as error:
                self.outcomes.append((number, False, error))
                is_poll = False
                continue
            task = loop.create_task(tenant.call(call))
            self._tasks[number] = task
            is_quick = not isinstance(call, LONG_CALLS)
            is_poll = is_poll and not is_quick
            self._quick += is_quick
            if not is_quick:
                self._long.add(number)
            task.add_done_callback(partial(self._done, tenant, number, is_quick))
        return is_poll

    def forget(self, numbers: list[int]) -> None:
        """Stop waiting for these calls. What they began continues."""
        for number in self._long.intersection(numbers):
            self._tasks[number].cancel()

    async def wait(self, wait_s: float, *, is_poll: bool) -> None:
        """Wait until there is something to return: any outcome for a poll, else every quick
        call's."""
        if self._is_ready(is_poll):
            return
        changed = asyncio.get_running_loop().create_future()
        entry = (changed, is_poll)
        self._changed.append(entry)
        self.waiting += 1
        try:
            await asyncio.wait_for(changed, wait_s)
        except TimeoutError:
            pass
        finally:
            self.waiting -= 1
            if entry in self._changed:
                self._changed.remove(entry)

    def take(self) -> list[CallOutcome]:
        """Return the outcomes that were not returned yet."""
        outcomes, self.outcomes = self.outcomes, []
        return outcomes

    def close(self) -> None:
        """End all waits."""
        for number in self._long:
            self._tasks[number].cancel()
        for changed, _ in self._changed:
            if not changed.done():
                changed.set_result(None)

    def _is_ready(self, is_poll: bool) -> bool:
        return self.is_broken or (bool(self.outcomes) if is_poll else not self._quick)

    def _done(
        self, tenant: ServedTenant, number: int, is_quick: bool, task: asyncio.Task[Any]
    ) -> None:
        del self._tasks[number]
        self._long.discard(number)
        self._quick -= is_quick
        if not task.cancelled():
            error = task.exception()
            if error is None:
                self.outcomes.append((number, True, task.result()))
            elif isinstance(error, Fenced | PlatformClosed) or (
                tenant.failed is not None and not needs_operator(error)
            ):
                self.is_broken = True
            else:
                self.outcomes.append((number, False, portable(error)))
        for changed, is_poll in self._changed:
            if not changed.done() and self._is_ready(is_poll):
                changed.set_result(None)
