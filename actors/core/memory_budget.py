"""Memory: the instances whose full state is loaded, and those that are forgotten when it is too
much."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Protocol

from dynamic_workflows.eventlog.events import Row

from ..instances.decisions import Decision, Key
from ..instances.fold import fold
from ..instances.index_entry import NOT_QUEUED, IndexEntry
from ..instances.row_payloads import decode
from .attempts import Attempts
from .lifetimes import Lifetimes
from .state import CoreState

BYTES_MAX = 128 * 1024 * 1024
"""Bytes of loaded instances above which those that do not run are unloaded, down to half."""
_LOOK = 256


class CoreMemory(Protocol):
    """The core, as far as it is about memory."""

    @property
    def loaded_bytes(self) -> int:
        """Estimated bytes that the loaded instances take."""
        ...

    def evictable(self) -> Iterable[Key]:
        """Loaded instances at rest, the longest at rest first."""
        ...

    def queued_last(self) -> Iterable[Key]:
        """Loaded instances that wait for a slot, the last in the queue first."""
        ...

    def evict(self, key: Key) -> None:
        """Unload an instance at rest."""
        ...

    def put_away(self, key: Key) -> None:
        """Unload an instance that waits for a slot."""
        ...


class MemoryBudget:
    """The budget of a tenant for what its loaded instances take."""

    def __init__(self, bytes_max: int = BYTES_MAX) -> None:
        self.bytes_max = bytes_max

    def is_too_much(self, core: CoreMemory) -> bool:
        """Whether instances have to be unloaded."""
        return core.loaded_bytes > self.bytes_max

    def relieve(self, core: CoreMemory, but: Key | None = None) -> None:
        """Unload instances that do not run, those at rest first and `but` never, until half of the
        budget is taken, or none remains that may be unloaded."""
        for forgettable, forget in (
            (core.evictable, core.evict),
            (core.queued_last, core.put_away),
        ):
            while core.loaded_bytes > self.bytes_max // 2:
                keys = list(islice(forgettable(), _LOOK))
                before = core.loaded_bytes
                for key in keys:
                    if core.loaded_bytes <= self.bytes_max // 2:
                        return
                    if key != but:
                        forget(key)
                if not keys or core.loaded_bytes == before:
                    break


class LoadedInstances:
    """Loads the full state of instances, and unloads what is not needed soon."""

    def __init__(self, state: CoreState, lifetimes: Lifetimes, attempts: Attempts) -> None:
        self._state = state
        self._lifetimes = lifetimes
        self._attempts = attempts

    def is_loaded(self, key: Key) -> bool:
        """Whether the full state is in memory."""
        return self._state.find(key).instance is not None

    def load(self, key: Key, rows: list[Row]) -> bool:
        """Load an instance from the rows of its whole history, blobs resolved. Return False, and
        load nothing, if the instance has moved on since the history was read: read it again."""
        entry = self._state.find(key)
        assert entry.instance is None
        copy = IndexEntry(key)
        for row in rows:
            body = decode(row)
            fold(copy, row, body)
            self._state.note_event(row, body)
        said = (copy.status, copy.run, copy.created_us)
        if said != (entry.status, entry.run, entry.created_us):
            return False
        entry.instance = copy.instance
        self._state.loaded_bytes += entry.weight
        entry.set("tokens", None)
        if entry.lifetime is None:
            resting = entry.queue == NOT_QUEUED
            (self._state.resting if resting else self._state.loaded_queued)[key] = entry
        return True

    def evictable(self) -> Iterator[Key]:
        """Loaded instances that nothing will happen to soon, the longest at rest first. Take what
        is wanted out of it before evicting."""
        return iter(self._state.resting)

    def evict(self, key: Key) -> None:
        """Unload an instance at rest; no-op for any other."""
        entry = self._state.index.get(key)
        if entry is not None and self._state.resting.pop(key, None) is not None:
            self._state.unload(entry)

    def queued_last(self) -> Iterator[Key]:
        """Loaded instances that wait for a slot, the last first. Take what is wanted out of it
        before putting one away."""
        return reversed(self._state.loaded_queued)

    def put_away(self, key: Key) -> None:
        """Unload an instance that waits for a slot; no-op for any other."""
        entry = self._state.loaded_queued.get(key)
        if entry is not None:
            self._state.unload(entry)

    def was_heavy(self, key: Key) -> bool:
        """Whether the instance took much memory when it was last loaded."""
        return self._state.find(key).was_heavy

    def relieve(self, bytes_max: int, *, now_us: int) -> Decision:
        """End lifetimes of instances that take more than the average, the youngest first, until
        the others take no more than `bytes_max`. The oldest goes on; the others go on
        when they are started again, and what they had in flight is tried again."""
        d = Decision()
        oldest_first = list(self._lifetimes.by_number.values())
        held = sum(life.entry.weight for life in oldest_first)
        average = held // max(len(oldest_first), 1)
        for life in reversed(oldest_first[1:]):
            if held <= bytes_max:
                break
            entry = life.entry
            if entry.weight >= average and entry.lifetime is life:
                held -= entry.weight
                self._attempts.interrupt(
                    d, entry, "the tenant's memory is full", now_us, exempt=True
                )
        return d
