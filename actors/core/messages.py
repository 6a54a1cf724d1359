"""Running: lifetimes begin, their messages are taken, and their steps' timers fire."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from dynamic_workflows.loaders.guest.sanitize import plain
from dynamic_workflows.loaders.protocol.messages import (
    AttemptFailed,
    Awaits,
    Cancel,
    Cancelled,
    Done,
    End,
    Idle,
    Mismatch,
    ProtocolViolation,
    RecordedStep,
    Run,
    RunTimerFired,
    Sleep,
    Wait,
)
from dynamic_workflows.loaders.protocol.messages import StepRequest as Ask

from ..instances.decisions import Decision, Key
from ..instances.identifiers import EVENT_TYPE
from ..instances.index_entry import IndexEntry
from ..instances.instance import Instance, event_taken, first_wait
from ..instances.lifetime import Lifetime
from ..instances.row_payloads import StepStarted, WaitCancelled, own_error, raw
from ..instances.row_payloads import TimerElapsed as ElapsedBody
from ..instances.state_machine import PAUSING, QUEUED, RUNNING, WAITING
from ..instances.step_state import (
    CANCELLED,
    DO,
    OPEN,
    SLEEP,
    TIMER,
    VALUE,
    WAIT,
    YEAR_MS,
    StepState,
    parse_config,
    timeout_error,
)
from .state import SUSPEND
from .waits import Waits

SHORT_US = 100_000
"""An instance that rests for less than this is not shown as waiting."""

LIVE_MAX = 10_000
"""With more lifetimes than this, those that wait for an event are let go of at once."""

_CONTROL = re.compile("[\x00-\x1f]")
_AT_MAX = 1_000
_HELD_MAX = 100_000
"""Requests of one lifetime that a pending pause holds back; no honest code has so many at once."""
_COUNT_MAX = 2**31 - 1
"""What the column of the files holds: one row above it would break every query."""


class Running(Waits):
    """Starts lifetimes and answers them."""

    def start(self, key: Key, *, now_us: int) -> Decision:
        """Begin a lifetime of a loaded instance that `runnable` named; the answer is its number, or
        None when there is nothing to start any more."""
        d = Decision()
        summary = self._directory.get(key)
        if summary is None or not summary.queue or summary.lifetime is not None:
            return d
        assert summary.instance is not None, f"{key} has to be loaded before it starts"
        self._load_failures.pop(key, None)
        is_first = not summary.started_us
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
        told = -1 if is_first and not summary.instance.steps else summary.instance.told
        self._send(d, life, self._run_message(summary, summary.instance, life, now_us, told))
        d.answer = life.number
        return d

    def _news_of_code(self, summary: IndexEntry) -> str | None:
        """The code hash, where the log may not know it: an instance that follows the newest
        code."""
        return summary.code_hash if summary.get("pin") == "latest" else None

    def _run_message(
        self, summary: IndexEntry, instance: Instance, life: Lifetime, now_us: int, told: int
    ) -> Run:
        workflow, instance_id = summary.key
        history: list[RecordedStep] = [step.known() for step in instance.steps.values()]
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
            now_us,
            self.config.waits_max,
            told,
        )

    def _settle(self, d: Decision, summary: IndexEntry, now_us: int) -> None:
        """Record what came due, or was cut off, while the instance had no lifetime."""
        assert summary.lifetime is None
        instance = summary.instance
        assert instance is not None
        lost = own_error("WorkflowInternalError", "the attempt was cut off by a restart")
        self._lose_attempts(d, summary, lost, now_us)
        if summary.rolling_back:
            return
        for step in list(instance.open.values()):
            if instance.has_event_for(step):
                self._deliver(d, summary, step, now_us)
            elif step.until_us is not None and step.until_us <= now_us and step.kind != DO:
                self._come_due(d, summary, step, now_us)

    # --- messages ---------------------------------------------------------------------------------

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

    def note_reply(self, life: int) -> None:
        """A Reply goes to this lifetime beside the core's messages: an Idle that has not seen it is
        out of date."""
        lifetime = self._lives.get(life)
        if lifetime is not None:
            lifetime.sent += 1

    def _on_ask(self, d: Decision, life: Lifetime, message: Any, now_us: int) -> None:
        """Step, Sleep or Wait: a step that history did not answer."""
        kind = _KINDS[type(message)]
        step = self._check_ask(life, kind, message)
        summary = life.summary
        if life.ended or life.mode == "rollback":
            error = own_error("WorkflowFatalError", "no step can start in a rollback", fatal=True)
            self._refuse(d, life, message.token, error)
        elif summary.status == PAUSING:
            if message.token in life.held or len(life.held) >= _HELD_MAX:
                raise ProtocolViolation(f"token {message.token} is known, or one too many")
            life.held[message.token] = message
            self._try_pause(d, life, now_us)
        elif step is None and (refusal := self._state_error(summary, 0)) is not None:
            self._refuse(d, life, message.token, refusal)
        else:
            life.awaits = None
            self._active(d, life, now_us)
            if step is not None:
                self._bind(life, step, message.token)
            if kind == DO:
                self._ask_do(d, life, step, message, now_us)
            elif kind == SLEEP:
                self._ask_sleep(d, life, step, message, now_us)
            else:
                self._ask_wait(d, life, step, message, now_us)

    def _check_ask(self, life: Lifetime, kind: str, message: Any) -> StepState | None:
        """The recorded step that the message asks for; ProtocolViolation where no correct guest
        asks. Everything is checked here, before anything is written."""
        if message.token in life.tokens or message.token < 1:
            raise ProtocolViolation(f"token {message.token} was used before")
        name = message.name
        is_plain = name.isprintable() or not _CONTROL.search(name)
        if not is_plain or len(name) > 256 or not 1 <= message.count <= _COUNT_MAX:
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
        if kind != DO and step is None and len(instance.steps) >= self.config.waits_max:
            self._check_wait_limit(instance)
        return step

    def _check_step_limit(self, instance: Instance) -> None:
        if sum(step.kind == DO for step in instance.steps.values()) >= self.config.steps_max:
            raise ProtocolViolation(f"more than {self.config.steps_max} steps")

    def _check_wait_limit(self, instance: Instance) -> None:
        if sum(step.kind != DO for step in instance.steps.values()) >= self.config.waits_max:
            raise ProtocolViolation(f"more than {self.config.waits_max} sleeps and waits")

    def _ask_do(
        self, d: Decision, life: Lifetime, step: StepState | None, message: Ask, now_us: int
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
        self._emit(d, summary, "step_started", body, now_us=now_us, step=message, attempt=1)
        step = instance.steps[DO, message.name, message.count]
        self._bind(life, step, message.token)
        self._go(d, life, step, now_us)

    def _on_done(self, d: Decision, life: Lifetime, message: Done, now_us: int) -> None:
        step = life.tokens.get(message.token)
        if step is None:
            raise ProtocolViolation(f"Done for the unknown token {message.token}")
        _hear(step, message.attempt)
        if step.outcome == CANCELLED:
            return  # Its code went on while the guest told of the end: nobody hears of it.
        if not step.in_flight or step.attempt != message.attempt:
            # The guest has handed on a value that history does not hold.
            self._interrupt(d, life.summary, "a result came after its attempt was over", now_us)
        elif step.kind == "undo":
            self._undone(d, life, step, now_us)
        else:
            before = self._overtaken(life, message.heard)
            self._complete(d, life, step, message.value, now_us, before)
            instance = life.summary.instance
            assert instance is not None
            if instance.told < step.ended:
                instance.told = step.ended

    def _overtaken(self, life: Lifetime, heard: int) -> int:
        if heard > len(life.answered):
            raise ProtocolViolation(f"{heard} answers are heard, {len(life.answered)} were given")
        return life.overtaken(heard)

    def _on_elapsed(self, d: Decision, life: Lifetime, message: RunTimerFired, now_us: int) -> None:
        summary = life.summary
        instance = summary.instance
        assert instance is not None
        if life.ended or life.mode == "rollback":
            return
        is_known = (TIMER, "", message.number) in instance.steps
        if is_known or not 1 <= message.number <= self.config.waits_max:
            raise ProtocolViolation(f"timer {message.number} is out of range, or elapsed before")
        if message.at is not None and len(message.at) > _AT_MAX:
            raise ProtocolViolation("a timer's place is too long")
        self._active(d, life, now_us)
        body = ElapsedBody(message.at, self._overtaken(life, message.heard))
        probe = StepState(TIMER, "", message.number, 0)
        self._emit(d, summary, "timer_elapsed", body, now_us=now_us, step=probe)
        instance.told = max(instance.told, instance.steps[probe.key].ended)

    def _on_cancelled(self, d: Decision, life: Lifetime, message: Cancelled, now_us: int) -> None:
        """The code was cancelled while it awaited a step: the step is over. What was over already
        stays so, but an event that nobody was told of is kept for another wait."""
        summary = life.summary
        instance = summary.instance
        assert instance is not None
        life.held.pop(message.token, None)
        step = instance.steps.get((message.kind, message.name, message.count))
        if step is None or life.ended or life.mode == "rollback" or step.kind == TIMER:
            return
        if step.outcome == OPEN:
            self._cancel(d, life, step, now_us)
        elif step.kind == WAIT and step.outcome == VALUE and step.event_seq:
            assert step.event_type is not None
            assert step.value is not None
            payload, received_us = event_taken(step.value)
            self._kept.hold_if_small(step.event_seq, payload)
            body = WaitCancelled(step.event_type, step.event_seq, received_us, len(payload))
            self._emit(d, summary, "wait_cancelled", body, now_us=now_us, step=step)
            wait = first_wait(instance, step.event_type)
            if wait is not None and wait.token is not None:
                self._deliver(d, summary, wait, now_us)
        if summary.lifetime is life and summary.status == PAUSING:
            self._try_pause(d, life, now_us)

    def _cancel(self, d: Decision, life: Lifetime, step: StepState, now_us: int) -> None:
        attempt = step.attempt if step.in_flight else 0
        kind = _CANCELLED[step.kind]
        self._emit(d, life.summary, kind, now_us=now_us, step=step, attempt=attempt)
        self._disarm(step)
        if step in life.late:
            life.late.remove(step)
        if attempt:
            life.running -= 1
            assert step.token is not None, "attempts in flight are of this lifetime"
            self._send(d, life, Cancel(step.token, attempt))

    def _on_awaits(self, d: Decision, life: Lifetime, message: Awaits, now_us: int) -> None:
        life.awaits = plain(message.at or "?", _AT_MAX)
        life.awaits_timer = message.is_timed

    def _on_failed(self, d: Decision, life: Lifetime, message: AttemptFailed, now_us: int) -> None:
        step = life.tokens.get(message.token)
        if step is None:
            raise ProtocolViolation(f"Failed for the unknown token {message.token}")
        if message.delay_ms is not None and message.delay_ms < 0:
            raise ProtocolViolation("a delay below 0")
        _hear(step, message.attempt)
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

    def _step_due(self, d: Decision, summary: IndexEntry, step: StepState, now_us: int) -> None:
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

    # --- rest -------------------------------------------------------------------------------------

    def _on_idle(self, d: Decision, life: Lifetime, message: Idle, now_us: int) -> None:
        summary = life.summary
        if message.seen < life.sent or life.running or life.ended or life.mode == "rollback":
            return
        if summary.status == PAUSING:
            self._pause_now(d, summary, now_us)
            return
        # Said again with nothing new to either side: looking through all that is open is not free.
        facts = (life.sent, len(life.tokens))
        if life.idle and life.settled == facts:
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
        life.settled = facts
        self._settle_down(d, life, asked, now_us)

    def _settle_down(
        self, d: Decision, life: Lifetime, asked: list[StepState], now_us: int
    ) -> None:
        """An idle lifetime: show it as waiting, and let go of it when the wait is long."""
        summary = life.summary
        due_us = min(step.until_us or 0 for step in asked)
        if summary.status == RUNNING and due_us - now_us >= SHORT_US:
            self._emit(d, summary, "workflow_waiting", now_us=now_us)
        suspend_us = now_us + self.config.instance_idle_us
        assert summary.instance is not None
        if due_us <= suspend_us or any(summary.instance.has_event_for(step) for step in asked):
            return
        may_stay = suspend_us > now_us and len(self._lives) <= LIVE_MAX
        if may_stay and any(step.kind == WAIT for step in asked):
            self._cancel_timer(summary)
            summary.timer = self._timers.arm(suspend_us, SUSPEND, summary)
        else:
            self._suspend(d, summary, now_us)

    def _on_mismatch(self, d: Decision, life: Lifetime, message: Mismatch, now_us: int) -> None:
        if message.recorded_kind not in (*_NAMES, TIMER) or message.asked_kind not in (
            None,
            *_NAMES,
        ):
            raise ProtocolViolation("a mismatch of steps of no known kind")
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
        if message.recorded_kind == TIMER:
            did_not = "which the code did not set"
        elif message.is_awaited:
            did_not = "which the code cancelled then, and awaits now"
        else:
            did_not = "which the code did not ask for"
        text = (
            f"{self._why_mismatched(life.summary)}: history holds {recorded}, {did_not}; "
            f"the code asks for {asked}. Put the code right, then resume; or restart."
        )
        self._park(d, life.summary, "replay.mismatch", text, now_us)

    def _why_mismatched(self, summary: IndexEntry) -> str:
        if (summary.get("pin") or "hash") == "hash":
            return (
                "the same code went another way than its history: run depends on something that"
                " no step holds, such as time, chance or the order of a set"
            )
        return "the code has changed under its history, or depends on something that no step holds"

    def _on_end(self, d: Decision, life: Lifetime, message: Any, now_us: int) -> None:
        raise NotImplementedError


def _place(kind: str, name: str | None, count: int, at: str | None) -> str:
    # A guest may say anything here: none of it may steer a terminal.
    where = f" at {ascii(at[:300])[1:-1]}" if at else ""
    if kind == TIMER:
        return f"timer {count} of asyncio{where}"
    return f"{kind} {(name or '')[:256]!r} ({count}){where}"


def _hear(step: StepState, attempt: int) -> None:
    """Note that the guest has told the end of an attempt. It does so once, of attempts that began
    in this lifetime; it may be late, where the attempt timed out, but is never early."""
    if not step.said < attempt <= step.attempt:
        what = f"the end of attempt {attempt} of step {plain(step.name)!r}"
        raise ProtocolViolation(f"{what} was told twice, or before its time")
    step.said = attempt


def _check_sleep(message: Sleep) -> None:
    has_time = message.until_us is not None or message.duration_ms is not None
    if not has_time or not 0 <= (message.duration_ms or 0) <= YEAR_MS:
        raise ProtocolViolation("a sleep without a possible time")


def _check_wait(message: Wait) -> None:
    if not EVENT_TYPE.fullmatch(message.type) or len(message.type) > 100:
        raise ProtocolViolation("a wait for an impossible event type")
    if not 0 < message.timeout_ms <= YEAR_MS:
        raise ProtocolViolation("a wait's timeout is out of range")


_KINDS: dict[type, str] = {Ask: DO, Sleep: SLEEP, Wait: WAIT}
_NAMES = (DO, SLEEP, WAIT)
_CANCELLED = {DO: "step_cancelled", SLEEP: "sleep_cancelled", WAIT: "wait_cancelled"}

# By name, so that the parts above may supply them.
_HANDLERS: dict[type, str] = {
    Ask: "_on_ask",
    Sleep: "_on_ask",
    Wait: "_on_ask",
    Done: "_on_done",
    AttemptFailed: "_on_failed",
    End: "_on_end",
    Idle: "_on_idle",
    Mismatch: "_on_mismatch",
    Cancelled: "_on_cancelled",
    RunTimerFired: "_on_elapsed",
    Awaits: "_on_awaits",
}
