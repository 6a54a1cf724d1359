"""Instance index: every instance of a tenant by key, and in order of creation for lists."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator

from dynamic_workflows.loaders.protocol.contract import STATUSES

from .decisions import Key
from .index_entry import IndexEntry
from .state_machine import NONE


class InstanceIndex:
    """The index of a tenant; knows how many instances have each status."""

    def __init__(self) -> None:
        self._by_key: dict[Key, IndexEntry] = {}
        self.get: Callable[[Key], IndexEntry | None] = self._by_key.get
        """The entry of an instance, or None; each row of a replay asks for one."""
        self._by_age: list[IndexEntry] = []
        self._gone = 0
        self.counts = dict.fromkeys(sorted(STATUSES), 0)

    def __len__(self) -> int:
        return len(self._by_key)

    def __contains__(self, key: Key) -> bool:
        return key in self._by_key

    def __iter__(self) -> Iterator[IndexEntry]:
        return iter(list(self._by_key.values()))

    def add(self, entry: IndexEntry) -> None:
        """Add an instance that was just created."""
        self._by_key[entry.key] = entry
        self._by_age.append(entry)

    def remove(self, entry: IndexEntry) -> None:
        """Remove a deleted instance."""
        del self._by_key[entry.key]
        self._gone += 1
        if self._gone > 64 and self._gone * 2 > len(self._by_age):
            self._by_age = [one for one in self._by_age if one.status != NONE]
            self._gone = 0

    def moved(self, before: str, now: str) -> None:
        """Update the counts after a change of status."""
        if before != NONE:
            self.counts[before] -= 1
        if now != NONE:
            self.counts[now] += 1

    def newest_before(self, created_seq: int | None) -> Iterator[IndexEntry]:
        """Return the instances created before this seq (None: all), newest first."""
        index = len(self._by_age)
        if created_seq is not None:
            index = bisect_left(self._by_age, created_seq, key=lambda one: one.created_seq)
        for at in range(index - 1, -1, -1):
            if self._by_age[at].status != NONE:
                yield self._by_age[at]
