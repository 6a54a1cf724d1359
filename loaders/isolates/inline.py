"""Inline: isolates in the supervisor's own event loop, without walls; for tests and simulations.

The same guest and the same messages as in a process of its own. Frames are delivered by `call_soon`
in both directions, so neither side ever runs inside the other's call.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Mapping, Sequence
from contextvars import Context, copy_context
from types import ModuleType

from ..guest.guest import Guest
from ..guest.quiescence import CURRENT
from ..protocol.messages import Frame, ProtocolViolation
from .interface import Exit, Isolate, Limits, OnExit, OnFrames

_numbers = itertools.count(1)


class InlineIsolate:
    """A guest in the supervisor's event loop."""

    level = "inline"
    pid: int | None = None
    is_busy = False

    def __init__(
        self,
        on_frames: OnFrames,
        on_exit: OnExit,
        *,
        stand_ins: Mapping[str, ModuleType] | None = None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._context = _clean_context()
        self._on_frames = on_frames
        self._on_exit = on_exit
        self._is_alive = True
        self._to_guest: list[Frame] = []
        self._from_guest: list[Frame] = []
        self.guest = Guest(
            self._receive,
            loop=self._loop,
            is_alone=False,
            prefix=f"tenant_{next(_numbers)}",
            idle_grace_s=0.0,
            stand_ins=stand_ins,
        )

    def send(self, frames: list[Frame]) -> None:
        """Queue messages for the guest; they arrive in the next turn of the loop."""
        if self._is_alive:
            if not self._to_guest:
                self._loop.call_soon(self._deliver_in, context=self._context)
            self._to_guest.extend(frames)

    def _deliver_in(self) -> None:
        frames, self._to_guest = self._to_guest, []
        if self._is_alive:
            try:
                self.guest.receive(frames)
            except ProtocolViolation as violation:
                self.kill(Exit(str(violation), is_tenants_own=False, kind="protocol"))

    def _receive(self, frames: list[Frame]) -> None:
        if self._is_alive:
            if not self._from_guest:
                self._loop.call_soon(self._deliver_out, context=self._context)
            self._from_guest.extend(frames)

    def _deliver_out(self) -> None:
        frames, self._from_guest = self._from_guest, []
        if self._is_alive:
            self._on_frames(frames)

    def kill(self, exit: Exit) -> None:
        """End the isolate; `on_exit` follows in the next turn of the loop."""
        if self._is_alive:
            self._is_alive = False
            self.guest.close()
            self._loop.call_soon(self._on_exit, exit, context=self._context)


def _clean_context() -> Context:
    context = copy_context()
    context.run(CURRENT.set, None)
    return context


class InlineIsolates:
    """The source of inline isolates; enforces no limits."""

    def __init__(self, *, stand_ins: Mapping[str, ModuleType] | None = None) -> None:
        """`stand_ins`: modules that bundles import instead of modules of the standard library."""
        self._stand_ins = stand_ins
        self._isolates: list[InlineIsolate] = []
        self._guests: set[Guest] = set()

    async def start(
        self,
        *,
        limits: Limits,
        on_frames: OnFrames,
        on_exit: OnExit,
        first: Sequence[Frame] = (),
    ) -> Isolate:
        """Return a fresh isolate; Load is the first message that it takes."""
        isolate = InlineIsolate(on_frames, on_exit, stand_ins=self._stand_ins)
        self._isolates.append(isolate)
        self._guests.add(isolate.guest)
        if first:
            isolate.send(list(first))
        return isolate

    def runs(self, context: Context) -> bool:
        """Return whether this context belongs to the code of one of these isolates."""
        scope = context.get(CURRENT)
        return scope is not None and scope.guest in self._guests

    async def close(self) -> None:
        """End every isolate."""
        for isolate in self._isolates:
            isolate.kill(Exit("closed", is_tenants_own=False, kind="closed"))
        self._isolates.clear()
