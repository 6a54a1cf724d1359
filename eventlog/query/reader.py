"""Query reader: answers SQL over a log, sealed or not, with no cluster running.

Every statement sees what the files held when it began. A row is seen in exactly one place: up to
the manifest's `sealed_seq` in the segments that it names, above that in the tail that was read with
it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, cast

from ..errors import InvalidError, QueryError
from ..store.base import Store
from ..store.open_store import open_store
from .duckdb_views import LogViews, Params
from .events_sql import NAMES
from .limits import MEMORY_MB, SQL_BYTES_MAX, TIMEOUT_S, QueryLimits
from .tenant_engine import TenantEngine, make_engine

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

THREADS = 2


def connect_duckdb(
    log: str | Path | Store,
    *,
    tenant: str | None = None,
    memory_mb: int = MEMORY_MB,
    threads: int = THREADS,
) -> duckdb.DuckDBPyConnection:
    """Return a DuckDB connection with views `events`, `instances`, `steps`, `attempts`, `waits`.

    The views follow the log: each statement begins with a look at its files. With `tenant` the
    connection takes one SELECT at a time, sees that tenant alone and reaches nothing outside.
    `memory_mb`: MiB that DuckDB works in. A statement takes as long as it takes: `interrupt()`
    stops it. Raises InvalidError where no log can be. (The object forwards to a DuckDB connection;
    `.connection` is that one, whose views stay as they are.)
    """
    store, is_own = _store_of(log)
    root = store.local_path("tenants")
    if root is not None and not root.parent.is_dir():
        raise InvalidError(f"{root.parent} does not exist: give the root of a log")
    limits = QueryLimits(memory_mb=memory_mb)
    views = LogViews(store, tenant=tenant, limits=limits, threads=threads, is_nested=True)
    views.refresh()
    return cast("duckdb.DuckDBPyConnection", LogConnection(views, is_own_store=is_own))


class Reader:
    """Answers queries over a log; keeps its connection, and may be called from any thread."""

    def __init__(
        self,
        log: str | Path | Store,
        *,
        tenant: str | None = None,
        memory_mb: int = MEMORY_MB,
        timeout_s: float = TIMEOUT_S,
        threads: int = THREADS,
        sql_bytes_max: int = SQL_BYTES_MAX,
        isolation: str = "sandbox",
        is_trusted: bool = False,
    ) -> None:
        """`memory_mb`: MiB that DuckDB works in; a tenant's answer may hold as much again.

        With `tenant`, statements run in a process of their own, behind walls that the tenant cannot
        take down (`isolation="sandbox"`; SandboxUnavailable where the host has none), or without
        them (`"unsafe-none"`). A text above `sql_bytes_max` bytes is refused there. `is_trusted`:
        the platform has written the statements, so they run in this program all the same.
        """
        self._store, self._is_own_store = _store_of(log)
        limits = QueryLimits(timeout_s, memory_mb, sql_bytes_max)
        self._lock = threading.Lock()
        self._engine: TenantEngine
        if tenant is None or is_trusted:
            views = LogViews(self._store, tenant=tenant, limits=limits, threads=threads)
            self._engine = InProcessEngine(views)
        else:
            self._engine = make_engine(
                self._store, tenant, limits=limits, threads=threads, isolation=isolation
            )

    def query(self, sql: str, params: Params = None, *, skip_damaged: bool = False) -> pa.Table:
        """Return the answer over all that was acknowledged before the call.

        `params`: a list for `?`, a dict for `$name`. Raises QueryError for bad SQL, and with the
        code `query.timed_out` for what takes longer than `timeout_s`; Corrupt with the names of the
        tenants (`.tenants`) whose log is damaged. `skip_damaged`: answer for the others; the
        answer's `schema.metadata[b"left_out"]` then says in JSON which tenants it lacks, and why.
        """
        with self._lock:
            return self._engine.query(sql, params, skip_damaged=skip_damaged)

    def interrupt(self) -> None:
        """Stop the running query, from another thread; the query raises QueryError."""
        self._engine.interrupt()

    def close(self) -> None:
        """Release the connection, and end the process if there is one."""
        with self._lock:
            self._engine.close()
            if self._is_own_store:
                _finish(self._store)


class InProcessEngine:
    """Answers the platform's own statements, in the calling program."""

    def __init__(self, views: LogViews) -> None:
        self._views = views

    def query(self, sql: str, params: Params, *, skip_damaged: bool) -> pa.Table:
        """Return what Reader.query does."""
        return self._views.query(sql, params, skip_damaged=skip_damaged)

    def interrupt(self) -> None:
        """Stop the running statement."""
        self._views.connection.interrupt()

    def close(self) -> None:
        """Release the connection."""
        self._views.close()


def _store_of(log: str | Path | Store) -> tuple[Store, bool]:
    if isinstance(log, str | Path):
        return open_store(log), True
    return log, False


def _finish(store: Store) -> None:
    closing = store.close()
    try:
        closing.send(None)
    except StopIteration:
        return
    closing.close()
    raise AssertionError("a store that is only read from closes at once")


# What a tenant's connection has besides: nothing that runs, registers or opens something else.
_HARMLESS = frozenset(
    """
    arrow description df fetch_arrow_table fetch_df fetch_record_batch fetchall fetchdf fetchmany
    fetchnumpy fetchone interrupt pl query_progress rowcount to_arrow_reader to_arrow_table
    """.split()
)


class LogConnection:
    """A DuckDB connection that polls the log before each statement."""

    _READS = frozenset(
        {"execute", "executemany", "from_query", "query", "sql", "table", "view", "cursor"}
    )
    _READS_OF_TENANTS = frozenset({"execute", "query", "sql"})

    def __init__(self, views: LogViews, *, is_own_store: bool) -> None:
        self._views = views
        self._is_own_store = is_own_store

    @property
    def connection(self) -> duckdb.DuckDBPyConnection:
        """The underlying connection, for libraries that need one; its views change only through
        calls made here.

        Raises QueryError for a tenant's, which checks nothing by itself.
        """
        if self._views.is_tenants:
            raise _not_for_tenants("connection")
        return self._views.connection

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        import duckdb

        return duckdb.DuckDBPyConnection

    def __getattr__(self, name: str) -> Any:
        is_tenants = self._views.is_tenants
        if name in (self._READS_OF_TENANTS if is_tenants else self._READS):
            return self._reading(name)
        if is_tenants and name not in _HARMLESS and not name.startswith("__"):
            raise _not_for_tenants(name)
        return getattr(self._views.connection, name)

    def _reading(self, name: str) -> Callable[..., Any]:
        def read(*args: Any, **kwargs: Any) -> Any:
            self._views.refresh()
            if name not in ("table", "view", "cursor"):
                self._views.begin_checked(args[0] if args else kwargs.get("query"))
            return getattr(self._views.connection, name)(*args, **kwargs)

        return read

    def close(self) -> None:
        """Close it."""
        self._views.close()
        if self._is_own_store:
            _finish(self._views._store)

    def __enter__(self) -> LogConnection:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _not_for_tenants(name: str) -> QueryError:
    return QueryError(f"{name} is not available on a tenant's connection: use execute() or sql()")


__all__ = ["NAMES", "Params", "Reader", "connect_duckdb"]
