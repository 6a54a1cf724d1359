"""EntrypointCalls: calls of entrypoints in one isolate, each with a deadline.

A call lasts until nothing is left of it in the isolate: what it started may go on after its answer,
and may call bindings, until the deadline. Then the guest is told to end it, as it is when nobody
waits for the answer any more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec

from dynamic_workflows.eventlog.errors import CodeError, LimitExceededError
from dynamic_workflows.loaders.protocol.messages import (
    CALLS_FROM,
    Drop,
    Frame,
    Invoke,
    ProtocolViolation,
    Reply,
    pack,
)


class _Call:
    __slots__ = ("due_s", "future", "is_answered", "title")

    def __init__(self, title: str, future: asyncio.Future[Reply], due_s: float) -> None:
        self.title = title
        self.future = future
        self.due_s = due_s
        self.is_answered = False


class EntrypointCalls:
    """Those of one isolate."""

    def __init__(
        self,
        timeout_s: float,
        *,
        send: Callable[[list[Frame]], None],
        dropped: Callable[[int, str], None],
    ) -> None:
        """`dropped` hears the wire number and the title of a call that was told to end."""
        self._timeout_s = timeout_s
        self._send = send
        self._dropped = dropped
        self._calls: dict[int, _Call] = {}
        """In the order in which they are due."""
        self._timer: asyncio.TimerHandle | None = None
        self._waiting = 0
        self._last = 0

    @property
    def waiting(self) -> int:
        """Calls that somebody waits for."""
        return self._waiting

    def __contains__(self, number: int) -> bool:
        return number in self._calls

    async def call(self, entrypoint: str | None, method: str, **more: Any) -> Reply:
        """Call a method; LimitExceededError at the deadline."""
        self._last += 1
        number = CALLS_FROM + self._last
        loop = asyncio.get_running_loop()
        due_s = loop.time() + self._timeout_s
        call = _Call(f"{entrypoint or 'Default'}.{method}", loop.create_future(), due_s)
        self._calls[number] = call
        self._waiting += 1
        if self._timer is None:
            self._timer = loop.call_at(due_s, self._look)
        invoke = Invoke(call=self._last, entrypoint=entrypoint, method=method, **more)
        self._send([pack(invoke, life=number)])
        try:
            return await call.future
        finally:
            self._waiting -= 1
            if not call.is_answered:
                self._drop(number)

    def on_reply(self, number: int, reply: Reply) -> bool:
        """The guest answers; False when nobody waits any more. ProtocolViolation for an answer
        that no call can have."""
        call = self._calls.get(number)
        if call is None or CALLS_FROM + reply.call != number or call.is_answered:
            raise ProtocolViolation(f"an answer to call {reply.call}, which has none to come")
        call.is_answered = True
        return not call.future.done()

    def resolve(self, number: int, reply: Reply) -> None:
        """Hand the answer to who waits."""
        self._calls[number].future.set_result(reply)

    def on_gone(self, number: int) -> bool:
        """Nothing of the call is left; False when there is no such call."""
        call = self._calls.pop(number, None)
        if call is None:
            return False
        if not call.future.done():
            call.is_answered = True
            text = f"the code of {call.title} ended without an answer"
            call.future.set_exception(CodeError(text, code="call.unanswered"))
        return True

    def lose(self, error: Exception) -> None:
        """The isolate is gone."""
        calls, self._calls = self._calls, {}
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for call in calls.values():
            if not call.future.done():
                call.future.set_exception(error)

    def _look(self) -> None:
        """Give up what is due, and look again when the next one is."""
        loop = asyncio.get_running_loop()
        now_s = loop.time()
        self._timer = None
        for number, call in list(self._calls.items()):
            if call.due_s > now_s:
                self._timer = loop.call_at(call.due_s, self._look)
                return
            self._on_deadline(number)

    def _on_deadline(self, number: int) -> None:
        call = self._calls[number]
        if not call.future.done():
            call.future.set_exception(
                LimitExceededError(
                    f"the call of {call.title} had no answer after {self._timeout_s:g} s and was "
                    "cancelled: let it start a workflow where the work is long, or raise "
                    "call_timeout_seconds",
                    limit="call_timeout_seconds",
                )
            )
        self._drop(number)

    def _drop(self, number: int) -> None:
        """Tell the guest to end it; from now on nothing that it says counts."""
        call = self._calls.pop(number, None)
        if call is not None:
            self._dropped(number, call.title)
            self._send([pack(_DROP, life=number)])


_DROP: msgspec.Struct = Drop()
