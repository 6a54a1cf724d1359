"""Lifetimes: how they begin and end, their slots, the timers of their steps, and their messages."""

from __future__ import annotations

import msgspec

from dynamic_workflows.loaders.protocol.contract import WAITING
from dynamic_workflows.loaders.protocol.messages import Error, StepOutcome

from ..instances.decisions import Decision, DropLife, Key, Send
from ..instances.index_entry import WOKEN, IndexEntry, Lifetime
from ..instances.step_state import StepState
from .state import STEP, CoreState


class Lifetimes:
    """The lifetimes of a tenant's instances, their slots, and the messages to their isolates."""

    def __init__(self, state: CoreState) -> None:
        self._state = state
        self._emit = state.emit
        self._config = state.config
        self.by_number: dict[int, Lifetime] = {}
        self.busy = 0
        """How many lifetimes take a slot."""
        self._last_number = 0

    def free_slots(self) -> int:
        """How many lifetimes more may be at work; negative after `running_max` was lowered."""
        return self._config.running_max - self.busy

    def begin(self, entry: IndexEntry, mode: str) -> Lifetime:
        """Begin a lifetime, which takes a slot, of an instance that has none. `mode`: "run", or
        "rollback", in which only handlers are registered."""
        self._last_number += 1
        life = Lifetime(self._last_number, entry, mode)
        self.by_number[life.number] = life
        entry.lifetime = life
        self.busy += 1
        self._state.cancel_timer(entry)
        self._state.queues.remove(entry)
        self._state.resting.pop(entry.key, None)
        self._state.loaded_queued.pop(entry.key, None)
        return life

    def end(self, d: Decision, entry: IndexEntry) -> None:
        """End the lifetime of an instance, if it has one, and tell its isolate to drop it."""
        life = entry.lifetime
        if life is None:
            return
        entry.lifetime = None
        del self.by_number[life.number]
        if not life.idle:
            self.busy -= 1
        self._state.cancel_timer(entry)
        for step in life.tokens.values():
            if step.timer is not None:
                self._state.timers.cancel(step.timer)
                step.timer = None
            step.token = None
        d.effects.append(DropLife(life.number))

    def take_slot(
        self, d: Decision, life: Lifetime, now_us: int, *, may_drop: bool = False
    ) -> bool:
        """Let an idle lifetime work again. Return False where no slot is free and it may be
        dropped: it has ended, and its instance is queued."""
        if not life.idle:
            return True
        entry = life.entry
        if may_drop and self.free_slots() <= 0:
            self.end(d, entry)
            self._state.enqueue(entry, WOKEN)
            return False
        life.idle = False
        self.busy += 1
        self._state.cancel_timer(entry)
        if entry.status == WAITING:
            self._emit(d, entry, "workflow_running", now_us=now_us)
        return True

    def release_slot(self, life: Lifetime) -> None:
        """The lifetime is idle from now on: another one may have its slot."""
        if not life.idle:
            life.idle = True
            self.busy -= 1

    def slots_taken(self) -> int:
        """Count the lifetimes at work anew; `busy` has to be the same."""
        return sum(not life.idle for life in self.by_number.values())

    def send(self, d: Decision, life: Lifetime, message: msgspec.Struct) -> None:
        """Send a message to the isolate of a lifetime."""
        life.sent += 1
        d.effects.append(Send(life.number, message))

    def bind(self, life: Lifetime, step: StepState, token: int) -> None:
        """Let the lifetime know a step by this token, which messages name."""
        step.token = token
        step.said = step.attempt - step.in_flight
        life.tokens[token] = step

    def answer(self, d: Decision, life: Lifetime, step: StepState) -> None:
        """Tell the lifetime the outcome of a finished step, if it has asked."""
        if step.token is None:
            return
        self.disarm(step)
        life.answered.append(step)
        instance = life.entry.instance
        assert instance is not None
        if instance.told < step.ended:
            instance.told = step.ended
        self.send(d, life, StepOutcome(step.token, step.value, step.error))

    def refuse(self, d: Decision, life: Lifetime, token: int, error: Error) -> None:
        """Answer a request for a step with an error that is not recorded."""
        life.answered.append(None)
        self.send(d, life, StepOutcome(token, None, error))

    def arm(self, life: Lifetime, step: StepState, due_us: int) -> None:
        """Arm the one timer of a step: end of a sleep, timeout of a wait or attempt, or next
        attempt."""
        if step.timer is not None:
            self._state.timers.cancel(step.timer)
        step.timer = self._state.timers.arm(due_us, STEP, life.entry, step)

    def disarm(self, step: StepState) -> None:
        """Disarm the timer of a step, if it has one."""
        if step.timer is not None:
            self._state.timers.cancel(step.timer)
            step.timer = None

    def key_of(self, life: int) -> Key | None:
        """The instance that a lifetime is of; None after the lifetime has ended."""
        lifetime = self.by_number.get(life)
        return None if lifetime is None else lifetime.entry.key

    def life_of(self, key: Key) -> int | None:
        """The number of the lifetime that an instance is in, or None."""
        lifetime = self._state.find(key).lifetime
        return None if lifetime is None else lifetime.number

    def at_work(self, life: int) -> tuple[str | None, int]:
        """The name and attempt of the step that a lifetime runs; (None, 0) if it runs none or
        several."""
        lifetime = self.by_number.get(life)
        instance = None if lifetime is None else lifetime.entry.instance
        steps = [] if instance is None else [s for s in instance.open.values() if s.in_flight]
        return (steps[0].name, steps[0].attempt) if len(steps) == 1 else (None, 0)

    def note_reply(self, life: int) -> None:
        """The shell sends a Reply to this lifetime by itself: an Idle that has not seen the
        Reply is out of date."""
        lifetime = self.by_number.get(life)
        if lifetime is not None:
            lifetime.sent += 1

    def live_count(self) -> int:
        """The number of lifetimes in isolates."""
        return len(self.by_number)
