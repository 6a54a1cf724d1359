"""EventLog: one stream of rows with one owner, which appends until a newer owner fences it.

An acknowledged row is never lost and never duplicated. At most one owner can append: opening a log
makes the caller its owner and fences the owner before, whose next append raises `Fenced`. An error
poisons the log: nothing more is acknowledged, and only opening it again shows what it holds.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import logging
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from .. import manifest as manifests
from ..clock import Clock
from ..errors import Corrupt, Fenced, InvalidError, Unavailable, WorkflowsError
from ..events import Row, span
from ..heap_trim import release_memory
from ..ids import Ids
from ..manifest import (
    Manifest,
    encode_manifest,
    hash_of,
    manifest_key,
    manifest_prefix,
    tenant_stream,
    version_of,
)
from ..segments.blobs import Blobs
from ..segments.policy import CompactionConfig
from ..store.base import AlreadyExists, Entries, NotFound, Store, create_once, probe
from ..store.local import LocalStore
from ..store.read_requests import run_reading
from ..tracing import mark
from ..wal.format import HEAD_BYTES, Block, TornTail, WalHeader, stamp, wal_key
from ..wal.fsync_thread import Runner
from ..wal.local import LocalWal
from ..wal.object import ObjectWal
from ..wal.recovery import LatestManifest, fresh, newest_manifest, newest_version, snapshot_steps
from ..wal.scan import WalScan
from ..wal.tail import Tail, TailBlock
from .history_reader import Histories

__all__ = ["EventLog", "LogConfig", "tenant_stream"]

_logger = logging.getLogger("dynamic_workflows.log")

OPEN_TRIES_MAX = 50
ROWS_AT_ONCE = 10_000
BLOCKS_AT_ONCE = 64
BLOCK_BYTES_AT_ONCE = 8 * 1024 * 1024


@dataclass(frozen=True)
class LogConfig:
    """The sizes and ages of a log."""

    wal_bytes_max: int = 16 * 1024 * 1024
    """Encoded rows in the tail (bytes) after which `maintain` seals them into a segment."""
    seal_age_s: float = 300.0
    """Age of the oldest unsealed row (seconds) after which `maintain` seals."""
    auto_seal: bool = True
    """Seal in the background when `wal_bytes_max` is reached, without waiting for `maintain`."""
    compaction: CompactionConfig = field(default_factory=CompactionConfig)
    """When segments are merged, erased and removed."""
    owner: str = ""
    """Who the owner is, for people: it is written into the manifests."""
    has_probe: bool = True
    """Check once per process that the store honours create-if-absent."""


class EventLog:
    """A stream that its owner has opened; for one event loop, not thread-safe."""

    def __init__(
        self, store: Store, stream: str, tenant_id: str, clock: Clock, ids: Ids, config: LogConfig
    ) -> None:
        self.store = store
        self.stream = stream
        self.tenant_id = tenant_id
        self.config = config
        self.clock = clock
        self.ids = ids
        self.token = ids.token()
        self.epoch = 0
        self.failed: WorkflowsError | None = None
        self.torn: TornTail | None = None
        """What a crash of the owner before had left unfinished, if anything."""
        self.has_dead_blobs = False
        """Whether blobs may be left that no row names any more; for maintenance."""
        self.is_swept = False
        """Whether this owner has removed what crashes before it left; for maintenance."""
        self.blobs = Blobs(store, stream, ids=ids)
        self._loop = asyncio.get_running_loop()
        self._newest = fresh(stream, tenant_id)
        self._next_seq = 1
        self.tail = Tail(self._read_body)
        """The rows that no segment holds yet."""
        self.tail_lock = asyncio.Lock()
        """Held while the tail is read or let go in several steps."""
        self.oldest_us: int | None = None
        """When the tail began to fill (microseconds); None while it is empty."""
        self._publishing = asyncio.Lock()
        self._sealing = asyncio.Lock()
        self._background: asyncio.Task[None] | None = None
        self._histories = Histories(self)
        self._lean_histories = Histories(self, is_lean=True)
        self._wal: LocalWal | ObjectWal

    # -- opening -----------------------------------------------------------------------------

    @classmethod
    async def open(
        cls,
        store: Store,
        stream: str,
        *,
        tenant_id: str,
        clock: Clock,
        ids: Ids,
        config: LogConfig | None = None,
        runner: Runner | None = None,
    ) -> EventLog:
        """Become the owner: fence the owner before, and find every row that was acknowledged.

        Raises Corrupt with `.path` and `.offset` when the log is damaged (nothing is changed then),
        Fenced when another owner opened it at the same moment, Unavailable, and InvalidError for a
        store that cannot keep a log. `runner` replaces the thread that syncs, for tests.
        """
        log = cls(store, stream, tenant_id, clock, ids, config or LogConfig())
        await log.take_over(runner=runner)
        return log

    async def take_over(
        self,
        *,
        found: Callable[[int], None] = lambda last_seq: None,
        claims: Callable[[int], None] = lambda epoch: None,
        above: int = 0,
        runner: Runner | None = None,
    ) -> None:
        """Do what `open` does, for a log that was constructed directly; to be called once.

        `found` is told the last number of the log as soon as it was read, before the log is owned,
        and again if it had to be read again. `claims` is told the epoch that this owner is about to
        have, before anything is written, and again where another owner was quicker. The epoch is
        higher than `above`, for a log that was put back from a copy after others had heard of it.
        """
        self._wal = self._make_wal(runner)
        try:
            if self.config.has_probe:
                await probe(self.store, self.ids)
            await self._take_over(found, claims, above)
        except BaseException:
            await self._wal.abandon()
            raise

    def _make_wal(self, runner: Runner | None) -> LocalWal | ObjectWal:
        if isinstance(self.store, LocalStore):
            return LocalWal(
                self.store,
                self.stream,
                on_block=self._on_block,
                on_failure=self._on_failure,
                runner=runner,
            )
        return ObjectWal(
            self.store,
            self.stream,
            make_header=self._make_header,
            on_block=self._on_block,
            on_failure=self._on_failure,
        )

    async def _take_over(
        self, found: Callable[[int], None], claims: Callable[[int], None], above: int
    ) -> None:
        """Fence, read, publish; again from the start whenever something moved in between.

        The log is read before anything is written, so that a damaged one is refused unchanged, and
        what is published goes on from exactly the manifest and the WAL that were read.
        """
        is_fence_up = False
        for _ in range(OPEN_TRIES_MAX):
            newest, scan = await self._read_snapshot()
            mark("log: read")
            found(scan.last.last_seq)
            if is_fence_up and newest.manifest.epoch > self.epoch:
                raise self._was_overtaken()
            if is_fence_up and newest.manifest.wal_first > self._wal.number:
                # The name was free only because what had it was sealed and removed meanwhile: it
                # stands before the log, not behind it, and fences nobody.
                is_fence_up = False
            if not is_fence_up:
                self.epoch = max(scan.epoch, above) + 1
                claims(self.epoch)
                try:
                    # Names that no manifest knows may be unsynced: one above them must not
                    # survive a power cut that takes them.
                    await self._wal.fence(
                        self._make_header(scan.next_number),
                        sync_first=scan.next_number - 1 > newest.manifest.wal_last,
                    )
                except AlreadyExists:
                    continue
                is_fence_up = True
                mark("log: fenced")
                if isinstance(self._wal, LocalWal) and not await self._wal.make_durable(scan):
                    continue
            elif scan.next_number != self._wal.number + 1:
                raise self._was_overtaken()
            elif isinstance(self._wal, LocalWal):
                await self._wal.make_durable(scan)
            self._newest = newest
            try:
                await self._publish_next(lambda manifest: manifest)
            except AlreadyExists:
                continue
            self._next_seq = scan.last.last_seq + 1
            self.torn = scan.torn
            self._wal.start(scan.last)
            return
        raise Unavailable(f"{self.stream} is opened by too many at once: try again")

    async def _read_snapshot(self) -> tuple[LatestManifest, WalScan]:
        """Read the log, and put its unsealed blocks into the tail. Raises Corrupt."""
        or_fresh = fresh(self.stream, self.tenant_id)
        tails: list[Tail] = []

        def begin() -> Callable[[Block], None]:
            tails.append(Tail(self._read_body))
            return self._feed_into(tails[-1])

        snapshot = await run_reading(
            self.store, snapshot_steps(self.stream, begin, or_fresh=or_fresh, has_segments=True)
        )
        assert snapshot is not None
        manifest = snapshot.newest.manifest
        if (manifest.tenant_id, manifest.stream) != (self.tenant_id, self.stream):
            raise InvalidError(
                f"{self.stream} belongs to {manifest.tenant_id!r}, not to {self.tenant_id!r}"
            )
        self.tail = tails[-1]
        self.oldest_us = self.clock.now_us() if len(self.tail) else None
        return snapshot.newest, snapshot.scan

    def _feed_into(self, tail: Tail) -> Callable[[Block], None]:
        def take(block: Block) -> None:
            tail.add(
                TailBlock(
                    block.first_seq,
                    block.last_seq,
                    version_of(block.key) or 0,
                    block.offset + HEAD_BYTES,
                    len(block.body),
                    None if self.is_local else block.body,
                )
            )

        return take

    def _was_overtaken(self) -> Fenced:
        return Fenced(f"another owner opened {self.stream} at the same moment: it is theirs now")

    def _make_header(self, number: int) -> WalHeader:
        return WalHeader(
            stream=self.stream,
            tenant_id=self.tenant_id,
            number=number,
            epoch=self.epoch,
            token=self.token,
            write=self.ids.token(),
            created_us=self.clock.now_us(),
        )

    # -- appending ---------------------------------------------------------------------------

    @property
    def last_seq(self) -> int:
        """The highest number assigned, acknowledged or not."""
        return self._next_seq - 1

    @property
    def manifest(self) -> Manifest:
        """The newest manifest."""
        return self._newest.manifest

    def append(self, rows: Sequence[Row], *, durable: bool = True) -> asyncio.Future[None]:
        """Number the rows at once and append them, all or none; the future says when they are safe.

        Futures resolve in the order of the calls. `durable`: when the rows survive a power cut.
        Otherwise when they survive the death of every process of this machine (they are synced with
        the next durable append, and within a second); on an object store that is the same. An
        empty append resolves when all before it have. After a failure every pending and later
        future raises (`Fenced`, `Unavailable`, …) and whether pending rows are in the log is open.
        """
        future: asyncio.Future[None] = self._loop.create_future()
        if self.failed is not None:
            future.set_exception(self.failed)
            future.exception()
            return future
        if rows:
            self._next_seq = stamp(rows, first_seq=self._next_seq, epoch=self.epoch)
        self._wal.append(rows, next_seq=self._next_seq, future=future, durable=durable)
        return future

    def _on_block(self, block: TailBlock) -> None:
        if self.oldest_us is None:
            self.oldest_us = self.clock.now_us()
        self.tail.add(block)
        if self.tail.bytes > self.config.wal_bytes_max and self.config.auto_seal:
            if self._background is None:
                self._background = self._loop.create_task(self._seal_in_background())

    async def _seal_in_background(self) -> None:
        try:
            await self.seal()
            await asyncio.to_thread(release_memory)
        except WorkflowsError as error:
            # A publication that failed has poisoned the log; anything else is tried again.
            _logger.warning("%s could not be sealed: %s", self.stream, error)
        finally:
            self._background = None

    def _on_failure(self, error: WorkflowsError) -> None:
        self.failed = error

    # -- reading -----------------------------------------------------------------------------

    async def rows(self, *, after: int = 0) -> AsyncIterator[list[Row]]:
        """Yield everything above `after` that was appended before this call, in bounded batches.

        In order of seq. Sealed rows are unfolded, rows of the tail may be folded; a folded row is
        given whole when its second number is above `after`.
        """
        await self.written()
        upto, position = self.last_seq, after
        while position < upto:
            version = self.manifest.version
            try:
                async for batch in self._some_rows(position, upto):
                    yield batch
                    position = max(position, _last_of(batch[-1]))
            except NotFound as error:
                # A seal or a merge moved the rows while we read: go on where they are now.
                if self.manifest.version == version:
                    raise Corrupt(f"{error.message}, though the log needs it", offset=0) from None
                continue
            if self.manifest.version == version:
                return

    async def _some_rows(self, after: int, upto: int) -> AsyncIterator[list[Row]]:
        """Yield the rows above `after`, as they are stored now."""
        manifest = self.manifest
        blocks = self.tail.blocks(after=max(after, manifest.sealed_seq), upto=upto)
        if after < manifest.sealed_seq:
            from ..segments.segment import (
                read_rows,  # not before there are segments: see `load_upkeep`
            )

            async for batch in read_rows(self.store, manifest.segments, after=after):
                yield batch
        for some in _portions(blocks):
            batch = await asyncio.to_thread(self.decode, some, after)
            for first in range(0, len(batch), ROWS_AT_ONCE):
                yield batch[first : first + ROWS_AT_ONCE]

    def decode(self, blocks: Sequence[TailBlock], after: int = 0) -> list[Row]:
        """Return the rows of tail blocks above a number. May read the disk: call it in a thread."""
        rows = [row for block in blocks for row in self.tail.rows(block)]
        return rows if not rows or rows[0].seq > after else [r for r in rows if _last_of(r) > after]

    async def history(self, workflow: str, instance_id: str) -> list[Row]:
        """Return the rows of one instance since its last deletion: unfolded, in order of seq.

        It has all that was appended before this call. Calls that come while one is answered are
        answered together by the next reading, so a thousand cost little more than one.
        """
        return await self._histories.of(workflow, instance_id)

    async def lean_history(self, workflow: str, instance_id: str) -> list[Row]:
        """Return what `history` does, with null for large event payloads, beside their `size`."""
        return await self._lean_histories.of(workflow, instance_id)

    async def written(self) -> None:
        """Return when everything appended so far can be read back."""
        if self.failed is not None:
            raise self.failed
        if isinstance(self._wal, LocalWal):
            self._wal.flush()
        else:
            await self.append([])

    def _read_body(self, block: TailBlock) -> bytes:
        key = wal_key(self.stream, block.number)
        return self.store.get_range_blocking(key, block.offset, block.length)

    # -- large values ------------------------------------------------------------------------

    async def put_blob(self, data: bytes, *, name: str | None = None) -> str:
        """Store a large value durably and return its name, for a row that is appended after."""
        return await self.blobs.put(data, name=name)

    async def get_blob(self, ref: str) -> bytes:
        """Return a large value, whole; raises Corrupt when it is missing or not what was stored."""
        return await self.blobs.get(ref)

    # -- maintenance -------------------------------------------------------------------------

    async def publish(self, change: Callable[[Manifest], Manifest]) -> Manifest:
        """Make `change` of the newest manifest the next version; one after the other.

        Raises Fenced (the log is poisoned then), or Unavailable: the change may have been made or
        not, `manifest` shows it after the next try.
        """
        async with self._publishing:
            if self.failed is not None:
                raise self.failed
            try:
                return await self._publish_next(change)
            except AlreadyExists:
                await self._explain_clash()
                raise Unavailable(f"{self.stream}: the manifest had moved on: try again") from None
            except Fenced as error:
                self._wal.fail(error)
                raise

    async def _publish_next(self, change: Callable[[Manifest], Manifest]) -> Manifest:
        old = self._newest
        changed = change(old.manifest)
        manifest = msgspec.structs.replace(
            changed,
            version=old.manifest.version + 1,
            epoch=self.epoch,
            token=self.token,
            write=self.ids.token(),
            previous=old.sha256,
            published_us=self.clock.now_us(),
            owner=self.config.owner,
            wal_last=max(changed.wal_last, self._wal.number),
        )
        data = encode_manifest(manifest)
        key = manifest_key(self.stream, manifest.version)
        # The number may have been free because a newer owner's manifest had been there and was
        # removed as old. The newest manifest is never removed, so then a higher one is there.
        if newest_version(await self._create_and_list_above(key, data)):
            raise self._was_overtaken()
        self._newest = LatestManifest(manifest, hash_of(data))
        if manifest.version > manifests.KEPT:
            await self.store.delete(manifest_key(self.stream, manifest.version - manifests.KEPT))
        return manifest

    async def _create_and_list_above(self, key: str, data: bytes) -> Entries:
        """Create a manifest, and return the listing of those above it afterwards."""
        prefix = manifest_prefix(self.stream)
        if isinstance(self.store, LocalStore) and self.store.reads_at_once:
            # Whatever may have gone wrong with a create is told apart below, by trying again.
            with contextlib.suppress(AlreadyExists, Unavailable):
                return await self.store.create_and_list(key, data, prefix)
        await create_once(self.store, key, data)
        return await self.store.list(prefix, after=key)

    async def _explain_clash(self) -> None:
        """Handle a version that exists already: ours by a lost reply, or a newer owner's."""
        newest = await newest_manifest(self.store, self.stream)
        if newest is None or newest.manifest.token != self.token:
            fenced = self._was_overtaken()
            self._wal.fail(fenced)
            raise fenced
        async with self.tail_lock:
            self._newest = newest
            self.tail.drop(newest.manifest.sealed_seq)

    @property
    def is_local(self) -> bool:
        """Whether the WAL is a file on this machine's disk, rather than one object per batch."""
        return isinstance(self._wal, LocalWal)

    async def roll(self) -> tuple[int, int]:
        """End the current WAL file; return the highest durable seq and the number of the next
        file."""
        wal = self._wal
        if isinstance(wal, LocalWal):
            seq = await wal.roll(self._make_header(wal.number + 1))
            return seq, wal.number
        await self.append([])
        return wal.committed_seq, wal.number + 1

    async def drop_tail(self, upto_seq: int) -> None:
        """Drop the blocks up to a number, which a published segment holds now."""
        async with self.tail_lock:
            self.tail.drop(upto_seq)
            self.oldest_us = self.clock.now_us() if len(self.tail) else None

    async def seal(self) -> None:
        """Move everything appended so far into a segment. Appends go on meanwhile."""
        async with self._sealing:
            await self.written()
            await (await load_upkeep()).seal(self)

    async def maintain(self) -> None:
        """Do what is due: seal, compact, erase deleted rows, remove garbage files."""
        async with self._sealing:
            await (await load_upkeep()).maintain(self)

    async def close(self, *, seal: bool = False) -> None:
        """Acknowledge what was appended, and give up ownership.

        `seal`: the log is about to sleep, so leave no tail, no deleted rows and no garbage behind.
        """
        if seal and self.failed is None:
            async with self._sealing:
                await self.written()
                await (await load_upkeep()).seal_for_close(self)
        if self._background is not None:
            await asyncio.wait([self._background])
        await self._wal.close()


async def load_upkeep() -> Any:
    """The module that writes segments; imported when it is needed first, because its library takes
    longer to import than a log takes to open. In a thread: appends go on meanwhile."""
    name = f"{__package__}.maintenance"
    return sys.modules.get(name) or await asyncio.to_thread(importlib.import_module, name)


def _portions(blocks: list[TailBlock]) -> Iterator[list[TailBlock]]:
    """Yield the blocks in portions of bounded number and size, each to be decoded at once."""
    some: list[TailBlock] = []
    size = 0
    for block in blocks:
        size += block.length
        if some and (size > BLOCK_BYTES_AT_ONCE or len(some) == BLOCKS_AT_ONCE):
            yield some
            some, size = [], block.length
        some.append(block)
    if some:
        yield some


def _last_of(row: Row) -> int:
    return row.seq + span(row) - 1
