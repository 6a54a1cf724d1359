"""The write-ahead log's format: blocks, and how a file that a crash cut off is read.

`<stream>/wal/<20 digits>`. A file is a sequence of blocks; each is a head (magic, length of the
body, first seq, span of seqs, `synced`, CRC-32C of the body, CRC-32C of the head), a body, and an
end mark.

    header      which owner made the file: stream, tenant, epoch, owner's token. Written before the
                file gets its name.
    checkpoint  where the log goes on from: the data file before, how much of it was accepted,
                its hash. A file without a checkpoint is a fence: it holds nothing, and stops
                the owner before.
    rows        msgpack list of rows, all that was written in one turn: an append is all or none.

On a local disk an owner has one file and appends blocks to it; on an object store each batch is a
new file with header, checkpoint and rows. Local files may end in zeros (blocks reserved on the
disk).

A torn tail is a block of which a part never reached the disk: the file ends inside it, or whole
sectors of it read as zeros. It was never acknowledged, so it is cut and reported. Anything else
that does not match is damage, and nothing is believed until someone repairs it: a complete block
whose CRC differs, a repeated or missing block, or a hole before a block that was written when the
place of the hole had been synced (that is what `synced` is for).
"""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import msgspec
from crc32c import crc32c

from ..errors import Corrupt
from ..events import Row, span

if TYPE_CHECKING:
    from hashlib import _Hash

    Sha256: TypeAlias = _Hash

FORMAT = 1
_HEAD = struct.Struct("<4sIQIQI")
_CRC = struct.Struct("<I")
HEAD_BYTES = _HEAD.size + _CRC.size
END = b"\xd3end"
BLOCK_BYTES_MIN = HEAD_BYTES + len(END)
SECTOR_BYTES = 512

HEADER, CHECKPOINT, ROWS = b"\xd3WH1", b"\xd3WC1", b"\xd3WR1"
_KINDS = (HEADER, CHECKPOINT, ROWS)
_MAGIC_START = b"\xd3W"
_MAGIC = re.compile(rb"\xd3W[HCR]1")


class WalHeader(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Which owner made a file, and for which stream."""

    format: int = FORMAT
    stream: str
    tenant_id: str
    number: int
    epoch: int
    token: str
    """The owner's."""
    write: str
    """A token of this one file."""
    created_us: int = 0


class WalCheckpoint(msgspec.Struct, frozen=True, kw_only=True):
    """Where a file goes on from: what its owner accepted of the data file before it."""

    number: int
    """0: there is none."""
    end: int
    """Bytes of it that were accepted."""
    sha256: str
    """Of those bytes."""
    last_seq: int


class TornTail(msgspec.Struct, frozen=True, kw_only=True):
    """An incomplete block that a crash left at the end of a file; it was never acknowledged."""

    key: str
    offset: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Block:
    """One block of a file, checked against its CRC. `offset` and `end` are bytes in the file."""

    kind: bytes
    key: str
    offset: int
    end: int
    first_seq: int
    span: int
    synced: int
    """Up to here the file was on the medium when this block was written."""
    body: bytes

    @property
    def last_seq(self) -> int:
        """The last number in the block; first_seq - 1 when it has no rows."""
        return self.first_seq + self.span - 1


def wal_prefix(stream: str) -> str:
    """Return the common prefix of every WAL key of the stream."""
    return f"{stream}/wal/"


def wal_key(stream: str, number: int) -> str:
    """Return the key of one file."""
    return f"{stream}/wal/{number:020d}"


_encoder = msgspec.msgpack.Encoder()
_rows_decoder = msgspec.msgpack.Decoder(list[Row])
_header_decoder = msgspec.msgpack.Decoder(WalHeader)
_checkpoint_decoder = msgspec.msgpack.Decoder(WalCheckpoint)


class BlockEncoder:
    """Encodes blocks into one buffer that is reused: use each result before the next call."""

    def __init__(self) -> None:
        self._buffer = bytearray(64 * 1024)

    def rows(self, rows: Sequence[Row], *, first_seq: int, span: int, synced: int) -> bytearray:
        """Return a block of rows."""
        return self._block(ROWS, rows, first_seq, span, synced)

    def header(self, header: WalHeader) -> bytes:
        """Return the block that a file begins with."""
        return bytes(self._block(HEADER, header, 0, 0, 0))

    def checkpoint(self, checkpoint: WalCheckpoint) -> bytes:
        """Return the block that makes a file a data file."""
        return bytes(self._block(CHECKPOINT, checkpoint, checkpoint.last_seq + 1, 0, 0))

    def _block(
        self, kind: bytes, content: object, first_seq: int, span: int, synced: int
    ) -> bytearray:
        buffer = self._buffer
        _encoder.encode_into(content, buffer, HEAD_BYTES)
        with memoryview(buffer) as view, view[HEAD_BYTES:] as body:
            body_crc = crc32c(body)
            _HEAD.pack_into(buffer, 0, kind, len(body), first_seq, span, synced, body_crc)
            with view[: _HEAD.size] as head:
                _CRC.pack_into(buffer, _HEAD.size, crc32c(head))
        buffer += END
        return buffer


def stamp(rows: Sequence[Row], *, first_seq: int, epoch: int) -> int:
    """Number the rows from `first_seq`; return the number after the last."""
    seq = first_seq
    for row in rows:
        row.seq = seq
        row.epoch = epoch
        seq += span(row) if row.attempt else 1
    return seq


def decode_rows(block: Block) -> list[Row]:
    """Return the rows of a block, possibly folded."""
    try:
        return _rows_decoder.decode(block.body)
    except msgspec.MsgspecError as error:
        raise corrupt(
            block.key, block.offset, f"a block of rows cannot be decoded: {error}"
        ) from None


def decode_header(block: Block) -> WalHeader:
    """Return the file's header."""
    try:
        header = _header_decoder.decode(block.body)
    except msgspec.MsgspecError as error:
        raise corrupt(block.key, block.offset, f"the header cannot be decoded: {error}") from None
    if header.format > FORMAT:
        raise Corrupt(
            f"{block.key} has format {header.format}, this version reads up to {FORMAT}: "
            "upgrade dynamic-workflows, then open it again",
            path=block.key,
            offset=block.offset,
        )
    return header


def decode_checkpoint(block: Block) -> WalCheckpoint:
    """Return where the file goes on from."""
    try:
        return _checkpoint_decoder.decode(block.body)
    except msgspec.MsgspecError as error:
        raise corrupt(
            block.key, block.offset, f"the checkpoint cannot be decoded: {error}"
        ) from None


def corrupt(key: str, offset: int, what: str) -> Corrupt:
    """Return the error for a file that is not what was written."""
    return Corrupt(
        f"{key} is damaged at byte {offset}: {what}. Nothing was changed: restore the file from a "
        "copy; `dynamic-workflows verify` shows what is affected",
        path=key,
        offset=offset,
    )


@dataclass(frozen=True, slots=True)
class Suspicion:
    """Bytes at the end of a read that no crash leaves, if they were read at one moment."""

    what: str
    is_vouched: bool
    """Whether a later block says that they had been whole when it was written."""
    region: bytes
    """The bytes themselves, as far as the block that begins there would reach."""


class FileParser:
    """Parses a file's bytes in order into blocks, then tells how the file ended.

    `feed` may be called with portions of any size. Memory: one portion and one block. `hash`: the
    SHA-256 of what lies before `start`, where that was read before; it is changed.
    """

    def __init__(self, key: str, *, start: int = 0, hash: Sha256 | None = None) -> None:
        self.key = key
        self.offset = start
        """Where the next block begins: all before it was good."""
        self.hash = hashlib.sha256() if hash is None else hash
        self._rest = b""

    def restart(self) -> None:
        """Discard what was fed behind `offset`, to be fed again from there."""
        self._rest = b""

    def feed(self, data: bytes) -> list[Block]:
        """Yield the blocks that are complete now; stops at the first bad one."""
        self._rest = self._rest + data if self._rest else data
        blocks: list[Block] = []
        start = 0
        while (block := self._block_at(start)) is not None:
            blocks.append(block)
            start += block.end - block.offset
            self.offset = block.end
        if start:
            self.hash.update(memoryview(self._rest)[:start])
            self._rest = self._rest[start:]
        return blocks

    def needs(self) -> int:
        """Bytes still missing from the incomplete block, if that can be told; else 0."""
        head = _head_of(self._rest, 0)
        if head is None:
            return 0
        return max(0, HEAD_BYTES + head[1] + len(END) - len(self._rest))

    def is_blank(self) -> bool:
        """Whether zeros were fed behind the last block, and nothing else."""
        return bool(self._rest) and _is_blank(self._rest)

    def finish(self) -> TornTail | None:
        """Return None for a clean end, or the torn tail, after the last byte; raises Corrupt."""
        rest = self._rest
        if _is_blank(rest):
            return None
        suspicion = self.suspicion()
        if suspicion is not None:
            raise corrupt(self.key, self.offset, suspicion.what)
        # Where the file ends inside the block, zeros are the block's own; else they are reserved.
        head = _head_of(rest, 0)
        is_cut = len(rest) < (BLOCK_BYTES_MIN if head is None else BLOCK_BYTES_MIN + head[1])
        torn = len(rest) if is_cut else len(rest.rstrip(b"\0"))
        return TornTail(key=self.key, offset=self.offset, bytes=torn)

    def _block_at(self, start: int) -> Block | None:
        rest = self._rest
        head = _head_of(rest, start)
        if head is None:
            return None
        kind, length, first_seq, seqs, synced, body_crc = head
        end = start + HEAD_BYTES + length + len(END)
        if len(rest) < end:
            return None
        body = rest[start + HEAD_BYTES : end - len(END)]
        if rest[end - len(END) : end] != END or crc32c(body) != body_crc:
            return None
        offset = self.offset
        return Block(kind, self.key, offset, offset + end - start, first_seq, seqs, synced, body)

    def suspicion(self) -> Suspicion | None:
        """Return the signs of corruption at `offset`; None where a crash can have left these
        bytes.

        In a file without a writer it is corruption; see `torn_reads` for one that may be growing.
        """
        rest = self._rest
        if _is_blank(rest):
            return None
        head = _head_of(rest, 0)
        length = HEAD_BYTES if head is None else HEAD_BYTES + head[1] + len(END)
        region = rest[:length]
        if self._was_synced(rest, 1 if head is None else length):
            what = "a block that had been synced is missing or wrong"
            return Suspicion(what, is_vouched=True, region=region)
        mark = region[-4:] if head is None else region[-len(END) :]
        if len(region) < length or not any(mark) or self._has_hole(region):
            return None
        if head is None:
            what = "the head of a block does not match its CRC"
        else:
            what = "a complete block does not match its CRC"
        return Suspicion(what, is_vouched=False, region=region)

    def _has_hole(self, region: bytes) -> bool:
        """Whether some sector's share of these bytes is all zeros, as if it was never written."""
        position = 0
        while position < len(region):
            to_border = SECTOR_BYTES - (self.offset + position) % SECTOR_BYTES
            piece = region[position : position + to_border]
            # However short the piece: where a block begins and ends, it has no zero bytes.
            if not any(piece):
                return True
            position += to_border
        return False

    def _was_synced(self, rest: bytes, start: int) -> bool:
        """Whether a later block was written when this place was already on the medium."""
        for match in _MAGIC.finditer(rest, start):
            head = _head_of(rest, match.start())
            if head is not None and head[4] > self.offset:
                return True
        return False


def _is_blank(data: bytes) -> bool:
    """Whether there are zeros alone, as in megabytes of reserved blocks."""
    return not data.startswith(_MAGIC_START) and data == bytes(len(data))


def _head_of(data: bytes, start: int) -> tuple[bytes, int, int, int, int, int] | None:
    if len(data) - start < HEAD_BYTES or data[start : start + 4] not in _KINDS:
        return None
    (crc,) = _CRC.unpack_from(data, start + _HEAD.size)
    if crc32c(data[start : start + _HEAD.size]) != crc:
        return None
    return _HEAD.unpack_from(data, start)
