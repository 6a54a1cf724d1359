"""Events SQL: the view `events`, as SQL text over one relation of unfolded rows.

`events` shows every row of every instance that was not deleted, and the tenant-level rows. The
other views are folds of it (see `instance_views_sql`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

# Columns of a stored row, with the field ids of segment.SCHEMA (a test compares them).
STORED = {
    "tenant_id": (1, "VARCHAR"),
    "seq": (2, "BIGINT"),
    "epoch": (3, "BIGINT"),
    "ts": (4, "TIMESTAMPTZ"),
    "workflow": (5, "VARCHAR"),
    "instance_id": (6, "VARCHAR"),
    "run": (7, "INTEGER"),
    "type": (8, "VARCHAR"),
    "step": (9, "VARCHAR"),
    "count": (10, "INTEGER"),
    "attempt": (11, "INTEGER"),
    "code_hash": (12, "VARCHAR"),
    "payload": (13, "VARCHAR"),
}

NAMES = ("events", "instances", "steps", "attempts", "waits")
"""The public views."""

TAIL = "hot.tail"
DEAD = "hot.dead"
SEALED = "sealed_rows"

_COLUMNS = ", ".join(f'"{name}"' for name in STORED)

TABLES = f"""
CREATE SCHEMA hot;
CREATE TABLE {TAIL} ({", ".join(f'"{name}" {kind}' for name, (_, kind) in STORED.items())});
CREATE TABLE {DEAD} (tenant_id VARCHAR, workflow VARCHAR, instance_id VARCHAR, seq BIGINT);
"""
"""What holds the rows that no segment has yet, and up to which number instances are deleted."""


def quoted(text: str) -> str:
    """Return a text as an SQL literal."""
    return "'" + text.replace("'", "''") + "'"


def files_relation(paths: Iterable[str]) -> str:
    """Return a relation over Parquet files, by field id: columns that a file lacks are null."""
    readable: list[str] = []
    hashed: list[str] = []
    for path in paths:
        (hashed if _HASHED in path else readable).append(path)
    parts = []
    if readable:
        # A filter on the tenant then picks files by their names, without opening the others.
        parts.append(
            f"SELECT * REPLACE (url_decode(regexp_extract(filename, '{_TENANT}', 1)) AS tenant_id) "
            f"FROM {_read_parquet(readable)}"
        )
    if hashed:
        parts.append(f"FROM {_read_parquet(hashed)}")
    return f"({' UNION ALL '.join(parts)})"


_HASHED = "%%"
_TENANT = "^.*/tenant=([^/]*)/events/"


def _read_parquet(paths: Sequence[str]) -> str:
    names = ", ".join(quoted(path) for path in paths)
    fields = ", ".join(
        f"{number}: {{name: '{name}', type: '{kind}', default_value: NULL}}"
        for name, (number, kind) in STORED.items()
    )
    options = "hive_partitioning = false, filename = true"
    return f"read_parquet([{names}], schema = MAP {{{fields}}}, {options})"


def events_sql(sealed: str | None, *, has_dead: bool, is_nested: bool) -> str:
    """Return the SQL of `events` over a relation of sealed rows, if there are any, and the tail.

    `is_nested`: payloads may have tags around lists; without it such a payload is an error.
    """
    plain = "hot.plain" if is_nested else "hot.simple"
    rows = f"SELECT {_COLUMNS} FROM {TAIL}"
    if sealed is not None:
        rows = f"SELECT {_COLUMNS} FROM {sealed} UNION ALL {rows}"
    dead = (
        f"""
        WHERE NOT EXISTS (
            FROM {DEAD} AS dead
            WHERE dead.tenant_id = e.tenant_id AND dead.instance_id = e.instance_id
                AND dead.workflow = e.workflow AND e.seq <= dead.seq
        )"""
        if has_dead
        else ""
    )
    return f"""
CREATE OR REPLACE VIEW events AS
    SELECT tenant_id, workflow, instance_id, run, seq, epoch, ts, type, step, "count", attempt,
        TRY_CAST({plain}(payload) AS JSON) AS payload, code_hash
    FROM ({rows}) AS e {dead};
"""
