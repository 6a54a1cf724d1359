"""Step: the `step` object of a run.

A call checks its arguments and takes its occurrence at once, in the order of calls; what it returns
is a coroutine that answers from history, or waits for the outcome.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Coroutine, Mapping
from contextvars import copy_context
from datetime import UTC, datetime
from typing import Any, Protocol

from dynamic_workflows.eventlog.clock import from_datetime, to_datetime
from dynamic_workflows.eventlog.codec import values

from ..protocol import messages
from ..protocol.contract import DO, ERROR, EVENT_TYPE, SLEEP, VALUE, WAIT, YEAR_MS
from ..sdk.attr_view import Received
from ..sdk.durations import Duration
from ..sdk.entrypoints import WorkflowFatalError
from ..sdk.step_config import DEFAULT, NormalizedConfig, StepConfig, normalize
from ..values.payloads import read_payload
from ..values.type_hints import Names
from ..values.typed_values import TypedCodec
from .attempt import ATTEMPT, AttemptHost, PendingStep, RollbackHandler
from .replay import NESTED
from .signature import shape_of
from .step_decorator import DeclaredStep, Options, StepDecorator
from .step_validation import check_direct, check_name, check_rollback, ms, shown

TYPE_CHARACTERS_MAX = 100
WAIT_DEFAULT_MS = 86_400_000
_AT_CHARACTERS_MAX = 400

Config = StepConfig | Mapping[str, Any] | None


class StepHost(AttemptHost, Protocol):
    """A lifetime, as its `step` object sees it."""

    run: messages.Run
    is_dropped: bool
    is_ended: bool
    is_rollback: bool
    steps_taken: int
    waits_taken: int
    """Occurrences of sleeps and waits."""

    def refuse(self) -> None:
        """Raise where no step can start any more."""
        ...

    def next_token(self) -> int:
        """A number that this lifetime has not used for a step."""
        ...

    def give_up(self, work: PendingStep) -> None:
        """The code was cancelled while it awaited a step: the step is over."""
        ...


class StepCall:
    """One call of `step.do` that passed the checks."""

    __slots__ = ("callback", "count", "declared", "name", "reviver", "settled", "undo")

    def __init__(
        self,
        name: str,
        count: int,
        callback: Callable[..., Any],
        settled: NormalizedConfig,
        reviver: TypedCodec,
        undo: NormalizedConfig | None,
        declared: DeclaredStep | None,
    ) -> None:
        self.name = name
        self.count = count
        self.callback = callback
        self.settled = settled
        self.reviver = reviver
        self.undo = undo
        """The config of the rollback, if there is one."""
        self.declared = declared

    def read(self, text: bytes | None) -> Any:
        """The value of a text; a new one each time."""
        return None if text is None else self.reviver.decode(text)


class GuestStep:
    """Starts the steps of one lifetime."""

    def __init__(self, life: StepHost) -> None:
        self._life = life
        self._declared: dict[str, DeclaredStep] = {}

    def __reduce__(self) -> Any:
        raise TypeError("the step object belongs to its run")

    # --- do --------------------------------------------------------------------------------------

    def do(
        self,
        name: str | Callable[..., Any] | None = None,
        callback: Callable[..., Any] | None = None,
        *,
        config: Config = None,
        concurrent: bool = False,
        rollback: Callable[[Any], Any] | None = None,
        rollback_config: Config = None,
    ) -> Any:
        """Run a callback durably, or declare a step.

        With a callback: an awaitable of its value; history answers where it can. Without: a
        decorator; the decorated name is an async callable without arguments, whose parameters are
        `ctx` or the names of steps declared before (resolved first; `concurrent` resolves them
        together). Raises WorkflowFatalError where the API is misused.
        """
        if callback is None:
            options = Options(config, concurrent, rollback, rollback_config)
            declaring = StepDecorator(self, name, options)
            return declaring(name) if callable(name) else declaring
        return self.begin(name, callback, config, rollback, rollback_config)

    def begin(
        self,
        name: Any,
        callback: Any,
        config: Any,
        rollback: Any,
        rollback_config: Any,
        declared: DeclaredStep | None = None,
    ) -> Coroutine[Any, Any, Any]:
        """Take an occurrence of a `do` step; the order of the checks is part of the contract."""
        life = self._life
        if not callable(callback):
            raise WorkflowFatalError(
                f"step {shown(name)} needs a callback: pass a function as the second argument"
            )
        undo = None
        if rollback is not None or rollback_config is not None:
            undo = check_rollback(name, rollback, rollback_config)
        if life.is_dropped or life.is_ended or life.is_mismatched or ATTEMPT.get() is not None:
            life.refuse()
        life.steps_taken += 1
        if life.steps_taken > life.run.steps_max:
            raise WorkflowFatalError(
                f"the limit of {life.run.steps_max} steps is reached: split the work over several"
                " instances, or raise steps_max"
            )
        if name is None:
            name = getattr(callback, "__name__", None)
        if not (type(name) is str and len(name) <= 256 and name.isascii() and name.isprintable()):
            check_name(name)
        settled = DEFAULT if config is None else normalize(config)
        attempt = ATTEMPT.get()
        count = life.replay.occurrence(DO, name, None if attempt is None else attempt.label)
        call = StepCall(
            name, count, callback, settled, life.guest.revivers.of(callback), undo, declared
        )
        if undo is not None:
            life.handlers[name, count] = RollbackHandler(
                rollback, undo, settled, call.reviver, copy_context()
            )
        if declared is None:
            return self._answer(call, None)
        return self._resolve(declared, call)

    async def _resolve(self, declared: DeclaredStep, call: StepCall) -> Any:
        """The decorator form: first what it depends on, in a replay as well."""
        keywords = await declared.resolve()
        if self._life.is_dropped:
            self._life.refuse()
        return await self._answer(call, keywords)

    def _answer(self, call: StepCall, keywords: dict[str, Any] | None) -> Coroutine[Any, Any, Any]:
        """Answer a `do` step from history, or perform it."""
        life = self._life
        known = None
        if life.replay.known:
            known = life.replay.take((DO, call.name, call.count))
            if known is not None and known.outcome:
                if known.outcome == VALUE:
                    return _value(life, known, call)
                return _error(life, known)
        if life.is_rollback:
            return _nothing()
        work = self._pending(DO, call.name, call.count, known, call)
        shape = shape_of(call.callback)
        if shape.required or shape.optional:
            work.takes_ctx = shape.takes_ctx
            if call.declared is None and shape.required:
                check_direct(call.name, shape.required)
        work.is_coroutine = shape.is_coroutine
        work.keywords = keywords
        work.reviver = call.reviver
        return self._perform(call, work)

    async def _perform(self, call: StepCall, work: PendingStep) -> Any:
        life = self._life
        if life.is_dropped or life.is_ended or life.is_mismatched:
            life.refuse()
        undo = call.undo
        work.token = life.next_token()
        message = messages.StepRequest(
            work.token,
            work.name,
            work.count,
            work.settled.text,
            work.at,
            undo is not None,
            None if undo is None or undo is DEFAULT else undo.text,
        )
        text = await self._outcome(work, message)
        if call.declared is not None:
            call.declared.remember(text, call.reviver)
        return call.read(text)

    async def _outcome(
        self, work: PendingStep, message: messages.StepRequest | messages.Sleep | messages.Wait
    ) -> bytes | None:
        """Ask the supervisor, and wait for what becomes of it."""
        life = self._life
        work.future = asyncio.Future(loop=life.guest.loop)
        life.performing[work.token] = work
        life.replay.ask(work, message)
        life.touch()
        try:
            value, error = await work.future
        except asyncio.CancelledError:
            life.give_up(work)
            raise
        life.guest.on_resume(life.number)
        if error is not None:
            raise life.guest.from_wire(error)
        return value

    # --- sleep and wait --------------------------------------------------------------------------

    def sleep(self, name: str, duration: Duration) -> Coroutine[Any, Any, None]:
        """Sleep durably, for 0 to 365 days."""
        self._check(name)
        duration_ms = ms(duration, f"the duration of sleep {shown(name)}")
        if duration_ms > YEAR_MS:
            raise WorkflowFatalError(f"sleep {shown(name)} is longer than 365 days")
        return self._sleep(name, duration_ms, None)

    def sleep_until(self, name: str, when: datetime | int | float) -> Coroutine[Any, Any, None]:
        """Sleep durably until an aware datetime or epoch milliseconds, at most 365 days ahead.

        Returns at once where the work has overtaken it. Raises ValueError when it was past already
        when the instance was created.
        """
        self._check(name)
        if isinstance(when, datetime):
            if when.utcoffset() is None:
                raise WorkflowFatalError(
                    f"sleep {shown(name)} needs a datetime with a time zone, such as"
                    " datetime.now(timezone.utc) + timedelta(days=1)"
                )
            until_us = from_datetime(when.astimezone(UTC))
        elif type(when) in (int, float) and abs(when) <= _EPOCH_MS_MAX:
            until_us = round(when * 1000)
        else:
            raise WorkflowFatalError(
                f"sleep {shown(name)} needs an aware datetime or epoch milliseconds"
            )
        return self._sleep(name, None, until_us)

    def _sleep(
        self, name: str, duration_ms: int | None, until_us: int | None
    ) -> Coroutine[Any, Any, None]:
        life = self._life
        count = self._take(SLEEP, name)
        known = life.replay.take((SLEEP, name, count)) if life.replay.known else None
        if known is not None and known.outcome:
            return _slept(life, known) if known.outcome == VALUE else _error(life, known)
        if life.is_rollback:
            return _nothing()
        if known is None and until_us is not None and until_us < life.run.timestamp_us:
            return _raise_past(name)
        work = self._pending(SLEEP, name, count, known)

        async def perform() -> None:
            life.refuse()
            token = work.token = life.next_token()
            await self._outcome(
                work, messages.Sleep(token, name, count, duration_ms, until_us, work.at)
            )

        return perform()

    def wait_for_event(
        self,
        name: str,
        type: str,
        timeout: Duration | None = "24 hours",
        *,
        payload_type: object = None,
    ) -> Coroutine[Any, Any, Any]:
        """Wait for an event: an object with `payload`, `timestamp`, `type`.

        `payload_type`: the annotation that the payload is read by; None: as it was sent. Raises
        WorkflowTimeoutError after `timeout` (1 second to 365 days; None: 24 hours), and ValueError
        for a payload that does not fit.
        """
        self._check(name)
        is_type = isinstance(type, str) and len(type) <= TYPE_CHARACTERS_MAX
        if not is_type or not EVENT_TYPE.fullmatch(type):
            raise WorkflowFatalError(
                f"{shown(type)} is no event type: it has 1 to {TYPE_CHARACTERS_MAX} letters,"
                " digits, _ and -, and does not begin with -"
            )
        timeout_ms = WAIT_DEFAULT_MS
        if timeout is not None:
            timeout_ms = ms(timeout, f"the timeout of wait {shown(name)}")
        if not 1_000 <= timeout_ms <= YEAR_MS:
            raise WorkflowFatalError(
                f"the timeout of wait {shown(name)} is not between 1 second and 365 days"
            )
        life = self._life
        count = self._take(WAIT, name)
        known = life.replay.take((WAIT, name, count)) if life.replay.known else None
        if known is not None and known.outcome:
            if known.outcome == VALUE:
                return _received(life, known, payload_type)
            return _error(life, known)
        if life.is_rollback:
            return _nothing()
        work = self._pending(WAIT, name, count, known)

        async def perform() -> Any:
            life.refuse()
            token = work.token = life.next_token()
            message = messages.Wait(token, name, count, type, timeout_ms, work.at)
            return _event(life, work.name, await self._outcome(work, message), payload_type)

        return perform()

    # --- what they share -------------------------------------------------------------------------

    def _check(self, name: object) -> None:
        self._life.refuse()
        check_name(name)

    def _take(self, kind: str, name: str) -> int:
        """The occurrence of a sleep or wait."""
        life = self._life
        life.waits_taken += 1
        if life.waits_taken > life.run.waits_max:
            raise WorkflowFatalError(
                f"the limit of {life.run.waits_max:,} sleeps and waits is reached: split the work"
                " over several instances, or raise waits_max"
            )
        attempt = ATTEMPT.get()
        return self._life.replay.occurrence(kind, name, None if attempt is None else attempt.label)

    def declare(self, name: str, declared: DeclaredStep) -> None:
        """A later step may name this one as a dependency."""
        self._declared[name] = declared

    def declared(self, name: str) -> DeclaredStep | None:
        """The step declared last under a name."""
        return self._declared.get(name)

    def _pending(
        self,
        kind: str,
        name: str,
        count: int,
        known: messages.RecordedStep | None,
        call: StepCall | None = None,
    ) -> PendingStep:
        """The step that history did not answer; `call` is that of a `do` step. Called from a method
        that tenant code calls, since `at` is a place in the tenant's code."""
        declared, settled, callback = None, DEFAULT, None
        if call is not None:
            declared, settled, callback = call.declared, call.settled, call.callback
        return PendingStep(
            self._life, kind, name, count, settled, self._place(declared), known, callback
        )

    def _place(self, declared: DeclaredStep | None) -> str | None:
        """The place that asked for a step, and the step whose callback it stands in."""
        place = self._life.guest.place
        at = place(sys._getframe(3)) if declared is None else place(declared.code)
        attempt = ATTEMPT.get()
        if attempt is not None:
            return f"{(at or '?')[:_AT_CHARACTERS_MAX]}{NESTED}{attempt.label}"
        return at and at[:_AT_CHARACTERS_MAX]


_EPOCH_MS_MAX = 253_402_300_799_000


async def _value(life: StepHost, known: messages.RecordedStep, call: StepCall) -> Any:
    if not life.replay.comes_next(known):
        await _turn(life, known)
    if call.declared is not None:
        call.declared.remember(known.value, call.reviver)
    return call.read(known.value)


async def _slept(life: StepHost, known: messages.RecordedStep) -> None:
    if not life.replay.comes_next(known):
        await _turn(life, known)


async def _received(life: StepHost, known: messages.RecordedStep, payload_type: object) -> Any:
    if not life.replay.comes_next(known):
        await _turn(life, known)
    return _event(life, known.name, known.value, payload_type)


async def _error(life: StepHost, known: messages.RecordedStep) -> Any:
    """Raise what history holds; of what the code cancelled, wait until it is cancelled again."""
    if known.outcome != ERROR or not life.replay.comes_next(known):
        await _turn(life, known)
    assert known.error is not None, "history holds an outcome without a value or an error"
    raise life.guest.from_wire(known.error)


async def _turn(life: StepHost, known: messages.RecordedStep) -> None:
    life.refuse()
    await life.replay.wait_for_turn(known)
    life.guest.on_resume(life.number)


async def _raise_past(name: str) -> None:
    raise ValueError(f"the end of sleep {name!r} lies in the past")


async def _nothing() -> None:
    return None


def _event(life: StepHost, name: str, text: bytes | None, payload_type: object) -> Any:
    if text is None:
        return None
    facts = values.decode(text)
    payload = facts["payload"]
    if payload_type is not None:
        what = f"the event that wait {name!r} of instance {life.run.instance_id!r} got"
        payload = read_payload(payload, (payload_type, Names({}, {})), what)
    return Received(
        payload=payload,
        timestamp=to_datetime(facts["timestamp_us"]),
        type=facts["type"],
    )
