"""SQL engine: answers one tenant's statements by a SQL process, which it replaces when needed.

A statement that exceeds time, memory or disk space ends its process at the worst; the next one gets
a fresh process. What the process sends is bounded, checked, and never run.
"""

from __future__ import annotations

import contextlib
import io
import os
import signal
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from dynamic_workflows.eventlog.codec.values import encode
from dynamic_workflows.eventlog.errors import (
    Corrupt,
    InvalidError,
    QueryError,
    Unavailable,
    UnserialisableValueError,
    ValueTooLargeError,
    WorkflowsError,
)
from dynamic_workflows.eventlog.manifest import tenant_stream
from dynamic_workflows.eventlog.query.limits import (
    PARAMS_BYTES_MAX,
    QueryLimits,
    out_of_memory,
    timed_out,
    too_large,
)
from dynamic_workflows.eventlog.query.sql_guard import check_size
from dynamic_workflows.eventlog.store.base import Store
from dynamic_workflows.eventlog.units import MIB

from . import sandbox
from .forwarding import StoreWindow
from .messages import (
    BEGUN,
    DATA,
    DONE,
    FAILED,
    QUESTION,
    READ,
    WORN,
    SqlFailure,
    SqlOpening,
    SqlQuestion,
)
from .process import SqlProcess, SqlZygote, hold_zygote, release_zygote

if TYPE_CHECKING:
    import pyarrow as pa

_GRACE_S = 0.5
"""Beyond the deadline: an interrupted process says so by itself, and lives on."""
_ERRORS: dict[str, type[WorkflowsError]] = {
    "QueryError": QueryError,
    "Corrupt": Corrupt,
    "InvalidError": InvalidError,
    "Unavailable": Unavailable,
}
_encode = msgspec.msgpack.Encoder().encode
_failure = msgspec.msgpack.Decoder(SqlFailure).decode


class SqlEngine:
    """Answers the statements of one tenant, one at a time, from any thread."""

    def __init__(
        self, store: Store, tenant_id: str, *, limits: QueryLimits, threads: int, isolation: str
    ) -> None:
        self._store = store
        self._tenant = tenant_id
        self._limits = limits
        self._threads = threads
        self._isolation = isolation
        self._folder = store.local_path(tenant_stream(tenant_id))
        self._lock = threading.Lock()
        self._zygote: SqlZygote | None = None
        self._process: SqlProcess | None = None
        self._seen: object = None
        self._is_busy = self._is_interrupted = self._is_closed = False

    @property
    def pid(self) -> int | None:
        """The id of the process that waits for the next statement."""
        return self._process.pid if self._process is not None else None

    def query(self, sql: str, params: object, *, skip_damaged: bool) -> pa.Table:
        """Return what Reader.query does."""
        check_size(sql, self._limits.sql_bytes_max)
        question = _encode(SqlQuestion(sql, _encoded(params), skip_damaged))
        with self._lock:
            if self._is_closed:
                raise InvalidError("this reader was closed: open a new one")
            is_warm = self._make_ready()
            self._is_busy, self._is_interrupted = True, False
            try:
                try:
                    return self._ask(question)
                except _NotBegun:
                    # It may have ended between two statements.
                    self._drop()
                    if self._is_interrupted:
                        raise interrupted() from None
                    if not is_warm:
                        raise Unavailable("a process for this query ended at once") from None
                    self._make_ready()
                    return self._ask(question)
                finally:
                    self._is_busy = False
            except _NotBegun:
                self._drop()
                raise Unavailable("a process for this query ended at once") from None

    def interrupt(self) -> None:
        """Stop the running statement, if there is one."""
        process = self._process
        if self._is_busy and process is not None:
            self._is_interrupted = True
            process.kill()

    def close(self) -> None:
        """End the process. Waits for a running statement."""
        with self._lock:
            self._is_closed = True
            self._drop()
            zygote, self._zygote = self._zygote, None
            if zygote is not None:
                release_zygote(zygote)

    # --- processes ------------------------------------------------------------------------------

    def _make_ready(self) -> bool:
        """Start a process unless there is one; return whether there was."""
        folder = _identity(self._folder)
        process = self._process
        if process is not None and process.is_ours and folder == self._seen:
            return True
        self._drop()
        if self._zygote is None or self._zygote.has_ended:
            if self._zygote is not None:
                release_zygote(self._zygote)
            self._zygote = hold_zygote(self._isolation)
        # Its walls leave it the directory that is there now; one that comes later is another.
        self._seen = folder
        self._process = self._zygote.spawn(
            SqlOpening(
                root=self._store.root,
                folder=os.path.realpath(self._folder) if self._folder and folder else None,
                is_local=self._folder is not None,
                tenant=self._tenant,
                timeout_s=self._limits.timeout_s,
                memory_mb=self._limits.memory_mb,
                threads=self._threads,
                sql_bytes_max=self._limits.sql_bytes_max,
            )
        )
        return False

    def _drop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.close()

    # --- one statement --------------------------------------------------------------------------

    def _ask(self, question: bytes) -> pa.Table:
        import pyarrow as pa

        process = self._process
        assert process is not None
        timeout_s = self._limits.timeout_s
        until_s = time.monotonic() + timeout_s + _GRACE_S
        sandbox.limit_cpu(process.pid, int((timeout_s + _GRACE_S) * (self._threads + 1)))
        try:
            process.frames.send(QUESTION, question, until_s=until_s)
        except TimeoutError:
            self._drop()
            raise timed_out(timeout_s) from None
        except OSError:
            raise _NotBegun from None
        answer = _AnswerFile(
            process,
            StoreWindow(self._store, self._tenant),
            until_s=until_s,
            bytes_max=self._limits.memory_mb * MIB,
        )
        try:
            batches, schema = [], None
            with contextlib.suppress(_Failed):
                answer.wait()
                with pa.ipc.open_stream(pa.PythonFile(answer, mode="r")) as reader:
                    schema = reader.schema
                    for batch in reader:
                        # Its writer may be hostile: every offset is checked.
                        batch.validate(full=True)
                        batches.append(batch)
                answer.finish()
            if answer.is_worn:
                self._drop()
            if answer.failure is None and answer.problem is None and schema is not None:
                return pa.Table.from_batches(batches, schema=schema)
        except (pa.ArrowException, OSError, EOFError, TimeoutError) as error:
            if answer.failure is None:
                answer.problem = answer.problem or error
        if answer.failure is not None and answer.problem is None:
            raise self._told(answer.failure, answer.window)
        is_early = isinstance(answer.problem, EOFError) and not answer.has_begun
        if is_early and not self._is_interrupted:
            raise _NotBegun  # it was ending already, not for anything in this statement
        raise self._lost(process, answer)

    def _told(self, failure: SqlFailure, window: StoreWindow) -> WorkflowsError:
        """Return the error that the process reports of the statement."""
        if failure.error == "Unavailable" and window.trouble is not None:
            return window.trouble
        kind = _ERRORS.get(failure.error, QueryError)
        if kind is Corrupt:
            return Corrupt(failure.message, path=failure.path, offset=failure.offset)
        is_known = failure.code.startswith(("query.", "invalid", "platform."))
        return kind(failure.message, code=failure.code if is_known else None)

    def _lost(self, process: SqlProcess, answer: _AnswerFile) -> WorkflowsError:
        """Return the error for a process that sent neither an answer nor an error, and drop the
        process."""
        problem, is_interrupted = answer.problem, self._is_interrupted
        process.kill()
        ended_by = process.how_ended() if isinstance(problem, EOFError) else None
        self._drop()
        if is_interrupted:
            return interrupted()
        if isinstance(problem, TimeoutError) or ended_by == signal.SIGXCPU:
            return timed_out(self._limits.timeout_s)
        if isinstance(problem, QueryError):
            return problem
        if isinstance(problem, EOFError):
            return out_of_memory(self._limits.memory_mb)
        if isinstance(problem, Exception) and "precision" in str(problem):
            return QueryError(
                "the answer of this query holds a number of more than 38 digits: cast it to text"
                " (::varchar)"
            )
        return QueryError("the answer of this query cannot be read")


class _NotBegun(Exception):
    """The process has not begun the statement."""


class _Failed(Exception):
    """The process reports why there is no answer, or has ended."""


class _AnswerFile(io.RawIOBase):
    """Reads an answer from its process, and answers the process's own requests meanwhile."""

    def __init__(
        self, process: SqlProcess, window: StoreWindow, *, until_s: float, bytes_max: int
    ) -> None:
        self.window = window
        self.failure: SqlFailure | None = None
        self.problem: Exception | None = None
        self.has_begun = False
        self.is_worn = False
        self._process = process
        self._until_s = until_s
        self._bytes_max = bytes_max
        # The stream's own words and padding come on top of what the columns hold.
        self._left = bytes_max + bytes_max // 4 + MIB
        self._data = memoryview(b"")
        self._is_done = False

    def readable(self) -> bool:
        return True

    def wait(self) -> None:
        """Return when an answer begins; _Failed if none does."""
        if not self._data and not self._is_done:
            self._receive()

    def finish(self) -> None:
        """Return when the process has sent the end of the answer."""
        while not self._is_done:
            self._data = memoryview(b"")
            self._receive()

    def read(self, size: int = -1) -> bytes:
        """Return so many bytes, fewer only at the end."""
        if size < 0 or size > self._left + len(self._data):
            self._give_up(too_large(self._bytes_max))
        parts = bytearray()
        while len(parts) < size and not (self._is_done and not self._data):
            if not self._data:
                self._receive()
                continue
            piece, self._data = self._data[: size - len(parts)], self._data[size - len(parts) :]
            parts += piece
        return bytes(parts)

    def _receive(self) -> None:
        """Receive the next piece of the answer."""
        frames = self._process.frames
        try:
            while True:
                kind, data = frames.receive(until_s=self._until_s, small=True)
                self.has_begun = True
                if kind == BEGUN:
                    continue
                if kind == READ:
                    frames.send(
                        *self.window.answer(data, until_s=self._until_s), until_s=self._until_s
                    )
                elif kind == DATA:
                    self._left -= len(data)
                    if self._left < 0:
                        self._give_up(too_large(self._bytes_max))
                    self._data = memoryview(data)
                    return
                elif kind == DONE:
                    self._is_done = True
                    self.is_worn = data == WORN
                    return
                elif kind == FAILED:
                    self.failure = _failure(data)
                    self.is_worn = self.failure.is_worn
                    self._is_done = True
                    raise _Failed
                else:
                    raise EOFError
        except msgspec.MsgspecError:
            self._give_up(EOFError())
        except (EOFError, OSError) as error:
            self._give_up(EOFError() if not isinstance(error, TimeoutError) else error)

    def _give_up(self, problem: Exception) -> None:
        # Arrow may put another error in its place: this is the one that counts.
        self.problem = self.problem or problem
        raise _Failed


def interrupted() -> QueryError:
    """Return the error for an interrupted statement, in DuckDB's words."""
    return QueryError("INTERRUPT Error: Interrupted!")


def _encoded(params: Any) -> bytes:
    if not params:
        return b""
    try:
        return encode(
            dict(params) if isinstance(params, dict) else list(params), bytes_max=PARAMS_BYTES_MAX
        )
    except ValueTooLargeError:
        raise QueryError(
            f"the parameters of this query take more than {PARAMS_BYTES_MAX} bytes: ask for less "
            "at a time"
        ) from None
    except UnserialisableValueError as error:
        raise QueryError(f"a parameter of this query cannot be used: {error.message}") from None


def _identity(folder: Path | None) -> object:
    """Return what tells a directory from another of its name; None where it does not exist."""
    if folder is None:
        return None
    try:
        found = os.stat(folder)
    except OSError:
        return None
    return found.st_dev, found.st_ino
