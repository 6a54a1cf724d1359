"""Messages: what the isolate of a lifetime tells the core, and what the core does then."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from dynamic_workflows.loaders.guest.sanitize import plain
from dynamic_workflows.loaders.protocol.contract import (
    CANCELLED,
    DO,
    OPEN,
    PAUSING,
    RUNNING,
    SLEEP,
    TIMER,
    VALUE,
    WAIT,
)
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
    RunTimerFired,
    Sleep,
    Wait,
)
from dynamic_workflows.loaders.protocol.messages import StepRequest as Ask

from ..instances.decisions import Decision
from ..instances.index_entry import IndexEntry, Lifetime
from ..instances.instance import event_taken, first_wait
from ..instances.row_payloads import TimerElapsed as ElapsedBody
from ..instances.row_payloads import WaitCancelled
from ..instances.step_state import StepState
from .attempts import Attempts
from .lifetimes import Lifetimes
from .rollback import Rollbacks
from .state import SUSPEND, CoreState
from .steps import PLACE_MAX, Steps
from .suspension import Suspension
from .waits import Waits

SHORT_US = 100_000
"""An instance that rests for less than this is not shown as waiting."""

LIVE_MAX = 10_000
"""With more lifetimes than this, those that wait for an event are let go of at once."""


class MessageHandler:
    """Handles the messages of lifetimes, each by its type."""

    def __init__(
        self,
        state: CoreState,
        lifetimes: Lifetimes,
        suspension: Suspension,
        attempts: Attempts,
        waits: Waits,
        rollbacks: Rollbacks,
        steps: Steps,
    ) -> None:
        self._state = state
        self._emit = state.emit
        self._lifetimes = lifetimes
        self._by_number = lifetimes.by_number
        self._suspension = suspension
        self._attempts = attempts
        self._waits = waits
        self._rollbacks = rollbacks
        self._config = state.config
        self._handlers: dict[type, Callable[[Decision, Lifetime, Any, int], None]] = {
            Ask: steps.on_request,
            Sleep: steps.on_request,
            Wait: steps.on_request,
            Done: self._on_done,
            AttemptFailed: self._on_failed,
            End: rollbacks.end_run,
            Idle: self._on_idle,
            Mismatch: self._on_mismatch,
            Cancelled: self._on_cancelled,
            RunTimerFired: self._on_elapsed,
            Awaits: self._on_awaits,
        }

    def on_message(self, life: int, message: msgspec.Struct, *, now_us: int) -> Decision:
        """Take a message of a lifetime's isolate. It is ignored if the lifetime has ended. Raises
        ProtocolViolation for a message that no correct isolate sends."""
        d = Decision()
        lifetime = self._by_number.get(life)
        if lifetime is not None:
            handler = self._handlers.get(type(message))
            if handler is None:
                raise ProtocolViolation(f"{type(message).__name__} is not for the core")
            handler(d, lifetime, message, now_us)
        return d

    def _on_done(self, d: Decision, life: Lifetime, message: Done, now_us: int) -> None:
        step = life.tokens.get(message.token)
        if step is None:
            raise ProtocolViolation(f"Done for the unknown token {message.token}")
        _hear(step, message.attempt)
        if step.outcome == CANCELLED:
            return  # The code cancelled the step while the value was under way: it has no effect.
        if not step.in_flight or step.attempt != message.attempt:
            # The guest has handed on a value that history does not hold.
            self._attempts.interrupt(
                d, life.entry, "a result came after its attempt was over", now_us
            )
        elif step.kind == "undo":
            self._rollbacks.undone(d, life, step, now_us)
        else:
            before = self._overtaken(life, message.heard)
            self._attempts.complete(d, life, step, message.value, now_us, before)
            instance = life.entry.instance
            assert instance is not None
            if instance.told < step.ended:
                instance.told = step.ended

    def _on_failed(self, d: Decision, life: Lifetime, message: AttemptFailed, now_us: int) -> None:
        step = life.tokens.get(message.token)
        if step is None:
            raise ProtocolViolation(f"Failed for the unknown token {message.token}")
        if message.delay_ms is not None and message.delay_ms < 0:
            raise ProtocolViolation("a delay below 0")
        _hear(step, message.attempt)
        if not step.in_flight or step.attempt != message.attempt:
            return  # It timed out meanwhile; the guest waits for Go or Answer, as it should.
        self._lifetimes.disarm(step)
        self._attempts.fail(
            d,
            life.entry,
            step,
            message.error,
            now_us,
            answered_ms=message.delay_ms,
            delay_error=message.delay_error,
        )

    def _overtaken(self, life: Lifetime, heard: int) -> int:
        if heard > len(life.answered):
            raise ProtocolViolation(f"{heard} answers are heard, {len(life.answered)} were given")
        return life.overtaken(heard)

    def _on_elapsed(self, d: Decision, life: Lifetime, message: RunTimerFired, now_us: int) -> None:
        entry = life.entry
        instance = entry.instance
        assert instance is not None
        if life.ended or life.mode == "rollback":
            return
        is_known = (TIMER, "", message.number) in instance.steps
        if is_known or not 1 <= message.number <= self._config.waits_max:
            raise ProtocolViolation(f"timer {message.number} is out of range, or elapsed before")
        if message.at is not None and len(message.at) > PLACE_MAX:
            raise ProtocolViolation("a timer's place is too long")
        self._lifetimes.take_slot(d, life, now_us)
        body = ElapsedBody(message.at, self._overtaken(life, message.heard))
        probe = StepState(TIMER, "", message.number, 0)
        self._emit(d, entry, "timer_elapsed", body, now_us=now_us, step=probe)
        instance.told = max(instance.told, instance.steps[probe.key].ended)

    def _on_cancelled(self, d: Decision, life: Lifetime, message: Cancelled, now_us: int) -> None:
        """The code was cancelled while it awaited a step: the step is over. What was over already
        stays so, but an event that the code was not given is kept for another wait."""
        entry = life.entry
        instance = entry.instance
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
            self._state.kept.hold_if_small(step.event_seq, payload)
            body = WaitCancelled(step.event_type, step.event_seq, received_us, len(payload))
            self._emit(d, entry, "wait_cancelled", body, now_us=now_us, step=step)
            wait = first_wait(instance, step.event_type)
            if wait is not None and wait.token is not None:
                self._waits.deliver(d, entry, wait, now_us)
        if entry.lifetime is life and entry.status == PAUSING:
            self._suspension.try_pause(d, life, now_us)

    def _cancel(self, d: Decision, life: Lifetime, step: StepState, now_us: int) -> None:
        attempt = step.attempt if step.in_flight else 0
        kind = _CANCELLED[step.kind]
        self._emit(d, life.entry, kind, now_us=now_us, step=step, attempt=attempt)
        self._lifetimes.disarm(step)
        if step in life.late:
            life.late.remove(step)
        if attempt:
            life.running -= 1
            assert step.token is not None, "attempts in flight are of this lifetime"
            self._lifetimes.send(d, life, Cancel(step.token, attempt))

    def _on_awaits(self, d: Decision, life: Lifetime, message: Awaits, now_us: int) -> None:
        life.awaits = plain(message.at or "?", PLACE_MAX)
        life.awaits_timer = message.is_timed

    def _on_idle(self, d: Decision, life: Lifetime, message: Idle, now_us: int) -> None:
        entry = life.entry
        if message.seen < life.sent or life.running or life.ended or life.mode == "rollback":
            return
        if entry.status == PAUSING:
            self._suspension.pause(d, entry, now_us)
            return
        # Said again with nothing new to either side: looking through all that is open is not free.
        facts = (life.sent, len(life.tokens))
        if life.idle and life.reported == facts:
            return
        instance = entry.instance
        assert instance is not None
        asked = [step for step in instance.open.values() if step.token is not None]
        if not asked:
            if message.seen > life.sent:
                return  # A Reply that was not noted: what is seen cannot be told.
            self._attempts.park(
                d,
                entry,
                "run.stuck",
                "run awaits something that is no step and that nothing will ever set; "
                "fix the code and restart the instance",
                now_us,
            )
            return
        self._lifetimes.release_slot(life)
        life.reported = facts
        self._settle_down(d, life, asked, now_us)

    def _settle_down(
        self, d: Decision, life: Lifetime, asked: list[StepState], now_us: int
    ) -> None:
        """An idle lifetime: show it as waiting, and let go of it when the wait is long."""
        entry = life.entry
        due_us = min(step.until_us or 0 for step in asked)
        if entry.status == RUNNING and due_us - now_us >= SHORT_US:
            self._emit(d, entry, "workflow_waiting", now_us=now_us)
        suspend_us = now_us + self._config.instance_idle_us
        assert entry.instance is not None
        if due_us <= suspend_us or any(entry.instance.has_event_for(step) for step in asked):
            return
        may_stay = suspend_us > now_us and len(self._lifetimes.by_number) <= LIVE_MAX
        if may_stay and any(step.kind == WAIT for step in asked):
            self._state.cancel_timer(entry)
            entry.timer = self._state.timers.arm(suspend_us, SUSPEND, entry)
        else:
            self._suspension.suspend(d, entry, now_us)

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
            f"{self._why_mismatched(life.entry)}: history holds {recorded}, {did_not}; "
            f"the code asks for {asked}. Put the code right, then resume; or restart."
        )
        self._attempts.park(d, life.entry, "replay.mismatch", text, now_us)

    def _why_mismatched(self, entry: IndexEntry) -> str:
        if (entry.get("pin") or "hash") == "hash":
            return (
                "the same code went another way than its history: run depends on something that"
                " no step holds, such as time, chance or the order of a set"
            )
        return "the code has changed under its history, or depends on something that no step holds"


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


_NAMES = (DO, SLEEP, WAIT)
_CANCELLED = {DO: "step_cancelled", SLEEP: "sleep_cancelled", WAIT: "wait_cancelled"}
