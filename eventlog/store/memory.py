"""MemoryStore: objects in a dictionary, for tests and for the in-process platform."""

from __future__ import annotations

import itertools

from .base import AlreadyExists, Entries, Entry, NotFound, check_key

_named: dict[str, MemoryStore] = {}
_unnamed = itertools.count(1)


def memory_store(uri: str) -> MemoryStore:
    """Return the store of a `memory://name` URI; a fresh one where the name is empty."""
    if uri == "memory://":
        return MemoryStore()
    return _named.setdefault(uri, MemoryStore(uri))


class MemoryStore:
    """Named bytes that last as long as the process."""

    def __init__(self, root: str | None = None) -> None:
        self.root = root or f"memory://unnamed-{next(_unnamed)}"
        self.objects: dict[str, bytes] = {}

    async def create(self, key: str, data: bytes) -> None:
        """Store an object under a free name."""
        if check_key(key) in self.objects:
            raise AlreadyExists(f"{self.root}: {key} exists")
        self.objects[key] = bytes(data)

    async def put(self, key: str, data: bytes) -> None:
        """Store an object, replacing any before it."""
        self.objects[check_key(key)] = bytes(data)

    async def get(self, key: str) -> bytes:
        """Return all of the object's bytes."""
        return self.get_blocking(key)

    async def get_range(self, key: str, start: int, length: int) -> bytes:
        """Return a range of the object's bytes."""
        return self.get_range_blocking(key, start, length)

    async def list(self, prefix: str, *, after: str | None = None) -> Entries:
        """Return the entries with this prefix."""
        return self.list_blocking(prefix, after=after)

    async def delete(self, key: str) -> None:
        """Remove the object."""
        self.objects.pop(check_key(key), None)

    def get_blocking(self, key: str) -> bytes:
        """Return all of the object's bytes."""
        try:
            return self.objects[check_key(key)]
        except KeyError:
            raise NotFound(f"{self.root}: {key} does not exist") from None

    def get_range_blocking(self, key: str, start: int, length: int) -> bytes:
        """Return a range of the object's bytes."""
        return self.get_blocking(key)[start : start + length]

    def list_blocking(self, prefix: str, *, after: str | None = None) -> Entries:
        """Return the entries with this prefix."""
        return sorted(
            (
                Entry(key, len(data))
                for key, data in self.objects.items()
                if key.startswith(prefix) and (after is None or key > after)
            ),
            key=lambda entry: entry.key,
        )

    def local_path(self, key: str) -> None:
        """Return None: the objects have no files."""
        return None

    async def close(self) -> None:
        """Do nothing: a named store keeps its objects."""
