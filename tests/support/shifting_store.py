"""A store whose reads are no single moment: replays what an owner did to its disk beside a reader.

`Recording` notes every change that a real log makes to its disk. `ShiftingStore` makes them again,
in pieces of some bytes, while somebody reads: a read lasts for some of these pieces, and each piece
of what it gives is as it was at some moment of its own while the read lasted.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from simdisk import Inode, Medium, SimDisk

from dynamic_workflows.eventlog.store.base import Entries, Entry, NotFound

PIECE_BYTES = 192

Files = dict[str, int]
"""Which inode has which name."""


@dataclass(frozen=True)
class Change:
    """One change: bytes of a file, its size, or the names."""

    inode: int = -1
    offset: int = 0
    data: bytes = b""
    size: int | None = None
    names: Callable[[Files], None] | None = None


class Recording(SimDisk):
    """A disk that notes what is done to it, bytes in pieces."""

    def __init__(self, medium: Medium, changes: list[Change]) -> None:
        super().__init__(medium)
        self.changes = changes
        self._inodes: list[Inode] = []
        """Held, since the id of one that is gone would be another's."""

    def _number(self, inode: Inode) -> int:
        self._inodes.append(inode)
        return id(inode)

    def datasync(self, handle: int) -> None:
        """Nothing: here the power does not fail."""

    def pwrite(self, handle: int, data: bytes | bytearray | memoryview, offset: int) -> int:
        written = bytes(data)
        number = self._number(self._handles[handle])
        start = 0
        while start < len(written):
            stop = min(start + PIECE_BYTES - (offset + start) % PIECE_BYTES, len(written))
            self.changes.append(Change(number, offset + start, written[start:stop]))
            start = stop
        return super().pwrite(handle, data, offset)

    def allocate(self, handle: int, offset: int, length: int) -> None:
        inode = self._handles[handle]
        inode.data.extend(bytes(max(0, offset + length - len(inode.data))))
        self.changes.append(Change(self._number(inode), size=len(inode.data)))

    def truncate(self, handle: int, length: int) -> None:
        super().truncate(handle, length)
        self.changes.append(Change(self._number(self._handles[handle]), size=length))

    def link(self, handle: int, path: str) -> None:
        super().link(handle, path)
        number = self._number(self._handles[handle])
        self.changes.append(Change(names=lambda files: files.update({path: number})))

    def replace(self, old: str, new: str) -> None:
        super().replace(old, new)
        self.changes.append(Change(names=lambda files: files.update({new: files.pop(old)})))

    def unlink(self, path: str) -> None:
        super().unlink(path)
        self.changes.append(Change(names=lambda files: files.__delitem__(path)))


@dataclass
class ShiftingStore:
    """What a reader meets while the changes are made; no thread, the dice say what is when."""

    changes: list[Change]
    rng: random.Random
    longest: int = 40
    """So many changes may happen during one read."""
    root: str = "shifting:"
    now: int = 0
    _contents: dict[int, bytearray] = field(default_factory=dict)
    _names: Files = field(default_factory=dict)

    def go_on(self, count: int) -> None:
        """Let the owner make its next changes."""
        for change in self.changes[self.now : self.now + count]:
            content = self._contents.setdefault(change.inode, bytearray())
            if change.names is not None:
                change.names(self._names)
            elif change.size is not None:
                content.extend(bytes(max(0, change.size - len(content))))
                del content[change.size :]
            else:
                content.extend(bytes(max(0, change.offset - len(content))))
                content[change.offset : change.offset + len(change.data)] = change.data
        self.now = min(self.now + count, len(self.changes))

    def _pass_time(self) -> None:
        # Most reads are short beside what goes on around them; some are not.
        self.go_on(self.rng.choice([0, 0, 1, 2, 5, self.rng.randint(0, self.longest)]))

    def local_path(self, key: str) -> Path | None:
        return None

    def list_blocking(self, prefix: str, *, after: str | None = None) -> Entries:
        first = self._entries()
        self._pass_time()
        last = self._entries()
        # What is there all the time is listed, what comes or goes meanwhile may be.
        found = {
            key: (first if key in first and self.rng.random() < 0.5 else last).get(
                key, first.get(key)
            )
            for key in {*first, *last}
            if (key in first and key in last) or self.rng.random() < 0.5
        }
        return [
            Entry(key, size or 0)
            for key, size in sorted(found.items())
            if key.startswith(prefix) and (after is None or key > after)
        ]

    def _entries(self) -> dict[str, int]:
        return {
            path.removeprefix("/sim/"): len(self._contents[inode])
            for path, inode in self._names.items()
        }

    def get_blocking(self, key: str) -> bytes:
        return self.get_range_blocking(key, 0, 1 << 60)

    def get_range_blocking(self, key: str, start: int, length: int) -> bytes:
        inode = self._names.get(f"/sim/{key}")
        if inode is None:
            raise NotFound(f"{key} is not there")
        first = bytes(self._contents[inode])
        self._pass_time()
        last = bytes(self._contents[inode])
        # Each piece is as it was before or after; a piece changes once, so there is no third state.
        size = len(first) if self.rng.random() < 0.5 else len(last)
        data = bytearray()
        for place in range(0, size, PIECE_BYTES):
            piece = (first if self.rng.random() < 0.5 else last)[place : place + PIECE_BYTES]
            data += piece.ljust(min(PIECE_BYTES, size - place), b"\0")
        return bytes(data[start : start + length])
