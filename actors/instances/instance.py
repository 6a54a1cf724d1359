"""Instance: the full state of one instance, which `fold` (fold.py) makes from its rows."""

from __future__ import annotations

from collections import deque

import msgspec

from dynamic_workflows.eventlog.events import Row
from dynamic_workflows.loaders.protocol.contract import DO, WAIT
from dynamic_workflows.loaders.protocol.messages import Error

from .kept_events import KeptEvent
from .row_payloads import WaitCompleted
from .step_state import StepKey, StepState

_INSTANCE_BYTES = 1_000
STEP_BYTES = 1_000
EVENT_BYTES = 300


class Instance:
    """What a loaded instance holds beside its entry; a fold of the log."""

    __slots__ = (
        "cause",
        "events",
        "is_partial",
        "metadata",
        "open",
        "outcome_error",
        "output",
        "params",
        "rollback_error",
        "rollback_outcome",
        "schedule",
        "started",
        "steps",
        "terminating",
        "tokens",
        "told",
        "undone",
        "weight",
    )

    def __init__(self) -> None:
        self.params = b"null"
        self.metadata: bytes | None = None
        self.schedule: bytes | None = None
        self.steps: dict[StepKey, StepState] = {}
        self.open: dict[StepKey, StepState] = {}
        """Unfinished steps, in order of start."""
        self.started = 0
        """Starts and ends of steps so far: what steps are numbered by."""
        self.events: dict[str, deque[KeptEvent]] = {}
        """Kept events by type, in order; none of a type that has none."""
        self.output: bytes | None = None
        self.outcome_error: Error | None = None
        self.cause: Error | None = None
        """Why it rolls back."""
        self.terminating = False
        """The rollback was asked for by terminate."""
        self.undone = 0
        """Steps rolled back."""
        self.rollback_outcome: str | None = None
        self.rollback_error: Error | None = None
        self.tokens: dict[str, None] = {}
        """Of the newest commands, in order, over all runs: one that comes again is known by it."""
        self.told = 0
        """The last end that `run` is known to have been told: by lifetimes of this process, or
        because it started a step after it."""
        self.is_partial = False
        """A value lies in a blob that was not resolved: it has to be loaded before it can run."""
        self.weight = _INSTANCE_BYTES
        """Bytes that it takes in memory, roughly: those of its values, and a thousand for each
        step."""

    def facts(self) -> tuple[object, ...]:
        """Everything that the log holds of it, for comparing folds."""
        return (
            self.params, self.metadata, self.schedule, self.started,
            [step.facts() for step in self.steps.values()], list(self.open),
            {name: list(events) for name, events in self.events.items()},
            self.output, self.outcome_error, self.cause, self.terminating, self.undone,
            self.rollback_outcome, self.rollback_error, list(self.tokens),
        )  # fmt: skip

    def begin(self, kind: str, row: Row) -> StepState:
        """The step that this row starts."""
        assert row.step is not None
        if self.told < self.started:
            self.told = self.started
        self.started += 1
        step = StepState(kind, row.step, row.count, self.started)
        key = (kind, row.step, row.count)
        assert key not in self.steps, f"{key} starts twice"
        self.weight += STEP_BYTES + len(row.payload or b"")
        self.steps[key] = step
        self.open[key] = step
        return step

    def finish(self, kind: str, row: Row, before: int = 0) -> StepState:
        """The step that this row ends; `before`: ahead of the end of that number and later ones."""
        assert row.step is not None
        step = self.open.pop((kind, row.step, row.count), None)
        assert step is not None, f"{row.type} of a step that is not open: {row.step!r}"
        step.until_us = None
        step.in_flight = False
        self.number_end(step, before)
        return step

    def number_end(self, step: StepState, before: int = 0) -> None:
        """Number the end of a step; `before`: ahead of that one and later ones, which move up."""
        self.started += 1
        step.ended = self.started
        if not before:
            return
        later = [one for one in self.steps.values() if one.ended >= before and one is not step]
        later.sort(key=lambda one: one.ended)
        numbers = [*(one.ended for one in later), step.ended]
        for one, number in zip((step, *later), numbers, strict=True):
            one.ended = number

    def has_event_for(self, step: StepState) -> bool:
        """Whether the step is a wait for which an event is kept."""
        return step.event_type is not None and step.event_type in self.events

    def step(self, row: Row) -> StepState:
        """The `do` step that this row is about."""
        assert row.step is not None
        return self.steps[DO, row.step, row.count]


def error_weight(error: Error | None) -> int:
    """Bytes that an error takes."""
    return 0 if error is None else len(error.message) + len(error.args or b"")


def step_weight(step: StepState) -> int:
    """Bytes that a step takes, its rollback left out."""
    texts = (step.value, step.config_text, step.rollback_config)
    return STEP_BYTES + sum(len(one or b"") for one in texts) + error_weight(step.error)


class _Taken(msgspec.Struct):
    payload: msgspec.Raw
    timestamp_us: int


_TAKEN = msgspec.json.Decoder(_Taken)


def event_taken(value: bytes) -> tuple[bytes, int]:
    """The payload of the event that a wait took, and when it was received, from its value."""
    taken = _TAKEN.decode(value)
    return bytes(taken.payload), taken.timestamp_us


def event_value(body: WaitCompleted) -> bytes:
    """What the guest is answered: {"payload", "timestamp_us", "type"} as JSON text."""
    return b'{"payload":%b,"timestamp_us":%d,"type":"%b"}' % (
        bytes(body.payload),
        body.received_us,
        body.event_type.encode(),
    )


def first_wait(instance: Instance, event_type: str) -> StepState | None:
    """The open wait of this type that began first."""
    for step in instance.open.values():
        if step.kind == WAIT and step.event_type == event_type:
            return step
    return None
