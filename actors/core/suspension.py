"""Rest: how a lifetime takes and gives back its slot, is suspended, and is paused."""

from __future__ import annotations

from dynamic_workflows.eventlog.codec import values
from dynamic_workflows.loaders.protocol.messages import Error, StepOutcome

from ..instances.decisions import Decision
from ..instances.index_entry import WOKEN, IndexEntry
from ..instances.lifetime import Lifetime
from ..instances.row_payloads import Paused
from ..instances.state_machine import RUNNING, WAITING
from ..instances.step_state import StepState
from .state import CoreBase


class Rests(CoreBase):
    """The moves of a lifetime between work and rest."""

    def _state_error(self, summary: IndexEntry, size: int) -> Error | None:
        """Why the run may not hold `size` bytes more, or None where it may."""
        most = self.config.state_bytes_max
        instance = summary.instance
        if instance is None or instance.weight + size <= most:
            return None
        text = (
            f"the run may hold {most:,} bytes (state_bytes_max), and would hold "
            f"{summary.weight + size:,}: keep large values elsewhere, or split the work over "
            "several instances"
        )
        args = values.encode([text, "limit.exceeded", {"limit": "state_bytes_max"}])
        return Error("LimitExceededError", text, "dynamic_workflows", args, fatal=True)

    def _bind(self, life: Lifetime, step: StepState, token: int) -> None:
        step.token = token
        step.said = step.attempt - step.in_flight
        life.tokens[token] = step

    def _answer(self, d: Decision, life: Lifetime, step: StepState) -> None:
        """Tell the lifetime the outcome of a finished step, if it has asked."""
        if step.token is None:
            return
        self._disarm(step)
        life.answered.append(step)
        instance = life.summary.instance
        assert instance is not None
        if instance.told < step.ended:
            instance.told = step.ended
        self._send(d, life, StepOutcome(step.token, step.value, step.error))

    def _refuse(self, d: Decision, life: Lifetime, token: int, error: Error) -> None:
        """Answer a step that is not recorded."""
        life.answered.append(None)
        self._send(d, life, StepOutcome(token, None, error))

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

    def _suspend(self, d: Decision, summary: IndexEntry, now_us: int) -> None:
        """Let go of a lifetime that waits; what remains is its place among the timers."""
        if summary.status == RUNNING:
            self._emit(d, summary, "workflow_waiting", now_us=now_us)
        self._end_life(d, summary)
        self._rest(summary, now_us)

    def _try_pause(self, d: Decision, life: Lifetime, now_us: int) -> None:
        if life.running == 0:
            self._pause_now(d, life.summary, now_us)

    def _pause_now(
        self, d: Decision, summary: IndexEntry, now_us: int, token: str | None = None
    ) -> None:
        self._end_life(d, summary)
        body = None if token is None else Paused(token=token)
        self._emit(d, summary, "workflow_paused", body, now_us=now_us)
        d.durable = True
        self._rest(summary, now_us)
