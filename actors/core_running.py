"""Running: what the core does with the messages of a lifetime, and when a step's timer fires."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from ..loaders.wire import (
    Answer,
    Cancel,
    Done,
    End,
    Error,
    Failed,
    Go,
    Idle,
    Known,
    Mismatch,
    ProtocolViolation,
    Run,
    Sleep,
    Undo,
    Wait,
)
from ..loaders.wire import Step as Ask
from .core_base import SUSPEND, CoreBase
from .decisions import Decision, Key
from .instance import Instance
from .lifetime import Lifetime
from .machine import PAUSING, QUEUED, RUNNING, WAITING
from .names import EVENT_TYPE
from .payloads import (
    REDACTED,
    AttemptErrored,
    Body,
    Completed,
    Errored,
    Parked,
    SleepStarted,
    StepStarted,
    WaitCompleted,
    WaitStarted,
    error_body,
    own_error,
    raw,
)
from .steps import (
    DAY_MS_MAX,
    DO,
    OPEN,
    SLEEP,
    WAIT,
    Step,
    is_final,
    parse_config,
    retry_delay_ms,
    timeout_error,
)
from .summary import WOKEN, Summary

SHORT_US = 100_000
"""An instance that rests for less than this is not shown as waiting."""

_CONTROL = re.compile("[\x00-\x1f]")
_AT_MAX = 1_000


class Running(CoreBase):
    """Starts lifetimes and answers them."""

    # --- starting --------------------------------------------------------------------------------

    def start(self, key: Key, *, now_us: int) -> Decision:
        """Begin a lifetime of a loaded instance that `runnable` named; the answer is its number, or
        None when there is nothing to start any more."""
        d = Decision()
        summary = self._directory.get(key)
        if summary is None or not summary.queue or summary.lifetime is not None:
            return d
        assert summary.instance is not None, f"{key} has to be loaded before it starts"
        self._load_failures.pop(key, None)
        self._settle(d, summary, now_us)
        if summary.status == QUEUED and not summary.started_us:
            kind = "workflow_started"
        elif summary.status in (QUEUED, WAITING):
            kind = "workflow_running"
        else:
            kind = ""
        if kind:
            self._emit(d, summary, kind, now_us=now_us, code_hash=self._news_of_code(summary))
        life = self._begin_life(summary, "rollback" if summary.rolling_back else "run")
        self._send(d, life, self._run_message(summary, summary.instance, life))
        d.answer = life.number
        return d

    def _news_of_code(self, summary: Summary) -> str | None:
        """The code hash, where the log may not know it: an instance that follows the newest
        code."""
        return summary.code_hash if summary.get("pin") == "latest" else None

    def _run_message(self, summary: Summary, instance: Instance, life: Lifetime) -> Run:
        workflow, instance_id = summary.key
        history: list[Known] = [step.known() for step in instance.steps.values()]
        return Run(
            workflow,
            instance_id,
            instance.params,
            summary.created_us,
            history,
            self.config.steps_max,
            instance.schedule,
            life.mode,
            None,
            summary.get("workflow_name"),
        )

    def _settle(self, d: Decision, summary: Summary, now_us: int) -> None:
        """Record what came due, or was cut off, while the instance had no lifetime."""
        assert summary.lifetime is None
        instance = summary.instance
        assert instance is not None
        lost = own_error("WorkflowInternalError", "the attempt was cut off by a restart")
        self._lose_attempts(d, summary, lost, now_us)
        if summary.rolling_back:
            return
        for step in list(instance.open.values()):
            if step.kind == WAIT and instance.events.get(step.event_type or ""):
                self._deliver(d, summary, step, now_us)
            elif step.until_us is not None and step.until_us <= now_us and step.kind != DO:
                self._come_due(d, summary, step, now_us)

    # --- messages --------------------------------------------------------------------------------

    def on_message(self, life: int, message: msgspec.Struct, *, now_us: int) -> Decision:
        """Take a guest's message. One of a lifetime that is over is ignored; one that no correct
        guest sends raises ProtocolViolation."""
        d = Decision()
        lifetime = self._lives.get(life)
        if lifetime is not None:
            handler = _HANDLERS.get(type(message))
            if handler is None:
                raise ProtocolViolation(f"{type(message).__name__} is not for the core")
            getattr(self, handler)(d, lifetime, message, now_us)
        return d

    def _on_ask(self, d: Decision, life: Lifetime, message: Any, now_us: int) -> None:
        """Step, Sleep or Wait: a step that history did not answer."""
        kind = _KINDS[type(message)]
        step = self._check_ask(life, kind, message)
        summary = life.summary
        if life.ended or life.mode == "rollback":
            error = own_error("WorkflowFatalError", "no step can start in a rollback", fatal=True)
            self._send(d, life, Answer(message.token, None, error))
        elif summary.status == PAUSING:
            life.held.append(message)
            self._try_pause(d, life, now_us)
        else:
            self._active(d, life, now_us)
            if step is not None:
                self._bind(life, step, message.token)
            if kind == DO:
                self._ask_do(d, life, step, message, now_us)
            elif kind == SLEEP:
                self._ask_sleep(d, life, step, message, now_us)
            else:
                self._ask_wait(d, life, step, message, now_us)

    def _check_ask(self, life: Lifetime, kind: str, message: Any) -> Step | None:
        """The recorded step that the message asks for; ProtocolViolation where no correct guest
        asks. Everything is checked here, before anything is written."""
        if message.token in life.tokens or message.token < 0:
            raise ProtocolViolation(f"token {message.token} was used before")
        if len(message.name) > 256 or _CONTROL.search(message.name) or message.count < 1:
            raise ProtocolViolation("a step's name or count is out of range")
        if message.at is not None and len(message.at) > _AT_MAX:
            raise ProtocolViolation("a step's place is too long")
        instance = life.summary.instance
        assert instance is not None
        step = instance.steps.get((kind, message.name, message.count))
        if step is not None and step.token is not None:
            raise ProtocolViolation(f"step {message.name!r} was asked for twice")
        if kind == DO:
            parse_config(message.config)
            if message.rollback_config is not None:
                parse_config(message.rollback_config)
            if step is None and len(instance.steps) >= self.config.steps_max:
                self._check_step_limit(instance)
        elif kind == SLEEP:
            _check_sleep(message)
        else:
            _check_wait(message)
        return step

    def _check_step_limit(self, instance: Instance) -> None:
        if sum(step.kind == DO for step in instance.steps.values()) >= self.config.steps_max:
            raise ProtocolViolation(f"more than {self.config.steps_max} steps")

    def _bind(self, life: Lifetime, step: Step, token: int) -> None:
        step.token = token
        life.tokens[token] = step

    def _answer(self, d: Decision, life: Lifetime, step: Step) -> None:
        """Tell the lifetime the outcome of a finished step, if it has asked."""
        if step.token is None:
            return
        self._disarm(step)
        self._send(d, life, Answer(step.token, step.value, step.error))

    # --- do --------------------------------------------------------------------------------------

    def _ask_do(
        self, d: Decision, life: Lifetime, step: Step | None, message: Ask, now_us: int
    ) -> None:
        if step is None:
            self._begin_do(d, life, message, now_us)
        elif step.outcome != OPEN:
            self._answer(d, life, step)
        elif step.until_us is not None and step.until_us > now_us:
            self._arm(life, step, step.until_us)
        else:
            self._attempt(d, life, step, now_us)

    def _begin_do(self, d: Decision, life: Lifetime, message: Ask, now_us: int) -> None:
        summary = life.summary
        instance = summary.instance
        assert instance is not None
        body = StepStarted(
            msgspec.Raw(message.config),
            message.at,
            message.has_rollback,
            parse_config(message.config).sensitive is not None,
            raw(message.rollback_config),
        )
        probe = Step(DO, message.name, message.count, 0)
        self._emit(d, summary, "step_started", body, now_us=now_us, step=probe, attempt=1)
        step = instance.steps[probe.key]
        self._bind(life, step, message.token)
        self._go(d, life, step, now_us)

    def _attempt(self, d: Decision, life: Lifetime, step: Step, now_us: int) -> None:
        """The next attempt of a step that history knows."""
        kind = "rollback_attempt_started" if step.kind == "undo" else "attempt_started"
        number = step.attempt + 1
        self._emit(d, life.summary, kind, now_us=now_us, step=step, attempt=number)
        self._go(d, life, step, now_us)

    def _go(self, d: Decision, life: Lifetime, step: Step, now_us: int) -> None:
        """The attempt is recorded: let the callback run, or let a mock stand for it."""
        life.running += 1
        if self.mocks and step.kind == DO and self._mocked(d, life, step, now_us):
            return
        if step.kind == "undo":
            self._send(d, life, self._undo_message(life, step))
        else:
            assert step.token is not None
            config = None if step.attempt == 1 else step.config_text
            self._send(d, life, Go(step.token, step.attempt, config))
        self._arm(life, step, now_us + round(min(step.config.timeout_ms, DAY_MS_MAX) * 1_000))

    def _mocked(self, d: Decision, life: Lifetime, step: Step, now_us: int) -> bool:
        mocks = self.mocks.get(life.summary.key)
        if mocks is None:
            return False
        if (error := mocks.take_error(step)) is not None:
            self._fail(d, life.summary, step, error, now_us)
        elif mocks.take_timeout(step):
            self._fail(d, life.summary, step, timeout_error(step), now_us)
        elif (value := mocks.result(step)) is not None:
            self._complete(d, life, step, value, now_us)
            if life.summary.lifetime is life:
                self._answer(d, life, step)
        else:
            return False
        return True

    def _on_done(self, d: Decision, life: Lifetime, message: Done, now_us: int) -> None:
        step = life.tokens.get(message.token)
        if step is None:
            raise ProtocolViolation(f"Done for the unknown token {message.token}")
        if not step.in_flight or step.attempt != message.attempt:
            # The guest has handed on a value that history does not hold.
            self._interrupt(d, life.summary, "a result came after its attempt was over", now_us)
        elif step.kind == "undo":
            self._undone(d, life, step, now_us)
        else:
            self._complete(d, life, step, message.value, now_us)

    def _complete(self, d: Decision, life: Lifetime, step: Step, value: bytes, now_us: int) -> None:
        summary = life.summary
        life.running -= 1
        self._disarm(step)
        body = Completed(msgspec.Raw(value))
        shown: Body | None = None
        if step.sensitive:
            body.sensitive = True
            shown = Completed(msgspec.Raw(REDACTED), True)
        self._emit(
            d,
            summary,
            "step_completed",
            body,
            now_us=now_us,
            step=step,
            attempt=step.attempt,
            shown=shown,
        )
        d.durable = True
        self._after_outcome(d, life, now_us)

    def _after_outcome(self, d: Decision, life: Lifetime, now_us: int) -> None:
        life.summary.deaths = 0
        if life.summary.status == PAUSING:
            self._try_pause(d, life, now_us)
        elif self.crash_at_every_step and not life.ended:
            self._interrupt(d, life.summary, "crash_at_every_step", now_us, exempt=True)

    def _on_failed(self, d: Decision, life: Lifetime, message: Failed, now_us: int) -> None:
        step = life.tokens.get(message.token)
        if step is None:
            raise ProtocolViolation(f"Failed for the unknown token {message.token}")
        if not step.in_flight or step.attempt != message.attempt:
            return  # It timed out meanwhile; the guest waits for Go or Answer, as it should.
        self._disarm(step)
        self._fail(
            d,
            life.summary,
            step,
            message.error,
            now_us,
            answered_ms=message.delay_ms,
            delay_error=message.delay_error,
        )

    def _fail(
        self,
        d: Decision,
        summary: Summary,
        step: Step,
        error: Error,
        now_us: int,
        *,
        answered_ms: float | None = None,
        delay_error: Error | None = None,
    ) -> None:
        """An attempt failed and used up a retry: try again later, or give up."""
        life = summary.lifetime
        if life is not None:
            life.running -= 1
            self._disarm(step)
        is_over = (
            is_final(error)
            or delay_error is not None
            or step.failures >= step.config.retries.limit
            or (life is not None and life.ended and step.kind == DO)
        )
        if is_over:
            self._give_up(d, summary, step, error, now_us, final=delay_error)
        else:
            self._retry_later(d, summary, step, error, now_us, answered_ms)
        if life is not None and summary.lifetime is life:
            self._after_failure(d, life, step, now_us)

    def _after_failure(self, d: Decision, life: Lifetime, step: Step, now_us: int) -> None:
        if step.kind == "undo":
            if step.outcome != OPEN:
                self._undo_failed(d, life, step, now_us)
        elif step.outcome != OPEN:
            self._answer(d, life, step)
            self._after_outcome(d, life, now_us)
        elif life.summary.status == PAUSING:
            self._try_pause(d, life, now_us)

    def _retry_later(
        self,
        d: Decision,
        summary: Summary,
        step: Step,
        error: Error,
        now_us: int,
        answered_ms: float | None,
    ) -> None:
        delay_ms = retry_delay_ms(step.config, step.failures + 1, answered_ms)
        mocks = self.mocks.get(summary.key) if self.mocks else None
        is_skipped = mocks is not None and mocks.skips_delay(step)
        due_us = now_us if is_skipped else now_us + delay_ms * 1_000
        body = AttemptErrored(error_body(error), delay_ms, due_us)
        self._emit_attempt_errored(d, summary, step, body, now_us)
        if summary.lifetime is not None:
            self._arm(summary.lifetime, step, due_us)

    def _emit_attempt_errored(
        self, d: Decision, summary: Summary, step: Step, body: AttemptErrored, now_us: int
    ) -> None:
        kind = "rollback_attempt_errored" if step.kind == "undo" else "attempt_errored"
        self._emit(d, summary, kind, body, now_us=now_us, step=step, attempt=step.attempt)

    def _give_up(
        self,
        d: Decision,
        summary: Summary,
        step: Step,
        error: Error,
        now_us: int,
        *,
        final: Error | None = None,
        lost: bool = False,
    ) -> None:
        """The step fails for good; with `final`, by another error than its last attempt."""
        kind = "rollback_step_errored" if step.kind == "undo" else "step_errored"
        attempt = step.attempt
        if final is not None or lost:
            cut = AttemptErrored(error_body(error), lost=lost)
            self._emit_attempt_errored(d, summary, step, cut, now_us)
            attempt = 0
        body = Errored(error_body(error if final is None else final))
        self._emit(d, summary, kind, body, now_us=now_us, step=step, attempt=attempt)
        d.durable = True

    # --- attempts cut off ------------------------------------------------------------------------

    def _lose_attempts(
        self,
        d: Decision,
        summary: Summary,
        error: Error,
        now_us: int,
        *,
        own: bool = False,
        exempt: bool = False,
    ) -> None:
        """Record every attempt in flight of an instance without lifetime as cut off. `own`: by the
        tenant's code, which uses up a retry; `exempt`: on purpose, by a test."""
        instance = summary.instance
        assert summary.lifetime is None
        if instance is None:
            return
        for step in list(instance.open.values()):
            if step.in_flight:
                self._lose(d, summary, step, error, now_us, own, exempt)
        if summary.rolling_back:
            for step in list(instance.steps.values()):
                if step.undo is not None and step.undo.in_flight:
                    self._lose(d, summary, step.undo, error, now_us, own, exempt)

    def _lose(
        self,
        d: Decision,
        summary: Summary,
        step: Step,
        error: Error,
        now_us: int,
        own: bool,
        exempt: bool,
    ) -> None:
        is_last = not exempt and step.lost_in_a_row >= self.config.lost_in_a_row_max
        if step.config.lost == "fail":
            self._give_up(d, summary, step, error, now_us, lost=not own)
        elif own:
            self._fail(d, summary, step, error, now_us)
        elif is_last:
            self._give_up(d, summary, step, error, now_us, lost=True)
        else:
            body = AttemptErrored(error_body(error), lost=True, exempt=exempt)
            self._emit_attempt_errored(d, summary, step, body, now_us)

    def _interrupt(
        self, d: Decision, summary: Summary, reason: str, now_us: int, *, exempt: bool = False
    ) -> None:
        """End the lifetime, and let another go on."""
        self._end_life(d, summary)
        lost = own_error("WorkflowInternalError", f"the attempt was cut off: {reason}")
        self._lose_attempts(d, summary, lost, now_us, exempt=exempt)
        self._rest(summary, now_us)

    def note_reply(self, life: int) -> None:
        """A Reply goes to this lifetime beside the core's messages: an Idle that has not seen it is
        out of date."""
        lifetime = self._lives.get(life)
        if lifetime is not None:
            lifetime.sent += 1

    # --- sleeps and waits ------------------------------------------------------------------------

    def _ask_sleep(
        self, d: Decision, life: Lifetime, step: Step | None, message: Sleep, now_us: int
    ) -> None:
        if step is None:
            error = _misplaced(message, now_us)
            if error is not None:
                self._send(d, life, Answer(message.token, None, error))
                return
            step = self._begin_sleep(d, life, message, now_us)
        self._await(d, life, step, now_us)

    def _begin_sleep(self, d: Decision, life: Lifetime, message: Sleep, now_us: int) -> Step:
        until_us = message.until_us
        if until_us is None:
            until_us = now_us + (message.duration_ms or 0) * 1_000
        duration_ms = (until_us - now_us) // 1_000
        step = Step(SLEEP, message.name, message.count, 0)
        mocks = self.mocks.get(life.summary.key) if self.mocks else None
        if mocks is not None and mocks.skips_sleep(step):
            until_us = now_us
        body = SleepStarted(until_us, duration_ms, message.at)
        return self._begin(d, life, step, "sleep_started", body, message.token, now_us)

    def _ask_wait(
        self, d: Decision, life: Lifetime, step: Step | None, message: Wait, now_us: int
    ) -> None:
        if step is None:
            step = self._begin_wait(d, life, message, now_us)
        self._await(d, life, step, now_us)

    def _begin_wait(self, d: Decision, life: Lifetime, message: Wait, now_us: int) -> Step:
        until_us = now_us + message.timeout_ms * 1_000
        step = Step(WAIT, message.name, message.count, 0)
        mocks = self.mocks.get(life.summary.key) if self.mocks else None
        if mocks is not None and mocks.times_out(step):
            until_us = now_us
        body = WaitStarted(message.type, until_us, message.timeout_ms, message.at)
        return self._begin(d, life, step, "wait_started", body, message.token, now_us)

    def _begin(
        self,
        d: Decision,
        life: Lifetime,
        probe: Step,
        kind: str,
        body: Body,
        token: int,
        now_us: int,
    ) -> Step:
        self._emit(d, life.summary, kind, body, now_us=now_us, step=probe)
        instance = life.summary.instance
        assert instance is not None
        step = instance.steps[probe.key]
        self._bind(life, step, token)
        return step

    def _await(self, d: Decision, life: Lifetime, step: Step, now_us: int) -> None:
        """A sleep or wait was asked for: answer it if it is over, else arm its timer."""
        if step.outcome != OPEN:
            self._answer(d, life, step)
            return
        if step.kind == WAIT and self._deliver(d, life.summary, step, now_us):
            return
        assert step.until_us is not None
        if step.until_us <= now_us:
            self._come_due(d, life.summary, step, now_us)
        else:
            self._arm(life, step, step.until_us)

    def _come_due(self, d: Decision, summary: Summary, step: Step, now_us: int) -> None:
        """A sleep ends, or a wait times out."""
        if step.kind == SLEEP:
            self._emit(d, summary, "sleep_completed", now_us=now_us, step=step)
        else:
            body = Errored(error_body(timeout_error(step)))
            self._emit(d, summary, "wait_timed_out", body, now_us=now_us, step=step)
            d.durable = True
        self._outcome_of_wait(d, summary, step, now_us)

    def _deliver(self, d: Decision, summary: Summary, step: Step, now_us: int) -> bool:
        """Give an open wait the oldest buffered event of its type, or a mock; False without one."""
        instance = summary.instance
        assert instance is not None
        assert step.event_type is not None
        buffered = instance.events.get(step.event_type)
        mocks = self.mocks.get(summary.key) if self.mocks else None
        mock = None if mocks is None else mocks.take_event(step.event_type)
        if mock is not None:
            body = WaitCompleted(step.event_type, 0, msgspec.Raw(mock), now_us)
        elif buffered:
            event = buffered[0]
            payload = msgspec.Raw(event.payload)
            body = WaitCompleted(step.event_type, event.seq, payload, event.received_us)
        else:
            return False
        self._emit(d, summary, "wait_completed", body, now_us=now_us, step=step)
        d.durable = True
        self._outcome_of_wait(d, summary, step, now_us)
        return True

    def _outcome_of_wait(self, d: Decision, summary: Summary, step: Step, now_us: int) -> None:
        life = summary.lifetime
        if life is None:
            return
        self._answer(d, life, step)
        if step.token is not None:
            self._after_outcome(d, life, now_us)

    # --- a step's timer --------------------------------------------------------------------------

    def _step_due(self, d: Decision, summary: Summary, step: Step, now_us: int) -> None:
        life = summary.lifetime
        assert life is not None, "step timers end with their lifetime"
        step.timer = None
        if step.in_flight:
            assert step.token is not None
            self._send(d, life, Cancel(step.token, step.attempt))
            self._fail(d, summary, step, timeout_error(step), now_us)
        elif summary.status == PAUSING:
            life.late.append(step)
        elif not self._active(d, life, now_us, may_drop=True):
            return  # No slot: it goes on, with what is due, when there is one.
        elif step.kind in (DO, "undo"):
            self._attempt(d, life, step, now_us)
        else:
            self._come_due(d, summary, step, now_us)

    def _active(self, d: Decision, life: Lifetime, now_us: int, *, may_drop: bool = False) -> bool:
        """The lifetime has something to do again: it takes a slot, or (False) waits for one."""
        if not life.idle:
            return True
        summary = life.summary
        if may_drop and self._free_slots() <= 0:
            self._end_life(d, summary)
            self._enqueue(summary, WOKEN)
            return False
        life.idle = False
        self._busy += 1
        self._cancel_timer(summary)
        if summary.status == WAITING:
            self._emit(d, summary, "workflow_running", now_us=now_us)
        return True

    # --- rest ------------------------------------------------------------------------------------

    def _on_idle(self, d: Decision, life: Lifetime, message: Idle, now_us: int) -> None:
        summary = life.summary
        if message.seen < life.sent or life.running or life.ended or life.mode == "rollback":
            return
        if summary.status == PAUSING:
            self._pause_now(d, summary, now_us)
            return
        instance = summary.instance
        assert instance is not None
        asked = [step for step in instance.open.values() if step.token is not None]
        if not asked:
            if message.seen > life.sent:
                return  # A Reply that was not noted: what is seen cannot be told.
            self._park(
                d,
                summary,
                "run.stuck",
                "run awaits something that is no step and that nothing will ever set; "
                "fix the code and restart the instance",
                now_us,
            )
            return
        if not life.idle:
            life.idle = True
            self._busy -= 1
        self._settle_down(d, life, asked, now_us)

    def _settle_down(self, d: Decision, life: Lifetime, asked: list[Step], now_us: int) -> None:
        """An idle lifetime: show it as waiting, and let go of it when the wait is long."""
        summary = life.summary
        due_us = min(step.until_us or 0 for step in asked)
        if summary.status == RUNNING and due_us - now_us >= SHORT_US:
            self._emit(d, summary, "workflow_waiting", now_us=now_us)
        suspend_us = now_us + self.config.instance_idle_us
        if due_us <= suspend_us:
            return
        if any(step.kind == WAIT for step in asked) and suspend_us > now_us:
            self._cancel_timer(summary)
            summary.timer = self._timers.arm(suspend_us, SUSPEND, summary)
        else:
            self._suspend(d, summary, now_us)

    def _suspend(self, d: Decision, summary: Summary, now_us: int) -> None:
        """Let go of a lifetime that waits; what remains is its place among the timers."""
        if summary.status == RUNNING:
            self._emit(d, summary, "workflow_waiting", now_us=now_us)
        self._end_life(d, summary)
        self._rest(summary, now_us)

    def _try_pause(self, d: Decision, life: Lifetime, now_us: int) -> None:
        if life.running == 0:
            self._pause_now(d, life.summary, now_us)

    def _pause_now(self, d: Decision, summary: Summary, now_us: int) -> None:
        self._end_life(d, summary)
        self._emit(d, summary, "workflow_paused", now_us=now_us)
        d.durable = True
        self._rest(summary, now_us)

    def _park(self, d: Decision, summary: Summary, code: str, message: str, now_us: int) -> None:
        self._end_life(d, summary)
        lost = own_error("WorkflowInternalError", f"the attempt was cut off: {message[:1_000]}")
        self._lose_attempts(d, summary, lost, now_us)
        body = Parked(code, message)
        self._emit(d, summary, "workflow_parked", body, now_us=now_us)
        d.durable = True
        self._rest(summary, now_us)

    def _on_mismatch(self, d: Decision, life: Lifetime, message: Mismatch, now_us: int) -> None:
        recorded = _place(
            message.recorded_kind,
            message.recorded_name,
            message.recorded_count,
            message.recorded_at,
        )
        asked = (
            "the end of run"
            if message.asked_kind is None
            else _place(
                message.asked_kind, message.asked_name, message.asked_count, message.asked_at
            )
        )
        text = (
            f"the code has changed under its history: history holds {recorded}, which the code did "
            f"not ask for; the code asks for {asked}. Put the code right, then resume; or restart."
        )
        self._park(d, life.summary, "replay.mismatch", text, now_us)

    # --- rollback, in core_rollback.py -----------------------------------------------------------

    def _undo_message(self, life: Lifetime, undo: Step) -> Undo:
        raise NotImplementedError

    def _undone(self, d: Decision, life: Lifetime, undo: Step, now_us: int) -> None:
        raise NotImplementedError

    def _undo_failed(self, d: Decision, life: Lifetime, undo: Step, now_us: int) -> None:
        raise NotImplementedError

    def _on_end(self, d: Decision, life: Lifetime, message: Any, now_us: int) -> None:
        raise NotImplementedError


def _place(kind: str, name: str | None, count: int, at: str | None) -> str:
    where = f" at {at[:300]}" if at else ""
    return f"{kind[:20]} {(name or '')[:256]!r} ({count}){where}"


def _check_sleep(message: Sleep) -> None:
    has_time = message.until_us is not None or message.duration_ms is not None
    if not has_time or not 0 <= (message.duration_ms or 0) <= DAY_MS_MAX:
        raise ProtocolViolation("a sleep without a possible time")


def _check_wait(message: Wait) -> None:
    if not EVENT_TYPE.fullmatch(message.type) or len(message.type) > 100:
        raise ProtocolViolation("a wait for an impossible event type")
    if not 0 < message.timeout_ms <= DAY_MS_MAX:
        raise ProtocolViolation("a wait's timeout is out of range")


def _misplaced(message: Sleep, now_us: int) -> Error | None:
    """What `sleep_until` raises for a moment that no sleep can begin towards."""
    if message.until_us is None:
        return None
    if message.until_us < now_us:
        return Error("ValueError", f"the end of sleep {message.name!r} lies in the past")
    if message.until_us > now_us + DAY_MS_MAX * 1_000:
        text = f"the end of sleep {message.name!r} lies more than 365 days ahead"
        return own_error("WorkflowFatalError", text, fatal=True)
    return None


_KINDS: dict[type, str] = {Ask: DO, Sleep: SLEEP, Wait: WAIT}

# By name, so that the parts above may supply them.
_HANDLERS: dict[type, str] = {
    Ask: "_on_ask",
    Sleep: "_on_ask",
    Wait: "_on_ask",
    Done: "_on_done",
    Failed: "_on_failed",
    End: "_on_end",
    Idle: "_on_idle",
    Mismatch: "_on_mismatch",
}
