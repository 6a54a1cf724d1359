"""Query limits: how long a statement may run, and how much its answer may hold.

DuckDB bounds the memory that it works in, and neither its time nor what it hands out.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from ..errors import QueryError
from ..units import MIB

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

TIMEOUT_S = 60.0
MEMORY_MB = 1024
SQL_BYTES_MAX = 256 * 1024
"""Of the text of a tenant's query, unless the deployment says otherwise. Parsing takes a second."""
PARAMS_BYTES_MAX = 1024 * 1024
"""Of a tenant's parameters, written as JSON."""
TIMED_OUT = "query.timed_out"
_AGAIN_S = 0.05
BATCH_ROWS = 2_048
"""Of an answer that is handed out bit by bit: what DuckDB works on at a time."""
_DAY_US = 86_400_000_000


@dataclass(frozen=True)
class QueryLimits:
    """What one statement may use."""

    timeout_s: float = TIMEOUT_S
    memory_mb: int = MEMORY_MB
    """MiB that DuckDB works in. A tenant's answer may hold as much again."""
    sql_bytes_max: int = SQL_BYTES_MAX
    """Of a tenant's query."""


@contextmanager
def deadline(connection: duckdb.DuckDBPyConnection, timeout_s: float) -> Iterator[None]:
    """Interrupt the connection after so many seconds; the block then raises QueryError."""
    import duckdb

    is_done = threading.Event()

    def watch() -> None:
        # An interrupt between two statements of one call is forgotten, so it is said again.
        wait_s = timeout_s
        while not is_done.wait(wait_s):
            connection.interrupt()
            wait_s = _AGAIN_S

    watcher = threading.Thread(target=watch, name="query-deadline", daemon=True)
    start_s = time.monotonic()
    watcher.start()
    try:
        yield
    except (duckdb.Error, OSError) as error:
        # What an answer in batches raises has lost its class.
        is_interrupt = isinstance(error, duckdb.InterruptException) or "INTERRUPT" in str(error)
        if is_interrupt and time.monotonic() - start_s >= timeout_s:
            raise timed_out(timeout_s) from None
        raise
    finally:
        is_done.set()
        # From here on no interrupt can hit what the connection does next.
        watcher.join()


def timed_out(timeout_s: float) -> QueryError:
    """Return the error for a query that exceeded its time limit."""
    return QueryError(
        f"the query was stopped after {timeout_s:g} s: ask for less, or raise "
        "query_timeout_seconds in the platform's config (--timeout on the command line)",
        code=TIMED_OUT,
    )


def out_of_memory(memory_mb: int) -> QueryError:
    """Return the error for a query that needed more memory than it may have, in MiB."""
    return QueryError(
        f"the query was ended, since it ran out of memory, of which it has {memory_mb} MiB: ask for"
        " less, or raise query_memory_mb in the platform's config (--memory-mb on the command line)"
    )


def answer_of(relation: duckdb.DuckDBPyRelation, *, bytes_max: int | None) -> pa.Table:
    """Return the whole answer; raises QueryError where it would hold more than `bytes_max` in
    memory."""
    if bytes_max is None:
        return with_durations(cast("pa.Table", relation.to_arrow_table()))
    import pyarrow as pa

    # Closed in any case: a connection with an answer left in it takes no other statement.
    with relation.to_arrow_reader(BATCH_ROWS) as reader:
        batches = list(bounded(reader, bytes_max))
        return with_durations(pa.Table.from_batches(batches, schema=reader.schema))


def bounded(batches: Iterable[pa.RecordBatch], bytes_max: int) -> Iterator[pa.RecordBatch]:
    """Yield the batches of an answer; raises QueryError as soon as they hold more than
    `bytes_max`."""
    size = 0
    for batch in batches:
        size += batch.nbytes
        if size > bytes_max:
            raise too_large(bytes_max)
        yield batch


def too_large(bytes_max: int) -> QueryError:
    """Return the error for an answer above its limit."""
    return QueryError(
        f"the answer is larger than {bytes_max // MIB} MiB: ask for less, or raise "
        "query_memory_mb in the platform's config (--memory-mb on the command line)"
    )


def with_durations(table: pa.Table) -> pa.Table:
    """Return the table with its intervals as durations, for which Python has a type.

    A month counts as 30 days, as it does wherever DuckDB compares intervals.
    """
    import pyarrow as pa

    for index, field in enumerate(table.schema):
        if field.type == pa.month_day_nano_interval():
            micros = [
                None
                if value is None
                else (value.months * 30 + value.days) * _DAY_US + value.nanoseconds // 1000
                for value in (one.as_py() for one in table.column(index))
            ]
            column = pa.chunked_array([pa.array(micros, pa.int64()).cast(pa.duration("us"))])
            table = table.set_column(index, field.with_type(column.type), column)
    return table
