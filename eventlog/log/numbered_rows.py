"""Numbered rows: single rows of an open log, found by their `seq`."""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections.abc import Collection
from typing import TYPE_CHECKING

from ..events import Row

if TYPE_CHECKING:
    from ..wal.tail import Tail
    from .event_log import EventLog


async def numbered_rows(log: EventLog, wanted: Collection[tuple[int, str]]) -> dict[int, Row]:
    """Return the rows with these (seq, instance id), by seq, without those that do not exist.

    Only blocks and row groups that may hold one of them are read, one after the other, in a thread.
    The rows must not be folded ones.
    """
    await log.written()
    ids = dict(wanted)
    async with log.tail_lock:
        manifest = log.manifest
        hot = sorted(seq for seq in ids if seq > manifest.sealed_seq)
        found = await asyncio.to_thread(_in_tail, log.tail, hot)
    cold = {seq: instance_id for seq, instance_id in ids.items() if seq <= manifest.sealed_seq}
    if cold:
        from ..segments.segment import read_numbered  # not before there are segments

        found |= await read_numbered(log.store, manifest.segments, cold)
    return found


def _in_tail(tail: Tail, seqs: list[int]) -> dict[int, Row]:
    found: dict[int, Row] = {}
    place = 0
    while place < len(seqs):
        blocks = tail.blocks(after=seqs[place] - 1)
        if not blocks:
            break
        block = blocks[0]
        end = bisect_left(seqs, block.last_seq + 1)
        here = set(seqs[place:end])
        found |= {row.seq: row for row in tail.rows(block) if row.seq in here}
        place = max(end, place + 1)
    return found
