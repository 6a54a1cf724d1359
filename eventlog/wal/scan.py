"""WAL scan: reads the WAL files of a stream, and decides which of their rows are in the log.

Which files count. Every data file's checkpoint names the data file that it goes on from, and how
much of that one its owner accepted. Going back from the last data file gives the log; the rest
(fences, files of owners that were superseded before they accepted work, bytes after the accepted
end) was never acknowledged and is ignored.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..errors import Corrupt
from ..manifest import Manifest, version_of
from ..store.base import Entry
from ..store.read_requests import Steps, list_entries, pause, read_parts
from ..units import MIB
from .format import (
    CHECKPOINT,
    HEADER,
    ROWS,
    Block,
    FileParser,
    TornTail,
    WalCheckpoint,
    WalHeader,
    corrupt,
    decode_checkpoint,
    decode_header,
    wal_key,
    wal_prefix,
)
from .torn_reads import Doubt

if TYPE_CHECKING:
    from .format import Sha256

CHUNK_BYTES = 2 * MIB
LOOK_BYTES = 128 * 1024
"""A walk that goes on from a position begins with so many bytes, and stops when they are blank."""
HEAD_BYTES_MAX = 64 * 1024
HEAD_BYTES_MIN = 4096
HEADS_AT_ONCE = 32
HEADS_KEPT_BYTES_MAX = 32 * MIB


@dataclass
class WalFileInfo:
    """What the first blocks of a WAL file say of it."""

    number: int
    key: str
    size: int
    header: WalHeader
    header_end: int
    checkpoint: WalCheckpoint | None
    head: bytes = field(repr=False)
    """Its first bytes, kept so that small files are read once."""


class Displaced(Exception):
    """The position of an earlier scan is no longer on the way to the log's end: scan from the
    start."""


@dataclass(frozen=True, slots=True)
class Position:
    """How far a scan has read and checked the WAL; a later scan may continue from here."""

    number: int
    """Of the file."""
    write: str
    """The file's token, since a name may come back."""
    epoch: int
    """Of the manifest: while it stays, what was read stays in the log."""
    offset: int
    """In the file: where the next block begins."""
    sha256: Sha256
    """Of the file up to `offset`. Copied before it is used."""
    seq: int
    """The last number before it."""
    synced: int
    bytes: int
    """That were read of all files up to here."""

    def is_under(self, manifest: Manifest) -> bool:
        """Return whether a scan under the manifest can continue from here."""
        return self.epoch == manifest.epoch and manifest.wal_first <= self.number


@dataclass
class WalScan:
    """One reading of a stream's WAL under one manifest; it has the results after the last step.

    `since`: go on from there, and give only what comes after it; what is behind many zeros is not
    looked at then. The files may be growing.
    """

    stream: str
    manifest: Manifest
    on_block: Callable[[Block], None]
    """Takes the unsealed blocks of rows, in order."""
    files: list[WalFileInfo] = field(default_factory=list)
    chain: list[WalFileInfo] = field(default_factory=list)
    """The data files that count, in order."""
    last: WalCheckpoint = field(default=WalCheckpoint(number=0, end=0, sha256="", last_seq=0))
    """Where the next data file goes on from."""
    synced: int = 0
    """Up to here the last of the chain is known to have been on the medium."""
    torn: TornTail | None = None
    after: int = 0
    """Only blocks with rows above this are given."""
    since: Position | None = None
    position: Position | None = None
    """Where a later walk may go on; None where no data file was found."""
    is_certain: bool = False
    """Whether the Corrupt that was raised holds whatever an owner does meanwhile."""

    @property
    def next_number(self) -> int:
        """The first unused WAL number."""
        return self.files[-1].number + 1 if self.files else self.manifest.wal_first

    @property
    def epoch(self) -> int:
        """The highest epoch in the files."""
        return max([self.manifest.epoch, *(file.header.epoch for file in self.files[-1:])])

    def steps(self) -> Steps[None]:
        """Read all files. Raises Corrupt or NotFound; Displaced only with `since`."""
        yield from self._find_files()
        self._find_chain()
        self.last = WalCheckpoint(number=0, end=0, sha256="", last_seq=self.manifest.sealed_seq)
        checkpoints = [file.checkpoint for file in self.chain]
        for file, next_checkpoint in zip(self.chain, [*checkpoints[1:], None], strict=False):
            yield from self._read_file(file, next_checkpoint)
        if self.last.last_seq < self.manifest.sealed_seq:
            key = self.chain[-1].key
            raise corrupt(key, self.last.end, f"rows up to {self.manifest.sealed_seq} were in it")

    def _find_files(self) -> Steps[None]:
        first = self.manifest.wal_first if self.since is None else self.since.number
        entries = yield from list_entries(
            wal_prefix(self.stream), after=wal_key(self.stream, first - 1)
        )
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
        length = HEAD_BYTES_MAX if is_small and self.since is None else HEAD_BYTES_MIN
        for start in range(0, len(found), HEADS_AT_ONCE):
            some = found[start : start + HEADS_AT_ONCE]
            heads = yield from read_parts(*((entry.key, 0, length) for _, entry in some))
            for (number, entry), head in zip(some, heads, strict=True):
                yield from self._add_file(number, entry, head)

    def _add_file(self, number: int, entry: Entry, head: bytes) -> Steps[None]:
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
        since = self.since
        if since is not None and number == since.number and header.write != since.write:
            raise Displaced
        checkpoint = (
            decode_checkpoint(blocks[1])
            if len(blocks) > 1 and blocks[1].kind == CHECKPOINT
            else None
        )
        if checkpoint is None:
            # A fence, or a file whose first blocks were torn: prove that nothing synced is in it.
            if len(blocks) > 1:
                raise corrupt(entry.key, blocks[1].offset, "rows without a checkpoint before them")
            yield from self._prove_fence(entry, parser, len(head), blocks[0].end)
        self.files.append(
            WalFileInfo(number, entry.key, entry.size, header, blocks[0].end, checkpoint, head)
        )

    def _prove_fence(
        self, entry: Entry, parser: FileParser, position: int, header_end: int
    ) -> Steps[None]:
        """Read the rest of a file that showed nothing behind its header."""
        doubt = Doubt()
        while True:
            while position < entry.size:
                [data] = yield from read_parts((entry.key, position, CHUNK_BYTES))
                if not data:
                    break
                parser.feed(data)
                position += len(data)
            if parser.offset > header_end:
                return  # its owner has just begun: a fence when it was listed, it may stay one
            wait_s = self._check_read(doubt, parser)
            if wait_s is None:
                break
            yield from pause(wait_s)
            parser.restart()
            position = parser.offset
        self.torn = parser.finish() or self.torn

    def _check_read(
        self, doubt: Doubt, parser: FileParser, whole_upto: int | None = None
    ) -> float | None:
        try:
            return doubt.check_read(parser, whole_upto=whole_upto)
        finally:
            self.is_certain = self.is_certain or doubt.is_certain

    def _find_chain(self) -> None:
        by_number = {file.number: file for file in self.files}
        file = next((file for file in reversed(self.files) if file.checkpoint is not None), None)
        if file is not None and file.header.epoch > self.manifest.epoch:
            # A checkpoint is written after the manifest of its epoch was published.
            raise Corrupt(
                f"{file.key} is of epoch {file.header.epoch}, but the newest manifest "
                f"({self.manifest.version}) is of epoch {self.manifest.epoch}: a manifest is "
                "missing. Nothing was changed: restore it from a copy",
                path=file.key,
                offset=0,
            )
        while file is not None and file.checkpoint is not None:
            self.chain.append(file)
            number = file.checkpoint.number
            if self.since is not None:
                if file.number == self.since.number:
                    break
                if number < self.since.number:
                    raise Displaced
            if number < self.manifest.wal_first:
                if file.checkpoint.last_seq > self.manifest.sealed_seq:
                    raise corrupt(
                        file.key,
                        0,
                        f"it goes on from {file.checkpoint.last_seq}, but only rows up to "
                        f"{self.manifest.sealed_seq} are sealed",
                    )
                break
            before = by_number.get(number)
            if before is None or before.checkpoint is None or number >= file.number:
                raise corrupt(
                    wal_key(self.stream, number), 0, f"{file.key} goes on from it, but it is empty"
                )
            file = before
        self.chain.reverse()
        if self.since is not None and not self.chain:
            raise Displaced

    def _read_file(self, file: WalFileInfo, next_checkpoint: WalCheckpoint | None) -> Steps[None]:
        assert file.checkpoint is not None
        since = self.since if self.since and self.since.number == file.number else None
        upto = None if next_checkpoint is None else next_checkpoint.end
        stop = file.size if upto is None else upto
        if since is None:
            parser = FileParser(file.key)
            seq, synced, data = file.checkpoint.last_seq, file.header_end, file.head[:stop]
        else:
            if upto is not None and upto < since.offset:
                raise Displaced
            parser = FileParser(file.key, start=since.offset, hash=since.sha256.copy())
            seq, synced, data = since.seq, since.synced, b""
        position = parser.offset
        chunk = CHUNK_BYTES if since is None else LOOK_BYTES
        doubt = Doubt()
        while True:
            for block in parser.feed(data):
                if block.kind == ROWS:
                    if block.first_seq != seq + 1 or block.span < 1:
                        what = f"rows {block.first_seq} to {block.last_seq} follow row {seq}"
                        raise corrupt(file.key, block.offset, f"{what}: repeated or missing block")
                    seq = block.last_seq
                    synced = block.synced
                    if seq > self.manifest.sealed_seq and seq > self.after:
                        self.on_block(block)
                elif (block.kind == HEADER) != (block.offset == 0):
                    raise corrupt(file.key, block.offset, "a second header")
            position += len(data)
            data = b""
            wanted = min(max(chunk, parser.needs()), stop - position)
            if wanted > 0 and not (since is not None and upto is None and parser.is_blank()):
                chunk = min(2 * chunk, CHUNK_BYTES)
                [data] = yield from read_parts((file.key, position, wanted))
            if not data:
                wait_s = self._check_read(doubt, parser, upto)
                if wait_s is None:
                    break
                yield from pause(wait_s)
                parser.restart()
                position = parser.offset
        before = self.position or since
        bytes_before = before.bytes if before is not None else 0
        sha256 = parser.hash.hexdigest()
        if next_checkpoint is None:
            self.torn = parser.finish() or self.torn
        elif (sha256, seq) != (next_checkpoint.sha256, next_checkpoint.last_seq):
            raise corrupt(file.key, 0, "its hash is not the one that the next file has for it")
        self.last = WalCheckpoint(
            number=file.number, end=parser.offset, sha256=sha256, last_seq=seq
        )
        self.synced = synced
        self.position = Position(
            number=file.number,
            write=file.header.write,
            epoch=self.manifest.epoch,
            offset=parser.offset,
            sha256=parser.hash,
            seq=seq,
            synced=synced,
            bytes=bytes_before + parser.offset - (since.offset if since is not None else 0),
        )
        file.head = b""
