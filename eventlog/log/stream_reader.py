"""Stream reader: reads a stream without owning it, beside its owner. Writes nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from ..errors import Corrupt
from ..events import Row, unfold
from ..manifest import SegmentInfo
from ..store.base import NotFound, Store
from ..wal.recovery import read_tail
from .history_reader import since_deletion

_TRIES_MAX = 20


class StreamReader:
    """Reads one stream; each call reads the files as they are then."""

    def __init__(self, store: Store, stream: str) -> None:
        self.store = store
        self.stream = stream

    async def history(self, workflow: str, instance_id: str) -> list[Row]:
        """Return the rows of an instance since its last deletion: unfolded, in order of seq.

        Empty for an instance, or a stream, that is not there. Raises Corrupt and Unavailable.
        """
        for tries_left in range(_TRIES_MAX, 0, -1):
            tail = await asyncio.to_thread(read_tail, self.store, self.stream)
            if tail is None:
                return []
            try:
                rows = await self._sealed(tail.manifest.segments, workflow, instance_id)
            except (NotFound, FileNotFoundError) as error:
                # The owner merged segments meanwhile: the newer manifest names what has the rows.
                if tries_left == 1:
                    raise Corrupt(
                        f"{self.stream}: {error}, though its manifest names it: run `verify`",
                        offset=0,
                    ) from None
                continue
            rows += [
                one
                for row in tail.rows
                if (row.workflow, row.instance_id) == (workflow, instance_id)
                for one in unfold(row)
            ]
            return since_deletion(rows)
        raise AssertionError("the last try returns or raises")

    async def _sealed(
        self, segments: Sequence[SegmentInfo], workflow: str, instance_id: str
    ) -> list[Row]:
        if not segments:
            return []
        from ..segments.segment import read_instance  # not before there are segments

        return await read_instance(self.store, segments, workflow, instance_id)
