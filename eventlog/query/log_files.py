"""Log files: polls a log's streams as a reader, and reports what changed since the last poll.

Nothing is locked and nothing is written. A poll costs a few `stat` calls per stream on a local
disk, one or two listings in all elsewhere; only what changed is read.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

from ..errors import Corrupt
from ..events import Row
from ..manifest import Manifest, manifest_prefix, tenant_stream
from ..store.base import Store
from ..wal.format import wal_prefix
from ..wal.recovery import TailRows, read_tail
from ..wal.scan import Position

# File times tick every few milliseconds: a file may change after it was read and show the same
# time. What was read is trusted only if it had looked the same for longer than this.
UNCHANGED_S = 0.05

CHEAP_BYTES = 64 * 1024
"""A WAL of up to so many bytes is read whole at each look, so that damage is noticed at once."""

Fingerprint = tuple[object, ...]
"""What a stream's files look like from outside; equal marks mean no change."""


@dataclass
class StreamState:
    """What a reader knows of one stream."""

    stream: str
    manifest: Manifest
    last_seq: int
    fingerprint: Fingerprint
    unchanged_since_s: float
    """When this mark was first seen, and when the files were read, on the monotonic clock."""
    read_s: float
    wal_path: str | None = None
    is_final: bool = True
    """False while rows of a superseded owner may still vanish."""
    position: Position | None = None
    """Up to where the WAL was read; only what comes after it is read at the next look."""


@dataclass(frozen=True)
class StreamDelta:
    """What changed in a stream: all rows of its tail if `is_whole`, else the new ones."""

    state: StreamState
    rows: list[Row]
    is_whole: bool
    is_new_manifest: bool


class LogFiles:
    """Follows the streams of all tenants, or of one."""

    def __init__(self, store: Store, *, tenant: str | None = None) -> None:
        self._store = store
        self._tenant = tenant
        self.states: dict[str, StreamState] = {}
        self.damaged: dict[str, Corrupt] = {}
        """Streams that could not be read at the last look; they are not among the states."""

    def poll(self, *, again: bool = False) -> tuple[list[StreamDelta], list[StreamState]]:
        """Return what changed, and the streams that were removed. `again`: discard known state
        first."""
        if again:
            self.states.clear()
        now_s = time.monotonic()
        fingerprints = self._fingerprints()
        gone = [self.states.pop(stream) for stream in set(self.states) - set(fingerprints)]
        self.damaged = {}
        updates = []
        for stream in sorted(fingerprints):
            try:
                update = self._poll(stream, fingerprints[stream], now_s)
            except Corrupt as error:
                gone += self.leave_out(stream, error)
            else:
                updates += [update] if update is not None else []
        return updates, gone

    def leave_out(self, stream: str, damage: Corrupt) -> list[StreamState]:
        """Skip a stream until the next poll; return its last state, if there is one."""
        self.damaged[stream] = damage
        known = self.states.pop(stream, None)
        return [known] if known is not None else []

    def _fingerprints(self) -> dict[str, Fingerprint]:
        """Return the current fingerprint of every stream."""
        directory = self._store.local_path("tenants")
        if directory is None:
            return self._listed_fingerprints()
        if self._tenant is not None:
            names = [tenant_stream(self._tenant).rpartition("/")[2]]
        else:
            try:
                names = os.listdir(directory)
            except FileNotFoundError:
                names = []
        root = str(directory.parent)
        streams = [f"tenants/{name}" for name in names if name.startswith("tenant=")]
        return {stream: self._local_fingerprint(f"{root}/{stream}", stream) for stream in streams}

    def _local_fingerprint(self, directory: str, stream: str) -> Fingerprint:
        known = self.states.get(stream)
        path = known.wal_path if known is not None else None
        return (
            _changed_ns(f"{directory}/manifest"),
            _changed_ns(f"{directory}/wal"),
            _size_and_time(path) if path is not None else None,
        )

    def _listed_fingerprints(self) -> dict[str, Fingerprint]:
        """Return the fingerprints from one listing, instead of a call for each stream."""
        found: dict[str, list[tuple[str, int]]] = {}
        if self._tenant is not None:
            stream = tenant_stream(self._tenant)
            found[stream] = []
            entries = [
                entry
                for prefix in (manifest_prefix(stream), wal_prefix(stream))
                for entry in self._store.list_blocking(prefix)
            ]
        else:
            entries = self._store.list_blocking("tenants/")
        for entry in entries:
            _, name, kind, *_ = [*entry.key.split("/"), "", ""]
            if kind in ("manifest", "wal"):
                found.setdefault(f"tenants/{name}", []).append((entry.key, entry.size))
        return {stream: tuple(files) for stream, files in found.items()}

    def _poll(self, stream: str, fingerprint: Fingerprint, now_s: float) -> StreamDelta | None:
        known = self.states.get(stream)
        if known is not None and fingerprint == known.fingerprint:
            if known.read_s - known.unchanged_since_s > UNCHANGED_S:
                return None
            since_s = known.unchanged_since_s
        else:
            since_s = now_s
        after = known.last_seq if known is not None and known.is_final else 0
        since = known.position if known is not None and after else None
        if since is not None and since.bytes <= CHEAP_BYTES:
            since = None
        tail = read_tail(self._store, stream, after=after, since=since)
        if since is not None and tail is not None and tail.position is not None:
            if (
                tail.position.bytes == since.bytes
                and known is not None
                and fingerprint != known.fingerprint
            ):
                # It has changed, but not by growing behind what was read: look at all of it.
                tail = read_tail(self._store, stream, after=after)
        if tail is None:
            return None
        if known is not None and after and tail.manifest.epoch != known.manifest.epoch:
            after, tail = 0, read_tail(self._store, stream) or tail
        state = self._state(stream, tail, fingerprint, since_s, now_s, known, after)
        self.states[stream] = state
        is_new = known is None or known.manifest.version != tail.manifest.version
        if known is not None and after and not tail.rows and not is_new:
            return None
        return StreamDelta(state, tail.rows, is_whole=not after, is_new_manifest=is_new)

    def _state(
        self,
        stream: str,
        tail: TailRows,
        fingerprint: Fingerprint,
        since_s: float,
        now_s: float,
        known: StreamState | None,
        after: int,
    ) -> StreamState:
        if tail.rows:
            is_final = tail.rows[-1].epoch == tail.manifest.epoch
        else:
            is_final = bool(after) and known is not None and known.is_final
        return StreamState(
            stream,
            tail.manifest,
            tail.last_seq,
            fingerprint,
            since_s,
            now_s,
            self._newest_wal(stream),
            is_final,
            tail.position,
        )

    def _newest_wal(self, stream: str) -> str | None:
        directory = self._store.local_path(f"{stream}/wal")
        if directory is None:
            return None
        try:
            return f"{directory}/{max(os.listdir(directory), default='none')}"
        except FileNotFoundError:
            return None


def _changed_ns(path: str) -> int:
    try:
        return os.stat(path).st_mtime_ns
    except FileNotFoundError:
        return 0


def _size_and_time(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    return found.st_size, found.st_mtime_ns
