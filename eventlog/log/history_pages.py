"""History pages: the history of one instance in portions of bounded size, by number."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from ..events import Row, row_bytes, unfold

if TYPE_CHECKING:
    from ..wal.tail import Tail
    from .event_log import EventLog


async def history_page(
    log: EventLog, workflow: str, instance_id: str, *, after: int, bytes_max: int
) -> tuple[list[Row], bool]:
    """Return the unfolded rows of an instance above `after`, by seq, and whether there are more.

    The page ends with the row that fills `bytes_max`. It has all that was appended before this
    call, those of a deleted instance of the same id too: the caller knows where its own begins.
    """
    await log.written()
    key = workflow, instance_id
    async with log.tail_lock:
        manifest = log.manifest
        while log.tail.wants_index():
            await asyncio.to_thread(log.tail.index_some)
        hot, has_more = await asyncio.to_thread(
            _in_tail, log.tail, key, max(after, manifest.sealed_seq), bytes_max
        )
    if after >= manifest.sealed_seq or not manifest.rows:
        return hot, has_more
    from ..segments.segment import read_page  # not before there are segments

    cold, is_cut = await read_page(log.store, manifest.segments, key, after, bytes_max)
    if is_cut:
        return cold, True
    left = bytes_max - sum(map(row_bytes, cold))
    for place, row in enumerate(hot):
        left -= row_bytes(row)
        if left < 0:
            return cold + hot[: place + 1], has_more or place + 1 < len(hot)
    return cold + hot, has_more


def _in_tail(
    tail: Tail, key: tuple[str, str], after: int, bytes_max: int
) -> tuple[list[Row], bool]:
    found: list[Row] = []
    size = 0
    for block in tail.blocks_of(key, after=after):
        if size > bytes_max:
            return found, True
        for row in tail.rows(block):
            if (row.workflow, row.instance_id) == key:
                fresh = [one for one in unfold(row) if one.seq > after]
                size += sum(map(row_bytes, fresh))
                found += fresh
    return found, False
