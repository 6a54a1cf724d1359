"""ObjectWal: the WAL of one owner on an object store. One object per batch, never changed.

While one object is on its way, everything that is appended gathers for the next. The next number is
created, never overwritten: a newer owner's fence under that name is how this one learns of it.
Fences are never removed, so no number that fenced an owner becomes free again.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Sequence
from typing import Protocol

from ..backoff import Backoff
from ..errors import Fenced, PlatformClosed, Unavailable, WorkflowsError
from ..events import Row
from ..store.base import AlreadyExists, NotFound, Store
from .format import (
    HEAD_BYTES,
    BlockEncoder,
    FileParser,
    WalCheckpoint,
    WalHeader,
    corrupt,
    decode_header,
    wal_key,
)
from .tail import TailBlock

COMMIT_TRIES_MAX = 6
_BACKOFF = Backoff(0.05, 5.0)

OnBlock = Callable[[TailBlock], None]
OnFailure = Callable[[WorkflowsError], None]


class HeaderMaker(Protocol):
    """Makes the header of the file with a number, with a write token of its own."""

    def __call__(self, number: int) -> WalHeader:
        """Return the header."""
        ...


class ObjectWal:
    """Writes numbered rows; see `EventLog.append` for what their futures mean."""

    def __init__(
        self,
        store: Store,
        stream: str,
        *,
        make_header: HeaderMaker,
        on_block: OnBlock,
        on_failure: OnFailure,
    ) -> None:
        self._store = store
        self._stream = stream
        self._make_header = make_header
        self._on_block = on_block
        self._on_failure = on_failure
        self._loop = asyncio.get_running_loop()
        self._encoder = BlockEncoder()
        self._checkpoint: WalCheckpoint | None = None
        self._number = 0
        self._epoch = 0
        self._rows: list[Row] = []
        self._first_seq = 0
        self._next_seq = 0
        self._waiters: list[asyncio.Future[None]] = []
        self._in_flight: list[asyncio.Future[None]] = []
        self._task: asyncio.Task[None] | None = None
        self.failed: WorkflowsError | None = None

    @property
    def number(self) -> int:
        """The highest number that this owner has created."""
        return self._number

    @property
    def committed_seq(self) -> int:
        """The highest number that is durable."""
        assert self._checkpoint is not None
        return self._checkpoint.last_seq

    async def fence(self, header: WalHeader, *, sync_first: bool) -> None:
        """Create the next file, which fences the owner before; raises AlreadyExists if it
        exists.

        `sync_first` says nothing here: what an object store shows is durable.
        """
        key = wal_key(self._stream, header.number)
        encoded = self._encoder.header(header)
        if not await self._create(key, encoded):
            raise AlreadyExists(f"{self._store.root}: {key} exists")
        self._number = header.number
        self._epoch = header.epoch

    def start(self, checkpoint: WalCheckpoint) -> None:
        """Begin to write, going on from `checkpoint`."""
        self._checkpoint = checkpoint
        self._next_seq = checkpoint.last_seq + 1

    def append(
        self, rows: Sequence[Row], *, next_seq: int, future: asyncio.Future[None], durable: bool
    ) -> None:
        """Append rows up to `next_seq`; they are written with the next object."""
        assert self.failed is None, "a log that failed takes no rows"
        if rows:
            if not self._rows:
                self._first_seq = rows[0].seq
            self._rows += rows
            self._next_seq = next_seq
        self._waiters.append(future)
        if self._task is None:
            self._task = self._loop.create_task(self._commit_all())

    async def _commit_all(self) -> None:
        try:
            while self._waiters and self.failed is None:
                self._in_flight, self._waiters = self._waiters, []
                rows, self._rows = self._rows, []
                if rows:
                    await self._commit(rows, self._first_seq, self._next_seq)
                for future in self._in_flight:
                    if not future.done():
                        future.set_result(None)
                self._in_flight = []
        except WorkflowsError as error:
            self.fail(error)
        except Exception as error:
            self.fail(WorkflowsError(f"the log {self._stream} failed: {error!r}"))
            raise
        finally:
            self._task = None

    async def _commit(self, rows: list[Row], first_seq: int, next_seq: int) -> None:
        """Create the next object, or raise Fenced or Unavailable."""
        assert self._checkpoint is not None
        span = next_seq - first_seq
        block = bytes(self._encoder.rows(rows, first_seq=first_seq, span=span, synced=0))
        checkpoint = self._encoder.checkpoint(self._checkpoint)
        number = self._number + 1
        header = self._encoder.header(self._make_header(number))
        data = header + checkpoint + block
        key = wal_key(self._stream, number)
        if not await self._create(key, data):
            await self._explain_clash(key)
        self._number = number
        offset = len(header) + len(checkpoint) + HEAD_BYTES
        body = block[HEAD_BYTES:-4]
        self._checkpoint = WalCheckpoint(
            number=number,
            end=len(data),
            sha256=hashlib.sha256(data).hexdigest(),
            last_seq=next_seq - 1,
        )
        self._on_block(TailBlock(first_seq, next_seq - 1, number, offset, len(body), body))

    async def _create(self, key: str, data: bytes) -> bool:
        """Return True when our bytes are under this name, False when another's are.

        The reply to a create may be all that was lost, so a failure is answered by reading. A
        conflict between two creates (HTTP 409) may leave the name free: then it is tried again.
        """
        problem: WorkflowsError | None = None
        for tries in range(COMMIT_TRIES_MAX):
            if tries > 1:
                await asyncio.sleep(_BACKOFF.rest_s(tries))
            try:
                await self._store.create(key, data)
                return True
            except (AlreadyExists, Unavailable) as error:
                problem = error
            try:
                return await self._store.get(key) == data
            except NotFound:
                pass
            except Unavailable as error:
                problem = error
        raise Unavailable(
            f"{key} could not be written ({problem}). What was not acknowledged may or may not be "
            "in the log: reopen it to know"
        )

    async def _explain_clash(self, key: str) -> None:
        """Raise the error for another file under the next number."""
        blocks = FileParser(key).feed(await self._store.get(key))
        if not blocks:
            raise corrupt(key, 0, "it does not begin with a whole header")
        header = decode_header(blocks[0])
        if header.epoch > self._epoch:
            raise Fenced(
                f"epoch {self._epoch} of {self._stream} was superseded by {header.epoch} at "
                f"{key}. What was not acknowledged may or may not be in the log: reopen it to know",
                path=key,
            )
        # The owners before us were fenced below our own first number, so this cannot be theirs.
        raise corrupt(key, 0, f"epoch {header.epoch} wrote it after epoch {self._epoch} had begun")

    def fail(self, error: WorkflowsError) -> None:
        """Poison the log: nothing pending or later succeeds."""
        if self.failed is not None:
            return
        self.failed = error
        waiters = self._in_flight + self._waiters
        self._in_flight, self._waiters, self._rows = [], [], []
        self._on_failure(error)
        for future in waiters:
            if not future.done():
                future.set_exception(error)
                future.exception()  # marks it as retrieved: later appends raise `failed`

    async def close(self) -> None:
        """Commit what was appended, then refuse appends."""
        while self._task is not None:
            await asyncio.wait([self._task])
        await self.abandon()

    async def abandon(self) -> None:
        """Refuse appends; objects in flight may or may not arrive."""
        if self._task is not None:
            self._task.cancel()
        self.fail(PlatformClosed(f"the log {self._stream} was closed: open it again"))
