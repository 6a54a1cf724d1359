"""Hosts: the isolates of one tenant, one or some for each code in use, started when needed.

A host holds several lifetimes of the same code. What its guest says is decoded here and handed on
as typed messages; whatever no correct guest would send ends the isolate.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import msgspec

from ..eventlog import codec
from ..eventlog.clock import US, Clock, TimerHandle
from ..eventlog.errors import CodeError, LimitExceededError, Unavailable, WorkflowsError
from ..loaders.bundle import Bundle
from ..loaders.isolate import Exit, Isolate, Isolates
from ..loaders.wire import (
    Call,
    Error,
    Export,
    Frame,
    Invoke,
    Loaded,
    Log,
    ProtocolViolation,
    Reply,
    pack,
    unpack_from_guest,
)
from .codes import CodeSource
from .crowd import Crowd, Looks
from .patience import Patience
from .services import Services

if TYPE_CHECKING:
    from .config import PlatformConfig

HostKey: TypeAlias = tuple[str, str | None, tuple[tuple[str, int], ...]]
"""(code hash, name of a worker or None for the tenant's own code, limits below the code's own)"""

_logger = logging.getLogger("dynamic_workflows.hosts")


class Listener(Protocol):
    """Who hears what guests say: the tenant's shell."""

    def on_messages(self, host: Host, messages: list[tuple[int, msgspec.Struct]]) -> None:
        """Messages about lifetimes, in order. Raises ProtocolViolation to end the isolate."""
        ...

    def on_call(self, host: Host, life: int, call: Call) -> None:
        """The guest calls a binding."""
        ...

    def on_log(self, host: Host, life: int, log: Log) -> None:
        """The guest printed."""
        ...

    def on_ready(self, host: Host) -> None:
        """The code is loaded, or loading failed (`host.error`)."""
        ...

    def on_lost(self, host: Host, lives: list[int], exit: Exit) -> None:
        """The isolate is gone with these lifetimes in it."""
        ...

    def on_room(self) -> None:
        """A lifetime that found no place may find one now."""
        ...

    def on_mistake(self, mistake: Exception) -> None:
        """The platform's own code failed on what a guest said."""
        ...


class Host:
    """One code of one tenant in one isolate."""

    def __init__(self, key: HostKey, hosts: Hosts) -> None:
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
        self.looks = Looks()
        self.lives: set[int] = set()
        self.used_us = 0
        self.subrequests: dict[int, int] = {}
        self.waits: dict[int, set[asyncio.Task[Any]]] = {}
        """Calls that wait for something to happen, by lifetime: nobody needs them after it."""
        self.calls_out = 0
        """Calls of bindings that have no answer yet."""
        self._invokes: dict[int, asyncio.Future[Reply]] = {}
        self._numbers = 0
        self._loaded: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._loaded.add_done_callback(_seen)

    @property
    def code_hash(self) -> str:
        """The code it runs."""
        return self.key[0]

    @property
    def load(self) -> int:
        """Lifetimes and calls that are in it."""
        return len(self.lives) + len(self._invokes)

    async def loaded(self) -> None:
        """Wait until the code is loaded; raises what loading raised, or why it may not run now."""
        await asyncio.shield(self._loaded)
        if self.error is not None:
            raise self.error

    def send(self, frames: list[Frame]) -> None:
        """Hand messages to the guest; they are lost if it is gone."""
        if self.isolate is not None:
            self.isolate.send(frames)

    async def invoke(self, **call: Any) -> bytes:
        """Call a method of an entrypoint: codec text of its answer, or the error it raised."""
        self._numbers += 1
        number = self._numbers
        future = self._invokes[number] = asyncio.get_running_loop().create_future()
        self.send([pack(Invoke(call=number, **call))])
        try:
            reply = await future
        finally:
            self._invokes.pop(number, None)
            if not self._invokes:
                self.subrequests.pop(0, None)
            self.used_us = self._hosts.clock.now_us()
        if reply.error is not None:
            raise GuestError(reply.error)
        return reply.value or b"null"

    def count_subrequest(self, life: int) -> bool:
        """Count one more call of a lifetime, or of an invocation; whether it may have it.

        Invocations carry no number on the wire: those in flight share what they may have together.
        """
        most = self.limits.get("subrequests")
        if most is None:
            return True
        used = self.subrequests[life] = self.subrequests.get(life, 0) + 1
        return used <= (most if life else most * max(1, len(self._invokes)))

    def end(self, life: int) -> None:
        """The lifetime is over."""
        self.lives.discard(life)
        self.subrequests.pop(life, None)
        for task in self.waits.pop(life, ()):
            task.cancel()

    def is_unused(self) -> bool:
        """Whether nothing of the tenant's lives in it."""
        return not self.lives and not self._invokes and self.is_ready

    def kill(self, reason: str, *, kind: str, is_tenants_own: bool) -> None:
        """End the isolate."""
        if self.isolate is not None:
            self.isolate.kill(Exit(reason, is_tenants_own, kind=kind))

    # --- what the isolate says

    def _on_frames(self, frames: list[Frame]) -> None:
        if not self._hosts.holds(self):
            return
        self.used_us = self._hosts.clock.now_us()
        about_lives: list[tuple[int, msgspec.Struct]] = []
        try:
            for kind, life, body in frames:
                message = unpack_from_guest(kind, body)
                if isinstance(message, Reply | Loaded | Call | Log):
                    self._on_own(life, message)
                else:
                    about_lives.append((life, message))
            if about_lives:
                self._hosts.listener.on_messages(self, about_lives)
        except ProtocolViolation as violation:
            self.kill(f"protocol: {violation}", kind="protocol", is_tenants_own=True)
        except Exception as mistake:
            # Ours: what was decided of this frame is unknown, so nothing may go on from here.
            self.kill(f"our mistake: {mistake!r}", kind="platform", is_tenants_own=False)
            self._hosts.listener.on_mistake(mistake)

    def _on_own(self, life: int, message: Reply | Loaded | Call | Log) -> None:
        if isinstance(message, Reply):
            future = self._invokes.get(message.call)
            if future is not None and not future.done():
                self._hosts.check(message.value)
                future.set_result(message)
        elif isinstance(message, Call):
            # A guest holds back what is too much; one that does not is no guest of ours.
            if self.calls_out > self._hosts.calls_out_max:
                raise ProtocolViolation(f"more than {self._hosts.calls_out_max} calls at once")
            self._hosts.listener.on_call(self, life, message)
        elif isinstance(message, Log):
            self._hosts.listener.on_log(self, life, message)
        elif not self._loaded.done():
            self._on_loaded(message)

    def _on_loaded(self, message: Loaded) -> None:
        if message.error is not None:
            error = message.error
            code = message.code if message.code in _LOAD_CODES else "code.import_failed"
            text = f"the code cannot be loaded: {error.name}: {error.message}"
            self._fail(CodeError(text, code=code))
            self.kill("closed: its code cannot be loaded", kind="closed", is_tenants_own=False)
            return
        self.exports = {export.name: export for export in message.exports}
        self.is_ready = True
        self._loaded.set_result(None)
        self._hosts.listener.on_ready(self)

    def _fail(self, error: WorkflowsError) -> None:
        self.error = error
        if not self._loaded.done():
            self._loaded.set_exception(error)
        self._hosts.failed(self)

    def _on_exit(self, exit: Exit) -> None:
        self.isolate, self.is_ready = None, False
        if not self._loaded.done():
            kind = "import_failed" if exit.is_tenants_own else "load_failed"
            self._fail(CodeError(f"the isolate ended: {exit.reason}", code=f"code.{kind}"))
        elif self.error is None:
            self._hosts.ended(self, exit)
        lives = sorted(self.lives)
        for life in {*lives, *self.waits}:
            self.end(life)
        for future in self._invokes.values():
            if not future.done():
                future.set_exception(_call_error(exit))
        self._hosts.listener.on_lost(self, lives, exit)


def _call_error(exit: Exit) -> WorkflowsError:
    """What a call is told whose isolate ended under it."""
    text = f"the isolate ended: {exit.reason}"
    if not exit.is_tenants_own:
        return Unavailable(text)
    if exit.kind in _LIMIT_KINDS:
        return LimitExceededError(text, limit=exit.kind)
    return CodeError(text, code="isolate.died")


_LIMIT_KINDS = frozenset({"cpu", "wall", "memory", "silent"})
_LOAD_CODES = frozenset({"code.invalid", "code.import_failed", "code.class_missing"})


class GuestError(Exception):
    """What tenant code raised, as data."""

    def __init__(self, error: Error) -> None:
        super().__init__(f"{error.name}: {error.message}")
        self.error = error


class Hosts:
    """The hosts of one tenant by code."""

    def __init__(
        self,
        isolates: Isolates,
        codes: CodeSource,
        config: PlatformConfig,
        *,
        clock: Clock,
        listener: Listener,
    ) -> None:
        self.clock = clock
        self.listener = listener
        self._isolates = isolates
        self._codes = codes
        self._config = config
        self._hosts: dict[HostKey, Host] = {}
        self._more: dict[HostKey, list[Host]] = {}
        """Where one isolate was not enough: the others."""
        self._patience = Patience(clock)
        self._crowd = Crowd(
            config.isolates_max, hosts=lambda: list(self), grow=self._grow, on_room=listener.on_room
        )
        self._starting: set[asyncio.Task[None]] = set()
        self._sweep: TimerHandle | None = None
        self._is_closed = False
        self.calls_out_max = 2 * config.calls_in_flight_max

    def __iter__(self) -> Iterator[Host]:
        more = (host for hosts in self._more.values() for host in hosts)
        return iter([*self._hosts.values(), *more])

    def holds(self, host: Host) -> bool:
        """Whether the host is one of these, and not one that was forgotten."""
        return self._hosts.get(host.key) is host or host in self._more.get(host.key, ())

    def get(self, key: HostKey) -> Host:
        """The host of this code; starts one where there is none, or where the last try is old."""
        host = self._hosts.get(key)
        if host is None or (host.error is not None and host.retry_us <= self.clock.now_us()):
            host = self._hosts[key] = self._begin(key)
        return host

    def place(self, host: Host) -> Host | None:
        """The host for one more lifetime of this one's code; None: not yet, `on_room` follows."""
        return self._crowd.place(host, self._more.get(host.key, ()))

    async def ready(self, key: HostKey, *, fresh: bool = False) -> Host:
        """The host of this code, loaded, or CodeError; `fresh` forgets that loading failed."""
        held = self._hosts.get(key)
        if fresh and held is not None and held.error is not None and not held.is_parked:
            del self._hosts[key]
        host = self.get(key)
        await host.loaded()
        return host

    def _begin(self, key: HostKey) -> Host:
        host = Host(key, self)
        host.used_us = self.clock.now_us()
        task = asyncio.ensure_future(self._start(host))
        self._starting.add(task)
        task.add_done_callback(self._starting.discard)
        self._sweep_later()
        return host

    def _grow(self, host: Host) -> None:
        self._more.setdefault(host.key, []).append(self._begin(host.key))

    def forget(self, host: Host) -> None:
        """The host is gone; the next `get` takes another, or starts one."""
        more = self._more.get(host.key, [])
        if host in more:
            more.remove(host)
        elif self._hosts.get(host.key) is host:
            del self._hosts[host.key]
            if more:
                self._hosts[host.key] = more.pop(0)
        if not more:
            self._more.pop(host.key, None)

    def failed(self, host: Host) -> None:
        """Its code could not be loaded."""
        if self._hosts.get(host.key) is host:
            host.retry_us = self._patience.failed(host.key)
            self.listener.on_ready(host)
        else:
            self.forget(host)
            self._crowd.growth_failed()

    def ended(self, host: Host, exit: Exit) -> None:
        """Its isolate is gone. Code that does so again and again has to wait, and says why."""
        count, retry_us = 0, 0
        if exit.is_tenants_own:
            count, retry_us = self._patience.died(host.key, had_progress=host.has_progressed)
        if not retry_us or self._hosts.get(host.key) is not host:
            self.forget(host)
            return
        wait_s = (retry_us - self.clock.now_us()) / US
        text = f"the code ended its isolate {count} times in a row, the last time by: {exit.reason}"
        host.error = CodeError(f"{text}; it is tried again in {wait_s:g} s", code="isolate.died")
        host.retry_us, host.is_parked = retry_us, True
        _logger.warning("%s", host.error)
        self.listener.on_ready(host)

    def made_progress(self, host: Host) -> None:
        """What it runs gets somewhere: earlier failures do not count any more."""
        if not host.has_progressed:
            host.has_progressed = True
            self._patience.made_progress(host.key)

    def check(self, value: bytes | None) -> None:
        """Prove that text from a guest is a value; ProtocolViolation when it is none."""
        if value is not None:
            try:
                codec.check(value, self._config.value_bytes_max)
            except WorkflowsError as error:
                raise ProtocolViolation(f"a value does not decode: {error}") from None

    async def close(self) -> None:
        """End every isolate."""
        self._is_closed = True
        if self._sweep is not None:
            self._sweep.cancel()
        self._crowd.close()
        for task in list(self._starting):
            task.cancel()
        await asyncio.gather(*self._starting, return_exceptions=True)
        hosts = list(self)
        self._hosts, self._more = {}, {}
        for host in hosts:
            host.kill("closed", kind="closed", is_tenants_own=False)

    async def _start(self, host: Host) -> None:
        try:
            bundle = host.bundle = await self._codes.bundle(host.code_hash)
            self._check_size(bundle)
            host.limits = _lower(bundle.limits, dict(host.key[2]))
            host.services = Services(bundle, self._codes.live(host.code_hash))
            isolate = await self._isolates.start(
                limits=self._config.limits(host.limits),
                on_frames=host._on_frames,
                on_exit=host._on_exit,
            )
        except WorkflowsError as error:
            host._fail(error)
            return
        except Exception as error:
            # Whatever it is, whoever waits for this host has to hear of it.
            _logger.exception("an isolate could not be started")
            host._fail(CodeError(f"no isolate could be started: {error}", code="code.load_failed"))
            return
        host.isolate = isolate
        options = {
            "threads": self._config.threads,
            "value_bytes_max": self._config.value_bytes_max,
            "network": bundle.outbound is not None,
        }
        load = bundle.load_message(packages=self._config.packages, options=options)
        isolate.send([pack(load)])

    def _check_size(self, bundle: Bundle) -> None:
        size, most = sum(len(one.data) for one in bundle.modules), self._config.modules_bytes_max
        if size > most:
            raise CodeError(f"the modules have {size:,} bytes, more than {most:,}")

    # --- isolates that nobody needs

    def _sweep_later(self) -> None:
        if self._sweep is None and not self._is_closed:
            idle_us = round(self._config.isolate_idle_seconds * US)
            self._sweep = self.clock.call_at(self.clock.now_us() + idle_us, self._sweep_now)

    def _sweep_now(self) -> None:
        self._sweep = None
        oldest_us = self.clock.now_us() - round(self._config.isolate_idle_seconds * US)
        for host in self:
            if host.is_unused() and host.used_us <= oldest_us:
                self.forget(host)
                host.kill("closed: idle", kind="closed", is_tenants_own=False)
            elif host.error is not None and host.retry_us <= oldest_us:
                self.forget(host)
        if self._hosts:
            self._sweep_later()


def _lower(limits: dict[str, int], others: dict[str, int]) -> dict[str, int]:
    return limits | {name: min(value, limits.get(name, value)) for name, value in others.items()}


def _seen(future: asyncio.Future[None]) -> None:
    """Whoever waits hears of it; nobody waiting is no reason to complain."""
    if not future.cancelled():
        future.exception()
