"""DuckDB views: one DuckDB instance in memory whose views follow the files of a log.

What is sealed is read where it lies; the tail is kept in a table here and taken in as it grows. A
tenant's instance is locked: what it may read is listed, and its settings stay as they are.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from ..errors import Corrupt, InvalidError, QueryError, WorkflowsError
from ..manifest import SegmentInfo, tenant_stream
from ..store.base import NotFound, Store
from ..units import MIB
from . import corruption
from .events_sql import DEAD, SEALED, STORED, TABLES, TAIL, events_sql, files_relation, quoted
from .instance_views_sql import FOLDS
from .limits import QueryLimits, answer_of, deadline, out_of_memory
from .log_files import LogFiles, StreamDelta, StreamState
from .parameters import check_parameters
from .plain_json import MACROS, NESTED, NESTED_MACROS
from .spill_directory import spill_folder
from .sql_guard import HIDDEN, SelectGuard

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

Params = Sequence[object] | dict[str, object] | None
DeltaWithTombstones = tuple[StreamDelta, "list[pa.Table]"]

# A merge may remove a file between the look at the manifest and the reading; each try looks again.
_TRIES_MAX = 4

_PATTERN = frozenset("*?[")

_TRY = re.compile(r"\btry\W*\(", re.IGNORECASE)

BEGIN, END = "BEGIN TRANSACTION READ ONLY", "ROLLBACK"
"""Around a statement that may change nothing."""


class LogViews:
    """One DuckDB instance in memory whose views follow a log."""

    def __init__(
        self,
        store: Store,
        *,
        tenant: str | None,
        limits: QueryLimits,
        threads: int,
        is_nested: bool = False,
    ) -> None:
        """`is_nested`: the views take payloads of any form from the first statement on."""
        self._store = store
        self._tenant = tenant
        self._limits = limits
        self._threads = threads
        self._guard = SelectGuard(limits.sql_bytes_max)
        self._is_closed = False
        self._is_nested = is_nested
        self._left_out: dict[str, Corrupt] = {}
        """Streams of which the present query has met damage."""
        self._open()

    def _open(self) -> None:
        self.files = LogFiles(self._store, tenant=self._tenant)
        self._segments: dict[str, int] = {}
        self._unread: str | None = None
        self._shown: tuple[object, ...] = ()
        self._has_nested_macros = False
        self._with_tail: set[str] = set()
        self._with_tombstones: set[str] = set()
        self._is_locked = False
        self.connection = _connect(self._limits.memory_mb, self._threads, self._tenant)
        # Its own connection, so that a transaction of the user's is neither seen nor disturbed.
        self._writer = self.connection.cursor()
        self._writer.execute(TABLES)
        for macro in [*MACROS, *(HIDDEN if self.is_tenants else ())]:
            self._writer.execute(macro)
        self._define({}, first=True)

    def close(self) -> None:
        """Release memory and files."""
        if not self._is_closed:
            self._is_closed = True
            self._writer.close()
            self.connection.close()

    @property
    def is_tenants(self) -> bool:
        """Whether the views show one tenant only."""
        return self._tenant is not None

    def begin_checked(self, sql: object) -> None:
        """Begin a transaction that reads only; raises QueryError for SQL that a tenant may not
        run."""
        import duckdb

        if self._tenant is None:
            return
        self._guard.check(self._writer, str(sql))
        with suppress(duckdb.TransactionException):  # there is none before the first statement
            self.connection.execute(END)
        self.connection.execute(BEGIN)

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """A transaction in which nothing can be changed: DuckDB checks the bound statement."""
        import duckdb

        self.connection.execute(BEGIN)
        try:
            yield
        finally:
            # DuckDB has none left after an error of its own.
            with suppress(duckdb.Error):
                self.connection.execute(END)

    def query(self, sql: str, params: Params = None, *, skip_damaged: bool = False) -> pa.Table:
        """Return what Reader.query does."""
        import duckdb

        if self._is_closed:
            raise InvalidError("this reader was closed: open a new one")
        self._left_out = {}
        if _TRY.search(sql):
            # It would take the error about such payloads for one of the query's own.
            self._is_nested = True
        tries_left = _TRIES_MAX - 1
        while True:
            self.refresh(again=tries_left < _TRIES_MAX - 1, skip_damaged=skip_damaged)
            try:
                with deadline(self.connection, self._limits.timeout_s), self._reading():
                    return corruption.noted(self._answer(sql, params), self.files.damaged)
            except (duckdb.Error, OSError) as error:
                if NESTED in str(error) and not self._is_nested:
                    self._is_nested = True
                    continue
                problem = self._explain(error, may_retry=tries_left > 0)
            if problem is None:
                tries_left -= 1
            elif isinstance(problem, Corrupt) and self._tenant is None:
                stream = corruption.stream_of(problem.path)
                if not skip_damaged or stream in self._left_out:
                    raise corruption.refusal({stream: problem}) from None
                self._left_out[stream] = problem
            else:
                raise problem from None

    def _explain(self, error: Exception, *, may_retry: bool) -> WorkflowsError | None:
        """Return the error of a failed query; None where a new poll of the log may help."""
        import duckdb

        lost = self._lost_segment()
        if may_retry and (lost is not None or corruption.is_reading(error)):
            return None
        if lost is not None:
            return corruption.lost(lost)
        # What an answer in batches raises has lost its class.
        if isinstance(error, duckdb.OutOfMemoryException) or "Out of Memory Error" in str(error):
            return out_of_memory(self._limits.memory_mb)
        segments = self._segment_infos()
        if isinstance(error, (duckdb.InternalException, duckdb.FatalException)):
            # DuckDB takes no more statements after such an error.
            self.connection.close()
            self._open()
        if corruption.is_of_the_query(error):
            return QueryError(self._error_text(error))
        if self._tenant is not None and isinstance(error, duckdb.InternalException):
            return QueryError("DuckDB failed within itself on this query: put it in another way")
        problem = corruption.explain(self._store, error, segments)
        return QueryError(self._error_text(problem)) if isinstance(problem, QueryError) else problem

    def _error_text(self, error: Exception) -> str:
        """Return an error's text; for a tenant without paths or details of the log."""
        text = str(error)
        if self._tenant is not None:
            for hidden in (self._store.root, TAIL, DEAD, SEALED):
                text = text.replace(hidden, "…")
        return text

    def _answer(self, sql: str, params: Params) -> pa.Table:
        check_parameters(params)
        if self._tenant is None:
            self._guard.check_read(self.connection, sql)
        else:
            self._check(sql, params)
        relation = self.connection.sql(sql, params=params)
        if relation is None:
            raise QueryError("there is no statement in this query")
        # What the platform itself asks for may be as large as it likes.
        return answer_of(
            relation, bytes_max=self._limits.memory_mb * MIB if self._tenant is not None else None
        )

    def _check(self, sql: str, params: Params) -> None:
        """Raise QueryError for SQL that a tenant may not run."""
        import duckdb

        self._guard.check(self.connection, sql)
        try:
            self._guard.check_plan(self.connection, sql, params)
        except duckdb.ParserException:
            raise QueryError("a tenant's query is one SELECT statement") from None
        except (duckdb.BinderException, duckdb.CatalogException):
            # Planned by itself it fails alike, and says so of the text as it was written.
            self.connection.execute(END)
            self.connection.execute(BEGIN)
            self.connection.sql(sql, params=params)
            raise

    def _lost_segment(self) -> str | None:
        """Return a segment that cannot be read: removed by compaction since, or damaged."""
        lost, self._unread = self._unread, None
        for key, size in self._segments.items():
            path = self._store.local_path(key) if key else None
            try:
                if path is not None and path.stat().st_size != size:
                    return key
            except FileNotFoundError:
                return key
        return lost

    def _note_unread(self, key: str) -> None:
        self._unread = key

    # -- following the log ------------------------------------------------------------------------

    def refresh(self, *, again: bool = False, skip_damaged: bool = False) -> None:
        """Apply what changed in the log's files since the last poll.

        Raises Corrupt where a stream cannot be read, unless `skip_damaged`: then the views show the
        others, and `files.damaged` has what they do not show.
        """
        import duckdb

        for tries_left in reversed(range(_TRIES_MAX)):
            try:
                self._refresh(again=again, is_last=not tries_left)
                break
            except (duckdb.IOException, NotFound) as error:
                self._start_over()
                if not tries_left:
                    raise Corrupt(
                        f"a segment that a manifest names cannot be read: {error}. "
                        "`dynamic-workflows verify` shows what is affected"
                    ) from None
            except BaseException:
                self._start_over()
                raise
        damaged = self.files.damaged
        if damaged and self._tenant is not None:
            raise next(iter(damaged.values()))
        if damaged and not skip_damaged:
            raise corruption.refusal(damaged)

    def _poll(
        self, *, again: bool, is_last: bool
    ) -> tuple[list[DeltaWithTombstones], list[StreamState]]:
        """Return the changes, each with the tombstones of its segments, and the removed streams."""
        updates, gone = self.files.poll(again=again)
        deltas = []
        for update in updates:
            stream = update.state.stream
            try:
                if stream in self._left_out:
                    raise self._left_out[stream]
                deltas.append((update, self._sealed_tombstones(update)))
            except NotFound as error:
                if not is_last:
                    raise
                gone += self.files.leave_out(stream, Corrupt(error.message, path=stream))
            except Corrupt as error:
                gone += self.files.leave_out(stream, error)
        for stream in self._left_out.keys() & self.files.states.keys():
            gone += self.files.leave_out(stream, self._left_out[stream])
        return deltas, gone

    def _refresh(self, *, again: bool, is_last: bool) -> None:
        updates, gone = self._poll(again=again, is_last=is_last)
        is_open = self._tenant is not None and not self._is_locked
        is_shown = self._shown[2:] == (self._is_nested,)
        if not updates and not gone and not is_open and not self.files.damaged and is_shown:
            return
        segments = self._sealed_files()
        if segments != self._segments and self._is_locked:
            # What a locked connection may read is fixed, so it is replaced.
            self.connection.close()
            self._open()
            updates, gone = self._poll(again=False, is_last=is_last)
            segments = self._sealed_files()
        self._writer.begin()
        try:
            for tenant_id in self._unwanted(gone):
                self._forget(tenant_id)
                self._forget_tombstones(tenant_id)
            for update, tombstones in updates:
                self._apply(update, tombstones)
            self._define(segments)
            self._writer.commit()
        except BaseException:
            self._writer.rollback()
            raise

    def _unwanted(self, gone: Iterable[StreamState]) -> set[str]:
        """Return the tenants that must not be shown."""
        damaged = self.files.damaged
        shown = (self._with_tail | self._with_tombstones) if damaged else set()
        left_out = {tenant_id for tenant_id in shown if tenant_stream(tenant_id) in damaged}
        return left_out | {state.manifest.tenant_id for state in gone}

    def _start_over(self) -> None:
        """Discard all state after a failure, so that the next poll reads everything again."""
        self.files.states.clear()
        self._writer.execute(f"DELETE FROM {TAIL}")
        self._writer.execute(f"DELETE FROM {DEAD}")
        self._with_tail.clear()
        self._with_tombstones.clear()
        # No list of segments is like this one, so the views are defined again.
        self._segments, self._shown = {"": 0}, ()

    def _sealed_files(self) -> dict[str, int]:
        """Return key and size of every segment."""
        return {info.key: info.bytes for info in self._segment_infos()}

    def _segment_infos(self) -> list[SegmentInfo]:
        return [
            info
            for state in self.files.states.values()
            for info in state.manifest.segments
            if info.rows
        ]

    def _forget(self, tenant_id: str, *, upto_seq: int | None = None) -> None:
        """Drop a tenant's unsealed rows, up to a number or all of them."""
        # Most tenants sleep and have none: a statement for each would make the first look slow.
        if tenant_id not in self._with_tail:
            return
        if upto_seq is None:
            self._with_tail.discard(tenant_id)
            self._writer.execute(f"DELETE FROM {TAIL} WHERE tenant_id = ?", [tenant_id])
        else:
            self._writer.execute(
                f"DELETE FROM {TAIL} WHERE tenant_id = ? AND seq <= ?", [tenant_id, upto_seq]
            )

    def _forget_tombstones(self, tenant_id: str) -> None:
        if tenant_id in self._with_tombstones:
            self._with_tombstones.discard(tenant_id)
            self._writer.execute(f"DELETE FROM {DEAD} WHERE tenant_id = ?", [tenant_id])

    def _apply(self, update: StreamDelta, tombstones: list[pa.Table]) -> None:
        from ..segments import segment

        manifest = update.state.manifest
        tenant_id = manifest.tenant_id
        self._forget(tenant_id, upto_seq=None if update.is_whole else manifest.sealed_seq)
        if update.rows:
            table = segment.to_table(tenant_id, update.rows)
            columns = ", ".join(f'"{name}"' for name in STORED)
            self._insert(f"INSERT INTO {TAIL} SELECT {columns} FROM incoming", table)
            self._with_tail.add(tenant_id)
        self._apply_tombstones(update, tombstones)

    def _sealed_tombstones(self, update: StreamDelta) -> list[pa.Table]:
        """Return the tombstones of new segments; raises Corrupt or NotFound."""
        import pyarrow as pa

        from ..segments import segment

        if not update.is_new_manifest and not update.is_whole:
            return []
        found = []
        for info in update.state.manifest.segments:
            if info.tombstones:
                data = self._store.get_blocking(info.key)
                try:
                    found.append(segment.tombstones(data))
                except (pa.ArrowException, OSError, ValueError):
                    raise corruption.corrupted(info.key) from None
        return found

    def _apply_tombstones(self, update: StreamDelta, found: list[pa.Table]) -> None:
        from ..segments import segment

        manifest = update.state.manifest
        tenant_id = manifest.tenant_id
        if update.is_new_manifest or update.is_whole:
            self._forget_tombstones(tenant_id)
        if not update.is_whole and update.is_new_manifest and tenant_id in self._with_tail:
            after = 0
        else:
            after = update.rows[0].seq if update.rows else manifest.sealed_seq + 1
        if after == 0 or any(row.type == segment.TOMBSTONE for row in update.rows):
            self._with_tombstones.add(tenant_id)
            self._writer.execute(
                f"INSERT INTO {DEAD} SELECT tenant_id, workflow, instance_id, seq FROM {TAIL} "
                "WHERE tenant_id = ? AND seq >= ? AND type = ?",
                [tenant_id, after, segment.TOMBSTONE],
            )
        for table in found:
            self._with_tombstones.add(tenant_id)
            self._insert(f"INSERT INTO {DEAD} FROM incoming", table)

    def _insert(self, sql: str, table: pa.Table) -> None:
        self._writer.register("incoming", table)
        try:
            self._writer.execute(sql)
        finally:
            self._writer.unregister("incoming")

    def _define(self, segments: dict[str, int], *, first: bool = False) -> None:
        has_dead = bool(self._writer.execute(f"SELECT 1 FROM {DEAD} LIMIT 1").fetchall())
        shown = (segments, has_dead, self._is_nested)
        if self._is_nested and not self._has_nested_macros:
            self._has_nested_macros = True
            for macro in NESTED_MACROS:
                self._writer.execute(macro)
        if first or shown != self._shown:
            self._writer.execute(
                events_sql(self._sealed(segments), has_dead=has_dead, is_nested=self._is_nested)
            )
        if first:
            for definition in FOLDS:
                self._writer.execute(definition)
        self._segments, self._shown = segments, shown
        if self._tenant is not None and not first and not self._is_locked:
            self._lock_down(segments)

    def _sealed(self, segments: dict[str, int]) -> str | None:
        if not segments:
            return None
        if (paths := self._paths(segments)) is not None:
            return files_relation(paths)
        from .arrow_filesystem import dataset

        # Registered names belong to one connection, so both get it.
        for connection in (self._writer, self.connection):
            connection.register(SEALED, dataset(self._store, segments, self._note_unread))
        return SEALED

    def _paths(self, keys: Iterable[str]) -> list[str] | None:
        # A path with such a character would be taken for a pattern.
        paths = [self._store.local_path(key) for key in keys]
        if any(path is None or _PATTERN.intersection(str(path)) for path in paths):
            return None
        return [str(path) for path in paths]

    def _lock_down(self, keys: Iterable[str]) -> None:
        """Restrict this instance to these files, and lock its settings."""
        import duckdb

        # `allowed_paths` lets a statement write as well as read: check_select takes SELECT only.
        paths = self._paths(keys) or []
        listed = ", ".join(map(quoted, paths))
        for setting in (
            f"allowed_paths = [{listed}]",
            "enable_external_access = false",
            "lock_configuration = true",
        ):
            try:
                self._writer.execute(f"SET GLOBAL {setting}")
            except duckdb.Error:
                self.close()
                raise
        self._is_locked = True


def _connect(memory_mb: int, threads: int, tenant: str | None) -> duckdb.DuckDBPyConnection:
    import duckdb

    # Spilling is for the platform's queries; a tenant's must not fill the disk.
    spill = "" if tenant is not None else spill_folder()
    connection = duckdb.connect(
        ":memory:",
        config={
            "memory_limit": f"{memory_mb}MiB",
            "threads": str(threads),
            "temp_directory": spill,
            "allow_community_extensions": "false",
            "autoinstall_known_extensions": "false",
            "autoload_known_extensions": "false",
            "python_enable_replacements": "false",
        },
    )
    connection.execute("LOAD icu")
    connection.execute("SET GLOBAL TimeZone = 'UTC'")
    connection.execute("LOAD parquet")
    # Segments never change under their names.
    connection.execute("SET GLOBAL parquet_metadata_cache = true")
    return connection
