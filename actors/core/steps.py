"""Steps: what a lifetime asks for is checked, recorded and begun; what comes due goes on."""

from __future__ import annotations

import re
from typing import TypeAlias

import msgspec

from dynamic_workflows.loaders.protocol.contract import (
    DO,
    EVENT_TYPE,
    OPEN,
    PAUSING,
    SLEEP,
    WAIT,
    YEAR_MS,
)
from dynamic_workflows.loaders.protocol.messages import Cancel, ProtocolViolation, Sleep, Wait
from dynamic_workflows.loaders.protocol.messages import StepRequest as Ask

from ..instances.decisions import Decision
from ..instances.index_entry import IndexEntry, Lifetime
from ..instances.instance import Instance
from ..instances.row_payloads import StepStarted, own_error, raw
from ..instances.step_state import StepState, parse_config, timeout_error
from .attempts import Attempts
from .lifetimes import Lifetimes
from .state import CoreState
from .suspension import Suspension
from .waits import Waits

_CONTROL = re.compile("[\x00-\x1f]")
Request: TypeAlias = Ask | Sleep | Wait

PLACE_MAX = 1_000
"""Characters of a place in the tenant's code, as a message names it."""
_HELD_MAX = 100_000
"""Requests of one lifetime that a pending pause holds back; no honest code has so many at once."""
_COUNT_MAX = 2**31 - 1
"""What the column of the files holds: one row above it would break every query."""


class Steps:
    """Takes the requests for steps, sleeps and waits, and the timers of steps."""

    def __init__(
        self,
        state: CoreState,
        lifetimes: Lifetimes,
        suspension: Suspension,
        attempts: Attempts,
        waits: Waits,
    ) -> None:
        self._state = state
        self._emit = state.emit
        self._lifetimes = lifetimes
        self._send, self._arm = lifetimes.send, lifetimes.arm
        self._take_slot, self._bind = lifetimes.take_slot, lifetimes.bind
        self._suspension = suspension
        self._attempts = attempts
        self._waits = waits
        self._config = state.config

    def on_request(self, d: Decision, life: Lifetime, message: Request, now_us: int) -> None:
        """A lifetime asks for a step, sleep or wait that its history did not answer: record it, and
        begin it, or answer at once."""
        kind = _KINDS[type(message)]
        step = self._check_request(life, kind, message)
        entry = life.entry
        if life.ended or life.mode == "rollback":
            error = own_error("WorkflowFatalError", "no step can start in a rollback", fatal=True)
            self._lifetimes.refuse(d, life, message.token, error)
        elif entry.status == PAUSING:
            if message.token in life.held or len(life.held) >= _HELD_MAX:
                raise ProtocolViolation(f"token {message.token} is known, or one too many")
            life.held[message.token] = message
            self._suspension.try_pause(d, life, now_us)
        elif step is None and (refusal := self._state.state_error(entry, 0)) is not None:
            self._lifetimes.refuse(d, life, message.token, refusal)
        else:
            life.awaits = None
            self._take_slot(d, life, now_us)
            if step is not None:
                self._bind(life, step, message.token)
            if isinstance(message, Ask):
                self._ask_do(d, life, step, message, now_us)
            elif isinstance(message, Sleep):
                self._waits.ask_sleep(d, life, step, message, now_us)
            else:
                self._waits.ask_wait(d, life, step, message, now_us)

    def _check_request(self, life: Lifetime, kind: str, message: Request) -> StepState | None:
        """Return the recorded step that the message asks for, or None for a new one. Raises
        ProtocolViolation for a request that no correct isolate sends, before anything is
        written."""
        if message.token in life.tokens or message.token < 1:
            raise ProtocolViolation(f"token {message.token} was used before")
        name = message.name
        is_plain = name.isprintable() or not _CONTROL.search(name)
        if not is_plain or len(name) > 256 or not 1 <= message.count <= _COUNT_MAX:
            raise ProtocolViolation("a step's name or count is out of range")
        if message.at is not None and len(message.at) > PLACE_MAX:
            raise ProtocolViolation("a step's place is too long")
        instance = life.entry.instance
        assert instance is not None
        step = instance.steps.get((kind, message.name, message.count))
        if step is not None and step.token is not None:
            raise ProtocolViolation(f"step {message.name!r} was asked for twice")
        if isinstance(message, Ask):
            parse_config(message.config)
            if message.rollback_config is not None:
                parse_config(message.rollback_config)
            if step is None and len(instance.steps) >= self._config.steps_max:
                self._check_step_limit(instance)
        elif isinstance(message, Sleep):
            _check_sleep(message)
        else:
            _check_wait(message)
        if kind != DO and step is None and len(instance.steps) >= self._config.waits_max:
            self._check_wait_limit(instance)
        return step

    def _check_step_limit(self, instance: Instance) -> None:
        if sum(step.kind == DO for step in instance.steps.values()) >= self._config.steps_max:
            raise ProtocolViolation(f"more than {self._config.steps_max} steps")

    def _check_wait_limit(self, instance: Instance) -> None:
        if sum(step.kind != DO for step in instance.steps.values()) >= self._config.waits_max:
            raise ProtocolViolation(f"more than {self._config.waits_max} sleeps and waits")

    def _ask_do(
        self, d: Decision, life: Lifetime, step: StepState | None, message: Ask, now_us: int
    ) -> None:
        if step is None:
            self._begin_do(d, life, message, now_us)
        elif step.outcome != OPEN:
            self._lifetimes.answer(d, life, step)
        elif step.until_us is not None and step.until_us > now_us:
            self._arm(life, step, step.until_us)
        else:
            self._attempts.begin_next(d, life, step, now_us)

    def _begin_do(self, d: Decision, life: Lifetime, message: Ask, now_us: int) -> None:
        entry = life.entry
        instance = entry.instance
        assert instance is not None
        body = StepStarted(
            msgspec.Raw(message.config),
            message.at,
            message.has_rollback,
            parse_config(message.config).sensitive is not None,
            raw(message.rollback_config),
        )
        self._emit(d, entry, "step_started", body, now_us=now_us, step=message, attempt=1)
        step = instance.steps[DO, message.name, message.count]
        self._bind(life, step, message.token)
        self._attempts.go(d, life, step, now_us)

    def on_due(self, d: Decision, entry: IndexEntry, step: StepState, now_us: int) -> None:
        """The timer of a step of a lifetime fired: its attempt times out, its next attempt
        begins, or its sleep or wait is over."""
        life = entry.lifetime
        assert life is not None, "step timers end with their lifetime"
        step.timer = None
        if step.in_flight:
            assert step.token is not None
            self._send(d, life, Cancel(step.token, step.attempt))
            self._attempts.fail(d, entry, step, timeout_error(step), now_us)
        elif entry.status == PAUSING:
            life.late.append(step)
        elif not self._take_slot(d, life, now_us, may_drop=True):
            return  # No slot: it goes on, with what is due, when there is one.
        elif step.kind in (DO, "undo"):
            self._attempts.begin_next(d, life, step, now_us)
        else:
            self._waits.come_due(d, entry, step, now_us)


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
