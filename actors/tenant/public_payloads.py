"""Public payloads: what `history()` and `subscribe()` show of a row, whoever asks.

A row holds what a replay needs beside what happened: tokens of commands, places in code, times as
numbers, shifts. Callers see what happened: `PUBLIC` lists the keys for each type, in the words of
docs/events.md. Times are aware datetimes, lengths of time are in milliseconds or a timedelta.
Values are passed on as they are, unread.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import msgspec
from msgspec import Raw

from dynamic_workflows.eventlog.clock import to_datetime
from dynamic_workflows.eventlog.codec import values
from dynamic_workflows.eventlog.events import Row

from ..instances.row_payloads import (
    NOTHING,
    AttemptErrored,
    Body,
    Completed,
    ErrorBody,
    Errored,
    EventReceived,
    FromBody,
    Parked,
    Queued,
    Restarted,
    RollbackBody,
    RollbackEnded,
    RollbackStarted,
    SleepStarted,
    StepStarted,
    Terminated,
    WaitCompleted,
    WaitStarted,
    decode,
)

_OUTCOME = ("error",)
_OUTPUT = ("output", "sensitive")
_CONFIG = ("config", "rollback", "sensitive", "rollback_config")
_ATTEMPT = ("error", "retry_delay_ms", "retry_at", "lost")

PUBLIC: dict[str, tuple[str, ...]] = {
    "workflow_queued": ("params", "trigger", "schedule", "retention", "from"),
    "workflow_started": (),
    "workflow_running": (),
    "workflow_waiting": (),
    "workflow_waiting_for_pause": (),
    "workflow_paused": (),
    "workflow_resumed": (),
    "workflow_restarted": ("from",),
    "workflow_completed": ("output",),
    "workflow_errored": ("error", "rollback"),
    "workflow_terminated": ("rollback",),
    "workflow_parked": ("code", "message"),
    "workflow_deleted": (),
    "step_started": _CONFIG,
    "step_completed": _OUTPUT,
    "step_errored": _OUTCOME,
    "attempt_started": (),
    "attempt_completed": (),
    "attempt_errored": _ATTEMPT,
    "sleep_started": ("until", "duration_ms"),
    "sleep_completed": (),
    "wait_started": ("event_type", "until", "timeout_ms"),
    "wait_completed": ("event_type", "payload", "received_at"),
    "wait_timed_out": _OUTCOME,
    "step_cancelled": (),
    "attempt_cancelled": (),
    "sleep_cancelled": (),
    "wait_cancelled": (),
    "timer_elapsed": (),
    "event_received": ("event_type", "payload"),
    "rollback_started": ("error", "total", "terminate"),
    "rollback_step_started": _CONFIG,
    "rollback_step_completed": _OUTPUT,
    "rollback_step_errored": _OUTCOME,
    "rollback_attempt_started": (),
    "rollback_attempt_completed": (),
    "rollback_attempt_errored": _ATTEMPT,
    "rollback_completed": ("total", "completed"),
    "rollback_errored": ("total", "completed", "error"),
}
"""The keys that a payload may have, by the type of its event."""


def public(row: Row) -> Row:
    """The row as callers see it: what is left of its payload, and no metadata."""
    shown: bytes | None = None
    keys = PUBLIC.get(row.type)
    body = decode(row) if keys else None
    if keys and body is not None:
        facts = _FACTS[type(body)](body)
        shown = _ENCODER.encode({key: facts[key] for key in keys if key in facts})
    return msgspec.structs.replace(row, payload=shown, metadata=None, blob=None)


_ENCODER = msgspec.json.Encoder()


def _given(**facts: object) -> dict[str, object]:
    """Those that say something: an absent value is left out, `null` is none."""
    return {
        name: fact
        for name, fact in facts.items()
        if fact is not None and fact is not False and fact is not NOTHING
    }


def _time(us: int | None) -> Raw | None:
    return None if us is None else Raw(values.encode(to_datetime(us)))


def _error(error: ErrorBody | None) -> dict[str, str] | None:
    return None if error is None else {"name": error.name, "message": error.message}


def _rollback(body: RollbackBody | None) -> dict[str, object] | None:
    return None if body is None else _given(outcome=body.outcome, error=_error(body.error))


def _from(body: FromBody | None) -> dict[str, object]:
    if body is None:
        return {}
    return {"from": {"name": body.name, "count": body.count, "type": body.type}}


def _queued(body: Queued) -> dict[str, object]:
    retention = None
    if body.retention is not None:
        retention = {
            name.removesuffix("_us"): Raw(values.encode(timedelta(microseconds=us)))
            for name, us in body.retention.items()
        }
    return _from(body.from_) | _given(
        params=body.params, trigger=body.trigger, schedule=body.schedule, retention=retention
    )


def _attempt(body: AttemptErrored) -> dict[str, object]:
    return _given(
        error=_error(body.error),
        retry_delay_ms=body.retry_delay_ms,
        retry_at=_time(body.retry_at_us),
        lost=body.lost,
    )


def _step(body: StepStarted) -> dict[str, object]:
    return _given(
        config=body.config,
        rollback=body.rollback,
        sensitive=body.sensitive,
        rollback_config=body.rollback_config,
    )


def _wait(body: WaitStarted) -> dict[str, object]:
    until = _time(body.until_us)
    return _given(event_type=body.event_type, until=until, timeout_ms=body.timeout_ms)


def _taken(body: WaitCompleted) -> dict[str, object]:
    at = _time(body.received_us)
    return _given(event_type=body.event_type, payload=body.payload, received_at=at)


def _undoing(body: RollbackStarted) -> dict[str, object]:
    return _given(error=_error(body.error), total=body.total, terminate=body.terminate)


def _undone(body: RollbackEnded) -> dict[str, object]:
    return _given(total=body.total, completed=body.completed, error=_error(body.error))


_FACTS: dict[type[Body], Callable[[Any], dict[str, Any]]] = {
    Queued: _queued,
    Restarted: lambda body: _from(body.from_),
    Completed: lambda body: _given(output=body.output, sensitive=body.sensitive),
    Errored: lambda body: _given(error=_error(body.error), rollback=_rollback(body.rollback)),
    Terminated: lambda body: _given(rollback=_rollback(body.rollback)),
    Parked: lambda body: {"code": body.code, "message": body.message},
    StepStarted: _step,
    AttemptErrored: _attempt,
    SleepStarted: lambda body: {"until": _time(body.until_us), "duration_ms": body.duration_ms},
    WaitStarted: _wait,
    WaitCompleted: _taken,
    EventReceived: lambda body: {"event_type": body.event_type, "payload": body.payload},
    RollbackStarted: _undoing,
    RollbackEnded: _undone,
}
