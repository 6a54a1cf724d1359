"""Admission: who may start next."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from itertools import islice

from ..instances.index_entry import NOT_QUEUED, WOKEN, IndexEntry

_LOOK = 256


class Queues:
    """Instances that could run: woken ones go before new ones, each kind in order of arrival."""

    def __init__(self) -> None:
        # Ordered dicts: taking the first of a plain dict is slow once many in front were deleted.
        self._woken: OrderedDict[int, IndexEntry] = OrderedDict()
        self._new: OrderedDict[int, IndexEntry] = OrderedDict()
        self._failing: OrderedDict[int, IndexEntry] = OrderedDict()

    def __len__(self) -> int:
        return len(self._woken) + len(self._new)

    def add(self, entry: IndexEntry, queue: int) -> None:
        """Put it at the end of `WOKEN` or `NEW`; where it is in that queue already it keeps its
        place."""
        if entry.queue == queue:
            return
        self.remove(entry)
        entry.queue = queue
        (self._woken if queue == WOKEN else self._new)[id(entry)] = entry

    def remove(self, entry: IndexEntry) -> None:
        """Take it out of whatever queue it is in."""
        if entry.queue == NOT_QUEUED:
            return
        del (self._woken if entry.queue == WOKEN else self._new)[id(entry)]
        self._failing.pop(id(entry), None)
        entry.queue = NOT_QUEUED

    def note_failing(self, entry: IndexEntry) -> None:
        """Its code cannot be loaded: offer it after all others."""
        if entry.queue != NOT_QUEUED:
            self._failing[id(entry)] = entry

    def first(self, free: int) -> Iterator[IndexEntry]:
        """Up to `free` of them in order; the caller may start each as it goes."""
        for queue in (self._woken, self._new):
            skipped = 0
            while free > 0:
                chunk = list(islice(queue.values(), skipped, skipped + _LOOK))
                for entry in chunk:
                    if free > 0 and entry.queue and id(entry) not in self._failing:
                        yield entry
                        free -= 1
                    skipped += id(entry) in queue
                if len(chunk) < _LOOK:
                    break
        for entry in list(islice(self._failing.values(), max(free, 0))):
            if entry.queue:
                yield entry
