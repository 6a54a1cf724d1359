"""Tail: the rows of an open log that no segment holds yet, found by seq or by instance.

The rows stay in their encoded blocks, on the local disk or (object stores) in memory; what is kept
here is where. The index by instance is built when first asked for and kept up from then on, so a
log whose instances all live in memory pays nothing for it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import msgspec

from ..errors import Corrupt
from ..events import Row, unfold

INDEX_BATCH_BLOCKS = 256


@dataclass(slots=True)
class TailBlock:
    """Where one block of rows lies. `body` is None where the WAL file has to be asked."""

    first_seq: int
    last_seq: int
    number: int
    offset: int
    """Of the body, in the file."""
    length: int
    body: bytes | None = None


BodyReader = Callable[[TailBlock], bytes]

_rows_decoder = msgspec.msgpack.Decoder(list[Row])


class Tail:
    """The unsealed blocks of one log, in order."""

    def __init__(self, read_body: BodyReader) -> None:
        self._read_body = read_body
        self._blocks: list[TailBlock] = []
        self._indexed = 0
        self._places: dict[tuple[str, str], list[int]] = {}
        self.bytes = 0
        """Of all encoded rows in it."""

    def __len__(self) -> int:
        return len(self._blocks)

    @property
    def first_seq(self) -> int | None:
        """The lowest number in the tail; None when it is empty."""
        return self._blocks[0].first_seq if self._blocks else None

    def add(self, block: TailBlock) -> None:
        """Append the next block."""
        self._blocks.append(block)
        self.bytes += block.length

    def drop(self, upto_seq: int) -> None:
        """Drop the blocks whose rows are all sealed now."""
        count = 0
        for block in self._blocks:
            if block.last_seq > upto_seq:
                break
            self.bytes -= block.length
            count += 1
        del self._blocks[:count]
        # The index is built again when it is next needed: it is small right after a seal.
        self._places = {}
        self._indexed = 0

    def blocks(self, *, after: int = 0, upto: int | None = None) -> list[TailBlock]:
        """Return the blocks that hold a number above `after`, up to the block that ends at
        `upto`."""
        start = bisect_left(self._blocks, after + 1, key=lambda block: block.last_seq)
        found = self._blocks[start:]
        return found if upto is None else [block for block in found if block.last_seq <= upto]

    def rows(self, block: TailBlock) -> list[Row]:
        """Return the rows of one block, possibly folded. May read the disk."""
        body = block.body if block.body is not None else self._read_body(block)
        try:
            return _rows_decoder.decode(body)
        except msgspec.MsgspecError as error:
            raise Corrupt(
                f"a block of WAL file {block.number} changed after it was written: {error}",
                offset=block.offset,
            ) from None

    def wants_index(self) -> bool:
        """Whether there are blocks that the index does not cover."""
        return self._indexed < len(self._blocks)

    def index_some(self) -> None:
        """Index the next few blocks. May read the disk."""
        places = self._places
        for position in range(
            self._indexed, min(self._indexed + INDEX_BATCH_BLOCKS, len(self._blocks))
        ):
            for row in self.rows(self._blocks[position]):
                found = places.setdefault((row.workflow, row.instance_id), [])
                if not found or found[-1] != position:
                    found.append(position)
            self._indexed = position + 1

    def histories(
        self, keys: set[tuple[str, str]], trim: Callable[[Row], Row] | None = None
    ) -> dict[tuple[str, str], list[Row]]:
        """Return the unfolded rows of some instances, by (workflow, instance), each as `trim`
        leaves it.

        May read the disk.
        """
        # Blocks that were appended since the caller looked are indexed here: there are few.
        while self.wants_index():
            self.index_some()
        found: dict[tuple[str, str], list[Row]] = {key: [] for key in keys}
        for position in sorted({place for key in keys for place in self._places.get(key, ())}):
            for row in self.rows(self._blocks[position]):
                rows = found.get((row.workflow, row.instance_id))
                if rows is not None:
                    rows += unfold(row if trim is None else trim(row))
        return found

    def blocks_of(self, key: tuple[str, str], *, after: int) -> list[TailBlock]:
        """The blocks with rows of an instance that may be above `after`, in order; may read the
        disk."""
        while self.wants_index():
            self.index_some()
        places = self._places.get(key, ())
        return [self._blocks[at] for at in places if self._blocks[at].last_seq > after]

    def __iter__(self) -> Iterator[TailBlock]:
        return iter(list(self._blocks))
