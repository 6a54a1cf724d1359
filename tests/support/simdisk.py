"""A disk and a local store in memory, on which the power can fail.

What was written but not synced may be lost in parts when the power goes: names with their
directory's sync, bytes in sectors, in any order. Processes that die lose nothing of it.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from dynamic_workflows.eventlog.store.base import Entries, Entry
from dynamic_workflows.eventlog.store.filesystem import Disk, create_file, explain, replace_file
from dynamic_workflows.eventlog.store.local import LocalStore

T = TypeVar("T")
SECTOR = 512


class Inode:
    __slots__ = ("data", "dirty", "names", "synced")

    def __init__(self) -> None:
        self.data = bytearray()
        self.synced = b""
        self.dirty: set[int] = set()
        """Sectors that the kernel knows to be unwritten: a sync writes these and no others."""
        self.names = 0

    def mark(self, start: int, stop: int) -> None:
        self.dirty.update(range(start // SECTOR, -(-stop // SECTOR)))

    def sync(self) -> None:
        synced = bytearray(self.synced)
        synced.extend(bytes(len(self.data) - len(synced)))
        del synced[len(self.data) :]
        for sector in self.dirty:
            place = slice(sector * SECTOR, (sector + 1) * SECTOR)
            synced[place] = self.data[place]
        self.synced = bytes(synced)
        self.dirty.clear()


class Medium:
    """What all processes of one machine share."""

    def __init__(self) -> None:
        self.names: dict[str, Inode] = {}
        self.synced_names: dict[str, Inode] = {}

    def lose_power(self, rng: random.Random) -> None:
        """Keep what was synced, and of the rest whatever chance keeps."""
        names = dict(self.synced_names)
        for path in {*self.names, *names}:
            if self.names.get(path) is not names.get(path) and rng.random() < 0.5:
                if path in self.names:
                    names[path] = self.names[path]
                else:
                    del names[path]
        for inode in {id(inode): inode for inode in names.values()}.values():
            self._tear(inode, rng)
        self.names, self.synced_names = names, dict(names)

    def _tear(self, inode: Inode, rng: random.Random) -> None:
        if bytes(inode.data) == inode.synced:
            return
        keep = rng.choice([0.0, 0.5, 1.0])
        torn = bytearray(inode.synced)
        has_size = rng.random() < 0.7
        if has_size:
            torn.extend(bytes(len(inode.data) - len(torn)))
        for start in range(0, len(torn), SECTOR):
            if rng.random() < keep:
                stop = min(start + SECTOR, len(torn))
                torn[start:stop] = inode.data[start:stop]
        inode.data = torn
        inode.synced = bytes(torn)
        inode.dirty.clear()


class SimDisk(Disk):
    """One process's calls to the medium."""

    def __init__(self, medium: Medium) -> None:
        super().__init__()
        self.medium = medium
        self.fails_to_sync: Callable[[], bool] = lambda: False
        self._handles: dict[int, Inode] = {}

    def _inode(self, path: str) -> Inode:
        try:
            return self.medium.names[path]
        except KeyError:
            raise FileNotFoundError(2, "no such file", path) from None

    def open(self, path: str, flags: int) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            inode = Inode()
        elif flags & os.O_CREAT:
            inode = self.medium.names[path] = Inode()
            inode.names = 1
        else:
            inode = self._inode(path)
        handle = len(self._handles) + 1000
        self._handles[handle] = inode
        return handle

    def close(self, handle: int) -> None:
        pass

    def pwrite(self, handle: int, data: bytes | bytearray | memoryview, offset: int) -> int:
        inode = self._handles[handle]
        target = inode.data
        if len(target) < offset + len(data):
            target.extend(bytes(offset + len(data) - len(target)))
        target[offset : offset + len(data)] = data
        inode.mark(offset, offset + len(data))
        return len(data)

    def read(self, path: str, offset: int, length: int) -> bytes:
        return bytes(self._inode(path).data[offset : offset + length])

    def make_directory(self, path: str) -> None:
        pass

    def datasync(self, handle: int) -> None:
        inode = self._handles[handle]
        if self.fails_to_sync():
            # As Linux does it: the pages count as clean from now on, though they were not written.
            inode.dirty.clear()
            raise OSError(5, "sync failed by the test")
        inode.sync()

    def sync_directory(self, path: str) -> None:
        prefix = f"{path}/"
        medium = self.medium
        for name in {*medium.names, *medium.synced_names}:
            if name.startswith(prefix) and "/" not in name[len(prefix) :]:
                if name in medium.names:
                    medium.synced_names[name] = medium.names[name]
                else:
                    del medium.synced_names[name]

    def allocate(self, handle: int, offset: int, length: int) -> None:
        # Small, so that a schedule stays cheap: what matters is that zeros follow the data.
        target = self._handles[handle].data
        if len(target) < offset + 64:
            target.extend(bytes(offset + 64 - len(target)))

    def truncate(self, handle: int, length: int) -> None:
        del self._handles[handle].data[length:]

    def link(self, handle: int, path: str) -> None:
        if path in self.medium.names:
            raise FileExistsError(17, "exists", path)
        inode = self._handles[handle]
        inode.names += 1
        self.medium.names[path] = inode

    def replace(self, old: str, new: str) -> None:
        inode = self._inode(old)
        del self.medium.names[old]
        if new in self.medium.names:
            self.medium.names[new].names -= 1
        self.medium.names[new] = inode

    def unlink(self, path: str) -> None:
        self._inode(path).names -= 1
        del self.medium.names[path]

    def exists(self, path: str) -> bool:
        return path in self.medium.names

    def has_name(self, handle: int) -> bool:
        return self._handles[handle].names > 0


class SimStore(LocalStore):
    """The local store, as one process has it, on a medium in memory."""

    reads_at_once = False

    def __init__(self, medium: Medium) -> None:
        super().__init__(Path("/sim"), disk=SimDisk(medium))
        self.medium = medium

    def get_blocking(self, key: str) -> bytes:
        path = str(self.local_path(key))
        try:
            return self.disk.read(path, 0, 1 << 60)
        except OSError as error:
            raise explain(error, path) from None

    def list_blocking(self, prefix: str, *, after: str | None = None) -> Entries:
        return sorted(
            (
                Entry(key, len(inode.data))
                for path, inode in self.medium.names.items()
                if (key := path.removeprefix("/sim/")).startswith(prefix)
                and (after is None or key > after)
            ),
            key=lambda entry: entry.key,
        )

    async def in_thread(self, work: Callable[[], T]) -> T:
        return work()


__all__ = ["Medium", "SimDisk", "SimStore", "create_file", "replace_file"]
