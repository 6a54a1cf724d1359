"""Blobs: values too large for a row, each in a file of its own beside the log.

`<stream>/blobs/<sha256>`, or a random name where even the hash of a value must not be seen. A blob
is durable before the row that names it is appended, is never changed, and goes when no row names it.
Only the log's owner writes or removes blobs.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

from .errors import Corrupt, InvalidError, ValueTooLargeError
from .store import AlreadyExists, NotFound, Store

ROW_BYTES_MAX = 64 * 1024
"""A value whose encoded form is larger goes into a blob."""
VALUE_BYTES_MAX = 64 * 1024 * 1024
"""The largest value, encoded."""

_HEX = frozenset("0123456789abcdef")


@dataclass(frozen=True, slots=True)
class BlobTotals:
    """What a collection found and did."""

    kept: int
    kept_bytes: int
    removed: int
    removed_bytes: int


class Blobs:
    """The blobs of one stream, in the hands of its owner."""

    def __init__(self, store: Store, stream: str) -> None:
        self._store = store
        self._prefix = f"{stream}/blobs/"
        # Names given out since this owner opened the log: their rows may not be appended yet, so no
        # collection may judge them by the rows it sees.
        self._young: set[str] = set()
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
        ref = hashlib.sha256(data).hexdigest() if name is None else _checked(name)
        assert name is None or len(name) != 64, "a name of 64 digits would be taken for a hash"
        self._young.add(ref)
        async with self._lock:
            try:
                await self._store.create(self._prefix + ref, data)
            except AlreadyExists:
                if await self._store.get(self._prefix + ref) != data:
                    raise Corrupt(
                        f"{self._prefix}{ref} holds another value: restore it, or remove it if no "
                        "row names it (`dynamic-workflows verify` tells)",
                        path=self._prefix + ref,
                        offset=0,
                    ) from None
        return ref

    async def get(self, ref: str) -> bytes:
        """The value, whole; Corrupt if it is missing or not what was stored."""
        return await read_blob(self._store, self._prefix, ref)

    async def collect(self, live: Iterable[str]) -> BlobTotals:
        """Remove every blob that is neither in `live` (named by a row) nor young."""
        keep = set(live)
        kept = kept_bytes = removed = removed_bytes = 0
        for entry in await self._store.list(self._prefix):
            ref = entry.key.removeprefix(self._prefix)
            # The lock keeps a `put` of the same content from believing in a file that is going.
            async with self._lock:
                if ref in keep or ref in self._young:
                    kept, kept_bytes = kept + 1, kept_bytes + entry.size
                    continue
                await self._store.delete(entry.key)
                removed, removed_bytes = removed + 1, removed_bytes + entry.size
        return BlobTotals(kept, kept_bytes, removed, removed_bytes)

    def settle(self, refs: Iterable[str]) -> None:
        """These names stand in rows of the log by now: from here on the rows decide."""
        self._young.difference_update(refs)


async def read_blob(store: Store, prefix: str, ref: str) -> bytes:
    """A blob under `<stream>/blobs/`, proven by its hash where its name is one."""
    key = prefix + _checked(ref)
    try:
        data = await store.get(key)
    except NotFound:
        raise Corrupt(
            f"{key} is named by a row but missing: restore it from a copy", path=key, offset=0
        ) from None
    if len(ref) == 64 and hashlib.sha256(data).hexdigest() != ref:
        raise Corrupt(f"{key} is not what was stored: restore it from a copy", path=key, offset=0)
    return data


def _checked(ref: str) -> str:
    if not ref or not _HEX.issuperset(ref):
        raise InvalidError(f"{ref!r} is not a blob's name: use lower-case hex")
    return ref
