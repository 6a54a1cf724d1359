"""Row payloads: the JSON objects inside event rows, as structs; `eventlog/events.py` lists their
keys.

Invariant: `decode(type, encode(body))` equals `body`, so that the live fold and the fold at replay
give the same. Codec text (values) is embedded and extracted unparsed.
"""

from __future__ import annotations

import msgspec
from msgspec import Raw

from dynamic_workflows.eventlog.events import Row
from dynamic_workflows.loaders.protocol.messages import Error

NOTHING = Raw()
"""Stands for an absent value; `null` is a value."""

REDACTED = b'"[REDACTED]"'
MESSAGE_MAX = 65_536
INLINE_MAX = 64 * 1024
"""Payloads above this many bytes lie in a blob."""


class Body(msgspec.Struct, omit_defaults=True, gc=False):
    """The base of all payloads."""


class Command(Body, kw_only=True):
    """The base of payloads that a command writes. `token`: a repeated command has the same."""

    token: str | None = None


class ErrorBody(Body):
    """An error as rows hold it."""

    name: str
    message: str
    module: str = "builtins"
    args: Raw = NOTHING
    fatal: bool = False


class RollbackBody(Body):
    """The outcome of a rollback, in the row that ends the run."""

    outcome: str
    error: ErrorBody | None = None


class FromBody(Body):
    """The step that a restart begins at."""

    name: str
    count: int
    type: str


class Queued(Body):
    """workflow_queued."""

    params: Raw
    trigger: str
    pin: str = "hash"
    retention: dict[str, int] | None = None
    schedule: Raw = NOTHING
    token: str | None = None
    workflow_name: str | None = None
    created_us: int = 0
    from_: FromBody | None = msgspec.field(default=None, name="from")


class Paused(Command):
    """workflow_paused, workflow_waiting_for_pause."""


class Resumed(Command):
    """workflow_resumed."""

    shift_us: int


class Restarted(Command):
    """workflow_restarted."""

    from_: FromBody | None = msgspec.field(default=None, name="from")
    kept: list[tuple[str, str, int]] | None = None


class Completed(Body):
    """workflow_completed, step_completed, rollback_step_completed."""

    output: Raw
    sensitive: bool = False
    before: int = 0


class TimerElapsed(Body):
    """timer_elapsed."""

    at: str | None = None
    before: int = 0


class Errored(Body):
    """workflow_errored, step_errored, wait_timed_out, rollback_step_errored."""

    error: ErrorBody
    rollback: RollbackBody | None = None


class Terminated(Command):
    """workflow_terminated."""

    rollback: RollbackBody | None = None


class Deleted(Command):
    """workflow_deleted."""


class Parked(Body):
    """workflow_parked."""

    code: str
    message: str


class StepStarted(Body):
    """step_started, rollback_step_started."""

    config: Raw
    at: str | None = None
    rollback: bool = False
    sensitive: bool = False
    rollback_config: Raw = NOTHING


class AttemptErrored(Body):
    """attempt_errored, rollback_attempt_errored."""

    error: ErrorBody
    retry_delay_ms: int | None = None
    retry_at_us: int | None = None
    lost: bool = False
    exempt: bool = False


class SleepStarted(Body):
    """sleep_started."""

    until_us: int
    duration_ms: int
    at: str | None = None


class WaitStarted(Body):
    """wait_started."""

    event_type: str
    until_us: int
    timeout_ms: int
    at: str | None = None


class WaitCompleted(Body):
    """wait_completed. `size`: as in event_received."""

    event_type: str
    event_seq: int
    payload: Raw
    received_us: int
    size: int = 0


class WaitCancelled(Body):
    """wait_cancelled, where the wait had taken an event: that is kept for another one."""

    event_type: str
    event_seq: int
    received_us: int
    size: int


class EventReceived(Command):
    """event_received. `size`: bytes of the payload, where it may lie in a blob."""

    event_type: str
    payload: Raw
    size: int = 0


class RollbackStarted(Command):
    """rollback_started."""

    error: ErrorBody
    total: int
    terminate: bool = False


class RollbackEnded(Body):
    """rollback_completed, rollback_errored."""

    total: int
    completed: int
    error: ErrorBody | None = None


class Scheduled(Body):
    """schedule_set, schedule_removed. `declared`: by the code, not by a call.

    `stays`: removed by a call, so that no declaration brings it back as long as there is one.
    """

    cron: str
    pin: str = "hash"
    declared: bool = False
    stays: bool = False


class ScheduleFired(Body):
    """timer_fired. `missed`: how many firings before this one were left out."""

    cron: str
    scheduled_us: int
    missed: int = 0


BODIES: dict[str, type[Body]] = {
    "workflow_queued": Queued,
    "workflow_paused": Paused,
    "workflow_waiting_for_pause": Paused,
    "workflow_resumed": Resumed,
    "workflow_restarted": Restarted,
    "workflow_completed": Completed,
    "workflow_errored": Errored,
    "workflow_terminated": Terminated,
    "workflow_deleted": Deleted,
    "workflow_parked": Parked,
    "step_started": StepStarted,
    "attempt_errored": AttemptErrored,
    "step_completed": Completed,
    "step_errored": Errored,
    "sleep_started": SleepStarted,
    "wait_started": WaitStarted,
    "wait_completed": WaitCompleted,
    "wait_timed_out": Errored,
    "wait_cancelled": WaitCancelled,
    "timer_elapsed": TimerElapsed,
    "event_received": EventReceived,
    "rollback_started": RollbackStarted,
    "rollback_step_started": StepStarted,
    "rollback_attempt_errored": AttemptErrored,
    "rollback_step_completed": Completed,
    "rollback_step_errored": Errored,
    "rollback_completed": RollbackEnded,
    "rollback_errored": RollbackEnded,
    "schedule_set": Scheduled,
    "schedule_removed": Scheduled,
    "timer_fired": ScheduleFired,
}

_ENCODER = msgspec.json.Encoder()
_DECODERS = {name: msgspec.json.Decoder(body) for name, body in BODIES.items()}
_NULL = Raw(b"null")

encode = _ENCODER.encode


def decode(row: Row) -> Body | None:
    """Return the row's payload, or None where its type has none."""
    decoder = _DECODERS.get(row.type)
    if decoder is None or row.payload is None:
        return None
    return decoder.decode(row.payload)


SIZED_ABOVE = INLINE_MAX // 2
"""Bytes of a payload above which its event says its size: the payload may lie in a blob."""


def size_to_tell(payload: bytes) -> int:
    """Return `size` for the rows of an event with this payload."""
    return len(payload) if len(payload) > SIZED_ABOVE else 0


def event_size(body: EventReceived | WaitCompleted) -> int:
    """Return the bytes of the event's payload, wherever it lies."""
    return body.size or len(bytes(body.payload))


def event_payload(body: EventReceived) -> bytes | None:
    """Return the event's payload, or None where it does not lie in the row."""
    payload = bytes(body.payload)
    return payload if body.size in (0, len(payload)) else None


def text(raw: Raw) -> bytes | None:
    """Return the embedded codec text, or None where there is none."""
    return None if raw is NOTHING else bytes(raw)


def raw(value: bytes | None) -> Raw:
    """Return codec text in the form in which structs embed it."""
    return NOTHING if value is None else Raw(value)


def without_value(row: Row) -> bytes | None:
    """The row's payload with null where the value was: what stays in the row when a blob takes
    it."""
    body = decode(row)
    if isinstance(body, Completed):
        return encode(msgspec.structs.replace(body, output=_NULL))
    if isinstance(body, Queued):
        return encode(msgspec.structs.replace(body, params=_NULL))
    if isinstance(body, EventReceived | WaitCompleted):
        return encode(msgspec.structs.replace(body, payload=_NULL))
    if isinstance(body, Errored | AttemptErrored | RollbackStarted):
        error = msgspec.structs.replace(body.error, args=NOTHING)
        return encode(msgspec.structs.replace(body, error=error))
    return row.payload


def error_body(error: Error) -> ErrorBody:
    """Return the error as rows hold it, cut to bounded size."""
    return ErrorBody(
        error.name[:256],
        error.message[:MESSAGE_MAX],
        error.module[:256],
        NOTHING if error.args is None else Raw(error.args),
        error.fatal,
    )


def wire_error(body: ErrorBody) -> Error:
    """Return the error as messages hold it."""
    return Error(body.name, body.message, body.module, text(body.args), body.fatal)


def own_error(name: str, message: str, *, fatal: bool = False) -> Error:
    """Return an error that this library raises in a tenant's code, by the name of its class."""
    return Error(name, message, "dynamic_workflows", None, fatal)
