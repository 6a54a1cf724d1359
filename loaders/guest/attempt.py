"""Attempt: one call of a step's callback, or of its rollback handler, and its outcome.

When the code is cancelled while it awaits a step, the step is over, and its attempt is cancelled as
one that timed out is: its outcome is not reported, and it may call services while it cleans up.
"""

from __future__ import annotations

import asyncio
import inspect
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import Context, ContextVar, copy_context
from typing import Any, Protocol

from dynamic_workflows.eventlog.errors import WorkflowsError

from ..protocol import messages
from ..sdk import durations
from ..sdk.attr_view import AttrView
from ..sdk.entrypoints import NonRetryableDelayError
from ..sdk.step_config import DEFAULT, NormalizedConfig
from ..values.typed_values import TypedCodec
from . import exception_codec
from .cancellation import PendingEnd
from .guest_services import GuestServices
from .outcome_order import Outcomes
from .replay import Replay, label

DELAY_FUNCTION_S = 5.0
"""Seconds that a delay function may take to answer."""

_LARGE = 1 << 20
"""Bytes: a longer value is written and sent in turns of their own before the CPU limits."""


class Attempt:
    """One attempt of a step: its number, and whether its outcome still counts."""

    __slots__ = ("count", "is_over", "leaving", "name", "number", "task")

    def __init__(self, name: str, count: int, number: int) -> None:
        self.name = name
        self.count = count
        self.number = number
        self.is_over = False
        self.leaving: PendingEnd | None = None
        """Its tasks and threads that have not ended, after it was cancelled."""
        self.task: asyncio.Task[object] | None = None

    @property
    def label(self) -> str:
        """The name of its step, as the places of nested steps give it."""
        return label(self.name, self.count)


ATTEMPT: ContextVar[Attempt | None] = ContextVar("current_attempt", default=None)
"""The attempt on whose behalf code runs."""


class RollbackHandler:
    """A rollback handler, registered for a step."""

    __slots__ = ("context", "function", "reviver", "settled", "step_settled")

    def __init__(
        self,
        function: Callable[[object], object],
        settled: NormalizedConfig,
        step_settled: NormalizedConfig,
        reviver: TypedCodec,
        context: Context,
    ) -> None:
        self.function = function
        self.settled = settled
        self.step_settled = step_settled
        self.reviver = reviver
        self.context = context


class AttemptHost(Protocol):
    """A lifetime, as the attempts of its steps and rollback handlers see it."""

    guest: GuestServices
    number: int
    replay: Replay
    outcomes: Outcomes
    is_mismatched: bool
    running: int
    """Callbacks and handlers that run."""
    unanswered: int
    """New steps that wait for their first word."""
    heard: int
    """Answers that have come."""
    performing: dict[int, PendingStep]
    """What was sent to the supervisor, by token."""
    undoing: dict[int, RollbackCall]
    handlers: dict[tuple[str, int], RollbackHandler]
    """By name and occurrence of the step."""

    def context(self) -> Context:
        """A fresh context that carries the lifetime."""
        ...

    def spawn(
        self, work: Coroutine[Any, Any, object], context: Context, attempt: Attempt | None = None
    ) -> asyncio.Task[object]:
        """Run a coroutine as a task of the lifetime, and of an attempt."""
        ...

    def send(self, message: object) -> None:
        """Send a message to the supervisor, unless nothing of it is to be recorded any more."""
        ...

    def touch(self) -> None:
        """Look whether the lifetime is quiet when the loop has nothing else to do."""
        ...

    def recall(self, attempt: Attempt, token: int) -> PendingEnd:
        """Count what is left of an attempt that is taken back."""
        ...


class StepWork(ABC):
    """What a step and its rollback share: how attempts begin, finish and are cancelled."""

    __slots__ = ("attempt", "context", "count", "life", "name", "settled", "token")

    def __init__(
        self,
        life: AttemptHost,
        name: str,
        count: int,
        settled: NormalizedConfig,
        context: Context,
    ) -> None:
        self.life = life
        self.name = name
        self.count = count
        self.settled = settled
        self.context = context
        self.token = 0
        self.attempt: Attempt | None = None

    @abstractmethod
    def call(self, attempt: Attempt) -> object:
        """Call the tenant's function with what it takes, and return what it returns."""

    @abstractmethod
    def done(self, attempt: Attempt, value: object) -> None:
        """Report the value that the function returned. Raises what the codec raises."""

    @abstractmethod
    def is_async(self) -> bool:
        """Whether the function is a coroutine function, which needs a task of its own."""

    def view(self, number: int) -> AttrView:
        """The `ctx` that the function of an attempt is given."""
        return AttrView(
            step=AttrView(name=self.name, count=self.count),
            attempt=number,
            config=self.settled.view(),
        )

    def begin_attempt(self, number: int) -> None:
        """Call a plain function at once, and run any other in a task of its own."""
        life = self.life
        attempt = self.attempt = Attempt(self.name, self.count, number)
        life.running += 1
        # What an attempt leaves in its context is not for the next one.
        context = self.context if number == 1 else self.context.copy()
        context.run(ATTEMPT.set, attempt)
        if self.is_async() or life.guest.has_threads:
            attempt.task = life.spawn(self._perform(attempt), context, attempt)
        else:
            context.run(self._perform_sync, attempt)

    def _perform_sync(self, attempt: Attempt) -> None:
        """Call a plain function; what it returns to be awaited is awaited in a task."""
        self.life.guest.on_resume(self.life.number)
        try:
            value = self.call(attempt)
            if inspect.isawaitable(value):
                attempt.task = self.life.spawn(
                    self._perform(attempt, value), copy_context(), attempt
                )
                return
            self.done(attempt, value)
        except BaseException as error:
            if not attempt.is_over:
                if self.settled.delay is None or exception_codec.is_final(error):
                    self.failed(attempt, error, None, None)
                else:
                    attempt.task = self.life.spawn(
                        self._delay(attempt, error), copy_context(), attempt
                    )

    async def _perform(self, attempt: Attempt, awaited: Awaitable[object] | None = None) -> None:
        guest = self.life.guest
        guest.on_resume(self.life.number)
        try:
            if awaited is None:
                if guest.has_threads and not self.is_async():
                    value = await guest.in_thread(copy_context(), self.call, attempt)
                else:
                    value = self.call(attempt)
                if inspect.isawaitable(value):
                    value = await value
            else:
                value = await awaited
            if not attempt.is_over:
                self.done(attempt, value)
        except BaseException as error:
            if not attempt.is_over:
                await self._delay(attempt, error)

    async def _delay(self, attempt: Attempt, error: BaseException) -> None:
        """Ask the delay function, if there is one and retries remain; then report the failure."""
        function = self.settled.delay
        delay_ms: int | None = None
        delay_error: messages.Error | None = None
        if (
            function
            and not exception_codec.is_final(error)
            and attempt.number <= self.settled.limit
        ):
            try:
                delay_ms = await self._ask_delay(function, attempt, error)
            except BaseException as failure:
                if attempt.is_over:
                    return
                delay_error = self.life.guest.to_wire(self._delay_error(failure))
        if not attempt.is_over:
            self.failed(attempt, error, delay_ms, delay_error)

    async def _ask_delay(self, function: Any, attempt: Attempt, error: BaseException) -> int:
        answer = function(self.view(attempt.number), error)
        if inspect.isawaitable(answer):
            answer = await asyncio.wait_for(answer, DELAY_FUNCTION_S)
        return durations.parse_ms(answer)

    def _delay_error(self, failure: BaseException) -> NonRetryableDelayError:
        if isinstance(failure, TimeoutError):
            reason = f"took longer than {DELAY_FUNCTION_S:g} s"
        elif isinstance(failure, ValueError):
            reason = f"answered no duration: {failure}"
        else:
            raised = exception_codec.to_wire(failure)
            reason = f"raised {raised.name}: {raised.message}"
        return NonRetryableDelayError(f'the delay function of step "{self.name}" {reason}')

    def failed(
        self,
        attempt: Attempt,
        error: BaseException,
        delay_ms: int | None,
        delay_error: messages.Error | None,
    ) -> None:
        """Report the error that the function raised to the supervisor."""
        life = self.life
        self.finish(attempt)
        if life.is_mismatched:
            return
        life.guest.logs.error(error)
        life.send(
            messages.AttemptFailed(
                self.token,
                attempt.number,
                life.guest.to_wire(error, self.name),
                delay_ms,
                delay_error,
            )
        )

    def finish(self, attempt: Attempt) -> None:
        """The attempt has ended, or is cancelled: its outcome does not count any more."""
        attempt.is_over = True
        self.attempt = None
        self.life.running -= 1

    def cancel(self, number: int) -> PendingEnd | None:
        """Cancel the attempt of this number: its tasks get CancelledError where they wait. Return
        what has to end, or None if the attempt was over."""
        attempt = self.attempt
        if attempt is None or attempt.number != number:
            return None
        self.finish(attempt)
        self.life.touch()
        leaving = self.life.recall(attempt, self.token)
        leaving.cancel()
        return leaving

    def forget(self) -> None:
        """The lifetime is dropped and cancels its tasks: the attempt's outcome does not count."""
        if self.attempt is not None:
            self.attempt.is_over = True

    def _rest(self) -> None:
        """What follows is a turn of its own before the limits of CPU time."""
        self.life.guest.on_resume(self.life.number)

    def text_of(self, value: object, reviver: TypedCodec) -> bytes:
        """The value as codec text. Raises WorkflowsError that names the step."""
        bytes_max = self.life.guest.value_bytes_max
        try:
            return reviver.encode(value, bytes_max=bytes_max, rest=self._rest)
        except WorkflowsError as error:
            message = f'step "{self.name}": {error.message}'
            raise type(error)(message, code=error.code, **error.details) from None


class PendingStep(StepWork):
    """A step that history did not answer: live, or retried."""

    __slots__ = (
        "at", "callback", "future", "is_coroutine", "is_finished", "is_nested", "is_resumed",
        "is_unanswered", "keywords", "kind", "reviver", "takes_ctx",
    )  # fmt: skip

    def __init__(
        self,
        life: AttemptHost,
        kind: str,
        name: str,
        count: int,
        settled: NormalizedConfig,
        at: str | None,
        known: messages.RecordedStep | None,
        callback: Callable[..., object] | None = None,
    ) -> None:
        """`at`: the place in the code that asks. `known`: what history holds of it, if it is
        retried."""
        super().__init__(life, name, count, settled, copy_context())
        self.kind = kind
        self.callback = callback
        self.at = at
        self.future: asyncio.Future[tuple[bytes | None, messages.Error | None]] | None = None
        self.is_coroutine = False
        self.is_resumed = known is not None
        """History knows it as unfinished."""
        self.is_nested = ATTEMPT.get() is not None
        """Asked for by a callback, not by `run`."""
        self.is_finished = False
        """It has an outcome; `run` may not have it yet."""
        self.is_unanswered = False
        self.keywords: dict[str, object] | None = None
        self.reviver: TypedCodec | None = None
        self.takes_ctx = False

    def is_async(self) -> bool:
        """Whether the callback is a coroutine function."""
        return self.is_coroutine

    def call(self, attempt: Attempt) -> object:
        """Call the callback with what it takes."""
        assert self.callback is not None
        keywords = self.keywords
        if self.takes_ctx:
            keywords = {**(keywords or {}), "ctx": self.view(attempt.number)}
        return self.callback(**keywords) if keywords else self.callback()

    def go(self, message: messages.Go) -> None:
        """The supervisor has recorded an attempt: run it."""
        self.heard()
        if self.attempt is not None or self.callback is None:
            return
        if message.config is not None:
            self.settled = self.settled.as_recorded(message.config)
        self.begin_attempt(message.attempt)

    def done(self, attempt: Attempt, value: object) -> None:
        """Report the value, and give it to `run` in the order in which a replay would."""
        life = self.life
        # Writing, sending and reading back a large value is our work, not the function's: each is
        # a turn of its own before the limits.
        life.guest.on_resume(life.number)
        assert self.reviver is not None
        text = self.text_of(value, self.reviver)
        self.finish(attempt)
        if len(text) > _LARGE:
            life.guest.on_resume(life.number)
        life.send(messages.Done(self.token, attempt.number, text, life.heard))
        if len(text) > _LARGE:
            life.guest.on_resume(life.number)
        life.performing.pop(self.token, None)
        self._finished((text, None))

    def answer(self, value: bytes | None, error: messages.Error | None) -> None:
        """The supervisor has decided the outcome."""
        self.heard()
        if self.attempt is not None:
            self.cancel(self.attempt.number)
        self._finished((value, error))

    def _finished(self, outcome: tuple[bytes | None, messages.Error | None]) -> None:
        self.is_finished = True
        if self.is_nested and self.life.replay.is_incomplete:
            self.wake(outcome)  # The replay may wait for the callback that asked.
        else:
            self.life.outcomes.add(self, outcome)

    def stop(self) -> PendingEnd | None:
        """The code was cancelled while it awaited the step: cancel the attempt, if one runs."""
        self.heard()
        leaving = None if self.attempt is None else self.cancel(self.attempt.number)
        if leaving is not None:
            leaving.is_expected = False
        return leaving

    def heard(self) -> None:
        """The supervisor has answered the request for the step for the first time."""
        if self.is_unanswered:
            self.is_unanswered = False
            self.life.unanswered -= 1

    def wake(self, outcome: tuple[bytes | None, messages.Error | None]) -> bool:
        """Set the outcome for the code that awaits the step. Return False if none awaits it."""
        if self.future is None or self.future.done():
            return False
        self.future.set_result(outcome)
        return True


class RollbackCall(StepWork):
    """The rollback of a step: attempts of its handler."""

    __slots__ = ("handler", "message")

    def __init__(self, life: AttemptHost, message: messages.Undo) -> None:
        handler = life.handlers.get((message.name, message.count))
        settled = handler.settled if handler else DEFAULT
        context = handler.context if handler else life.context()
        super().__init__(life, message.name, message.count, settled, context)
        self.token = message.token
        self.handler = handler
        self.message = message

    def begin(self, message: messages.Undo) -> None:
        """The supervisor has recorded an attempt: call the handler."""
        self.message = message
        if self.attempt is not None:
            return
        self.settled = self.settled.as_recorded(message.config)
        if self.handler is None:
            reason = f'the code registers no rollback for step "{self.name}" any more'
            missing = messages.Error("RollbackMissing", reason, "", None, True)
            self.life.send(messages.AttemptFailed(self.token, message.attempt, missing))
        else:
            self.begin_attempt(message.attempt)

    def is_async(self) -> bool:
        """Whether the handler is a coroutine function."""
        return self.handler is not None and inspect.iscoroutinefunction(self.handler.function)

    def call(self, attempt: Attempt) -> object:
        """Call the handler with the step's context, the cause and the step's output."""
        assert self.handler is not None
        message, handler = self.message, self.handler
        output = None
        if message.output is not None:
            output = handler.reviver.decode(message.output)
        ctx = AttrView(
            step=AttrView(name=self.name, count=self.count),
            attempt=message.step_attempt,
            config=handler.step_settled.view(),
        )
        return handler.function(AttrView(ctx=ctx, error=self._cause(), output=output))

    def _cause(self) -> Exception:
        cause = self.life.guest.from_wire(self.message.error)
        # The class may lack them, and a handler may ask for either.
        for name, fact in (("name", self.message.error.name), ("message", str(cause))):
            if not hasattr(cause, name):
                setattr(cause, name, fact)
        return cause

    def done(self, attempt: Attempt, value: object) -> None:
        """Report that the handler returned; its return value is not used."""
        self.finish(attempt)
        self.life.send(messages.Done(self.token, attempt.number, b"null"))
        self.life.undoing.pop(self.token, None)
