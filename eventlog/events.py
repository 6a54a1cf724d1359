"""Event rows: the facts of a tenant's log, and how folded rows unfold.

A row is stamped by the log with `seq` (per tenant, from 1, without gap) and `epoch` when it is
appended. Payload and metadata are JSON text (UTF-8) as the codec writes it; the columns of views
and of Parquet are these fields, in this order, after `tenant_id`.

Folding. The hot path writes one row where the public history shows two, and the row takes two
numbers. A folded row is one of FOLDED with `attempt > 0`:

    step_started    attempt=1   unfolds to   step_started,      attempt_started   (attempt 1)
    step_completed  attempt=k   unfolds to   attempt_completed, step_completed
    step_errored    attempt=k   unfolds to   attempt_errored,   step_errored
    step_cancelled  attempt=k   unfolds to   attempt_cancelled, step_cancelled

and the same for `rollback_step_*` with `rollback_attempt_*`. The first of the two has the row's own
`seq`, the second `seq + 1`. After unfolding `step_*` rows have attempt 0. Parquet segments and
every public view hold unfolded rows only; the WAL and the fold take both forms.

Payloads (JSON objects; a key may be absent where it says ?). `error` is {"name", "message",
"module"?, "args"?, "fatal"?}. Times are integers in microseconds (`_us`), durations milliseconds.

    workflow_queued      params, trigger ("create" | "cron" | "restart"), pin?, retention?
                         {success_us?, error_us?}, schedule?, token?, workflow_name?; in a
                         restart's: from?, created_us (of the first run); metadata column: the
                         dispatcher's metadata
    workflow_started     -
    workflow_running     -
    workflow_waiting     -
    workflow_paused      token?
    workflow_waiting_for_pause  token?
    workflow_resumed     shift_us (0: a pending pause was cancelled), token?
    workflow_restarted   from? {name, count, type}, kept? [[kind, name, count], ...], token?
                         (last row of the old run; workflow_queued of the new run follows in the
                         same append)
    workflow_completed   output
    workflow_errored     error, rollback? {outcome, error?}
    workflow_terminated  rollback? {outcome, error?}, token?
    workflow_parked      code, message
    workflow_deleted     token?    (a tombstone: it goes with the last row that it hides)
    step_started         config, at?, rollback? (true when a handler is registered), sensitive?,
                         rollback_config?
    attempt_started      -
    attempt_completed    -
    attempt_errored      error, retry_delay_ms?, retry_at_us?, lost? (true: cut off by the platform,
                         no retry used), exempt? (true: may happen any number of
                         times, since another instance's code or a test did it)
    attempt_cancelled    -
    step_completed       output, sensitive? (true: output is "[REDACTED]" and lies in the blob),
                         before? (the number of an end that `run` was told after this one)
    step_errored         error
    step_cancelled       -    (the code cancelled the step while it awaited it)
    sleep_started        until_us, duration_ms, at?
    sleep_completed      -
    sleep_cancelled      -
    wait_started         event_type, until_us, timeout_ms, at?
    wait_completed       event_type, event_seq (0: a mock), payload, received_us, size? (bytes of
                         the payload, where it may lie in a blob)
    wait_timed_out       error
    wait_cancelled       event_type?, event_seq?, received_us?, size? (of an event that it had taken
                         while it was being cancelled: it is kept for another wait)
    timer_elapsed        at?, before?    (a timer of asyncio that `run` set; count: its number)
    event_received       event_type, payload, token?, size? (as in wait_completed)
    rollback_started     error, total, terminate? (true: asked for by terminate), token?
    rollback_step_*, rollback_attempt_*     as step_*, attempt_*; step and count of the forward step
    rollback_completed   total, completed
    rollback_errored     total, completed, error
    schedule_set         workflow (column), cron, code_hash (column), pin?, declared?
    schedule_removed     cron
    code_deployed, code_pinned_back, timer_fired, schema_…
                         tenant-level rows (instance_id ""), never in `history()` of an instance

A `token` is that of the call that asked for the row: the call sent again is known by it.

The `code_hash` column is set on workflow_queued rows, and on the workflow_started and
workflow_running rows of instances that follow the newest code; it holds for the rows after them.

A value too large for a row (over 64 KiB encoded), or a sensitive output, lies in a blob: the row's
`blob` column names it, and the payload has null (or "[REDACTED]") in the value's place. The blob
holds the whole payload as it really is, so resolving a row is `row.payload = blob`.
"""

from __future__ import annotations

import msgspec

FOLDED = {
    "step_started": ("step_started", "attempt_started"),
    "step_completed": ("attempt_completed", "step_completed"),
    "step_errored": ("attempt_errored", "step_errored"),
    "step_cancelled": ("attempt_cancelled", "step_cancelled"),
    "rollback_step_started": ("rollback_step_started", "rollback_attempt_started"),
    "rollback_step_completed": ("rollback_attempt_completed", "rollback_step_completed"),
    "rollback_step_errored": ("rollback_attempt_errored", "rollback_step_errored"),
}

TERMINAL_TYPES = frozenset({"workflow_completed", "workflow_errored", "workflow_terminated"})

INSTANCE_TYPES = frozenset(
    {
        f"workflow_{name}"
        for name in (
            "queued started running waiting paused waiting_for_pause resumed restarted "
            "completed errored terminated parked deleted"
        ).split()
    }
    | {
        f"{kind}_{end}"
        for kind in ("step", "attempt")
        for end in ("started", "completed", "errored")
    }
    | {
        f"rollback_{kind}_{end}"
        for kind in ("step", "attempt")
        for end in ("started", "completed", "errored")
    }
    | {"sleep_started", "sleep_completed", "wait_started", "wait_completed", "wait_timed_out"}
    | {"step_cancelled", "attempt_cancelled", "sleep_cancelled", "wait_cancelled", "timer_elapsed"}
    | {"event_received", "rollback_started", "rollback_completed", "rollback_errored"}
)

_ROW_BYTES = 300
"""Bytes of a row in memory beside its payload, roughly."""


class Row(msgspec.Struct, array_like=True, kw_only=True, gc=False):
    """One row of a tenant's log. The log sets `seq` and `epoch`; the writer sets the rest."""

    type: str
    workflow: str
    instance_id: str
    run: int = 1
    ts: int = 0
    step: str | None = None
    count: int = 0
    attempt: int = 0
    payload: bytes | None = None
    code_hash: str | None = None
    metadata: bytes | None = None
    blob: str | None = None
    seq: int = 0
    epoch: int = 0


def span(row: Row) -> int:
    """Return how many numbers the row takes: 2 when folded, else 1."""
    return 2 if row.attempt and row.type in FOLDED else 1


def row_bytes(row: Row) -> int:
    """Return roughly the bytes that a row takes in memory; a value in a blob does not count."""
    return _ROW_BYTES + len(row.payload or b"")


def unfold(row: Row) -> list[Row]:
    """Return the public rows that this row stands for, in order."""
    if not row.attempt or row.type not in FOLDED:
        return [row]
    first_type, second_type = FOLDED[row.type]
    is_start = second_type.endswith("attempt_started")
    is_error = second_type.endswith("_errored")
    first = msgspec.structs.replace(row, type=first_type)
    second = msgspec.structs.replace(row, type=second_type, seq=row.seq + 1)
    if is_start:
        first.attempt, second.payload, second.metadata, second.blob = 0, None, None, None
    else:
        second.attempt = 0
        first.metadata = None
        if not is_error:
            first.payload, first.blob = None, None
    return [first, second]
