"""LocalStore: objects as files under one directory, synced before they are acknowledged.

Works on file systems of one machine. A network file system whose hard links or syncs lie cannot be
told from a good one by looking; the probe refuses those that let two creates of one name succeed.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from .base import Entries, Entry, check_key
from .filesystem import TEMPORARY, Disk, create_file, explain, replace_file

T = TypeVar("T")

THREADS_MAX = 4


class LocalStore:
    """Files under a directory, which is made when first written to."""

    reads_at_once = True
    """Whether a reading of many parts may be done in one go; the schedule explorer says no."""

    def __init__(self, path: Path, *, disk: Disk | None = None) -> None:
        self.path = path.absolute()
        self.root = str(self.path)
        self.disk = disk or Disk()
        self._threads = ThreadPoolExecutor(THREADS_MAX, thread_name_prefix="store")

    async def create(self, key: str, data: bytes) -> None:
        """Link a synced file to a free name."""
        path = self.local_path(key)
        await self._run(lambda: create_file(self.disk, path, data), path)

    async def create_and_list(self, key: str, data: bytes, prefix: str) -> Entries:
        """Create an object, then list after the key, in one change of threads."""
        path = self.local_path(key)

        def both() -> Entries:
            create_file(self.disk, path, data)
            return self.list_blocking(prefix, after=key)

        return await self._run(both, path)

    async def put(self, key: str, data: bytes) -> None:
        """Rename a synced file over the name."""
        path = self.local_path(key)
        # Other machines may share the directory, so a process id is no name.
        token = secrets.token_hex(8)
        await self._run(lambda: replace_file(self.disk, path, data, token=token), path)

    async def get(self, key: str) -> bytes:
        """Return all of the file's bytes."""
        return await self.in_thread(lambda: self.get_blocking(key))

    async def get_range(self, key: str, start: int, length: int) -> bytes:
        """Return a range of the file's bytes."""
        return await self.in_thread(lambda: self.get_range_blocking(key, start, length))

    async def list(self, prefix: str, *, after: str | None = None) -> Entries:
        """Return the entries with this prefix."""
        return await self.in_thread(lambda: self.list_blocking(prefix, after=after))

    async def delete(self, key: str) -> None:
        """Unlink the file; does not sync the directory, since a name that returns does no harm."""
        path = self.local_path(key)

        def unlink() -> None:
            try:
                self.disk.unlink(str(path))
            except FileNotFoundError:
                pass

        await self._run(unlink, path)

    def get_blocking(self, key: str) -> bytes:
        """Return all of the file's bytes."""
        path = self.local_path(key)
        try:
            return path.read_bytes()
        except OSError as error:
            raise explain(error, str(path)) from None

    def get_range_blocking(self, key: str, start: int, length: int) -> bytes:
        """Return a range of the file's bytes."""
        path = self.local_path(key)
        try:
            return self.disk.read(str(path), start, length)
        except OSError as error:
            raise explain(error, str(path)) from None

    def list_blocking(self, prefix: str, *, after: str | None = None) -> Entries:
        """Return the entries with this prefix."""
        directory = prefix.rpartition("/")[0]
        try:
            found = [
                entry
                for entry in _walk(self.path / directory, f"{directory}/" if directory else "")
                if entry.key.startswith(prefix) and (after is None or entry.key > after)
            ]
        except OSError as error:
            raise explain(error, str(self.path / directory)) from None
        return sorted(found, key=lambda entry: entry.key)

    def local_path(self, key: str) -> Path:
        """Return the path of the object's file."""
        return self.path / check_key(key)

    async def close(self) -> None:
        """End the threads."""
        self._threads.shutdown(wait=False)

    async def _run(self, work: Callable[[], T], path: Path) -> T:
        def guarded() -> T:
            try:
                return work()
            except OSError as error:
                raise explain(error, str(path)) from None

        return await self.in_thread(guarded)

    async def in_thread(self, work: Callable[[], T]) -> T:
        """Do blocking work in one of the store's threads."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)


def _walk(directory: Path, prefix: str) -> Iterator[Entry]:
    try:
        with os.scandir(directory) as entries:
            for entry in entries:
                if entry.is_dir():
                    yield from _walk(directory / entry.name, f"{prefix}{entry.name}/")
                elif not entry.name.startswith(TEMPORARY):
                    try:
                        yield Entry(f"{prefix}{entry.name}", entry.stat().st_size)
                    except FileNotFoundError:
                        pass  # deleted while we looked
    except (FileNotFoundError, NotADirectoryError):
        return
