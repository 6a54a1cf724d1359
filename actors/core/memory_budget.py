"""Heft: what the loaded instances of a tenant may take, and who is forgotten when it is more."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Protocol

from ..instances.decisions import Key

BYTES_MAX = 128 * 1024 * 1024
"""Of loaded instances, before those that do not run are forgotten; half of it may stay."""
HEAVY_BYTES = 1024 * 1024
"""An instance that takes more is loaded while no other one of that kind is."""
_LOOK = 256


class CoreMemory(Protocol):
    """The core, as far as it is about memory."""

    @property
    def loaded_bytes(self) -> int:
        """What the loaded instances take."""
        ...

    def evictable(self) -> Iterable[Key]:
        """Those at rest, the longest at rest first."""
        ...

    def queued_last(self) -> Iterable[Key]:
        """Those that wait for a slot, the last first."""
        ...

    def evict(self, key: Key) -> None:
        """Forget one at rest."""
        ...

    def put_away(self, key: Key) -> None:
        """Forget one that waits for a slot."""
        ...


class Heft:
    """The budget of a tenant for what its loaded instances take."""

    def __init__(self, bytes_max: int = BYTES_MAX) -> None:
        self.bytes_max = bytes_max

    def is_too_much(self, core: CoreMemory) -> bool:
        """Whether somebody should be forgotten."""
        return core.loaded_bytes > self.bytes_max

    def relieve(self, core: CoreMemory, but: Key | None = None) -> None:
        """Forget instances, but one, that do not run, those at rest first, until half of the budget
        is left; less is left where those that run take more."""
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
