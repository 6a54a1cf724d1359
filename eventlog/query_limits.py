"""Query limits: how long a statement may run, and how much its answer may hold.

DuckDB bounds the memory that it works in, and neither its time nor what it hands out.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from .errors import QueryError

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

MIB = 1024 * 1024
TIMEOUT_S = 60.0
MEMORY_MB = 1024
TIMED_OUT = "query.timed_out"
_AGAIN_S = 0.05
_BATCH_ROWS = 10_000


@dataclass(frozen=True)
class QueryLimits:
    """What one statement may use."""

    timeout_s: float = TIMEOUT_S
    memory_mb: int = MEMORY_MB
    """MiB that DuckDB works in. A tenant's answer may hold as much again."""


@contextmanager
def deadline(connection: duckdb.DuckDBPyConnection, timeout_s: float) -> Iterator[None]:
    """Interrupt what the connection does in this block after so many seconds: QueryError then."""
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
            raise QueryError(
                f"the query was stopped after {timeout_s:g} s: ask for less, or raise "
                "query_timeout_seconds in the platform's config (--timeout on the command line)",
                code=TIMED_OUT,
            ) from None
        raise
    finally:
        is_done.set()
        # From here on no interrupt can hit what the connection does next.
        watcher.join()


def answer_of(relation: duckdb.DuckDBPyRelation, *, bytes_max: int | None) -> pa.Table:
    """The whole answer; QueryError where it would hold more than `bytes_max` in memory."""
    if bytes_max is None:
        return cast("pa.Table", relation.to_arrow_table())
    import pyarrow as pa

    batches, size = [], 0
    # Closed in any case: a connection with an answer left in it takes no other statement.
    with relation.to_arrow_reader(_BATCH_ROWS) as reader:
        for batch in reader:
            size += batch.nbytes
            if size > bytes_max:
                raise QueryError(
                    f"the answer is larger than {bytes_max // MIB} MiB: ask for less, or raise "
                    "query_memory_mb in the platform's config (--memory-mb on the command line)"
                )
            batches.append(batch)
        return pa.Table.from_batches(batches, schema=reader.schema)
