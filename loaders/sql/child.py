"""SQL child: the main function of the process in which one tenant's statements run.

It is forked from a process that has imported all it needs, applies its sandbox before it reads a
byte of the tenant, opens its DuckDB, and answers statement after statement until its platform
closes the socket.
"""

from __future__ import annotations

import io
import os
import re
import resource
from pathlib import Path
from typing import Any, NoReturn

import msgspec
import pyarrow as pa

from dynamic_workflows.eventlog.codec.values import decode
from dynamic_workflows.eventlog.errors import (
    Corrupt,
    QueryError,
    SandboxUnavailable,
    WorkflowsError,
)
from dynamic_workflows.eventlog.query.duckdb_views import LogViews
from dynamic_workflows.eventlog.query.limits import QueryLimits
from dynamic_workflows.eventlog.store.local import LocalStore
from dynamic_workflows.eventlog.units import MIB

from ..sandbox import linux
from .forwarding import ForwardingStore
from .messages import (
    BEGUN,
    DATA,
    DATA_BYTES_MAX,
    DONE,
    FAILED,
    QUESTION,
    WORN,
    SqlFailure,
    SqlFrames,
    SqlOpening,
    SqlQuestion,
)
from .sandbox import SPARE_BYTES, enter_sandbox

_MESSAGE_MAX = 8_000
_ABOUT_MEMORY = re.compile(r"out of memory|bad_alloc|bad allocation|allocat", re.IGNORECASE)
_to_bytes = msgspec.msgpack.Encoder().encode
_question = msgspec.msgpack.Decoder(SqlQuestion).decode


def serve(
    frames: SqlFrames, opening: SqlOpening, *, isolation: str, libraries: list[str]
) -> NoReturn:
    """Apply the sandbox, report it, and answer until the other end has closed."""
    try:
        enter_sandbox(
            isolation=isolation,
            libraries=libraries,
            folder=opening.folder,
            memory_bytes=2 * opening.memory_mb * MIB + SPARE_BYTES,
            ours=frames.fileno(),
        )
        views = _views(frames, opening)
        worn_from = _peak_bytes() + opening.memory_mb * MIB
        frames.send(DONE)
    except SandboxUnavailable as error:
        _fail(frames, error)
        os._exit(1)
    except Exception as error:
        _fail(frames, SandboxUnavailable(f"a process for SQL could not be set up: {error!r}"))
        os._exit(1)
    try:
        while True:
            kind, data = frames.receive()
            if kind != QUESTION:
                os._exit(1)
            frames.send(BEGUN)
            _answer(views, frames, _question(data), worn_from)
    except (EOFError, OSError):
        os._exit(0)  # the platform is gone, or has no more use for this process


def _views(frames: SqlFrames, opening: SqlOpening) -> LogViews:
    limits = QueryLimits(opening.timeout_s, opening.memory_mb, opening.sql_bytes_max)
    store: Any = ForwardingStore(opening.root, frames)
    if opening.is_local:
        store = LocalStore(Path(opening.root))
    return LogViews(store, tenant=opening.tenant, limits=limits, threads=opening.threads)


def _peak_bytes() -> int:
    return linux.peak_bytes(resource.getrusage(resource.RUSAGE_SELF))


def _answer(views: LogViews, frames: SqlFrames, question: SqlQuestion, worn_from: int) -> None:
    """Answer a statement; a process that once needed more memory than `worn_from` reports that.

    Allocators keep what they have: the next statement would find too little below the limit.
    """
    try:
        params = decode(question.params) if question.params else None
        table = views.query(question.sql, params, skip_damaged=question.skip_damaged)
        sink = pa.PythonFile(_Sink(frames), mode="w")
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
    except WorkflowsError as error:
        is_worn = _peak_bytes() > worn_from or bool(_ABOUT_MEMORY.search(error.message))
        _fail(frames, error, is_worn=is_worn)
    except MemoryError:
        problem = QueryError("Out of Memory Error: this query needs more than it may have")
        _fail(frames, problem, is_worn=True)
    except OSError:
        raise
    except Exception as error:
        # Nothing that a statement leads to may end the process but its limits.
        _fail(frames, QueryError(f"the query failed: {type(error).__name__}"), is_worn=True)
    else:
        frames.send(DONE, WORN if _peak_bytes() > worn_from else b"")


def _fail(frames: SqlFrames, error: WorkflowsError, *, is_worn: bool = False) -> None:
    failure = SqlFailure(
        type(error).__name__, error.code, error.message[:_MESSAGE_MAX], is_worn=is_worn
    )
    if isinstance(error, Corrupt):
        details = error.details
        failure = msgspec.structs.replace(
            failure, path=str(details.get("path", "")), offset=int(details.get("offset", 0))
        )
    frames.send(FAILED, _to_bytes(failure))


class _Sink(io.RawIOBase):
    """Writes an answer to the platform, piece by piece."""

    def __init__(self, frames: SqlFrames) -> None:
        self._frames = frames

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        for start in range(0, len(view), DATA_BYTES_MAX):
            self._frames.send(DATA, view[start : start + DATA_BYTES_MAX])
        return len(view)
