"""Fold: takes the rows of the log into the state of instances.

`fold(entry, row, body)` is the only code that changes what the log decides, live and at replay.
It changes nothing that belongs to a lifetime (tokens, timers, slots).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TypeAlias

from dynamic_workflows.eventlog.events import Row
from dynamic_workflows.loaders.protocol.contract import (
    CANCELLED,
    DO,
    ENDED,
    ERROR,
    PAUSED,
    SLEEP,
    TIMER,
    VALUE,
    WAIT,
)
from dynamic_workflows.loaders.protocol.messages import Error

from .index_entry import IndexEntry
from .instance import (
    EVENT_BYTES,
    STEP_BYTES,
    Instance,
    error_weight,
    event_value,
    step_weight,
)
from .kept_events import NOTHING_KEPT, KeptEvent
from .row_payloads import (
    AttemptErrored,
    Body,
    Command,
    Completed,
    ErrorBody,
    Errored,
    EventReceived,
    Parked,
    Queued,
    Restarted,
    Resumed,
    RollbackBody,
    RollbackEnded,
    RollbackStarted,
    SleepStarted,
    StepStarted,
    Terminated,
    TimerElapsed,
    WaitCancelled,
    WaitCompleted,
    WaitStarted,
    event_size,
    text,
    wire_error,
)
from .state_machine import after
from .step_state import StepState, parse_config

TOKENS_MAX = 1_024
"""Commands with a token that an instance remembers, the newest ones."""
_TOKEN_BYTES = 150
_REASON_CHARACTERS_MAX = 1_000
"""Of the message with which an instance is parked, in memory; the row has all of it."""

_Fold: TypeAlias = Callable[[Instance, Row, Body | None], None]


def fold(entry: IndexEntry, row: Row, body: Body | None) -> None:
    """Take in one row of this instance, folded or unfolded."""
    kind = row.type
    handler = _STEP_FOLDS.get(kind)
    if handler is not None:
        if entry.instance is not None:
            handler(entry.instance, row, body)
        if kind in EVENT_KINDS:
            _fold_event(entry, body)
        return
    summary_handler = _SUMMARY_FOLDS.get(kind)
    if summary_handler is not None:
        summary_handler(entry, row, body)
    if isinstance(body, Command) and body.token is not None:
        _note_token(entry, body.token)
    entry.status = after(entry.status, kind)
    if row.code_hash is not None:
        entry.code_hash = row.code_hash
    if entry.status in ENDED and entry.ended_us == 0:
        entry.ended_us = row.ts
        entry.set("reason", None)
        _drop_events(entry)


EVENT_KINDS = frozenset({"event_received", "wait_completed", "wait_cancelled"})
"""The rows about steps that carry an event; no other of them is a command, either."""


def _fold_event(entry: IndexEntry, body: Body | None) -> None:
    if isinstance(body, EventReceived):
        entry.kept = entry.kept.plus(event_size(body))
        if body.token is not None:
            _note_token(entry, body.token)
    elif isinstance(body, WaitCompleted) and body.event_seq:
        entry.kept = entry.kept.minus(event_size(body))
    elif isinstance(body, WaitCancelled):
        entry.kept = entry.kept.plus(body.size)


def _drop_events(entry: IndexEntry) -> None:
    """The run is over: no wait of it takes an event any more."""
    entry.kept = NOTHING_KEPT
    instance = entry.instance
    if instance is not None and instance.events:
        instance.weight -= EVENT_BYTES * sum(len(kept) for kept in instance.events.values())
        instance.events = {}


def _note_token(entry: IndexEntry, token: str) -> None:
    if entry.instance is not None:
        tokens = entry.instance.tokens
    else:  # At replay only: a command finds its instance loaded.
        tokens = entry.get("tokens") or {}
        entry.set("tokens", tokens)
    tokens[token] = None
    if entry.instance is not None and len(tokens) <= TOKENS_MAX:
        entry.instance.weight += _TOKEN_BYTES
    if len(tokens) > TOKENS_MAX:
        del tokens[next(iter(tokens))]


# --- rows about the instance ---------------------------------------------------------------------


def _queued(entry: IndexEntry, row: Row, body: Body | None) -> None:
    assert isinstance(body, Queued)
    is_restart = body.trigger == "restart"
    entry.run = row.run
    if entry.created_us == 0:
        entry.created_us = body.created_us or row.ts
        entry.created_seq = row.seq
        entry.set("workflow_name", body.workflow_name)
        entry.set("pin", body.pin if body.pin != "hash" else None)
        entry.set("retention", body.retention)
        entry.token = body.token
        entry.instance = Instance()
    elif is_restart and body.from_ is None:
        fresh = Instance()
        tokens = entry.get("tokens") if entry.instance is None else entry.instance.tokens
        fresh.tokens = tokens or {}
        entry.set("tokens", None)
        entry.instance = fresh
    instance = entry.instance
    if instance is not None:
        instance.weight += len(body.params) - len(instance.params)
        instance.params = bytes(body.params)
        instance.metadata = row.metadata
        instance.schedule = text(body.schedule)


def _started(entry: IndexEntry, row: Row, _: Body | None) -> None:
    entry.started_us = row.ts


def _paused(entry: IndexEntry, row: Row, _: Body | None) -> None:
    entry.paused_us = row.ts


def _parked(entry: IndexEntry, row: Row, body: Body | None) -> None:
    assert isinstance(body, Parked)
    if entry.status != PAUSED:
        entry.paused_us = row.ts
    entry.set("reason", (body.code, body.message[:_REASON_CHARACTERS_MAX]))


def _resumed(entry: IndexEntry, _: Row, body: Body | None) -> None:
    assert isinstance(body, Resumed)
    entry.paused_us = 0
    entry.set("reason", None)
    if body.shift_us == 0 or entry.instance is None:
        return
    for step in entry.instance.open.values():
        if step.until_us is not None:
            step.until_us += body.shift_us


def _restarted(entry: IndexEntry, _: Row, body: Body | None) -> None:
    assert isinstance(body, Restarted)
    entry.started_us = entry.ended_us = entry.paused_us = 0
    entry.rolling_back = False
    entry.set("reason", None)
    entry.kept = NOTHING_KEPT
    instance = entry.instance
    if instance is None:
        return
    fresh = Instance()
    fresh.started = instance.started
    fresh.told = instance.told
    for key in body.kept or ():
        step = instance.steps[key]
        step.undo = None
        fresh.steps[key] = step
        fresh.weight += step_weight(step)
        if key in instance.open:
            fresh.open[key] = step
    if body.kept and body.from_ is not None:
        target = instance.steps[body.from_.type, body.from_.name, body.from_.count]
        for key, step in instance.steps.items():
            if step.kind == TIMER and step.index < target.index:
                fresh.steps[key] = step
                fresh.weight += step_weight(step)
    fresh.is_partial = instance.is_partial
    fresh.tokens = instance.tokens
    fresh.weight += _TOKEN_BYTES * len(fresh.tokens)
    entry.instance = fresh


def _completed(entry: IndexEntry, _: Row, body: Body | None) -> None:
    assert isinstance(body, Completed)
    if entry.instance is not None:
        entry.instance.output = bytes(body.output)
        entry.instance.weight += len(body.output)


def _ended_with(entry: IndexEntry, rollback: RollbackBody | None) -> None:
    entry.rolling_back = False
    if entry.instance is not None and rollback is not None:
        entry.instance.rollback_outcome = rollback.outcome
        entry.instance.rollback_error = _optional(rollback.error)


def _errored(entry: IndexEntry, _: Row, body: Body | None) -> None:
    assert isinstance(body, Errored)
    if entry.instance is not None:
        entry.instance.outcome_error = wire_error(body.error)
        entry.instance.weight += error_weight(entry.instance.outcome_error)
    _ended_with(entry, body.rollback)


def _terminated(entry: IndexEntry, _: Row, body: Body | None) -> None:
    _ended_with(entry, body.rollback if isinstance(body, Terminated) else None)


def _rollback_started(entry: IndexEntry, _: Row, body: Body | None) -> None:
    assert isinstance(body, RollbackStarted)
    entry.rolling_back = True
    entry.paused_us = 0
    entry.set("reason", None)
    if entry.instance is not None:
        entry.instance.cause = wire_error(body.error)
        entry.instance.weight += error_weight(entry.instance.cause)
        entry.instance.terminating = body.terminate


_SUMMARY_FOLDS: dict[str, Callable[[IndexEntry, Row, Body | None], None]] = {
    "workflow_queued": _queued,
    "workflow_started": _started,
    "workflow_paused": _paused,
    "workflow_parked": _parked,
    "workflow_resumed": _resumed,
    "workflow_restarted": _restarted,
    "workflow_completed": _completed,
    "workflow_errored": _errored,
    "workflow_terminated": _terminated,
    "rollback_started": _rollback_started,
}

# --- rows about its steps ------------------------------------------------------------------------


def _step_started(instance: Instance, row: Row, body: Body | None) -> None:
    assert isinstance(body, StepStarted)
    step = instance.begin(DO, row)
    step.config_text = bytes(body.config)
    step.config = parse_config(step.config_text)
    step.at = body.at
    step.sensitive = body.sensitive
    step.has_rollback = body.rollback
    step.rollback_config = text(body.rollback_config)
    if row.attempt:
        _begin_attempt(step, row)


def _begin_attempt(step: StepState, row: Row) -> None:
    assert row.attempt == step.attempt + 1, "attempts are numbered without gap"
    step.attempt = row.attempt
    step.in_flight = True
    step.until_us = None


def _attempt_started(instance: Instance, row: Row, _: Body | None) -> None:
    _begin_attempt(instance.step(row), row)


def _attempt_completed(instance: Instance, row: Row, _: Body | None) -> None:
    instance.step(row).in_flight = False


def _attempt_errored(instance: Instance, row: Row, body: Body | None) -> None:
    assert isinstance(body, AttemptErrored)
    _end_attempt(instance.step(row), body)


def _end_attempt(step: StepState, body: AttemptErrored) -> None:
    step.in_flight = False
    step.until_us = body.retry_at_us
    if not body.lost:
        step.failures += 1
        step.lost_in_a_row = 0
    elif not body.exempt:
        step.lost_in_a_row += 1


def _step_completed(instance: Instance, row: Row, body: Body | None) -> None:
    assert isinstance(body, Completed)
    step = instance.finish(DO, row, body.before)
    step.outcome = VALUE
    step.value = bytes(body.output)
    instance.weight += len(step.value)


def _fail(instance: Instance, step: StepState, row: Row, body: Body | None) -> None:
    assert isinstance(body, Errored)
    if row.attempt:
        step.failures += 1
        step.lost_in_a_row = 0
    step.outcome = ERROR
    step.error = wire_error(body.error)
    instance.weight += error_weight(step.error)


def _step_errored(instance: Instance, row: Row, body: Body | None) -> None:
    _fail(instance, instance.finish(DO, row), row, body)


def _sleep_started(instance: Instance, row: Row, body: Body | None) -> None:
    assert isinstance(body, SleepStarted)
    step = instance.begin(SLEEP, row)
    step.until_us = body.until_us
    step.at = body.at


def _sleep_completed(instance: Instance, row: Row, _: Body | None) -> None:
    step = instance.finish(SLEEP, row)
    step.outcome = VALUE
    step.value = b"null"


def _wait_started(instance: Instance, row: Row, body: Body | None) -> None:
    assert isinstance(body, WaitStarted)
    step = instance.begin(WAIT, row)
    step.until_us = body.until_us
    step.timeout_ms = body.timeout_ms
    step.event_type = body.event_type
    step.at = body.at


def _wait_completed(instance: Instance, row: Row, body: Body | None) -> None:
    assert isinstance(body, WaitCompleted)
    step = instance.finish(WAIT, row)
    step.outcome = VALUE
    step.value = event_value(body)
    step.event_seq = body.event_seq
    instance.weight += len(step.value)
    kept = instance.events.get(body.event_type)
    if body.event_seq and kept:
        assert kept[0].seq == body.event_seq, "events of a type are taken in order"
        kept.popleft()
        instance.weight -= EVENT_BYTES
        if not kept:
            del instance.events[body.event_type]


def _wait_timed_out(instance: Instance, row: Row, body: Body | None) -> None:
    _fail(instance, instance.finish(WAIT, row), row, body)


def _attempt_cancelled(instance: Instance, row: Row, _: Body | None) -> None:
    instance.step(row).in_flight = False


def _step_cancelled(instance: Instance, row: Row, _: Body | None) -> None:
    instance.finish(DO, row).outcome = CANCELLED


def _sleep_cancelled(instance: Instance, row: Row, _: Body | None) -> None:
    instance.finish(SLEEP, row).outcome = CANCELLED


def _wait_cancelled(instance: Instance, row: Row, body: Body | None) -> None:
    assert row.step is not None
    if body is None:
        instance.finish(WAIT, row).outcome = CANCELLED
        return
    # `run` was never told of its end: the event is somebody else's, ahead of all later ones.
    assert isinstance(body, WaitCancelled)
    step = instance.steps[WAIT, row.step, row.count]
    instance.weight += EVENT_BYTES - len(step.value or b"")
    kept = instance.events.setdefault(body.event_type, deque())
    at = sum(event.seq < body.event_seq for event in kept)
    kept.insert(at, KeptEvent(body.event_seq, body.size, body.received_us))
    step.outcome, step.value, step.event_seq = CANCELLED, None, 0
    instance.number_end(step)


def _timer_elapsed(instance: Instance, row: Row, body: Body | None) -> None:
    assert isinstance(body, TimerElapsed)
    step = StepState(TIMER, "", row.count, instance.started + 1, outcome=VALUE, at=body.at)
    assert step.key not in instance.steps, f"timer {row.count} elapses twice"
    instance.steps[step.key] = step
    instance.weight += step_weight(step)
    instance.number_end(step, body.before)


def _event_received(instance: Instance, row: Row, body: Body | None) -> None:
    assert isinstance(body, EventReceived)
    kept = instance.events.setdefault(body.event_type, deque())
    kept.append(KeptEvent(row.seq, event_size(body), row.ts))
    instance.weight += EVENT_BYTES


def _undo_started(instance: Instance, row: Row, body: Body | None) -> None:
    assert isinstance(body, StepStarted)
    step = instance.step(row)
    step.undo = undo = StepState("undo", step.name, step.count, step.index)
    undo.config_text = bytes(body.config)
    undo.config = parse_config(undo.config_text)
    instance.weight += STEP_BYTES + len(undo.config_text)
    if row.attempt:
        _begin_attempt(undo, row)


def _undo(instance: Instance, row: Row) -> StepState:
    undo = instance.step(row).undo
    assert undo is not None, f"{row.type} before rollback_step_started"
    return undo


def _undo_attempt_started(instance: Instance, row: Row, _: Body | None) -> None:
    _begin_attempt(_undo(instance, row), row)


def _undo_attempt_completed(instance: Instance, row: Row, _: Body | None) -> None:
    _undo(instance, row).in_flight = False


def _undo_attempt_errored(instance: Instance, row: Row, body: Body | None) -> None:
    assert isinstance(body, AttemptErrored)
    _end_attempt(_undo(instance, row), body)


def _undo_completed(instance: Instance, row: Row, _: Body | None) -> None:
    undo = _undo(instance, row)
    undo.in_flight = False
    undo.outcome = VALUE
    instance.undone += 1


def _undo_errored(instance: Instance, row: Row, body: Body | None) -> None:
    undo = _undo(instance, row)
    undo.in_flight = False
    undo.until_us = None
    _fail(instance, undo, row, body)


def _rollback_ended(instance: Instance, _: Row, body: Body | None) -> None:
    assert isinstance(body, RollbackEnded)
    instance.rollback_outcome = "failed" if body.error is not None else "complete"
    instance.rollback_error = _optional(body.error)


_STEP_FOLDS: dict[str, _Fold] = {
    "step_started": _step_started,
    "attempt_started": _attempt_started,
    "attempt_completed": _attempt_completed,
    "attempt_errored": _attempt_errored,
    "step_completed": _step_completed,
    "step_errored": _step_errored,
    "sleep_started": _sleep_started,
    "sleep_completed": _sleep_completed,
    "wait_started": _wait_started,
    "wait_completed": _wait_completed,
    "wait_timed_out": _wait_timed_out,
    "attempt_cancelled": _attempt_cancelled,
    "step_cancelled": _step_cancelled,
    "sleep_cancelled": _sleep_cancelled,
    "wait_cancelled": _wait_cancelled,
    "timer_elapsed": _timer_elapsed,
    "event_received": _event_received,
    "rollback_step_started": _undo_started,
    "rollback_attempt_started": _undo_attempt_started,
    "rollback_attempt_completed": _undo_attempt_completed,
    "rollback_attempt_errored": _undo_attempt_errored,
    "rollback_step_completed": _undo_completed,
    "rollback_step_errored": _undo_errored,
    "rollback_completed": _rollback_ended,
    "rollback_errored": _rollback_ended,
}


def _optional(body: ErrorBody | None) -> Error | None:
    return None if body is None else wire_error(body)
