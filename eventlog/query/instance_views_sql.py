"""Instance views: the SQL that shows instances, steps, attempts and waits.

Each shows the newest run of an instance. Steps that a restart kept belong to the run that kept
them. Texts in payloads are a tenant's: nothing here fails on any of them.
"""

from __future__ import annotations

_KEY = "tenant_id, workflow, instance_id"


def _types(*names: str) -> str:
    return ", ".join(f"'{name}'" for name in names)


def _instant(microseconds: str) -> str:
    # An instant outside of the calendar would raise, and so hide every other row.
    return f"""CASE WHEN {microseconds} BETWEEN -62135596800000000 AND 253402300799999999
        THEN TIMESTAMPTZ 'epoch' + to_microseconds({microseconds}) END"""


_STATUS = {
    "workflow_queued": "queued",
    "workflow_started": "running",
    "workflow_running": "running",
    "workflow_waiting": "waiting",
    "workflow_waiting_for_pause": "waitingForPause",
    "workflow_paused": "paused",
    "workflow_parked": "paused",
    "workflow_restarted": "queued",
    "rollback_started": "running",
    "workflow_completed": "complete",
    "workflow_errored": "errored",
    "workflow_terminated": "terminated",
}
# The last row of a group is found as the greatest of (number, type) in one integer: a text in the
# state of ten million groups costs gigabytes.
_CODES = (
    *_STATUS,
    "workflow_resumed",
    "step_started",
    "step_completed",
    "step_errored",
    "attempt_started",
    "attempt_completed",
    "attempt_errored",
    "sleep_started",
    "sleep_completed",
    "wait_started",
    "wait_completed",
    "wait_timed_out",
    "step_cancelled",
    "attempt_cancelled",
    "sleep_cancelled",
    "wait_cancelled",
)
_CANCELLED = ("step_cancelled", "sleep_cancelled", "wait_cancelled")
_CODE = f"enum_code(CAST(type AS ENUM({_types(*_CODES)})))"
_LAST = f"max(seq * 64 + {_CODE})"


def _is_last(*types: str) -> str:
    return f"last % 64 IN ({', '.join(str(_CODES.index(name)) for name in types)})"


_ENDED = _types("workflow_completed", "workflow_errored", "workflow_terminated")
_BEGUN = _types("step_started", "sleep_started", "wait_started")

# Which rows of earlier runs still count. `newest_run` knows the instances that were restarted;
# `kept_since` has, for each step that every restart since some run kept, that run.
_RUNS = f"""
    restarts AS (
        SELECT {_KEY}, run, TRY_CAST(payload -> '$.kept' AS VARCHAR[][]) AS kept
        FROM events WHERE type = 'workflow_restarted'
    ),
    newest_run AS (
        SELECT {_KEY}, max(run) + 1 AS newest FROM restarts GROUP BY ALL
    ),
    kept_steps AS (
        SELECT {_KEY}, run, one[1] AS kind, one[2] AS step, TRY_CAST(one[3] AS INTEGER) AS "count"
        FROM (SELECT {_KEY}, run, unnest(kept) AS one FROM restarts)
    ),
    kept_since AS (
        SELECT {_KEY}, kind, step, "count", min(run) AS since
        FROM (
            SELECT *, row_number() OVER (
                PARTITION BY {_KEY}, kind, step, "count" ORDER BY run DESC
            ) AS back
            FROM kept_steps JOIN newest_run USING ({_KEY})
        )
        WHERE run + back = newest
        GROUP BY ALL
    )"""

_KIND = """CASE
        WHEN starts_with(type, 'sleep_') THEN 'sleep'
        WHEN starts_with(type, 'wait_') THEN 'wait_for_event'
        ELSE 'do' END"""


def _step_rows(*types: str) -> str:
    """Return the rows of these types that count in the newest run, with its number as `newest`."""
    return f"""
    rows AS (
        SELECT e.*, coalesce(n.newest, e.run) AS newest
        FROM (
            SELECT {_KEY}, run, seq, ts, type, {_KIND} AS kind, step, "count", attempt, payload
            FROM events WHERE type IN ({_types(*types)})
        ) AS e
        LEFT JOIN newest_run AS n USING ({_KEY})
        LEFT JOIN kept_since AS k USING ({_KEY}, kind, step, "count")
        WHERE e.run = coalesce(n.newest, e.run) OR e.run >= k.since
    ),
    ended AS (
        SELECT {_KEY}, run AS newest, max(ts) AS ts
        FROM events WHERE type IN ({_ENDED}) GROUP BY ALL
    )"""


# Rows whose payload an instance shows.
_TOLD = (
    "workflow_queued",
    "workflow_parked",
    "workflow_restarted",
    "workflow_completed",
    "workflow_errored",
)

_INSTANCES = f"""
CREATE OR REPLACE VIEW instances AS
WITH rows AS (
        SELECT {_KEY}, run, seq, ts, type, code_hash,
            CASE WHEN type IN ({_types(*_TOLD)}) THEN payload END AS payload
        FROM events
        WHERE type IN ({_types(*_STATUS)}, 'workflow_resumed', {_BEGUN}) AND instance_id <> ''
    ),
    folds AS (
        SELECT {_KEY},
            max(run) AS run,
            {_LAST} FILTER (type NOT IN ({_BEGUN})) AS last,
            max(seq) FILTER (type IN ('workflow_paused', 'workflow_parked')) AS paused,
            max(seq) FILTER (type = 'workflow_waiting_for_pause') AS pausing,
            max(seq) FILTER (
                type IN ('workflow_resumed', 'workflow_restarted', 'rollback_started')
            ) AS released,
            max(seq) FILTER (type = 'workflow_parked') AS parked,
            arg_max(payload ->> '$.code', seq) FILTER (type = 'workflow_parked') AS code,
            arg_min(ts, seq) FILTER (type = 'workflow_queued') AS queued_at,
            arg_min(TRY_CAST(payload ->> '$.created_us' AS BIGINT), seq)
                FILTER (type = 'workflow_queued') AS created_us,
            max(run) FILTER (type = 'workflow_started') AS started_run,
            arg_max(ts, seq) FILTER (type = 'workflow_started') AS started_at,
            max(run) FILTER (type IN ({_ENDED})) AS ended_run,
            arg_max(ts, seq) FILTER (type IN ({_ENDED})) AS ended_at,
            arg_max_null(payload, seq) FILTER (type IN ({_ENDED})) AS outcome,
            -- Only what was restarted needs a list: its newest run is known at the end.
            count(*) FILTER (type IN ({_BEGUN}) AND run = 1) AS begun_first,
            list(run) FILTER (type IN ({_BEGUN}) AND run > 1) AS begun_later,
            arg_max(json_array_length(payload, '$.kept'), seq)
                FILTER (type = 'workflow_restarted') AS kept,
            arg_max(code_hash, seq) AS code_hash
        FROM rows GROUP BY ALL
    )
SELECT {_KEY.replace(", ", ", f.").replace("tenant_id", "f.tenant_id")}, f.run,
    CASE last % 64
        {" ".join(f"WHEN {_CODES.index(kind)} THEN '{name}'" for kind, name in _STATUS.items())}
        WHEN {_CODES.index("workflow_resumed")} THEN
            CASE WHEN paused > coalesce(pausing, 0) THEN 'queued' ELSE 'running' END
    END AS status,
    CASE WHEN {_is_last("workflow_parked", "workflow_paused")}
        AND parked > coalesce(released, 0) THEN code END AS reason,
    coalesce({_instant("nullif(created_us, 0)")}, queued_at) AS created_at,
    CASE WHEN started_run = f.run THEN started_at END AS started_at,
    CASE WHEN ended_run = f.run THEN ended_at END AS ended_at,
    CASE WHEN ended_run = f.run THEN outcome -> '$.output' END AS output,
    CASE WHEN ended_run = f.run THEN outcome ->> '$.error.name' END AS error_name,
    CASE WHEN ended_run = f.run THEN outcome ->> '$.error.message' END AS error_message,
    CASE WHEN f.run = 1 THEN begun_first
        ELSE len(list_filter(coalesce(begun_later, []), lambda one: one = f.run))
            + coalesce(kept, 0)::BIGINT
    END AS steps,
    code_hash
FROM folds AS f;
"""

_DONE = (
    "type IN ("
    + _types(
        "step_completed",
        "step_errored",
        "sleep_completed",
        "wait_completed",
        "wait_timed_out",
        *_CANCELLED,
    )
    + ")"
)

_STEPS = f"""
CREATE OR REPLACE VIEW steps AS
WITH {_RUNS}, {
    _step_rows(
        "step_started",
        "step_completed",
        "step_errored",
        "attempt_started",
        "attempt_errored",
        "sleep_started",
        "sleep_completed",
        "wait_started",
        "wait_completed",
        "wait_timed_out",
        *_CANCELLED,
    )
},
    folds AS (
        SELECT {_KEY}, newest, kind, step, "count",
            {_LAST} AS last,
            max(attempt) AS attempts,
            min(ts) FILTER (type IN ({_BEGUN})) AS started_at,
            arg_max(ts, seq) FILTER ({_DONE}) AS done_at,
            arg_max_null(payload, seq) FILTER ({_DONE}) AS outcome
        FROM rows GROUP BY ALL
    )
SELECT f.tenant_id, f.workflow, f.instance_id, f.newest AS run, kind, step, "count",
    CASE
        WHEN {_is_last("step_completed", "sleep_completed", "wait_completed")} THEN 'complete'
        WHEN {_is_last("step_errored", "wait_timed_out")} THEN 'errored'
        WHEN {_is_last(*_CANCELLED)} THEN 'cancelled'
        WHEN ended.ts IS NOT NULL THEN 'cancelled'
        WHEN {_is_last("attempt_errored", "sleep_started", "wait_started")} THEN 'waiting'
        ELSE 'running'
    END AS status,
    attempts, started_at,
    done_at AS ended_at,
    CASE kind WHEN 'do' THEN outcome -> '$.output'
        WHEN 'wait_for_event' THEN outcome -> '$.payload' END AS output,
    outcome ->> '$.error.name' AS error_name,
    outcome ->> '$.error.message' AS error_message
FROM folds AS f LEFT JOIN ended USING ({_KEY}, newest);
"""

_ATTEMPTS = f"""
CREATE OR REPLACE VIEW attempts AS
WITH {_RUNS}, {
    _step_rows("attempt_started", "attempt_completed", "attempt_errored", "attempt_cancelled")
},
    folds AS (
        SELECT {_KEY}, newest, step, "count", attempt,
            {_LAST} AS last,
            min(ts) FILTER (type = 'attempt_started') AS started_at,
            arg_max(ts, seq) FILTER (type <> 'attempt_started') AS done_at,
            arg_max_null(payload, seq) FILTER (type = 'attempt_errored') AS failure
        FROM rows GROUP BY ALL
    )
SELECT f.tenant_id, f.workflow, f.instance_id, f.newest AS run, step, "count", attempt,
    CASE
        WHEN {_is_last("attempt_completed")} THEN 'complete'
        WHEN {_is_last("attempt_errored")} THEN 'errored'
        WHEN {_is_last("attempt_cancelled")} THEN 'cancelled'
        WHEN ended.ts IS NOT NULL THEN 'cancelled'
        ELSE 'running'
    END AS status,
    started_at,
    done_at AS ended_at,
    failure ->> '$.error.name' AS error_name,
    failure ->> '$.error.message' AS error_message,
    TRY_CAST(failure ->> '$.retry_delay_ms' AS BIGINT) AS retry_delay_ms
FROM folds AS f LEFT JOIN ended USING ({_KEY}, newest);
"""

_WAITS = f"""
CREATE OR REPLACE VIEW waits AS
WITH {_RUNS}, {
    _step_rows(
        "attempt_started",
        "attempt_errored",
        "step_completed",
        "step_errored",
        "sleep_started",
        "sleep_completed",
        "wait_started",
        "wait_completed",
        "wait_timed_out",
        *_CANCELLED,
    )
},
    parts AS (
        SELECT *,
            -- A retry is known by the attempt that it waits for.
            CASE kind WHEN 'do' THEN attempt + (type = 'attempt_errored')::INTEGER END AS next,
            type IN ('sleep_started', 'wait_started', 'attempt_errored') AS is_start,
            TRY_CAST(CASE kind WHEN 'do' THEN payload ->> '$.retry_at_us'
                ELSE payload ->> '$.until_us' END AS BIGINT) AS until_us
        FROM rows
        WHERE (kind <> 'do' OR attempt > 0) AND type NOT IN ({_types(*_CANCELLED)})
    ),
    cancelled AS (
        SELECT DISTINCT {_KEY}, newest, kind, step, "count" FROM rows
        WHERE type IN ({_types(*_CANCELLED)})
    ),
    starts AS (
        SELECT * FROM parts WHERE is_start AND until_us IS NOT NULL
    ),
    ends AS (
        SELECT {
    _KEY
}, newest, kind, step, "count", next, min(seq) AS seq, arg_min(type, seq) AS type
        FROM parts WHERE type NOT IN ('sleep_started', 'wait_started', 'attempt_errored')
        GROUP BY ALL
    ),
    spans AS (
        SELECT s.*, ends.seq AS end_seq, ends.type AS end_type
        FROM starts AS s LEFT JOIN ends
            ON s.tenant_id = ends.tenant_id AND s.workflow = ends.workflow
            AND s.instance_id = ends.instance_id AND s.newest = ends.newest
            AND s.kind = ends.kind AND s.step = ends.step AND s."count" = ends."count"
            AND s.next IS NOT DISTINCT FROM ends.next
    ),
    -- What was left of a timer when its instance was paused is left when it goes on.
    shifts AS (
        SELECT {_KEY}, spans.seq, sum(r.shift_us)::BIGINT AS shift_us
        FROM spans JOIN (
            SELECT {_KEY}, seq AS resumed,
                TRY_CAST(payload ->> '$.shift_us' AS BIGINT) AS shift_us
            FROM events WHERE type = 'workflow_resumed'
        ) AS r USING ({_KEY})
        WHERE r.resumed > spans.seq AND (spans.end_seq IS NULL OR r.resumed < spans.end_seq)
        GROUP BY ALL
    )
SELECT s.tenant_id, s.workflow, s.instance_id, s.newest AS run,
    CASE s.kind WHEN 'wait_for_event' THEN 'event' WHEN 'do' THEN 'retry' ELSE s.kind END AS kind,
    s.step, s."count",
    CASE s.kind WHEN 'wait_for_event' THEN s.payload ->> '$.event_type' END AS event_type,
    s.ts AS since,
    {_instant("(s.until_us + coalesce(shifts.shift_us, 0))")} AS until,
    CASE
        WHEN c.step IS NOT NULL AND (s.end_type IS NULL OR s.kind <> 'do') THEN 'cancelled'
        WHEN s.end_type = 'wait_timed_out' THEN 'timed_out'
        WHEN s.end_type IS NOT NULL THEN 'complete'
        WHEN ended.ts IS NOT NULL THEN 'cancelled'
        ELSE 'waiting'
    END AS status
FROM spans AS s
    LEFT JOIN shifts ON s.tenant_id = shifts.tenant_id AND s.workflow = shifts.workflow
        AND s.instance_id = shifts.instance_id AND s.seq = shifts.seq
    LEFT JOIN cancelled AS c ON s.tenant_id = c.tenant_id AND s.workflow = c.workflow
        AND s.instance_id = c.instance_id AND s.newest = c.newest
        AND s.kind = c.kind AND s.step = c.step AND s."count" = c."count"
    LEFT JOIN ended ON s.tenant_id = ended.tenant_id AND s.workflow = ended.workflow
        AND s.instance_id = ended.instance_id AND s.newest = ended.newest;
"""

FOLDS = (_INSTANCES, _STEPS, _ATTEMPTS, _WAITS)
"""The definitions of the other views."""
