"""Recovery: which rows a log holds, found by reading its newest manifest and its WAL files.

Used by owners when they open a log, and by readers that own nothing while an owner writes. Nothing
here changes a byte. The walk asks for what it wants to read and is told, so that the same code
serves callers that wait (`walk_async`) and callers that block (`walk_blocking`).

Which files count. Every data file says in its cut which data file it goes on from, and how much of
that one its owner accepted. Going back from the last data file gives the log; what else lies there
(fences, files of owners that were superseded before they accepted work, bytes after the accepted
end) was never acknowledged and is passed over.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Generator, Iterator
from dataclasses import dataclass, field

from .errors import Corrupt
from .events import Row
from .manifest import Manifest, decode_manifest, hash_of, manifest_prefix, version_of
from .store import Entry, NotFound, Store
from .wal import (
    CUT,
    HEADER,
    ROWS,
    Block,
    FileParser,
    TornTail,
    WalCut,
    WalHeader,
    corrupt,
    decode_cut,
    decode_header,
    decode_rows,
    wal_key,
    wal_prefix,
)

MIB = 1024 * 1024
CHUNK_BYTES = 2 * MIB
HEAD_BYTES_MAX = 64 * 1024
HEADS_AT_ONCE = 32
HEADS_KEPT_BYTES_MAX = 32 * MIB


@dataclass(frozen=True, slots=True)
class Listing:
    """A wish: the entries with this prefix after this key."""

    prefix: str
    after: str | None = None


@dataclass(frozen=True, slots=True)
class Ranges:
    """A wish: these parts of objects (key, start, length), all of them."""

    parts: tuple[tuple[str, int, int], ...]


Steps = Generator[Listing | Ranges | Block, object, None]


@dataclass(frozen=True, slots=True)
class Newest:
    """The newest manifest of a stream, and the hash of its file."""

    manifest: Manifest
    sha256: str


@dataclass
class WalFile:
    """What is known of one WAL file from its first blocks."""

    number: int
    key: str
    size: int
    header: WalHeader
    header_end: int
    cut: WalCut | None
    head: bytes = field(repr=False)
    """Its first bytes, kept so that small files are read once."""


@dataclass
class Walk:
    """One reading of a stream's WAL under one manifest; it has the results after the last step."""

    stream: str
    manifest: Manifest
    files: list[WalFile] = field(default_factory=list)
    chain: list[WalFile] = field(default_factory=list)
    """The data files that count, in order."""
    last: WalCut = field(default=WalCut(number=0, end=0, sha256="", last_seq=0))
    """Where the next data file goes on from."""
    torn: TornTail | None = None
    after: int = 0
    """Only blocks with rows above this are given."""

    @property
    def next_number(self) -> int:
        """The first WAL number that nobody has taken."""
        return self.files[-1].number + 1 if self.files else self.manifest.wal_first

    @property
    def epoch(self) -> int:
        """The highest epoch seen."""
        return max([self.manifest.epoch, *(file.header.epoch for file in self.files[-1:])])

    def steps(self) -> Steps:
        """Wishes, and the unsealed blocks of rows in order. Raises Corrupt or NotFound."""
        yield from self._find_files()
        self._find_chain()
        self.last = WalCut(number=0, end=0, sha256="", last_seq=self.manifest.sealed_seq)
        cuts = [file.cut for file in self.chain]
        for file, next_cut in zip(self.chain, [*cuts[1:], None], strict=False):
            yield from self._read_file(file, next_cut)
        if self.last.last_seq < self.manifest.sealed_seq:
            key = self.chain[-1].key
            raise corrupt(key, self.last.end, f"rows up to {self.manifest.sealed_seq} were in it")

    def _find_files(self) -> Steps:
        first = self.manifest.wal_first
        entries = yield Listing(wal_prefix(self.stream), wal_key(self.stream, first - 1))
        assert isinstance(entries, list)
        found: list[tuple[int, Entry]] = []
        for entry in entries:
            number = version_of(entry.key)
            if number is not None and entry.key == wal_key(self.stream, number):
                found.append((number, entry))
        found.sort(key=lambda pair: pair[0])
        highest = max([self.manifest.wal_last, *(number for number, _ in found)])
        for expected, number in zip(
            range(first, highest + 1), [number for number, _ in found] + [0], strict=False
        ):
            if expected != number:
                key = wal_key(self.stream, expected)
                raise Corrupt(
                    f"{key} is missing. Nothing was changed: restore the file from a copy",
                    path=key,
                    offset=0,
                )
        is_small = sum(entry.size for _, entry in found) <= HEADS_KEPT_BYTES_MAX
        length = HEAD_BYTES_MAX if is_small else 4096
        for start in range(0, len(found), HEADS_AT_ONCE):
            some = found[start : start + HEADS_AT_ONCE]
            heads = yield Ranges(tuple((entry.key, 0, length) for _, entry in some))
            assert isinstance(heads, list)
            for (number, entry), head in zip(some, heads, strict=True):
                yield from self._add_file(number, entry, head)

    def _add_file(self, number: int, entry: Entry, head: bytes) -> Steps:
        parser = FileParser(entry.key)
        blocks = parser.feed(head)
        if not blocks or blocks[0].kind != HEADER:
            # A file is whole before it has a name, so this is no crash.
            raise corrupt(entry.key, 0, "it does not begin with a whole header")
        header = decode_header(blocks[0])
        if header.number != number or header.stream != self.stream:
            raise corrupt(entry.key, 0, f"it was written as {header.stream} {header.number}")
        if self.files and header.epoch < self.files[-1].header.epoch:
            raise corrupt(entry.key, 0, f"epoch {header.epoch} comes after a higher one")
        cut = decode_cut(blocks[1]) if len(blocks) > 1 and blocks[1].kind == CUT else None
        if cut is None:
            # A fence, or a file whose first blocks were torn: prove that nothing synced is in it.
            if len(blocks) > 1:
                raise corrupt(entry.key, blocks[1].offset, "rows without a cut before them")
            position = len(head)
            while position < entry.size:
                data = yield Ranges(((entry.key, position, CHUNK_BYTES),))
                assert isinstance(data, list)
                if not data[0]:
                    break
                parser.feed(data[0])
                position += len(data[0])
            if parser.offset > blocks[0].end:
                # Its owner has just begun: it was a fence when we listed it, and may stay one.
                parser = FileParser(entry.key)
            self.torn = parser.finish() or self.torn
        self.files.append(WalFile(number, entry.key, entry.size, header, blocks[0].end, cut, head))

    def _find_chain(self) -> None:
        by_number = {file.number: file for file in self.files}
        file = next((file for file in reversed(self.files) if file.cut is not None), None)
        if file is not None and file.header.epoch > self.manifest.epoch:
            # A cut is written after the manifest of its epoch was published.
            raise Corrupt(
                f"{file.key} is of epoch {file.header.epoch}, but the newest manifest "
                f"({self.manifest.version}) is of epoch {self.manifest.epoch}: a manifest is "
                "missing. Nothing was changed: restore it from a copy",
                path=file.key,
                offset=0,
            )
        while file is not None and file.cut is not None:
            self.chain.append(file)
            number = file.cut.number
            if number < self.manifest.wal_first:
                if file.cut.last_seq > self.manifest.sealed_seq:
                    raise corrupt(
                        file.key,
                        0,
                        f"it goes on from {file.cut.last_seq}, but only rows up to "
                        f"{self.manifest.sealed_seq} are sealed",
                    )
                break
            before = by_number.get(number)
            if before is None or before.cut is None or number >= file.number:
                raise corrupt(
                    wal_key(self.stream, number), 0, f"{file.key} goes on from it, but it is empty"
                )
            file = before
        self.chain.reverse()

    def _read_file(self, file: WalFile, next_cut: WalCut | None) -> Steps:
        assert file.cut is not None
        seq = file.cut.last_seq
        stop = file.size if next_cut is None else next_cut.end
        parser = FileParser(file.key)
        position = 0
        data = file.head[:stop]
        while data:
            for block in parser.feed(data):
                if block.kind == ROWS:
                    if block.first_seq != seq + 1 or block.span < 1:
                        what = f"rows {block.first_seq} to {block.last_seq} follow row {seq}"
                        raise corrupt(file.key, block.offset, f"{what}: repeated or missing block")
                    seq = block.last_seq
                    if seq > self.manifest.sealed_seq and seq > self.after:
                        yield block
                elif (block.kind == HEADER) != (block.offset == 0):
                    raise corrupt(file.key, block.offset, "a second header")
            position += len(data)
            wanted = min(max(CHUNK_BYTES, parser.needs()), stop - position)
            if wanted <= 0:
                break
            answer = yield Ranges(((file.key, position, wanted),))
            assert isinstance(answer, list)
            data = answer[0]
        sha256 = parser.hash.hexdigest()
        if next_cut is None:
            self.torn = parser.finish() or self.torn
        elif parser.offset != next_cut.end:
            raise corrupt(file.key, parser.offset, f"it is not whole up to byte {next_cut.end}")
        elif (sha256, seq) != (next_cut.sha256, next_cut.last_seq):
            raise corrupt(file.key, 0, "its hash is not the one that the next file has for it")
        self.last = WalCut(number=file.number, end=parser.offset, sha256=sha256, last_seq=seq)
        file.head = b""


def fresh(stream: str, tenant_id: str) -> Newest:
    """What a stream without any manifest is."""
    return Newest(Manifest(stream=stream, tenant_id=tenant_id), "")


def newest_version(stream: str, entries: list[Entry]) -> int:
    """The highest version in a listing; 0 when there is none. Other files are passed over."""
    versions = [version_of(entry.key) or 0 for entry in entries]
    return max(versions, default=0)


async def newest_manifest(store: Store, stream: str) -> Newest | None:
    """The newest manifest, or None for a stream that has none."""
    while True:
        version = newest_version(stream, await store.list(manifest_prefix(stream)))
        if not version:
            return None
        key = f"{manifest_prefix(stream)}{version:020d}"
        try:
            data = await store.get(key)
        except NotFound:
            continue  # superseded and removed since we listed
        return Newest(decode_manifest(data, key), hash_of(data))


def newest_manifest_blocking(store: Store, stream: str) -> Newest | None:
    """As `newest_manifest`."""
    while True:
        version = newest_version(stream, store.list_blocking(manifest_prefix(stream)))
        if not version:
            return None
        key = f"{manifest_prefix(stream)}{version:020d}"
        try:
            data = store.get_blocking(key)
        except NotFound:
            continue
        return Newest(decode_manifest(data, key), hash_of(data))


async def walk_async(store: Store, walk: Walk) -> AsyncIterator[Block]:
    """The blocks of rows of a walk, read without blocking the loop."""
    steps = walk.steps()
    answer: object = None
    while True:
        try:
            step = steps.send(answer)
        except StopIteration:
            return
        if isinstance(step, Block):
            yield step
            answer = None
        elif isinstance(step, Listing):
            answer = await store.list(step.prefix, after=step.after)
        elif len(step.parts) == 1:
            answer = [await store.get_range(*step.parts[0])]
        else:
            answer = list(await asyncio.gather(*(store.get_range(*part) for part in step.parts)))


def walk_blocking(store: Store, walk: Walk) -> Iterator[Block]:
    """The blocks of rows of a walk, for callers without an event loop."""
    steps = walk.steps()
    answer: object = None
    while True:
        try:
            step = steps.send(answer)
        except StopIteration:
            return
        if isinstance(step, Block):
            yield step
            answer = None
        elif isinstance(step, Listing):
            answer = store.list_blocking(step.prefix, after=step.after)
        else:
            answer = [store.get_range_blocking(*part) for part in step.parts]


@dataclass(frozen=True)
class Tail:
    """What a reader found: the manifest, and the rows above its `sealed_seq`, possibly folded."""

    manifest: Manifest
    rows: list[Row]
    last_seq: int
    torn: TornTail | None


READ_TRIES_MAX = 20


def read_tail(store: Store, stream: str, *, after: int = 0) -> Tail | None:
    """The log as it is now, without a lock and while an owner writes; None for an unknown stream.

    `rows` has what is above both `after` and the manifest's `sealed_seq`, in seq order. The last
    rows may not be acknowledged yet, and of an owner that was superseded some may vanish again. A
    torn last block is the end. A reader that meets files that the owner has just sealed and removed
    reads the newer manifest and starts again. Raises Corrupt when it is not that.
    """
    tries = 0
    while True:
        newest = newest_manifest_blocking(store, stream)
        if newest is None:
            return None
        walk = Walk(stream, newest.manifest, after=after)
        try:
            rows = [row for block in walk_blocking(store, walk) for row in decode_rows(block)]
        except (Corrupt, NotFound) as error:
            again = newest_manifest_blocking(store, stream)
            tries += 1
            if (
                again is None
                or again.manifest.version == newest.manifest.version
                or (tries >= READ_TRIES_MAX)
            ):
                raise missing(error) from None
            continue
        kept = [row for row in rows if row.seq > after]
        return Tail(newest.manifest, kept, walk.last.last_seq, walk.torn)


def missing(error: Corrupt | NotFound) -> Corrupt:
    """A file that was listed and cannot be found, with no newer manifest, is damage."""
    if isinstance(error, Corrupt):
        return error
    return Corrupt(f"{error.message}, though the log needs it: restore it from a copy", offset=0)
