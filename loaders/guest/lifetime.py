"""Lifetime: one uninterrupted execution of an instance's `run` inside an isolate.

Its tasks carry it in their context. When it is dropped, it cancels them and refuses later steps;
what its code still does has no effect, and is tracked until it has ended.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Coroutine
from contextvars import Context
from typing import Any

from dynamic_workflows.eventlog.asyncio_internals import carries, context_of, ready_handles
from dynamic_workflows.eventlog.clock import to_datetime
from dynamic_workflows.eventlog.codec import values
from dynamic_workflows.eventlog.errors import WorkflowsError

from ..protocol import messages
from ..protocol.contract import DO, WAIT
from ..sdk.attr_view import AttrView, ScheduleView, WorkflowEvent
from ..sdk.entrypoints import WorkflowFatalError, build
from ..values.payloads import event_annotation, read_payload
from ..values.typed_values import TypedCodec
from .attempt import ATTEMPT, Attempt, PendingStep, RollbackCall, RollbackHandler
from .cancellation import PendingEnd, TrackedWork
from .deterministic_timers import RunTimers
from .guest_services import GuestServices
from .outcome_order import Awaited, Outcome, Outcomes
from .quiescence import CURRENT
from .replay import Replay
from .step import GuestStep


class Suspended(asyncio.CancelledError):
    """The lifetime is over, though not the instance. Code that swallows it can start nothing."""


class Scope:
    """Something on whose behalf tenant code runs: a lifetime, a call from outside, the loading."""

    timers: RunTimers | None = None
    """The timers that `run` sets; a lifetime only has them."""

    def __init__(self, guest: GuestServices, number: int = 0) -> None:
        self.guest = guest
        self.number = number
        self.is_dropped = False
        self.calls_out = 0
        self.leaving: PendingEnd | None = None
        """Its tasks and threads that have not ended, after it was told to end (of a call from
        outside: from its beginning)."""
        self._work: dict[TrackedWork, Attempt | None] = {}
        self._sweep_at = 64

    def context(self) -> Context:
        """A fresh context that carries this scope."""
        context = Context()
        context.run(CURRENT.set, self)
        return context

    def adopt(self, work: TrackedWork, attempt: Attempt | None = None) -> None:
        """Remember a task or thread, and the attempt that it is part of, so that it ends with
        them."""
        if self.leaving is not None:
            self.leaving.take(work)
        if self.is_dropped:
            if self.leaving is None:
                work.cancel()
            return
        if attempt is not None and attempt.leaving is not None:
            attempt.leaving.take(work)
        self._work[work] = attempt
        if len(self._work) >= self._sweep_at:
            self._work = {work: of for work, of in self._work.items() if not work.done()}
            self._sweep_at = 2 * len(self._work) + 64

    def spawn(
        self, work: Coroutine[Any, Any, Any], context: Context, attempt: Attempt | None = None
    ) -> asyncio.Task[Any]:
        """Run a coroutine as a task of this scope, in a context that carries it."""
        task = asyncio.Task(work, loop=self.guest.loop, context=context)
        self.adopt(task, attempt)
        return task

    def touch(self) -> None:
        """Something happened for this scope; a lifetime looks whether it has become idle."""

    def leave(self) -> None:
        """A call or a thread begins to work for this scope, which keeps it from being idle."""
        self.calls_out += 1

    def come_back(self, _: Any = None) -> None:
        """A call or a thread has ended."""
        self.calls_out -= 1
        self.touch()

    def recall(self, attempt: Attempt, token: int) -> PendingEnd:
        """Track the tasks and threads of an attempt that is cancelled, until they have ended."""
        leaving = attempt.leaving = self.guest.cancellations.leaving(
            self.number, token, attempt.number
        )
        for work, of in self._work.items():
            if of is attempt and not work.done():
                leaving.take(work)
        return leaving

    def drop(self) -> None:
        """Cancel everything of it, and report nothing."""
        self.is_dropped = True
        if self.leaving is None:
            self.leaving = self.guest.cancellations.leaving(self.number)
        work, self._work = self._work, {}
        for one in work:
            if not one.done():
                self.leaving.take(one)
        self.leaving.cancel()


class GuestLifetime(Scope):
    """One execution of `run`, live or replayed."""

    def __init__(self, guest: GuestServices, number: int, run: messages.Run) -> None:
        super().__init__(guest, number)
        self.run = run
        self.is_rollback = run.mode == "rollback"
        self.timers: RunTimers = RunTimers(self)
        self.is_replaying = run.told >= 0
        """What `run` prints now was printed by an earlier lifetime."""
        self.replay = Replay(self, run.history, run.told)
        run.history = []
        self.outcomes = Outcomes(self)
        self.heard = 0
        """Answers to requests for steps that have come."""
        self.is_plain = True
        """`run` has made no task, future or timer of its own so far."""
        self.task: asyncio.Task[Any] | None = None
        self._tasks: list[asyncio.Task[Any]] = []
        """Tasks that `run` has started; ended ones are removed now and then."""
        self._tasks_max = 64
        self._numbers = 0
        self._recalled: list[PendingEnd] = []
        """Cancelled attempts, which may be cleaning up."""
        self.given_up: dict[int, PendingEnd] = {}
        """Attempts of steps that the code cancelled, until they have ended, by token."""
        self._awaited: tuple[str | None, bool] | None = None
        """The place that it awaits at, and whether a timer will go off there, as last reported."""
        self.step = GuestStep(self)
        self.seen = 0
        """Messages received for it; an Idle says how many, so that the core knows what it has not
        seen."""
        self.is_dirty = False
        self.is_ended = False
        self.is_mismatched = False
        self._end_when_settled: messages.End | None = None
        self.running = 0
        """Callbacks and handlers that run."""
        self.unanswered = 0
        """New steps whose request has no answer of any kind yet."""
        self.steps_taken = 0
        self.waits_taken = 0
        self.performing: dict[int, PendingStep] = {}
        """Steps that the supervisor was asked for, by token."""
        self.undoing: dict[int, RollbackCall] = {}
        self.handlers: dict[tuple[str, int], RollbackHandler] = {}
        self._token = 0

    # --- the run ---------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin a task that calls `run` from its first line."""
        self.task = self.spawn(self._run(), self.context())
        self.task.set_name("Task-0")  # the others are numbered from 1, in each lifetime alike
        self.touch()

    async def _run(self) -> None:
        self.guest.on_resume(self.number)
        try:
            run = self._entrypoint().run
            result = run(self._event(run), self.step)
            if inspect.isawaitable(result):
                result = await result
            end = messages.End(value=self._output(result, self.guest.revivers.of(run)))
        except BaseException as error:
            if self.is_dropped:
                return
            self._log_failure(error)
            end = messages.End(error=self.guest.to_wire(error))
        if self.is_rollback:
            end = messages.End()
        if (self.replay.is_incomplete and not self.is_rollback) or self._is_tidying():
            # Steps that nobody awaits may still ask; if none does, the code went another way.
            self._end_when_settled = end
            self.touch()
        elif not self.is_ended:
            self._end(end)

    def _entrypoint(self) -> Any:
        run = self.run
        kind = self.guest.workflow_class(run.workflow)
        if kind is None:
            raise WorkflowFatalError(f"the code exports no workflow class {run.workflow!r}")
        props = None if run.props is None else values.decode(run.props)
        return build(kind, env=self.guest.env(), ctx=AttrView(props=props))

    def _event(self, function: Any) -> WorkflowEvent[Any]:
        run = self.run
        payload = values.decode(run.params)
        wanted = event_annotation(function, WorkflowEvent)
        if wanted is not None:
            payload = read_payload(payload, wanted, f"the params of instance {run.instance_id!r}")
        return WorkflowEvent(
            payload=payload,
            timestamp=to_datetime(run.timestamp_us),
            instance_id=run.instance_id,
            workflow_name=run.workflow_name or run.workflow,
            schedule=None if run.schedule is None else ScheduleView(values.decode(run.schedule)),
        )

    def _output(self, result: Any, reviver: TypedCodec) -> bytes:
        try:
            # A reader of the output may not have its classes, and gets their fields.
            return reviver.encode(result, bytes_max=self.guest.value_bytes_max, is_read=False)
        except WorkflowsError as error:
            raise _placed(error, "the output of run") from None

    def _log_failure(self, error: BaseException) -> None:
        if not self.is_rollback:
            self.guest.logs.error(error)

    def _end(self, end: messages.End) -> None:
        self.is_ended = True
        self.send(end)

    # --- what it says ----------------------------------------------------------------------------

    def next_token(self) -> int:
        """A number that this lifetime has not used for a step."""
        self._token += 1
        return self._token

    @property
    def is_over(self) -> bool:
        """Whether nothing of `run` is to be recorded any more."""
        return self.is_dropped or self.is_ended or self.is_mismatched

    def send(self, message: Any) -> None:
        """Send a message to the supervisor, unless the lifetime is dropped or does not fit."""
        if not self.is_dropped and not self.is_mismatched:
            self.guest.send(message, self.number, self)

    def ask(self, work: PendingStep, message: Any) -> None:
        """Send the request for a step that history does not answer."""
        if work.kind == DO and not work.is_resumed:
            work.is_unanswered = True
            self.unanswered += 1
        self._awaited = None
        self.send(message)

    def touch(self) -> None:
        """Look whether the lifetime is quiet when the loop has nothing else to do."""
        self.guest.pulse.touch(self)

    def refuse(self) -> None:
        """Raise Suspended or WorkflowFatalError where no step can start any more."""
        if self.is_dropped or self.is_mismatched:
            raise Suspended("this lifetime is over")
        attempt = ATTEMPT.get()
        if attempt is not None and attempt.is_over:
            raise Suspended("this attempt is over")
        if self.is_ended:
            raise WorkflowFatalError("the run has ended: no step can start in a rollback")

    # --- what the code is told -------------------------------------------------------------------

    def is_alone(self) -> bool:
        """Whether the code can do nothing but go on with what it is told next: it has one task
        that has not ended, no timer is pending, and nothing of it is about to run."""
        ready = ready_handles(self.guest.loop)
        if self.is_plain:
            # What this very turn has scheduled by hand stands at the end, before the pulse.
            if not ready:
                return True
            if context_of(ready[-1]).get(CURRENT) is self:
                return False
            return len(ready) == 1 or context_of(ready[-2]).get(CURRENT) is not self
        tasks = self._tasks
        while tasks and tasks[-1].done():
            tasks.pop()
        if tasks or self.timers.pending:
            return False
        return not carries(ready, CURRENT, self)

    def may_tell(self) -> bool:
        """Whether the replay is over."""
        return not self.replay.is_incomplete

    def tell(self, step: Awaited, outcome: Outcome) -> bool:
        """Give the code an outcome that no earlier lifetime was given."""
        self.is_replaying = False
        return step.wake(outcome)

    def note_task(self, task: asyncio.Task[Any]) -> None:
        """Remember a task that `run` has started."""
        self._tasks.append(task)
        if len(self._tasks) >= self._tasks_max:
            self._tasks = [task for task in self._tasks if not task.done()]
            self._tasks_max = 2 * len(self._tasks) + 64

    def next_number(self) -> int:
        """A number for the next task or future that `run` makes."""
        self.is_plain = False
        self._numbers += 1
        return self._numbers

    def tasks(self) -> list[asyncio.Task[Any]]:
        """The tasks of `run` that have not ended, oldest first."""
        assert self.task is not None, "it has started"
        return [task for task in (self.task, *self._tasks) if not task.done()]

    def give_up(self, work: PendingStep) -> None:
        """The code was cancelled while it awaited a step: the step is over."""
        if self.is_over or self.is_rollback:
            return
        if self.replay.withdraw(work):
            self.performing.pop(work.token, None)
        elif not work.is_finished or work.kind == WAIT:
            self.performing.pop(work.token, None)
            leaving = work.stop()
            if leaving is not None:
                self.given_up[work.token] = leaving
            self.send(messages.Cancelled(work.token, work.kind, work.name, work.count))

    def on_still(self) -> bool:
        """Nothing is ready to run for it: give it the next outcome. Return whether it goes on."""
        if self.is_dropped:
            return False
        if self.replay.answer_nested():
            return True
        if self.replay.is_incomplete and self.replay.answer_next():
            return True
        return not self.replay.is_incomplete and self.outcomes.on_still()

    def _is_tidying(self) -> bool:
        if self._recalled:
            self._recalled = [leaving for leaving in self._recalled if not leaving.is_gone]
        return bool(self._recalled)

    def recall(self, attempt: Attempt, token: int) -> PendingEnd:
        """Track the tasks and threads of an attempt that is cancelled, until they have ended."""
        leaving = super().recall(attempt, token)
        self._recalled.append(leaving)
        return leaving

    def on_timed(self) -> None:
        """Nothing is ready to run for it, but a timer of its own is pending."""
        is_waited_for = self.performing or self.running or self.calls_out or self.outcomes
        if not (is_waited_for or self.is_over or self.is_rollback or self.replay.is_incomplete):
            self._tell_where(bool(self.timers.pending))

    def on_quiet(self) -> None:
        """Nothing is ready to run for it, and no timer of its own is pending."""
        if self.is_dropped or self.is_mismatched or self.running or self.calls_out:
            return
        if self._is_tidying():
            return
        if self.is_rollback and not self.is_ended:
            # What the code waits for will not come in this mode: all handlers are registered.
            self._end(messages.End())
        elif self.is_ended:
            return
        elif self.replay.is_incomplete and self._settle():
            return
        elif self._end_when_settled is not None:
            self._end(self._end_when_settled)
        elif self.outcomes:
            return
        elif not self.performing:
            # It waits for something of its own that cannot be seen, and may go on at any time.
            self._tell_where(False)
        elif self.unanswered and self.guest.idle_grace_s:
            self.guest.idle_later(self)
        else:
            self.send_idle()

    def _tell_where(self, is_timed: bool) -> None:
        """Report the line of code that waits, if it is another one than the last reported."""
        at = None if self.task is None else self.guest.place_of(self.task)
        if (at, is_timed) != self._awaited:
            self._awaited = (at, is_timed)
            self.guest.send(messages.Awaits(at, is_timed), self.number, None)

    def _settle(self) -> bool:
        """Report a history that the code does not fit. Return whether there is nothing more to do:
        it was reported, or the replay goes on."""
        mismatch = self.replay.settle()
        if mismatch is not None:
            self.send(mismatch)
            self.is_mismatched = True
        return mismatch is not None or self.is_dirty

    def send_idle(self) -> None:
        """Report that everything waits, and how many messages were received by then."""
        self.guest.send(messages.Idle(self.seen), self.number, None)

    # --- what it hears ---------------------------------------------------------------------------

    def on_go(self, message: messages.Go) -> None:
        """The core has recorded an attempt: run the callback."""
        performing = self.performing.get(message.token)
        if performing is not None:
            performing.go(message)

    def on_answer(self, message: messages.StepOutcome) -> None:
        """The core has decided the outcome of a step."""
        self.heard += 1
        performing = self.performing.pop(message.token, None)
        if performing is not None:
            performing.answer(message.value, message.error)

    def on_cancel(self, message: messages.Cancel) -> None:
        """An attempt took too long, or its step was cancelled."""
        work = self.undoing.get(message.token) or self.performing.get(message.token)
        if work is None:
            leaving = self.given_up.pop(message.token, None)
        else:
            leaving = work.cancel(message.attempt)
        cancellations = self.guest.cancellations
        cancellations.watch(
            leaving or cancellations.leaving(self.number, message.token, message.attempt)
        )

    def on_undo(self, message: messages.Undo) -> None:
        """Call the rollback handler of a step."""
        undoing = self.undoing.get(message.token)
        if undoing is None:
            undoing = self.undoing[message.token] = RollbackCall(self, message)
        undoing.begin(message)

    def drop(self) -> None:
        """End the lifetime: cancel its tasks, refuse every later step, and report nothing."""
        for work in (*self.performing.values(), *self.undoing.values()):
            work.forget()
        self.performing.clear()
        self.undoing.clear()
        self.outcomes.close()
        super().drop()
        self.timers.drop()


def _placed(error: WorkflowsError, place: str) -> WorkflowsError:
    return type(error)(f"{place}: {error.message}", code=error.code, **error.details)
