"""Store: named bytes on a disk or an object store, the one thing that a log needs from below.

What every store promises: `create` of a name that exists fails, however many try at the same
time; what `create` and `put` have returned from survives a crash; `list` shows all that was created
before it began. Nothing else is assumed: no locks, no clocks, no order between two names.

A failure is `Unavailable`, and says nothing about whether the operation took effect. A caller that
must know uses `create_once`, which reads the name back.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ..backoff import Backoff
from ..errors import InvalidError, Unavailable, WorkflowsError
from ..ids import Ids

CREATE_TRIES_MAX = 5
_BACKOFF = Backoff(0.04, 1.0)
ROOM_BYTES = 256 * 1024
"""What `can_write` looks for room for: a disk with less is full again at once."""


class NotFound(WorkflowsError):
    """No object has this key."""

    default_code = "store.not_found"


class AlreadyExists(WorkflowsError):
    """Another object has this key; nothing was changed."""

    default_code = "store.already_exists"


@dataclass(frozen=True, slots=True)
class Entry:
    """One object in a listing; `size` in bytes."""

    key: str
    size: int


Entries = list[Entry]


class Store(Protocol):
    """Named bytes. Keys are '/'-separated relative paths, as `check_key` takes them.

    The three `*_blocking` methods are the reading half for callers that have no event loop to
    wait in (SQL readers, command-line tools); they promise the same.
    """

    root: str
    """Where it lies, as given to `open_store`, for messages."""

    async def create(self, key: str, data: bytes) -> None:
        """Store an object under a free name, durable on return. Raises AlreadyExists or
        Unavailable."""
        ...

    async def put(self, key: str, data: bytes) -> None:
        """Store an object, replacing any before it, durable on return. A reader sees all or
        nothing."""
        ...

    async def get(self, key: str) -> bytes:
        """Return all of the object; raises NotFound."""
        ...

    async def get_range(self, key: str, start: int, length: int) -> bytes:
        """Return the bytes from `start`; fewer than `length` only at the end. Raises NotFound."""
        ...

    async def list(self, prefix: str, *, after: str | None = None) -> Entries:
        """Return the entries with this prefix after the key `after`, sorted by key."""
        ...

    async def delete(self, key: str) -> None:
        """Remove an object; harmless when it does not exist."""
        ...

    def get_blocking(self, key: str) -> bytes:
        """Return what `get` does."""
        ...

    def get_range_blocking(self, key: str, start: int, length: int) -> bytes:
        """Return what `get_range` does."""
        ...

    def list_blocking(self, prefix: str, *, after: str | None = None) -> Entries:
        """Return what `list` does."""
        ...

    def local_path(self, key: str) -> Path | None:
        """Return the object's path in this machine's file system; None when it has none."""
        ...

    async def close(self) -> None:
        """Release connections and threads."""
        ...


def check_key(key: str) -> str:
    """Return the key, if every back end takes it; raises InvalidError otherwise."""
    parts = key.split("/")
    if not all(parts) or "." in parts or ".." in parts or "\\" in key or "\0" in key:
        raise InvalidError(f"{key!r} is not a store key: use relative paths without '.' and '..'")
    return key


async def create_once(store: Store, key: str, data: bytes) -> None:
    """Create an object although replies may be lost; raises AlreadyExists only for another's
    bytes.

    `data` must hold a random token, so that equal bytes can only be our own.
    """
    problem: WorkflowsError | None = None
    for tries in range(CREATE_TRIES_MAX):
        try:
            await store.create(key, data)
            return
        except AlreadyExists as error:
            problem = error
        except Unavailable as error:
            # The reply may be all that was lost, so the name itself is asked.
            problem = error
        try:
            if await store.get(key) == data:
                if store.local_path(key) is not None:
                    # What can be read from a disk need not be on it yet: the sync may have failed.
                    await store.put(key, data)
                return
            raise AlreadyExists(f"{store.root}: {key} exists with other content")
        except NotFound:
            # A conflict that vanished (409 while another create failed) or a create that never
            # arrived: both mean try again.
            pass
        except Unavailable as error:
            problem = error
        await asyncio.sleep(_BACKOFF.rest_s(tries))
    assert problem is not None
    if isinstance(problem, Unavailable):
        raise problem
    raise Unavailable(f"{store.root}: {key} could be neither created nor read: try again later")


async def can_write(store: Store, *, size: int = ROOM_BYTES) -> bool:
    """Return whether so many bytes can be stored now; removes them again."""
    key = f"probe/{secrets.token_hex(8)}"
    try:
        await store.create(key, bytes(size))
    except WorkflowsError:
        return False
    finally:
        # Best effort: as that of `probe`.
        with contextlib.suppress(WorkflowsError):
            await store.delete(key)
    return True


_probed: set[str] = set()


async def probe(store: Store, ids: Ids) -> None:
    """Refuse a store on which two creates of one name both succeed; once per process and root.

    Raises InvalidError for a store that cannot fence, Unavailable for one that cannot be reached.
    """
    if store.root in _probed:
        return
    token = ids.token()
    key = f"probe/{token}"
    await create_once(store, key, f"first {token}".encode())
    try:
        await create_once(store, key, f"second {token}".encode())
    except AlreadyExists:
        pass
    else:
        raise InvalidError(
            f"{store.root} lets two writers create one name, so it cannot keep a log from "
            "splitting: use a local disk, or a store with conditional writes"
        )
    finally:
        # Best effort: a probe that stays behind is a few unused bytes.
        with contextlib.suppress(Unavailable):
            await store.delete(key)
    _probed.add(store.root)
