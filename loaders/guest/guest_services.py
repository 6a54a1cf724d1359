"""Guest services: what the guest of an isolate does for the lifetimes that it owns.

A lifetime, its steps and their attempts see the guest by this alone, so none of them imports it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextvars import Context
from types import CodeType, FrameType
from typing import Protocol

from ..protocol import messages
from ..sdk.entrypoints import WorkflowEntrypoint
from ..values.typed_values import Revivers
from .cancellation import CancellationTracker
from .logs import Logs
from .quiescence import Pulse, QuiescenceListener


class IdleLifetime(QuiescenceListener, Protocol):
    """A lifetime that waits for the first word about a new step."""

    unanswered: int
    """New steps that wait for their first word."""
    is_dropped: bool

    def send_idle(self) -> None:
        """Tell the supervisor that everything of it waits."""
        ...


class GuestServices(Protocol):
    """The guest, as lifetimes, steps and attempts see it."""

    loop: asyncio.AbstractEventLoop
    pulse: Pulse
    logs: Logs
    cancellations: CancellationTracker
    revivers: Revivers
    value_bytes_max: int
    """The longest text of one value."""
    has_threads: bool
    """Plain functions of steps run in threads."""
    idle_grace_s: float
    on_resume: Callable[[int], None]
    """Is told the number of the lifetime whose code runs next."""

    def send(self, message: object, number: int, life: QuiescenceListener | None) -> None:
        """Send a message of a lifetime to the supervisor, with the others of this burst."""
        ...

    def idle_later(self, life: IdleLifetime) -> None:
        """Tell that a lifetime is idle if its new steps have no answer within `idle_grace_s`."""
        ...

    def env(self) -> Mapping[str, object]:
        """What the platform granted, new for each lifetime or call."""
        ...

    def workflow_class(self, name: str) -> type[WorkflowEntrypoint] | None:
        """The workflow class that the main module exports under a name, or None."""
        ...

    def place(self, frame: FrameType | CodeType | None) -> str | None:
        """The place in the bundle that a frame or a function is at, or None."""
        ...

    def place_of(self, task: asyncio.Task[object]) -> str | None:
        """The innermost place in the bundle that a task waits at, or None."""
        ...

    def to_wire(self, error: BaseException, step: str | None = None) -> messages.Error:
        """An exception as data; `step`: whose callback raised it."""
        ...

    def from_wire(self, error: messages.Error) -> Exception:
        """An exception to raise in tenant code."""
        ...

    async def in_thread(
        self, context: Context, function: Callable[..., object], *args: object
    ) -> object:
        """Run a plain function in a worker thread."""
        ...
