"""Host: one code of one tenant in one isolate, and what its guest says.

A host holds several lifetimes of the same code. What the guest says is decoded here and handed on
as typed messages; whatever no correct guest would send ends the isolate.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import msgspec

from dynamic_workflows.eventlog.clock import Clock
from dynamic_workflows.eventlog.errors import (
    CodeError,
    LimitExceededError,
    Unavailable,
    WorkflowsError,
)
from dynamic_workflows.eventlog.tracing import mark
from dynamic_workflows.loaders.bundles.bundle import Bundle
from dynamic_workflows.loaders.guest.exception_codec import MESSAGE_CHARACTERS_MAX
from dynamic_workflows.loaders.guest.sanitize import plain_error
from dynamic_workflows.loaders.isolates.interface import Exit, Isolate
from dynamic_workflows.loaders.protocol.messages import (
    AttemptEnded,
    CallRequest,
    CancellationIgnored,
    CodeLoaded,
    Ended,
    Error,
    Export,
    Frame,
    Log,
    ProtocolViolation,
    Reply,
    unpack_from_guest,
)

from ..background_tasks import seen
from .entrypoint_calls import EntrypointCalls
from .isolate_scaling import BusySamples
from .pending_ends import KIND, EndDeadline, PendingEnds
from .services import Services

if TYPE_CHECKING:
    from ..instances.decisions import Key

HostKey: TypeAlias = tuple[str, str | None, tuple[tuple[str, int], ...]]
"""(code hash, name of a worker or None for the tenant's own code, limits below the code's own)"""


class IsolateListener(Protocol):
    """Who hears what guests say: the tenant's shell."""

    def on_messages(self, host: Host, messages: list[tuple[int, msgspec.Struct]]) -> None:
        """Messages about lifetimes, in order. Raises ProtocolViolation to end the isolate."""
        ...

    def on_call(self, host: Host, life: int, call: CallRequest) -> None:
        """The guest calls a binding."""
        ...

    def on_log(self, host: Host, life: int, log: Log) -> None:
        """The guest printed."""
        ...

    def on_ready(self, host: Host) -> None:
        """The code is loaded, or loading failed (`host.error`)."""
        ...

    def on_lost(self, host: Host, lives: list[int], exit: Exit) -> None:
        """The isolate is gone with these lifetimes in it; `host.pending_ends` are still there."""
        ...

    def on_room(self) -> None:
        """A lifetime that found no place may find one now."""
        ...

    def on_mistake(self, mistake: Exception) -> None:
        """The platform's own code failed on what a guest said."""
        ...


class HostOwner(Protocol):
    """The hosts of a tenant, as each of them sees the others."""

    clock: Clock
    listener: IsolateListener
    call_timeout_s: float
    """How long a call, or loading the code, may take."""
    calls_out_max: int
    """Calls of bindings that one isolate may wait for."""

    def holds(self, host: Host) -> bool:
        """Whether the host is one of these, and not one that was forgotten."""
        ...

    def check(self, value: bytes | None) -> None:
        """Prove that text from an isolate is a value. Raises ProtocolViolation."""
        ...

    def failed(self, host: Host) -> None:
        """The code of the host could not be loaded (`host.error`)."""
        ...

    def ended(self, host: Host, exit: Exit) -> None:
        """The isolate of the host is gone."""
        ...


class Host:
    """One code of one tenant in one isolate."""

    def __init__(self, key: HostKey, hosts: HostOwner, watch: EndDeadline) -> None:
        self.key = key
        self._hosts = hosts
        self.isolate: Isolate | None = None
        self.bundle: Bundle | None = None
        self.services: Services | None = None
        self.exports: dict[str, Export] = {}
        self.limits: dict[str, int] = {}
        self.error: WorkflowsError | None = None
        self.retry_us = 0
        """When loading may be tried again, after an error."""
        self.is_ready = False
        self.is_parked = False
        """The code has ended too many isolates, and waits until `retry_us`."""
        self.has_progressed = False
        """Something that it ran got somewhere."""
        self.busy_samples = BusySamples()
        self.lives: dict[int, Key] = {}
        self.pending_ends = PendingEnds(watch)
        """What was told to end in it and has not yet."""
        self.used_us = 0
        self.subrequests: dict[int, int] = {}
        self.waits: dict[int, set[asyncio.Task[Any]]] = {}
        """Calls that wait for something to happen, by lifetime: nobody needs them after it."""
        self.calls_out = 0
        """Calls of bindings that have no answer yet."""
        self.entrypoint_calls = EntrypointCalls(
            hosts.call_timeout_s, send=self.send, dropped=self._on_call_dropped
        )
        self._load_timer: asyncio.TimerHandle | None = None
        self._loaded: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._loaded.add_done_callback(seen)

    @property
    def code_hash(self) -> str:
        """The code it runs."""
        return self.key[0]

    @property
    def load(self) -> int:
        """Lifetimes and calls that are in it."""
        return len(self.lives) + self.entrypoint_calls.waiting

    async def loaded(self) -> None:
        """Wait until the code is loaded; raises what loading raised, or why it may not run now."""
        await asyncio.shield(self._loaded)
        if self.error is not None:
            raise self.error

    def send(self, frames: list[Frame]) -> None:
        """Hand messages to the guest; they are lost if it is gone."""
        if self.isolate is not None:
            self.isolate.send(frames)

    def expect_load(self) -> None:
        """Its code was sent: it has to be loaded in time."""
        self._load_timer = asyncio.get_running_loop().call_later(
            self._hosts.call_timeout_s, self._on_load_late
        )

    def _on_load_late(self) -> None:
        text = f"the code was not loaded after {self._hosts.call_timeout_s:g} s"
        self.kill(text, kind="unanswered", is_tenants_own=True)

    async def invoke(self, **call: Any) -> bytes:
        """Call a method of an entrypoint: codec text of its answer, or the error it raised."""
        try:
            reply = await self.entrypoint_calls.call(**call)
        finally:
            self.used_us = self._hosts.clock.now_us()
        if reply.error is not None:
            raise GuestError(reply.error)
        return reply.value or b"null"

    def _on_call_dropped(self, number: int, title: str) -> None:
        self.end(number)
        self.pending_ends.add(number, title)

    def may_call(self, life: int) -> bool:
        """Whether code of this lifetime or invocation may call bindings; ProtocolViolation when
        there never was such a one, or nothing of it is left by its guest's own word."""
        if life in self.lives or life in self.entrypoint_calls:
            return True
        if life in self.pending_ends:
            return False
        raise ProtocolViolation(f"a call on behalf of {life}, which is not in this isolate")

    def count_subrequest(self, life: int) -> bool:
        """Count one more call of a lifetime, or of an invocation; whether it may have it."""
        most = self.limits.get("subrequests")
        if most is None:
            return True
        used = self.subrequests[life] = self.subrequests.get(life, 0) + 1
        return used <= most

    def drop(self, life: int) -> None:
        """The lifetime was told to end."""
        key = self.lives.get(life)
        self.end(life)
        if key is not None:
            self.pending_ends.add(life, key)

    def end(self, life: int) -> None:
        """The lifetime or call is over."""
        self.lives.pop(life, None)
        self.subrequests.pop(life, None)
        for task in self.waits.pop(life, ()):
            task.cancel()

    def is_unused(self) -> bool:
        """Whether nothing of the tenant's lives in it."""
        return not self.lives and not self.entrypoint_calls.waiting and self.is_ready

    def kill(self, reason: str, *, kind: str, is_tenants_own: bool, life: int = 0) -> None:
        """End the isolate; `life` did it, where that is known."""
        if self.isolate is not None:
            self.isolate.kill(Exit(reason, is_tenants_own, life=life, kind=kind))

    # --- what the isolate says

    def on_frames(self, frames: list[Frame]) -> None:
        """The isolate sent these."""
        if not self._hosts.holds(self):
            return
        if not self.is_unused():  # what outlived its instance keeps no isolate alive
            self.used_us = self._hosts.clock.now_us()
        about_lives: list[tuple[int, msgspec.Struct]] = []
        life = 0
        try:
            for kind, life, body in frames:
                message = unpack_from_guest(kind, body)
                if isinstance(message, _OWN):
                    if about_lives and not isinstance(message, Log):
                        # In the order in which they were sent: who calls has to be alive by then.
                        self._hosts.listener.on_messages(self, about_lives)
                        about_lives = []
                    self._on_own(life, message)
                else:
                    about_lives.append((life, message))
            if about_lives:
                self._hosts.listener.on_messages(self, about_lives)
        except ProtocolViolation as violation:
            life = violation.life or life
            life = life if life in self.lives or self.is_elsewhere(life) else 0
            self.kill(f"protocol: {violation}", kind="protocol", is_tenants_own=True, life=life)
        except Exception as mistake:
            # Ours: what was decided of this frame is unknown, so nothing may go on from here.
            self.kill(f"our mistake: {mistake!r}", kind="platform", is_tenants_own=False)
            self._hosts.listener.on_mistake(mistake)

    def _on_own(self, life: int, message: Any) -> None:
        if isinstance(message, Reply):
            self._on_reply(life, message)
        elif isinstance(message, CallRequest):
            # A guest holds back what is too much; one that does not is no guest of ours.
            if self.calls_out > self._hosts.calls_out_max:
                raise ProtocolViolation(f"more than {self._hosts.calls_out_max} calls at once")
            self._hosts.listener.on_call(self, life, message)
        elif isinstance(message, Log):
            self._hosts.listener.on_log(self, life, message)
        elif isinstance(message, CodeLoaded):
            if self._loaded.done():
                raise ProtocolViolation("its code is loaded for the second time")
            self._on_loaded(message)
        else:
            self._on_end_report(life, message)

    def _on_reply(self, life: int, reply: Reply) -> None:
        if life in self.pending_ends:  # it crossed our word that nobody waits any more
            if reply.is_last:
                self.pending_ends.confirm(life)
            return
        if self.entrypoint_calls.on_reply(life, reply):
            self._hosts.check(reply.value)
            if reply.error is not None:
                reply.error = plain_error(reply.error, MESSAGE_CHARACTERS_MAX)
            self.entrypoint_calls.resolve(life, reply)
        if reply.is_last and self.entrypoint_calls.on_gone(life):
            self.end(life)

    def _on_end_report(
        self, life: int, message: Ended | AttemptEnded | CancellationIgnored
    ) -> None:
        pending = self.pending_ends
        if isinstance(message, CancellationIgnored):
            reason = pending.reason(life, message)
            if reason is not None:
                self.kill(reason, kind=KIND, is_tenants_own=True, life=life)
            is_known = reason is not None or life in pending
        elif isinstance(message, Ended):
            is_known = pending.confirm(life)
            if self.entrypoint_calls.on_gone(life):
                self.end(life)
                is_known = True
        else:
            is_known = pending.confirm(life, message.token, message.attempt) or life in pending
        if not is_known:
            raise ProtocolViolation(f"{life} was not told to end")

    def _on_loaded(self, message: CodeLoaded) -> None:
        if message.error is not None:
            error = plain_error(message.error, _LOAD_ERROR_CHARACTERS_MAX)
            code = message.code if message.code in _LOAD_CODES else "code.import_failed"
            text = f"the code cannot be loaded: {error.name}: {error.message}"
            self.fail(CodeError(text, code=code))
            self.kill("closed: its code cannot be loaded", kind="closed", is_tenants_own=False)
            return
        self.exports = {export.name: export for export in message.exports}
        self._stop_load_timer()
        mark("worker: the isolate has loaded")
        self.is_ready = True
        self._loaded.set_result(None)
        self._hosts.listener.on_ready(self)

    def _stop_load_timer(self) -> None:
        if self._load_timer is not None:
            self._load_timer.cancel()

    def fail(self, error: WorkflowsError) -> None:
        """Its code cannot be loaded."""
        self._stop_load_timer()
        self.error = error
        if not self._loaded.done():
            self._loaded.set_exception(error)
        self._hosts.failed(self)

    def on_exit(self, exit: Exit) -> None:
        """The isolate is gone."""
        self.isolate, self.is_ready = None, False
        if not self._loaded.done():
            kind = "import_failed" if exit.is_tenants_own else "load_failed"
            self.fail(CodeError(f"the isolate ended: {exit.reason}", code=f"code.{kind}"))
        elif self.error is None:
            self._hosts.ended(self, exit)
        lives = sorted(self.lives)
        for life in {*lives, *self.waits}:
            self.end(life)
        self._hosts.listener.on_lost(self, lives, exit)
        self.entrypoint_calls.lose(_call_error(exit))
        self.pending_ends.clear()

    def is_elsewhere(self, life: int) -> bool:
        """Whether what ended the isolate is none of the instances in it: a call, or one that had
        left."""
        return life in self.entrypoint_calls or life in self.pending_ends


def _call_error(exit: Exit) -> WorkflowsError:
    """What a call is told whose isolate ended under it."""
    text = f"the isolate ended: {exit.reason}"
    if not exit.is_tenants_own:
        return Unavailable(text)
    if exit.kind in _LIMIT_KINDS:
        return LimitExceededError(text, limit=exit.kind)
    return CodeError(text, code="isolate.died")


_LOAD_ERROR_CHARACTERS_MAX = 2_000
_LIMIT_KINDS = frozenset({"cpu", "wall", "memory", "silent", "output", "messages"})
_LOAD_CODES = frozenset({"code.invalid", "code.import_failed", "code.class_missing"})


_OWN = (Reply, CodeLoaded, CallRequest, Log, Ended, AttemptEnded, CancellationIgnored)
"""What a host deals with by itself."""


class GuestError(Exception):
    """What tenant code raised, as data."""

    def __init__(self, error: Error) -> None:
        super().__init__(f"{error.name}: {error.message}")
        self.error = error
