"""Stores and disks that fail on purpose, the way real ones do."""

from __future__ import annotations

import asyncio
import errno
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from dynamic_workflows.eventlog.errors import Unavailable
from dynamic_workflows.eventlog.store.base import Entries, Store
from dynamic_workflows.eventlog.store.filesystem import Disk

BEFORE = "error before the effect"
AFTER = "error after the effect"
TORN = "half of the bytes, and an error"
DELAY = "late"
SHUFFLE = "entries in any order"
FULL = "no space left"

Plan = Callable[[str, str], str | None]
"""From an operation and a key to what shall go wrong, if anything."""


class FaultStore:
    """Another store, with faults by plan. It has no local path: logs on it take the object way."""

    def __init__(self, store: Store, plan: Plan | None = None, *, seed: int = 0) -> None:
        self.store = store
        self.plan: Plan = plan or (lambda _operation, _key: None)
        self.root = f"faulty+{store.root}"
        self.calls: list[tuple[str, str]] = []
        self._random = random.Random(seed)

    async def _before(self, operation: str, key: str) -> str | None:
        self.calls.append((operation, key))
        fault = self.plan(operation, key)
        if fault == DELAY:
            for _ in range(self._random.randrange(1, 20)):
                await asyncio.sleep(0)
        if fault == BEFORE:
            raise Unavailable(f"{operation} {key}: refused by the test")
        if fault == FULL and operation in ("create", "put"):
            raise Unavailable(f"{operation} {key}: no space left on device")
        return fault

    def _after(self, fault: str | None, operation: str, key: str) -> None:
        if fault in (AFTER, TORN):
            raise Unavailable(f"{operation} {key}: the reply was lost by the test")

    async def create(self, key: str, data: bytes) -> None:
        fault = await self._before("create", key)
        await self.store.create(key, data[: len(data) // 2] if fault == TORN else data)
        self._after(fault, "create", key)

    async def put(self, key: str, data: bytes) -> None:
        fault = await self._before("put", key)
        await self.store.put(key, data[: len(data) // 2] if fault == TORN else data)
        self._after(fault, "put", key)

    async def get(self, key: str) -> bytes:
        fault = await self._before("get", key)
        data = await self.store.get(key)
        self._after(fault, "get", key)
        return data

    async def get_range(self, key: str, start: int, length: int) -> bytes:
        fault = await self._before("get_range", key)
        data = await self.store.get_range(key, start, length)
        self._after(fault, "get_range", key)
        return data

    async def list(self, prefix: str, *, after: str | None = None) -> Entries:
        fault = await self._before("list", prefix)
        entries = await self.store.list(prefix, after=after)
        if fault == SHUFFLE:
            self._random.shuffle(entries)
        self._after(fault, "list", prefix)
        return entries

    async def delete(self, key: str) -> None:
        fault = await self._before("delete", key)
        await self.store.delete(key)
        self._after(fault, "delete", key)

    def get_blocking(self, key: str) -> bytes:
        return self.store.get_blocking(key)

    def get_range_blocking(self, key: str, start: int, length: int) -> bytes:
        return self.store.get_range_blocking(key, start, length)

    def list_blocking(self, prefix: str, *, after: str | None = None) -> Entries:
        return self.store.list_blocking(prefix, after=after)

    def local_path(self, key: str) -> Path | None:
        return None

    async def close(self) -> None:
        await self.store.close()


class FaultDisk(Disk):
    """The machine's disk, counted, and failing when told to."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []
        self._errors: dict[str, tuple[int, bool]] = {}
        self.short_writes = False

    def fail(self, call: str, code: int = errno.EIO, *, after: bool = False) -> None:
        """From now on this call fails, `after` it has taken effect or before."""
        self._errors[call] = (code, after)

    def mend(self) -> None:
        """Everything works again."""
        self._errors.clear()

    def count(self, call: str) -> int:
        return self.calls.count(call)

    @contextmanager
    def _call(self, call: str) -> Iterator[None]:
        self.calls.append(call)
        code, after = self._errors.get(call, (0, False))
        if code and not after:
            raise OSError(code, f"{call} failed by the test")
        yield
        if code:
            raise OSError(code, f"{call} failed by the test")

    def open_tmpfile(self, directory: str) -> int:
        with self._call("open_tmpfile"):
            return super().open_tmpfile(directory)

    def pwrite(self, handle: int, data: bytes | bytearray | memoryview, offset: int) -> int:
        with self._call("pwrite"):
            if self.short_writes and len(data) > 1:
                with memoryview(data) as view, view[: len(data) // 2] as half:
                    return super().pwrite(handle, half, offset)
            return super().pwrite(handle, data, offset)

    def datasync(self, handle: int) -> None:
        with self._call("datasync"):
            super().datasync(handle)

    def sync_directory(self, path: str) -> None:
        with self._call("sync_directory"):
            super().sync_directory(path)

    def allocate(self, handle: int, offset: int, length: int) -> None:
        with self._call("allocate"):
            super().allocate(handle, offset, length)

    def link(self, handle: int, path: str) -> None:
        with self._call("link"):
            super().link(handle, path)

    def replace(self, old: str, new: str) -> None:
        with self._call("replace"):
            super().replace(old, new)
