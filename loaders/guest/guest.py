"""Guest: the tenant's side of the wire; it loads one bundle and runs its code for the supervisor.

It keeps no time and no log: the supervisor decides what is due, what is recorded and what may run.
Everything it imports is light. For the messages and their order see `protocol/messages.py`.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import inspect
from collections.abc import Callable, Mapping
from contextvars import Context
from threading import get_ident
from types import CodeType, FrameType, ModuleType
from typing import Any

from dynamic_workflows.eventlog.codec import values
from dynamic_workflows.eventlog.errors import InvalidError

from ..protocol import messages
from ..protocol.messages import Frame, pack
from ..sdk import http
from ..sdk.attr_view import AttrView
from ..sdk.entrypoints import (
    WorkerEntrypoint,
    WorkflowEntrypoint,
    WorkflowFatalError,
    build,
    public_methods,
)
from ..values.object_codec import ClassNames
from ..values.typed_values import Revivers
from . import deterministic_asyncio, exception_codec
from .attempt import ATTEMPT
from .cancellation import GRACE_S, CancellationTracker, PendingEnd, frames_of
from .env import Env
from .guest_services import IdleLifetime
from .lifetime import GuestLifetime, Scope, Suspended
from .logs import Logs, Place
from .module_importer import OF_PROCESS, InvalidModule, Modules
from .quiescence import CURRENT, MESSAGES_MAX, Pulse, QuiescenceListener
from .resource_errors import explained
from .task_ownership import adopt_work

IDLE_GRACE_S = 0.02
"""Seconds that a new step may be without an answer before its lifetime is reported idle."""

_GC_THRESHOLDS = (20_000, 20, 20)
_LARGE_BYTES = 64 * 1024
_COLLECT_AFTER_BYTES = 16 * 1024 * 1024
"""Bytes of large messages after which garbage is collected."""

_LOAD, _RUN, _GO, _ANSWER, _CANCEL, _DROP, _UNDO, _INVOKE, _REPLY = range(1, 10)


class Guest:
    """Takes the supervisor's messages and answers them; one per isolate."""

    def __init__(
        self,
        send: Callable[[list[Frame]], None],
        *,
        loop: asyncio.AbstractEventLoop,
        on_resume: Callable[[int], None] = lambda life: None,
        is_alone: bool = True,
        prefix: str = "tenant",
        idle_grace_s: float = IDLE_GRACE_S,
        builtins: dict[str, Any] | None = None,
        stand_ins: Mapping[str, ModuleType] | None = None,
    ) -> None:
        """`send` takes the messages of a burst. `on_resume` hears which lifetime runs next.

        `is_alone`: the process is this guest's, so it takes over stdout, stderr and logging.
        `builtins`: what is built in for its bundle, to be changed, if it is not alone.
        `stand_ins`: as of Modules.
        """
        self.loop = loop
        self.on_resume = on_resume
        self.idle_grace_s = idle_grace_s
        self.pulse = Pulse(loop, self._flush)
        self.logs = Logs(self._send_log, _where, self._call_later)
        self._thread = get_ident()
        self._limits: dict[str, int] = {}
        self.value_bytes_max = values.VALUE_BYTES_MAX
        self.has_threads = False
        self.has_network = False
        self._send = send
        self._is_alone = is_alone
        self._prefix = prefix
        self._builtins = OF_PROCESS if is_alone else builtins
        self._stand_ins = {**(stand_ins or {})}
        if not is_alone:
            self._stand_ins["logging"] = self.logs.module()
            self._stand_ins["asyncio"] = deterministic_asyncio.module()
        self._out: list[Frame] = []
        self._large_bytes = 0
        self._lives: dict[int, GuestLifetime] = {}
        self._calls: dict[int, asyncio.Future[messages.Reply]] = {}
        self._last_call = 0
        self._late: set[IdleLifetime] = set()
        self._late_timer: asyncio.TimerHandle | None = None
        self._modules: Modules | None = None
        self._main: ModuleType | None = None
        self._class_names = ClassNames()
        self.revivers = Revivers()
        self._env_entries: dict[str, messages.EnvEntry] = {}
        self._scope = Scope(self)
        self._invoked: dict[int, Scope] = {}
        """Calls from outside, until all of their tasks and threads have ended."""
        self.cancellations = CancellationTracker(
            loop, on_gone=self._on_gone, on_stubborn=self._on_stubborn
        )
        if is_alone:
            self.logs.capture()
            deterministic_asyncio.install()
        adopt_work(loop)

    # --- messages --------------------------------------------------------------------------------

    def receive(self, frames: list[Frame]) -> None:
        """Take messages of the supervisor. Raises ProtocolViolation for what is no message."""
        lives = self._lives
        for kind, number, body in frames:
            if len(body) > _LARGE_BYTES:
                self._large_bytes += len(body)
            message: Any = messages.unpack_to_guest(kind, body)
            life = lives.get(number)
            if life is not None:
                life.seen += 1
                if kind == _GO:
                    life.on_go(message)
                elif kind == _ANSWER:
                    life.on_answer(message)
                elif kind == _REPLY:
                    self._on_reply(message)
                elif kind == _CANCEL:
                    life.on_cancel(message)
                elif kind == _UNDO:
                    life.on_undo(message)
                elif kind == _DROP:
                    del lives[number]
                    self._late.discard(life)
                    life.drop()
                    self._watch(life)
                life.touch()
            elif kind == _RUN:
                life = lives[number] = GuestLifetime(self, number, message)
                life.seen += 1
                life.start()
            elif kind == _LOAD:
                self._on_load(message)
            elif kind == _INVOKE:
                self._on_invoke(message)
            elif kind == _REPLY:
                self._on_reply(message)
            elif kind == _DROP and number in self._invoked:
                self._invoked[number].drop()
                self._watch(self._invoked[number])

    def send(self, message: Any, number: int, life: QuiescenceListener | None) -> None:
        """Send a message about a lifetime or call to the supervisor, in this burst."""
        frame = pack(message, life=number)
        if len(frame[2]) > _LARGE_BYTES:
            self._large_bytes += len(frame[2])
        self._out.append(frame)
        if len(self._out) >= MESSAGES_MAX:
            self._flush()
        self.pulse.touch(life)

    def _flush(self) -> None:
        if self._out:
            out, self._out = self._out, []
            self._send(out)

    def _send_log(self, message: messages.Log, number: int) -> None:
        if get_ident() != self._thread:
            self.loop.call_soon_threadsafe(self._send_log, message, number, context=Context())
            return
        self.send(message, number, None)
        if self._is_alone:
            # At once: what code prints last before it ends its isolate is what one looks for.
            self._flush()

    def _call_later(self, delay_s: float, callback: Callable[[], None]) -> None:
        call = functools.partial(self.loop.call_later, delay_s, callback, context=Context())
        self.loop.call_soon_threadsafe(call, context=Context())

    def idle_later(self, life: IdleLifetime) -> None:
        """Report a lifetime as idle if its new steps have no answer within `idle_grace_s`."""
        self._late.add(life)
        if self._late_timer is None:
            self._late_timer = self.loop.call_later(
                self.idle_grace_s, self._on_late, context=Context()
            )

    def _on_late(self) -> None:
        self._late_timer = None
        late, self._late = self._late, set()
        for life in late:
            if life.unanswered and not life.is_dirty and not life.is_dropped:
                life.send_idle()

    # --- what was told to end --------------------------------------------------------------------

    def _watch(self, scope: Scope) -> None:
        assert scope.leaving is not None, "it was dropped"
        self.cancellations.watch(scope.leaving)

    def _on_gone(self, leaving: PendingEnd) -> None:
        number, token = leaving.number, leaving.token
        if token is None:
            call = self._invoked.pop(number, None)
            if call is not None:
                call.is_dropped = True
            self.send(messages.Ended(), number, None)
            self._collect()
        elif number in self._lives:
            self.send(messages.AttemptEnded(token, leaving.attempt), number, self._lives[number])

    def _collect(self) -> None:
        """Lifetimes are cycles of objects, which Python collects by their number. A few with large
        values would fill the memory before that: collect when such were received."""
        if self._large_bytes > _COLLECT_AFTER_BYTES:
            self._large_bytes = 0
            self.loop.call_soon(gc.collect, context=Context())

    def _on_stubborn(self, leaving: PendingEnd) -> None:
        if leaving.token is not None and leaving.number not in self._lives:
            return  # Its lifetime was told to end as well, and answers for it.
        at = self._innermost(leaving.frames())
        self.send(
            messages.CancellationIgnored(leaving.token, leaving.attempt, at), leaving.number, None
        )

    def _innermost(self, frames: list[Any]) -> str | None:
        places = (self.place(frame) for frame in frames)
        return next((place for place in places if place is not None), None)

    def place_of(self, task: asyncio.Task[Any]) -> str | None:
        """The innermost place in the bundle that a task waits at."""
        return self._innermost(frames_of(task))

    def close(self) -> None:
        """End everything, and remove the bundle's modules from this process."""
        for scope in (*self._lives.values(), *self._invoked.values(), self._scope):
            scope.drop()
        self._lives.clear()
        self.cancellations.close()
        self.pulse.close()
        if self._late_timer is not None:
            self._late_timer.cancel()
        if self._modules is not None:
            self._modules.close()

    # --- loading ---------------------------------------------------------------------------------

    def _on_load(self, message: messages.Load) -> None:
        options = message.options
        self._limits = options.get("limits", {})
        self.value_bytes_max = int(options.get("value_bytes_max", values.VALUE_BYTES_MAX))
        self.has_threads = bool(options.get("threads", False))
        self.has_network = bool(options.get("network", False))
        self.logs.tells_replays = bool(options.get("replays", False))
        self.cancellations.grace_s = float(options.get("drop_grace_s", GRACE_S))
        self._env_entries = {entry.name: entry for entry in message.env}
        self._modules = Modules(
            message.modules,
            prefix=self._prefix,
            packages=message.packages,
            print=self.logs.print,
            is_alone=self._is_alone,
            builtins=self._builtins,
            stand_ins=self._stand_ins,
        )
        self._class_names = ClassNames(self._modules)
        self.revivers = Revivers(self._class_names)
        self.send(self._scope.context().run(self._load, message.main_module), 0, None)
        if self._is_alone:
            # Modules stay for good, and lifetimes are cycles: looking rarely costs a sixth less.
            gc.freeze()
            gc.set_threshold(*_GC_THRESHOLDS)

    def _load(self, main_module: str) -> messages.CodeLoaded:
        assert self._modules is not None
        try:
            self._main = self._modules.load(main_module)
        except InvalidModule as error:
            return messages.CodeLoaded(
                [], messages.Error("InvalidModule", str(error), ""), "code.invalid"
            )
        except BaseException as error:
            self.logs.error(error)
            return messages.CodeLoaded([], self.to_wire(error), "code.import_failed")
        return messages.CodeLoaded(_exports(self._main))

    def workflow_class(self, name: str) -> type[WorkflowEntrypoint] | None:
        """The workflow class that the main module exports under a name, or None."""
        found: type[WorkflowEntrypoint] | None = _exported(self._main, name, WorkflowEntrypoint)
        return found

    def env(self) -> Env:
        """What the platform granted, for one lifetime or call."""
        return Env(self, self._env_entries)

    def place(self, frame: FrameType | CodeType | None) -> str | None:
        """The place in the bundle that a frame or a function is at."""
        return self._modules.place(frame) if self._modules is not None else None

    def to_wire(self, error: BaseException, step: str | None = None) -> messages.Error:
        """An exception as data; `step`: whose callback raised it."""
        error = explained(error, self._limits, step)
        return exception_codec.to_wire(error, self._class_names)

    def from_wire(self, error: messages.Error) -> Exception:
        """An exception to raise in tenant code."""
        return exception_codec.from_wire(error, self._class_names)

    # --- calls out -------------------------------------------------------------------------------

    async def call(self, target: str, method: str, args: bytes, kwargs: bytes) -> bytes:
        """Call a binding of `env`, or the gateway (target ""); raises what it raised."""
        scope: Scope = CURRENT.get() or self._scope
        if scope.is_dropped:
            raise Suspended("this lifetime is over")
        attempt = ATTEMPT.get()
        leaving = None if attempt is None else attempt.leaving
        if leaving is not None and not self.cancellations.may_tidy(leaving):
            raise Suspended("this attempt is over")
        if not scope.number:
            raise WorkflowFatalError(
                "only run() and calls of an entrypoint can call bindings, and what they start: what"
                " modules start when they are loaded has nothing to call"
            )
        self._last_call += 1
        number = self._last_call
        future = self._calls[number] = asyncio.Future(loop=self.loop)
        scope.leave()
        life = scope if isinstance(scope, GuestLifetime) else None
        self.send(messages.CallRequest(number, target, method, args, kwargs), scope.number, life)
        if leaving is not None:
            leaving.calls += 1
        try:
            reply = await future
        finally:
            del self._calls[number]
            if leaving is not None:
                leaving.calls -= 1
            scope.come_back()
        self.on_resume(scope.number)
        if reply.error is not None:
            raise self.from_wire(reply.error)
        return reply.value or b"null"

    def _on_reply(self, message: messages.Reply) -> None:
        future = self._calls.get(message.call)
        if future is not None and not future.done():
            future.set_result(message)

    async def in_thread(self, context: Context, function: Callable[..., Any], *args: object) -> Any:
        """Run a plain function in a worker thread."""
        return await self.loop.run_in_executor(
            None, functools.partial(context.run, function, *args)
        )

    # --- calls in --------------------------------------------------------------------------------

    def _on_invoke(self, message: messages.Invoke) -> None:
        number = messages.CALLS_FROM + message.call
        scope = self._invoked[number] = Scope(self, number)
        scope.leaving = self.cancellations.leaving(number)
        scope.spawn(self._invoke(message, scope), scope.context())

    async def _invoke(self, message: messages.Invoke, scope: Scope) -> None:
        self.on_resume(scope.number)
        try:
            reply = messages.Reply(message.call, await self._call_entrypoint(message))
        except BaseException as error:
            if scope.is_dropped:
                return
            self.logs.error(error)
            reply = messages.Reply(message.call, error=self.to_wire(error))
        if not scope.is_dropped:
            reply.is_last = self._leaves_now(scope)
            self.send(reply, scope.number, None)

    def _leaves_now(self, scope: Scope) -> bool:
        """Whether the task that answers a call is the last of the call; then the call is over."""
        task = asyncio.current_task()
        assert scope.leaving is not None
        assert task is not None, "calls are answered by tasks"
        if scope.leaving.leave_with(task):
            scope.is_dropped = True
            del self._invoked[scope.number]
            self.cancellations.note_gone(scope.leaving)
        return scope.is_dropped

    async def _call_entrypoint(self, message: messages.Invoke) -> bytes:
        name = message.entrypoint or "Default"
        kind = _exported(self._main, name, WorkerEntrypoint)
        if kind is None:
            raise InvalidError(f"the code exports no entrypoint class {name!r}")
        if message.method not in public_methods(kind):
            raise InvalidError(f"entrypoint {name!r} has no public method {message.method!r:.80}")
        args, kwargs = values.decode(message.args), values.decode(message.kwargs)
        props = None if message.props is None else values.decode(message.props)
        entrypoint = build(kind, env=self.env(), ctx=AttrView(props=props))
        answer = getattr(entrypoint, message.method)(
            *(http.from_plain(argument) for argument in args),
            **{name: http.from_plain(argument) for name, argument in kwargs.items()},
        )
        if inspect.isawaitable(answer):
            answer = await answer
        is_fetch = message.method == "fetch"
        plain = http.response_to_plain(answer) if is_fetch else http.to_plain(answer)
        return values.encode(plain, bytes_max=self.value_bytes_max)


def _exported(main: ModuleType | None, name: str, base: type[Any]) -> Any:
    found = None if name.startswith("_") else getattr(main, name, None)
    is_kind = isinstance(found, type) and issubclass(found, base) and found is not base
    return found if is_kind else None


def _exports(main: ModuleType) -> list[messages.Export]:
    exports = []
    for name in vars(main):
        if _exported(main, name, WorkflowEntrypoint):
            exports.append(messages.Export(name, "workflow", ["run"]))
        elif kind := _exported(main, name, WorkerEntrypoint):
            exports.append(messages.Export(name, "entrypoint", public_methods(kind)))
    return exports


def _where() -> Place:
    scope, attempt = CURRENT.get(), ATTEMPT.get()
    number = scope.number if scope is not None else 0
    if attempt is not None:
        return number, attempt.name, attempt.number, False
    return number, None, 0, isinstance(scope, GuestLifetime) and scope.is_replaying
