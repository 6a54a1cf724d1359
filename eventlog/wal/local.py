"""LocalWal: the WAL of one owner on a local disk. One write per loop turn, one sync per batch.

Rows are written when the loop turn ends in which they were appended, and synced by one thread; what
is written while a sync runs forms the next batch. After each sync, and before anything is
acknowledged, two cheap questions to the file system show whether a newer owner has come; the
argument why that suffices is docs/decisions/0002-fencing.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from ..errors import Fenced, PlatformClosed, WorkflowsError
from ..events import Row
from ..store.base import NotFound
from ..store.filesystem import explain, open_unnamed, write_all
from ..store.local import LocalStore
from .file import WalFile
from .format import HEAD_BYTES, BlockEncoder, FileParser, WalCheckpoint, WalHeader, wal_key
from .fsync_thread import Runner, Steps, SyncThread
from .scan import CHUNK_BYTES, WalScan
from .tail import TailBlock

TURN_ROWS_MAX = 4096
"""So many rows are written at once, even within one turn, to bound the size of a block."""
LAZY_SYNC_SECONDS = 1.0
"""Seconds after which rows are synced when no caller waits for their sync."""

T = TypeVar("T")
OnBlock = Callable[[TailBlock], None]
OnFailure = Callable[[WorkflowsError], None]


class LocalWal:
    """Writes numbered rows; see `EventLog.append` for what their futures mean."""

    def __init__(
        self,
        store: LocalStore,
        stream: str,
        *,
        on_block: OnBlock,
        on_failure: OnFailure,
        runner: Runner | None = None,
    ) -> None:
        self._disk = store.disk
        self._stream = stream
        self._directory = Path(store.local_path(wal_key(stream, 0))).parent
        self._on_block = on_block
        self._on_failure = on_failure
        self._loop = asyncio.get_running_loop()
        self._runner: Runner = runner or SyncThread("log-sync")
        self._encoder = BlockEncoder()
        self._file: WalFile | None = None
        self._number = 0
        self._rows: list[Row] = []
        self._first_seq = 0
        self._next_seq = 0
        self._turn: list[tuple[asyncio.Future[None], bool]] = []
        self._is_scheduled = False
        # Positions count written bytes over all files. A waiter is done when everything up to its
        # position is synced; position 0 waits only for the waiters before it.
        self._waiters: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._written = 0
        self._synced = 0
        self._in_flight = 0
        self._lazy: asyncio.TimerHandle | None = None
        self.failed: WorkflowsError | None = None

    @property
    def number(self) -> int:
        """The highest number that this owner has created."""
        return self._number

    # -- becoming the owner ------------------------------------------------------------------

    async def fence(self, header: WalHeader, *, sync_first: bool) -> None:
        """Create the next file, which fences the owner before; raises AlreadyExists if it
        exists.

        `sync_first`: sync the names below before.
        """
        encoded = self._encoder.header(header)
        steps = self._create_steps(header.number, encoded, sync_first=sync_first)
        old, self._file = self._file, None
        if old is not None:
            await self._run(self._close_steps(old))
        self._file = await self._run(steps)
        self._number = header.number

    async def make_durable(self, scan: WalScan) -> bool:
        """Sync what was read of older files; return False when one has grown since it was read."""
        if not any(file.number >= scan.last.number for file in scan.files):
            return True
        try:
            return await self._run(self._make_durable_steps(scan))
        except NotFound:
            return False  # sealed and removed by the owner before, whose manifest we shall meet

    def start(self, checkpoint: WalCheckpoint) -> None:
        """Begin to write, going on from `checkpoint`."""
        assert self._file is not None
        self._next_seq = checkpoint.last_seq + 1
        try:
            self._write(self._encoder.checkpoint(checkpoint))
        except OSError as error:
            raise explain(error, self._file.path) from None

    # -- writing -----------------------------------------------------------------------------

    def append(
        self, rows: Sequence[Row], *, next_seq: int, future: asyncio.Future[None], durable: bool
    ) -> None:
        """Append rows up to `next_seq`; they are written by the end of this loop turn."""
        assert self.failed is None, "a log that failed takes no rows"
        if rows:
            if not self._rows:
                self._first_seq = rows[0].seq
            self._rows += rows
            self._next_seq = next_seq
        self._turn.append((future, durable))
        if len(self._rows) >= TURN_ROWS_MAX:
            self._flush()
        elif not self._is_scheduled:
            self._is_scheduled = True
            self._loop.call_soon(self._end_turn)

    def flush(self) -> None:
        """Write now what was appended in this turn."""
        self._flush()

    def _end_turn(self) -> None:
        self._is_scheduled = False
        self._flush()

    def _flush(self) -> None:
        """Write what was appended, and schedule its sync."""
        if self.failed is not None or self._file is None:
            return
        file = self._file
        rows, turn = self._rows, self._turn
        self._rows, self._turn = [], []
        try:
            if rows:
                self._write_rows(file, rows)
            # Written is enough for those who said so, but not for a superseded owner's rows, nor in
            # a file that has no name yet.
            is_hasty = file.has_name and not all(durable for _, durable in turn)
            if is_hasty and file.is_fenced():
                raise self._fenced(file)
        except Fenced as error:
            self._waiters.extend((0, future) for future, _ in turn)
            self.fail(error)
            return
        except OSError as error:
            self._waiters.extend((0, future) for future, _ in turn)
            self.fail(explain(error, file.path))
            return
        must_sync = False
        for future, durable in turn:
            durable = durable or not file.has_name
            must_sync = must_sync or durable
            self._waiters.append((self._written if durable else 0, future))
        self._acknowledge_synced()
        if must_sync:
            self._start_sync()
        else:
            self._sync_lazily()

    def _write_rows(self, file: WalFile, rows: list[Row]) -> None:
        first_seq = self._first_seq
        span = self._next_seq - first_seq
        block = self._encoder.rows(rows, first_seq=first_seq, span=span, synced=file.synced)
        offset = file.offset
        self._write(block)
        self._on_block(
            TailBlock(
                first_seq,
                self._next_seq - 1,
                file.number,
                offset + HEAD_BYTES,
                len(block) - HEAD_BYTES - 4,
            )
        )

    def _write(self, data: bytes | bytearray) -> None:
        assert self._file is not None
        self._file.write(data)
        self._written += len(data)

    # -- syncing -----------------------------------------------------------------------------

    def _start_sync(self) -> None:
        """Sync what is written, unless a sync runs: its end starts the next."""
        if self._lazy is not None:
            self._lazy.cancel()
            self._lazy = None
        if self._in_flight or self.failed is not None or self._file is None:
            return
        file, written, offset = self._file, self._written, self._file.offset
        self._in_flight += 1

        def done(is_fenced: bool | None, error: BaseException | None) -> None:
            self._end_sync(file, written, offset, is_fenced, error)

        self._runner.submit(self._sync_steps(file), done)

    def _sync_lazily(self) -> None:
        if self._written > self._synced and self._lazy is None:
            self._lazy = self._loop.call_later(LAZY_SYNC_SECONDS, self._start_sync)

    def _sync_steps(self, file: WalFile) -> Steps[bool]:
        self._disk.datasync(file.handle)
        yield
        if self._disk.exists(file.next_path):
            return True
        yield
        return not self._disk.has_name(file.handle)

    def _end_sync(
        self,
        file: WalFile,
        written: int,
        offset: int,
        is_fenced: bool | None,
        error: BaseException | None,
    ) -> None:
        self._in_flight -= 1
        if self.failed is not None:
            return
        if isinstance(error, OSError):
            # The kernel may drop the pages and call the file clean: never sync this handle again.
            self.fail(explain(error, file.path))
        elif error is not None:
            raise error
        elif is_fenced:
            self.fail(self._fenced(file))
        else:
            file.synced = offset
            self._synced = max(self._synced, written)
            self._acknowledge_synced()
            if self._waiters:
                self._start_sync()
            else:
                self._sync_lazily()

    def _acknowledge_synced(self) -> None:
        waiters, synced = self._waiters, self._synced
        while waiters and waiters[0][0] <= synced:
            future = waiters.popleft()[1]
            if not future.done():
                future.set_result(None)

    def fail(self, error: WorkflowsError) -> None:
        """Poison the log: nothing pending or later succeeds."""
        if self.failed is not None:
            return
        self.failed = error
        waiters = [future for _, future in self._waiters] + [future for future, _ in self._turn]
        self._waiters.clear()
        self._turn, self._rows = [], []
        self._on_failure(error)
        for future in waiters:
            if not future.done():
                future.set_exception(error)
                future.exception()  # marks it as retrieved: later appends raise `failed`

    def _fenced(self, file: WalFile) -> Fenced:
        return Fenced(
            f"a newer owner has opened {self._stream}: {file.path} was superseded. What was not "
            "acknowledged may or may not be in the log: reopen it to know",
            path=file.path,
        )

    # -- rolling and closing -----------------------------------------------------------------

    async def roll(self, header: WalHeader) -> int:
        """Start a new file; the old ones are closed, synced and full up to the number returned.

        Appends go on meanwhile. They are acknowledged when the new file has its name.
        """
        old = self._file
        assert old is not None
        assert header.number == old.number + 1
        encoded = self._encoder.header(header)
        new = await self._run(self._prepare_steps(header.number, encoded))
        self._flush()
        if self.failed is not None:
            new.close()
            raise self.failed
        last_seq = self._next_seq - 1
        checkpoint = WalCheckpoint(
            number=old.number, end=old.offset, sha256=old.hash.hexdigest(), last_seq=last_seq
        )
        self._file = new
        try:
            self._write(self._encoder.checkpoint(checkpoint))
        except OSError as error:
            problem = explain(error, new.path)
            self.fail(problem)
            raise problem from None
        written = self._written
        self._in_flight += 1
        finished = self._loop.create_future()

        def done(is_fenced: bool | None, error: BaseException | None) -> None:
            if error is None and not is_fenced:
                new.has_name = True
                self._number = new.number
            self._end_sync(new, written, new.synced, is_fenced, error)
            if not finished.done():
                finished.set_result(None)

        self._runner.submit(self._link_steps(old, new), done)
        await finished
        if self.failed is not None:
            raise self.failed
        if self._written > self._synced:
            self._start_sync()
        return last_seq

    async def close(self) -> None:
        """Sync and acknowledge what was appended, then close the file."""
        if self.failed is None and self._file is not None:
            future = self._loop.create_future()
            self.append([], next_seq=self._next_seq, future=future, durable=True)
            with contextlib.suppress(WorkflowsError):
                await future
        await self.abandon()

    async def abandon(self) -> None:
        """Close the file without a last sync."""
        if self._lazy is not None:
            self._lazy.cancel()
            self._lazy = None
        self.fail(PlatformClosed(f"the log {self._stream} was closed: open it again"))
        file, self._file = self._file, None
        if file is not None:
            await self._run(self._close_steps(file))
        self._runner.close()

    # -- work for the thread -----------------------------------------------------------------

    async def _run(self, steps: Steps[T]) -> T:
        finished: asyncio.Future[T] = self._loop.create_future()

        def done(result: T | None, error: BaseException | None) -> None:
            if finished.done():
                return
            if isinstance(error, OSError):
                finished.set_exception(explain(error, str(self._directory)))
            elif error is not None:
                finished.set_exception(error)
            else:
                finished.set_result(result)  # type: ignore[arg-type]

        self._runner.submit(steps, done)
        return await finished

    def _prepare_steps(self, number: int, header: bytes) -> Steps[WalFile]:
        handle = open_unnamed(self._disk, self._directory)
        file = WalFile(self._disk, self._directory, number, handle)
        try:
            yield
            file.write(header)
            self._disk.datasync(handle)
            file.synced = file.offset
        except BaseException:
            file.close()
            raise
        return file

    def _create_steps(self, number: int, header: bytes, *, sync_first: bool) -> Steps[WalFile]:
        if sync_first:
            self._disk.sync_directory(str(self._directory))
            yield
        file = yield from self._prepare_steps(number, header)
        yield
        try:
            self._disk.link(file.handle, file.path)
            yield
            self._disk.sync_directory(str(self._directory))
        except BaseException:
            file.close()
            raise
        file.has_name = True
        return file

    def _link_steps(self, old: WalFile, new: WalFile) -> Steps[bool]:
        """Finish the old file, then name the new one."""
        self._disk.datasync(old.handle)
        yield
        if not self._disk.has_name(old.handle):
            return True
        yield
        try:
            self._disk.link(new.handle, new.path)
        except FileExistsError:
            return True
        yield
        # The name was free, but it may have been freed: then the old file lost its name before.
        if not self._disk.has_name(old.handle):
            with contextlib.suppress(FileNotFoundError):
                self._disk.unlink(new.path)
            return True
        self._disk.sync_directory(str(self._directory))
        yield
        old.close()
        return self._disk.exists(new.next_path)

    def _make_durable_steps(self, scan: WalScan) -> Steps[bool]:
        for file in scan.files:
            if file.number < scan.last.number:
                continue
            path = self._directory / f"{file.number:020d}"
            is_last = file.number == scan.last.number
            if is_last:
                self._harden(path, scan.synced, scan.last.end)
                yield
            if self._has_block(path, file.key, scan.last.end if is_last else file.header_end):
                return False
            yield
        return True

    def _harden(self, path: Path, start: int, end: int) -> None:
        """Bring to the medium what we read and go on from.

        Its owner may have died between a write and its sync. Or its sync has failed: then the
        kernel takes the pages for clean, though they were never written, and a sync alone would do
        nothing. So the bytes that are not known to be synced are written again, as they are.
        """
        handle = self._disk.open(str(path), os.O_RDWR)
        try:
            for offset in range(start, end, CHUNK_BYTES):
                data = self._disk.read(str(path), offset, min(CHUNK_BYTES, end - offset))
                write_all(self._disk, handle, data, offset)
            self._disk.datasync(handle)
        finally:
            self._disk.close(handle)

    def _has_block(self, path: Path, key: str, start: int) -> bool:
        """Whether a whole block begins at `start`."""
        parser = FileParser(key, start=start)
        position = start
        while data := self._disk.read(str(path), position, max(CHUNK_BYTES, parser.needs())):
            if parser.feed(data):
                return True
            if not parser.needs():
                return False
            position += len(data)
        return False

    def _close_steps(self, file: WalFile) -> Steps[None]:
        file.close()
        return
        yield
