"""Blobs: values too large for a row, each in a file of its own beside the log.

`<stream>/blobs/<sha256>`, or a random name where even the hash of a value must not be seen. A blob
is durable before the row that names it is appended, never changes, and goes when no row names it.
Only the log's owner writes or removes blobs.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass

from ..codec import values
from ..errors import Corrupt, InvalidError, Unavailable, ValueTooLargeError
from ..ids import Ids
from ..store.base import AlreadyExists, NotFound, Store, create_once

ROW_BYTES_MAX = 64 * 1024
"""A value whose encoded form is larger goes into a blob."""
VALUE_BYTES_MAX = values.TEXT_BYTES_MAX
"""The largest value, encoded."""

_HASH_DIGITS = 64
_HEX = frozenset("0123456789abcdef")


@dataclass(frozen=True, slots=True)
class BlobTotals:
    """The result of one collection of blobs."""

    kept: int
    kept_bytes: int
    removed: int
    removed_bytes: int


class Blobs:
    """The blobs of one stream, as its owner stores and removes them.

    A name that an earlier owner wrote, or that was removed, is never relied on: that owner may
    still be alive and about to remove it. Such a value's name is its hash and a random end.
    """

    def __init__(self, store: Store, stream: str, *, ids: Ids) -> None:
        self._store = store
        self._prefix = f"{stream}/blobs/"
        self._ids = ids
        # Names given out since this owner opened the log: their rows may not be appended yet, so no
        # collection may judge them by the rows it sees.
        self._young: set[str] = set()
        self._own: dict[str, str] = {}
        self._lock = asyncio.Lock()

    async def put(
        self, data: bytes, *, name: str | None = None, bytes_max: int = VALUE_BYTES_MAX
    ) -> str:
        """Store a value durably and return the name for its row; equal content is stored once.

        `name`: lower-case hex, random, for values whose hash would tell too much.
        """
        if len(data) > bytes_max:
            raise ValueTooLargeError(
                f"a value of {len(data)} bytes is over the limit of {bytes_max}: "
                "store it elsewhere and pass a reference"
            )
        # The lock keeps a value from being taken as stored while a collection removes it.
        async with self._lock:
            if name is not None:
                assert len(name) < _HASH_DIGITS, "a longer name would be taken for a hash"
                await create_once(self._store, self._prefix + _checked(name), data)
                self._young.add(name)
                return name
            return await self._put_by_hash(data)

    async def _put_by_hash(self, data: bytes) -> str:
        digest = hashlib.sha256(data).hexdigest()
        if (ref := self._own.get(digest)) is None:
            ref = digest
            try:
                await self._store.create(self._prefix + ref, data)
            except (AlreadyExists, Unavailable):
                ref += self._ids.token()
                await create_once(self._store, self._prefix + ref, data)
            self._own[digest] = ref
        self._young.add(ref)
        return ref

    async def get(self, ref: str) -> bytes:
        """Return the value, whole; raises Corrupt if it is missing or not what was stored."""
        return await read_blob(self._store, self._prefix, ref)

    async def collect(
        self, live: Iterable[str], *, is_owner: Callable[[], Awaitable[bool]]
    ) -> BlobTotals:
        """Remove every blob that is neither in `live` (named by a row) nor young.

        `is_owner` reads the log's newest manifest: what was listed before a newer owner came is not
        that owner's.
        """
        keep = set(live)
        kept = kept_bytes = removed = removed_bytes = 0
        async with self._lock:
            entries = await self._store.list(self._prefix)
            if not await is_owner():
                return BlobTotals(0, 0, 0, 0)
            for entry in entries:
                ref = entry.key.removeprefix(self._prefix)
                if ref in keep or ref in self._young:
                    kept, kept_bytes = kept + 1, kept_bytes + entry.size
                    continue
                self._own.pop(ref[:_HASH_DIGITS], None)
                await self._store.delete(entry.key)
                removed, removed_bytes = removed + 1, removed_bytes + entry.size
        return BlobTotals(kept, kept_bytes, removed, removed_bytes)

    def mark_sealed(self, refs: Iterable[str]) -> None:
        """Record that sealed rows name these blobs, so that `collect` decides by the rows alone."""
        self._young.difference_update(refs)


async def read_blob(store: Store, prefix: str, ref: str) -> bytes:
    """Return a blob under `<stream>/blobs/`, verified by its hash where its name is one."""
    key = prefix + _checked(ref)
    try:
        data = await store.get(key)
    except NotFound:
        raise Corrupt(
            f"{key} is named by a row but missing: restore it from a copy", path=key, offset=0
        ) from None
    is_hash = len(ref) >= _HASH_DIGITS
    if is_hash and hashlib.sha256(data).hexdigest() != ref[:_HASH_DIGITS]:
        raise Corrupt(f"{key} is not what was stored: restore it from a copy", path=key, offset=0)
    return data


def _checked(ref: str) -> str:
    if not ref or not _HEX.issuperset(ref):
        raise InvalidError(f"{ref!r} is not a blob's name: use lower-case hex")
    return ref
