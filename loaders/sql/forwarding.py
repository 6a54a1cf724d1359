"""Forwarding: the store of a SQL process without network: the platform reads for it.

So a process that runs a tenant's SQL over a bucket has neither network nor credentials. The
platform reads objects of that tenant's stream only, whatever the process requests.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import msgspec

from dynamic_workflows.eventlog.errors import Unavailable, WorkflowsError
from dynamic_workflows.eventlog.manifest import tenant_stream
from dynamic_workflows.eventlog.store.base import Entries, Entry, NotFound, Store, check_key

from .messages import ENTRIES, PART, READ, TROUBLE, SqlFailure, SqlFrames, SqlRead

T = TypeVar("T")

RANGE_BYTES_MAX = 256 << 20
_to_bytes = msgspec.msgpack.Encoder().encode
_entries = msgspec.msgpack.Decoder(list[tuple[str, int]]).decode
_failure = msgspec.msgpack.Decoder(SqlFailure).decode
_read = msgspec.msgpack.Decoder(SqlRead).decode


class ForwardingStore:
    """The reading half of a Store in the SQL process, which forwards to the platform."""

    def __init__(self, root: str, frames: SqlFrames) -> None:
        self.root = root
        self._frames = frames
        # Arrow reads in several threads; the platform answers one wish at a time.
        self._asking = threading.Lock()

    def get_blocking(self, key: str) -> bytes:
        """Return all of the object's bytes."""
        return self._ask(SqlRead("get", key))

    def get_range_blocking(self, key: str, start: int, length: int) -> bytes:
        """Return a range of the object's bytes."""
        return self._ask(SqlRead("range", key, start, length))

    def list_blocking(self, prefix: str, *, after: str | None = None) -> Entries:
        """Return the entries with this prefix."""
        found = _entries(self._ask(SqlRead("list", prefix, after=after)))
        return [Entry(key, size) for key, size in found]

    def local_path(self, key: str) -> Path | None:
        """Return None: the object has no file here."""
        return None

    async def close(self) -> None:
        """Do nothing."""

    async def _refuse(self, *args: object, **kwargs: object) -> NoReturn:
        raise NotImplementedError("a SQL process reads, and waits for what it reads")

    create = put = get = get_range = list = delete = _refuse

    def _ask(self, read: SqlRead) -> bytes:
        with self._asking:
            self._frames.send(READ, _to_bytes(read))
            kind, data = self._frames.receive()
        if kind == TROUBLE:
            failure = _failure(data)
            error = NotFound if failure.error == "NotFound" else Unavailable
            raise error(failure.message, code=failure.code)
        return data


class StoreWindow:
    """The platform's side: reads the objects of one tenant's stream for its SQL process."""

    def __init__(self, store: Store, tenant_id: str) -> None:
        self._store = store
        self._prefix = f"{tenant_stream(tenant_id)}/"
        self.trouble: WorkflowsError | None = None
        """The last failure of the store itself, in its own words."""

    def answer(self, data: bytes, *, until_s: float) -> tuple[int, bytes]:
        """Return the frame that answers a request; raises TimeoutError where the store takes
        longer.

        Raises EOFError for a wish that no SQL process of ours has.
        """
        try:
            read = _read(data)
            is_within = check_key(read.key.rstrip("/")).startswith(self._prefix[:-1])
            if not is_within or not read.key.startswith(self._prefix):
                raise EOFError
        except (msgspec.MsgspecError, WorkflowsError):
            raise EOFError from None
        if not (0 <= read.length <= RANGE_BYTES_MAX and read.start >= 0):
            raise EOFError
        try:
            return within(lambda: self._read(read), until_s - time.monotonic())
        except (NotFound, Unavailable) as error:
            if isinstance(error, Unavailable):
                self.trouble = error
            failure = SqlFailure(type(error).__name__, error.code, error.message)
            return TROUBLE, _to_bytes(failure)

    def _read(self, read: SqlRead) -> tuple[int, bytes]:
        if read.what == "get":
            return PART, self._store.get_blocking(read.key)
        if read.what == "range":
            return PART, self._store.get_range_blocking(read.key, read.start, read.length)
        found = self._store.list_blocking(read.key, after=read.after)
        return ENTRIES, _to_bytes([(entry.key, entry.size) for entry in found])


def within(work: Callable[[], T], seconds: float) -> T:
    """Return what the work returns; raises TimeoutError when it takes longer, and drops its result
    then."""
    outcome: queue.SimpleQueue[tuple[bool, Any]] = queue.SimpleQueue()

    def run() -> None:
        try:
            outcome.put((True, work()))
        except BaseException as error:
            outcome.put((False, error))

    # A daemon: a store that hangs must not keep the program from ending.
    threading.Thread(target=run, name="sql-store", daemon=True).start()
    try:
        is_result, value = outcome.get(timeout=max(seconds, 0.0))
    except queue.Empty:
        raise TimeoutError from None
    if not is_result:
        raise value
    result: T = value
    return result
